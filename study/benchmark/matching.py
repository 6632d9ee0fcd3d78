"""Activation matching: one pass for all permutation groups, against one pass per group as in the paper's code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial

import torch

from study.benchmark.contest import Part, in_turns, timed
from study.benchmark.results import Comparison, Row
from study.benchmark.settings import Matching
from trainables.models import build_model
from trainables.symmetry.matching import activation_moments
from trainables.symmetry.permutations import PermutationSpec, permutation_spec


def parts(setting: Matching, stack: ExitStack) -> dict[str, Part]:
    """Return the comparison of the two, title -> comparison."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model_a, model_b = (build_model(setting.model, width=setting.width).to(device) for _ in range(2))
    batches = list(torch.split(torch.randn(setting.images, 3, 32, 32, device=device), 250))
    spec = permutation_spec(model_a)
    alone = [one_group(spec, group) for group in spec.groups]
    title = f"matching {setting.model} x{setting.width:g}, {setting.images} images, against {len(alone)} passes"

    def run(specs: Iterable[PermutationSpec]) -> float:
        """Return the seconds of collecting the moments. The assignments, the same for both, are not timed."""
        return timed(lambda: [activation_moments(model_a, model_b, each, batches) for each in specs])[0]

    def measure(rounds: Iterable[int]) -> Iterator[Row]:
        torch.set_num_threads(setting.threads)
        ways = {"ours": partial(run, [spec]), "other": partial(run, alone)}
        for way in ways.values():  # uncounted
            way()
        yield Comparison(name=title, **in_turns(ways, rounds))

    return {title: measure}


def one_group(spec: PermutationSpec, group: str) -> PermutationSpec:
    """Return a specification that has only the permutation group `group`."""
    axes = {name: tuple(each if each == group else None for each in groups) for name, groups in spec.axes.items()}
    return PermutationSpec(axes=axes, sizes={group: spec.sizes[group]}, taps={group: spec.taps[group]})
