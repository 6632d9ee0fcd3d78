"""Permutations of hidden units: which tensor axes a permutation acts on, and how to apply, invert and compose them.

A network computes the same function after its hidden units are renumbered, provided that every tensor axis which
touches those units is renumbered with them. A *group* is a set of units that must move together (all channels of
one residual stream, say). The specification of a network lists, for each tensor of its state dict, the group that
acts on each axis; nothing here knows about a particular architecture. The representation follows Git Re-Basin
(Ainsworth et al., 2023, section 3).

Everything is a function on dicts of tensors: state dicts, masks and any subset of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from trainables.checks import known

Permutation = dict[str, Tensor]
"""Group name -> int64 index vector ``p`` of the group's size: ``new[i] = old[p[i]]`` along every axis it acts on."""


@dataclass(frozen=True, kw_only=True)
class PermutationSpec:
    """Where each permutation group acts in a network.

    Attributes:
        axes: tensor name -> group per axis (``None``: the axis is not permuted), for *every* tensor of the state
            dict. A convolution weight of shape (out, in, kh, kw) has four entries; a scalar has none.
        sizes: group name -> number of units.
        taps: group name -> name of the module whose output (N, units, ...) holds the group's units after their
            activation function. Activation matching observes the group there.
    """

    axes: Mapping[str, tuple[str | None, ...]]
    sizes: Mapping[str, int]
    taps: Mapping[str, str]

    def __post_init__(self) -> None:
        used = {group for groups in self.axes.values() for group in groups if group is not None}
        assert used == set(self.sizes), f"groups in axes {sorted(used)} and sizes {sorted(self.sizes)} differ"
        assert set(self.taps) == set(self.sizes), f"groups in taps {sorted(self.taps)} and sizes differ"

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names, from the input of the network to its output."""
        return tuple(self.sizes)

    def occurrences(self, group: str) -> Iterator[tuple[str, int]]:
        """Yield (tensor name, axis) wherever `group` acts."""
        for name, groups in self.axes.items():
            for axis, acting in enumerate(groups):
                if acting == group:
                    yield name, axis


def permutation_spec(model: torch.nn.Module) -> PermutationSpec:
    """Return the permutation specification of `model`.

    Raises:
        ValueError: the model has no permutation specification, or a layer computes its weights from other tensors.
    """
    require_plain_weights(model)
    specify = getattr(model, "permutation_spec", None)
    if not callable(specify):
        raise ValueError(f"{type(model).__name__} has no permutation_spec(); models built by build_model() have one")
    spec: PermutationSpec = specify()
    return spec


def require_plain_weights(model: torch.nn.Module) -> None:
    """Raise ValueError if a layer computes its weights from other tensors, as PyTorch's pruning hooks do."""
    for path, module in model.named_modules():
        where = f"layer {path!r} of {type(model).__name__}"
        pruned = [name.removesuffix("_orig") for name in module._parameters if name.endswith("_orig")]
        if pruned:
            raise ValueError(
                f"{where} is pruned by torch.nn.utils.prune, which computes its {pruned[0]} from other tensors; "
                f"make it an ordinary parameter with torch.nn.utils.prune.remove(module, {pruned[0]!r}): zeros remain"
            )
        if is_parametrized(module):
            raise ValueError(
                f"{where} is parametrized; make its weights ordinary parameters with "
                "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
            )


def apply_permutation(
    spec: PermutationSpec, permutation: Permutation, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Renumber the units of `tensors`: ``new[i] = old[p[i]]`` along every axis that a group acts on.

    Args:
        spec: the network's specification.
        permutation: group -> index vector; a group that is absent stays as it is.
        tensors: a state dict, masks, or any subset; each tensor must have its shape in the network.

    Returns:
        New tensors under the same names, in the same order.

    Raises:
        ValueError: a name that the specification does not list, a wrong number or length of axes, or an index vector
            that is not a permutation of its group.
    """
    check_permutation(spec, permutation)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in spec.axes:
            raise ValueError(f"tensor {name!r} is not in the permutation spec; known: {', '.join(sorted(spec.axes))}")
        groups = spec.axes[name]
        if tensor.dim() != len(groups):
            raise ValueError(f"tensor {name!r} has {tensor.dim()} axes, the permutation spec lists {len(groups)}")
        moved = tensor
        for axis, group in enumerate(groups):
            if group is None:
                continue
            if tensor.shape[axis] != spec.sizes[group]:
                raise ValueError(
                    f"tensor {name!r} has {tensor.shape[axis]} units on axis {axis}, "
                    f"group {group!r} has {spec.sizes[group]}"
                )
            if group in permutation:
                moved = moved.index_select(axis, permutation[group].to(tensor.device))
        result[name] = moved.clone() if moved is tensor else moved
    return result


def invert_permutation(permutation: Permutation) -> Permutation:
    """Return the permutation that undoes `permutation`."""
    return {group: torch.argsort(indices) for group, indices in permutation.items()}


def compose_permutations(first: Permutation, second: Permutation) -> Permutation:
    """Return the permutation that acts like `first`, then `second`.

    ``apply(second, apply(first, x)) == apply(compose(first, second), x)``. A group that only one of the two permutes is
    copied from that one.
    """
    both = {group: indices[second[group]] for group, indices in first.items() if group in second}
    return {group: indices.clone() for group, indices in {**first, **second, **both}.items()}


def identity_permutation(spec: PermutationSpec) -> Permutation:
    """Return the permutation that leaves every unit in place."""
    return {group: torch.arange(size) for group, size in spec.sizes.items()}


def random_permutation(spec: PermutationSpec, generator: torch.Generator | int = 0) -> Permutation:
    """Draw each group's permutation uniformly.

    Args:
        spec: the network's specification.
        generator: a CPU generator, or the seed of a new one.

    Returns:
        Group -> int64 index vector (units,) on the CPU.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    return {group: torch.randperm(size, generator=generator) for group, size in spec.sizes.items()}


def check_permutation(spec: PermutationSpec, permutation: Permutation) -> None:
    """Raise ValueError unless each index vector is a permutation of a known group."""
    for group, indices in permutation.items():
        known("permutation group", group, spec.groups)
        size = spec.sizes[group]
        if indices.shape != (size,) or not torch.equal(torch.sort(indices.cpu()).values, torch.arange(size)):
            raise ValueError(
                f"group {group!r} needs a permutation of 0..{size - 1}, got a vector of shape {tuple(indices.shape)}"
            )
