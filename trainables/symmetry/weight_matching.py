"""Weight matching: align the parameters of two networks without data (Ainsworth et al., 2023, section 3.2).

The objective is the inner product of the permuted parameters of A with those of B, which is, up to a constant, minus
half their squared distance. With all other groups fixed, the best permutation of one group solves a linear assignment
problem; improving one group after another climbs to a local optimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainables.symmetry.matching import Problem, solve_assignment
from trainables.symmetry.permutations import Permutation, PermutationSpec, apply_permutation, identity_permutation

MIN_GAIN = 1e-12
"""Smallest relative gain that counts as an improvement: with smaller ones, rounding could make the search cycle."""


def by_weights(problem: Problem) -> Permutation:
    """Pair units by their weights."""
    permutation, _objective = match_weights(problem)
    return permutation


def match_weights(problem: Problem) -> tuple[Permutation, tuple[float, ...]]:
    """Climb from the identity, one group at a time in a seeded random order, until no group can be improved.

    The order depends on the problem's seed; different orders may end in different local optima.

    Returns:
        The permutation, and the objective at the start and after each accepted step (strictly increasing).
    """
    spec, parameters_a, parameters_b = problem.spec, problem.parameters_a, problem.parameters_b
    used = [name for name in parameters_a if any(spec.axes[name])]
    tensors_a = {name: parameters_a[name] for name in used}
    tensors_b = {name: parameters_b[name] for name in used}
    touched = {group: [name for name in used if group in spec.axes[name]] for group in spec.groups}
    permutation = identity_permutation(spec)
    # Float64 throughout, to resolve a relative gain of MIN_GAIN.
    scale = sum(_inner(tensors_b, tensors_b).values()) or 1.0
    parts = _inner(tensors_a, tensors_b)
    history = [sum(parts.values())]
    generator = torch.Generator().manual_seed(problem.seed)
    pending = set(spec.groups)
    while pending:
        for index in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[index]
            if group not in pending:
                continue
            pending.discard(group)
            score = _score(spec, permutation, group, tensors_a, tensors_b)
            candidate = {**permutation, group: solve_assignment(score.cpu().numpy())}
            moved = apply_permutation(spec, candidate, {name: tensors_a[name] for name in touched[group]})
            candidate_parts = {**parts, **_inner(moved, tensors_b)}
            objective = sum(candidate_parts.values())
            if objective - history[-1] <= MIN_GAIN * scale:
                continue
            permutation, parts = candidate, candidate_parts
            history.append(objective)
            pending |= _neighbours(spec, group, touched[group])
    return permutation, tuple(history)


def _neighbours(spec: PermutationSpec, group: str, names: Iterable[str]) -> set[str]:
    """Return the groups that have a new problem to solve once `group` has moved: those on its tensors' other axes."""
    neighbours: set[str] = set()
    for name in names:
        acting = [other for other in spec.axes[name] if other is not None]
        acting.remove(group)  # one occurrence: a group on two axes is its own neighbour
        neighbours.update(acting)
    return neighbours


def _score(
    spec: PermutationSpec,
    permutation: Permutation,
    group: str,
    tensors_a: Mapping[str, Tensor],
    tensors_b: Mapping[str, Tensor],
) -> Tensor:
    """Return how much unit j of A in place i adds to the objective, float64 (units of B, units of A).

    The score is exact for tensors that the group acts on once. For a tensor that the group acts on twice, the other
    axis is held fixed, so the caller must check the step.
    """
    size = spec.sizes[group]
    score = next(iter(tensors_b.values())).new_zeros((size, size), dtype=torch.float64)
    for name, axis in spec.occurrences(group):
        if name in tensors_a:
            moved = tensors_a[name]
            for other, acting in enumerate(spec.axes[name]):
                if acting is not None and other != axis:
                    moved = moved.index_select(other, permutation[acting].to(moved.device))
            rows_a = moved.movedim(axis, 0).reshape(size, -1).double()
            rows_b = tensors_b[name].movedim(axis, 0).reshape(size, -1).double()
            score += rows_b @ rows_a.T
    return score


def _inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the inner product of each tensor in `first` with that of the same name in `second`."""
    products = [
        torch.dot(tensor.reshape(-1).double(), second[name].reshape(-1).double()) for name, tensor in first.items()
    ]
    return dict(zip(first, torch.stack(products).tolist(), strict=True))
