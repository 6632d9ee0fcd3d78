"""Activation matching: one pass for all permutation groups, against one pass per group as in the paper's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from study.benchmark.contest import Budget, compare
from study.benchmark.results import Comparison
from trainables.checks import bounded
from trainables.knobs import KNOBS
from trainables.models import build_model, check_width
from trainables.symmetry.matching import activation_moments
from trainables.symmetry.permutations import PermutationSpec, permutation_spec


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The networks and images to match.

    Attributes:
        model: a name in ``MODELS``.
        width: its width.
        images: number of random RGB images of 32 x 32 pixels.
        threads: CPU threads.
    """

    model: str = "resnet20"
    width: float = 1.0
    images: int = 1000
    threads: int = 1

    def __post_init__(self) -> None:
        KNOBS["model"].checked(self.model)
        check_width(self.model, self.width)
        bounded("images", self.images, "[1, inf)", whole=True)
        bounded("threads", self.threads, "[1, inf)", whole=True)


def parts(setting: Setting) -> int:
    """Return the number of parts of the measurement."""
    return 1


def measure(setting: Setting, budget: Budget) -> Iterator[Comparison]:
    """Compare the two. Both collect the same moments of the same activations; the assignments are not timed."""
    torch.set_num_threads(setting.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model_a, model_b = (build_model(setting.model, width=setting.width).to(device) for _ in range(2))
    batches = list(torch.split(torch.randn(setting.images, 3, 32, 32, device=device), 250))
    spec = permutation_spec(model_a)
    alone = [one_group(spec, group) for group in spec.groups]
    name = f"matching {setting.model} x{setting.width:g}, {setting.images} images, against {len(alone)} passes"
    if not budget.begins(name):
        return
    yield compare(
        name,
        lambda: activation_moments(model_a, model_b, spec, batches),
        lambda: [activation_moments(model_a, model_b, each, batches) for each in alone],
        budget.rounds(),
    )


def one_group(spec: PermutationSpec, group: str) -> PermutationSpec:
    """Return a specification that has only the permutation group `group`."""
    axes = {name: tuple(each if each == group else None for each in groups) for name, groups in spec.axes.items()}
    return PermutationSpec(axes=axes, sizes={group: spec.sizes[group]}, taps={group: spec.taps[group]})
