"""Matching: find the permutation of network A's hidden units that aligns A with network B.

Activation matching pairs units that respond alike: for each permutation group it solves a linear assignment problem
on the similarity of A's and B's activations. A permutation leaves the function of A unchanged, so the activations of
one group do not depend on how the others are permuted, and the statistics of *all* groups come from one pass over the
data. Weight matching (``trainables.symmetry.weight_matching``) needs no data.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from trainables.checks import known
from trainables.methods import MATCHERS
from trainables.symmetry.moments import ActivationMoments, positions
from trainables.symmetry.permutations import (
    Permutation,
    PermutationSpec,
    identity_permutation,
    permutation_spec,
    random_permutation,
)
from trainables.training.evaluation import Batches, eval_mode, image_batches, model_device, observed


def activation_moments(
    model_a: nn.Module, model_b: nn.Module, spec: PermutationSpec, batches: Batches
) -> dict[str, ActivationMoments]:
    """Collect the moments of every group from one pass over the data through both networks, in eval mode.

    Args:
        model_a: the network to move; on any device.
        model_b: the reference; the moments are kept on its device.
        spec: names the module at whose output each group is observed (`taps`).
        batches: images (N, C, H, W), labels ignored.

    Returns:
        Group -> moments, in the order of the specification.

    Raises:
        ValueError: a tapped module does not run exactly once per forward pass.
    """
    moments = {group: ActivationMoments() for group in spec.groups}
    device_a, device_b = model_device(model_a), model_device(model_b)
    groups = {tap: group for group, tap in spec.taps.items()}
    waiting: dict[str, Tensor] = {}

    def keep(tap: str, _input: Tensor, output: Tensor) -> None:
        group = groups[tap]
        if group in waiting:
            raise ValueError(f"module {tap!r} of group {group!r} ran twice in one forward pass")
        waiting[group] = positions(output)

    def meet(tap: str, _input: Tensor, output: Tensor) -> None:
        group = groups[tap]
        if group not in waiting:
            raise ValueError(f"module {tap!r} of group {group!r} ran twice in one forward pass, or not in A")
        # A's activations are released as soon as B's arrive, so memory never holds those of both whole networks.
        moments[group].update(waiting.pop(group), positions(output))

    with torch.no_grad(), eval_mode(model_a, model_b):
        for images in image_batches(batches, device_b):
            with observed(model_a, groups, keep):
                model_a(images.to(device_a))
            with observed(model_b, groups, meet):
                model_b(images)
            if waiting:
                raise ValueError(f"tapped modules of groups {', '.join(waiting)} did not run in B")
    return moments


def solve_assignment(score: NDArray[np.float64]) -> Tensor:
    """Return the permutation p that maximises ``sum_i score[i, p[i]]``.

    A dead unit, with all scores zero, fits every place equally well. Dead units keep their places as far as the live
    ones allow, so that rounding errors in the live units' scores do not decide where the dead ones go.

    Args:
        score: (units of B, units of A).

    Returns:
        int64 (units,): unit p[i] of A goes to place i of B.

    Raises:
        ValueError: a score is infinite or NaN.
    """
    assert score.ndim == 2
    assert score.shape[0] == score.shape[1]
    if not np.isfinite(score).all():
        raise ValueError("matching scores are not finite: weights or activations of a network are NaN or overflow")
    _rows, chosen = linear_sum_assignment(score, maximize=True)
    silent_b, silent_a = np.abs(score).max(axis=1) == 0, np.abs(score).max(axis=0) == 0
    places = np.flatnonzero(silent_b | silent_a[chosen])
    if len(places):
        units = np.sort(chosen[places])
        # Assign these places again: no two live units may be paired here, and all other pairs score the same.
        forbidden = ~(silent_b[places][:, None] | silent_a[units])
        stays = (places[:, None] == units).astype(np.float64)
        _rows, dealt = linear_sum_assignment(np.where(forbidden, -1.0 - len(places), stays), maximize=True)
        chosen[places] = units[dealt]
    return torch.from_numpy(np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The input of a matching method.

    Attributes:
        spec: permutation specification of both networks.
        parameters_a: name -> parameter of A, without buffers such as BatchNorm's running statistics.
        parameters_b: the same of B, on A's device.
        moments: group -> activation moments; empty without data.
        seed: seeds the method's random draws.
    """

    spec: PermutationSpec
    parameters_a: Mapping[str, Tensor]
    parameters_b: Mapping[str, Tensor]
    moments: Mapping[str, ActivationMoments]
    seed: int


def by_correlation(problem: Problem) -> Permutation:
    """Pair units whose activations correlate (Pearson)."""
    return _assign(problem, ActivationMoments.correlation)


def by_inner_product(problem: Problem) -> Permutation:
    """Pair units by the raw inner product of their activations (paper, Eq. 1)."""
    return _assign(problem, ActivationMoments.inner_product)


def _assign(problem: Problem, score: Callable[[ActivationMoments], Tensor]) -> Permutation:
    return {group: solve_assignment(score(moments).cpu().numpy()) for group, moments in problem.moments.items()}


def identity(problem: Problem) -> Permutation:
    """Leave every unit where it is."""
    return identity_permutation(problem.spec)


def random(problem: Problem) -> Permutation:
    """Draw a uniformly random permutation."""
    return random_permutation(problem.spec, problem.seed)


@dataclass(frozen=True, kw_only=True)
class Match:
    """A permutation that moves A onto B, with measures of its quality.

    Without data, the correlations are empty.

    Attributes:
        permutation: ``apply_permutation(spec, permutation, A.state_dict())`` aligns with B.
        correlation: group -> Pearson correlation of matched units, mean over the group's pairs, in [-1, 1]; a pair
            with a dead unit counts as 0.
        correlation_identity: the same without permuting: unit i of A with unit i of B.
    """

    permutation: Permutation
    correlation: Mapping[str, float]
    correlation_identity: Mapping[str, float]

    @property
    def moved(self) -> dict[str, float]:
        """Group -> share of its units that change place, in [0, 1]."""
        return {
            group: (indices != torch.arange(len(indices))).double().mean().item()
            for group, indices in self.permutation.items()
        }

    @property
    def moved_units(self) -> float:
        """Share of all units that change place, in [0, 1]."""
        units = sum(len(indices) for indices in self.permutation.values())
        return sum(share * len(self.permutation[group]) for group, share in self.moved.items()) / units


def match_models(
    model_a: nn.Module, model_b: nn.Module, batches: Batches | None, method: str = "activation", *, seed: int = 0
) -> Permutation:
    """Find the permutation that moves A onto B.

    The paper's Eq. 1 maximises the inner product of activations ("activation_inner"); its code and our default
    ("activation") maximise their Pearson correlation.

    Args:
        model_a: the network to move. Neither network is changed.
        model_b: the reference, of the same architecture.
        batches: images (N, C, H, W), labels ignored, one pass; may be None for a method that needs no data.
        method: a name in ``trainables.methods.MATCHERS``.
        seed: seeds the random draws of "weight" and "random".

    Returns:
        Group -> index vector on the CPU; ``apply_permutation(spec, p, model_a.state_dict())`` aligns with B.

    Raises:
        ValueError: an unknown method, no batches for a method that needs them, or networks of different architectures.
    """
    return _solve(model_a, model_b, batches, method, seed, measured=False)[0]


def match(
    model_a: nn.Module, model_b: nn.Module, batches: Batches | None, method: str = "activation", *, seed: int = 0
) -> Match:
    """Find the permutation that moves A onto B and measure it; arguments and errors as in `match_models`."""
    permutation, moments = _solve(model_a, model_b, batches, method, seed, measured=True)
    matched: dict[str, float] = {}
    unmatched: dict[str, float] = {}
    for group, collected in moments.items():
        correlation = collected.correlation().cpu()
        places = torch.arange(len(correlation))
        matched[group] = correlation[places, permutation[group]].mean().item()
        unmatched[group] = correlation[places, places].mean().item()
    return Match(permutation=permutation, correlation=matched, correlation_identity=unmatched)


def mean_over_groups(values: Mapping[str, float]) -> float:
    """Return the mean over groups, all with equal weight regardless of their sizes.

    Raises:
        ValueError: no groups, as in the correlations of a match without data.
    """
    if not values:
        raise ValueError("no groups to average: were batches given to match()?")
    return sum(values.values()) / len(values)


def _solve(
    model_a: nn.Module, model_b: nn.Module, batches: Batches | None, method: str, seed: int, *, measured: bool
) -> tuple[Permutation, dict[str, ActivationMoments]]:
    """Return the permutation, and the moments if there are batches and the method or `measured` asks for them."""
    known("matching method", method, MATCHERS)
    matcher = MATCHERS[method]
    if matcher.needs_data and batches is None:
        raise ValueError(f"matching method {method!r} needs batches, got None")
    spec = _common_spec(model_a, model_b)
    moments: dict[str, ActivationMoments] = {}
    if batches is not None and (measured or matcher.needs_data):
        moments = activation_moments(model_a, model_b, spec, batches)
    device = model_device(model_a)
    problem = Problem(
        spec=spec,
        parameters_a={name: tensor.detach() for name, tensor in model_a.named_parameters()},
        parameters_b={name: tensor.detach().to(device) for name, tensor in model_b.named_parameters()},
        moments=moments,
        seed=seed,
    )
    solve: Callable[[Problem], Permutation] = pkgutil.resolve_name(matcher.solve)
    return solve(problem), moments


def _common_spec(model_a: nn.Module, model_b: nn.Module) -> PermutationSpec:
    spec_a, spec_b = permutation_spec(model_a), permutation_spec(model_b)
    if spec_a != spec_b:
        raise ValueError(
            f"A ({type(model_a).__name__}) and B ({type(model_b).__name__}) differ in architecture or width: "
            f"units per group {dict(spec_a.sizes)} and {dict(spec_b.sizes)}"
        )
    return spec_a
