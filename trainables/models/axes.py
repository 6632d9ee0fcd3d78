"""Building blocks of permutation specifications, one per kind of layer, as in Git Re-Basin (Ainsworth et al., 2023).

Each block returns tensor name -> group per axis, as in :class:`trainables.symmetry.permutations.PermutationSpec`. A
model joins the blocks of its layers in the order of its state dict.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainables.symmetry.permutations import PermutationSpec

Axes = dict[str, tuple[str | None, ...]]


def conv(name: str, before: str | None, after: str | None, *, bias: bool = False) -> Axes:
    """Return the axes of a convolution from group `before` to group `after`, weight (out, in, kernel, kernel)."""
    axes: Axes = {f"{name}.weight": (after, before, None, None)}
    return axes | {f"{name}.bias": (after,)} if bias else axes


def linear(name: str, before: str | None, after: str | None) -> Axes:
    """Return the axes of a linear layer with bias from group `before` to group `after`, weight (out, in)."""
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def batchnorm(name: str, group: str) -> Axes:
    """Return the axes of BatchNorm over the units of `group`: four vectors, and a counter that is not permuted."""
    vectors: Axes = {f"{name}.{tensor}": (group,) for tensor in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def build_spec(state: Mapping[str, Tensor], axes: Axes, taps: Mapping[str, str]) -> PermutationSpec:
    """Combine a network's axes with the group sizes that its tensors imply.

    Args:
        state: the network's state dict.
        axes: the group per axis of each tensor in `state`.
        taps: group -> name of the module whose output holds the group's units on axis 1.

    Returns:
        The specification; its groups are in the order in which the network produces them.
    """
    sizes = {groups[0]: len(state[name]) for name, groups in axes.items() if groups and groups[0] is not None}
    return PermutationSpec(axes=axes, sizes=sizes, taps={group: taps[group] for group in sizes})
