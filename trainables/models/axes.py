"""Parts that permutation specifications are put together from, one per kind of layer.

Each part returns tensor name -> group per axis, as in :class:`trainables.symmetry.permutations.PermutationSpec`; a
model joins the parts of its layers in the order of its state dict. The idea follows Git Re-Basin (Ainsworth et al.,
2023).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainables.symmetry.permutations import PermutationSpec

Axes = dict[str, tuple[str | None, ...]]


def conv(name: str, before: str | None, after: str | None, *, bias: bool = False) -> Axes:
    """Convolution from group `before` to group `after`; its weight has shape (out, in, kernel, kernel)."""
    axes: Axes = {f"{name}.weight": (after, before, None, None)}
    return axes | {f"{name}.bias": (after,)} if bias else axes


def linear(name: str, before: str | None, after: str | None) -> Axes:
    """Linear layer with bias from group `before` to group `after`; its weight has shape (out, in)."""
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def batchnorm(name: str, group: str) -> Axes:
    """BatchNorm over the units of `group`: four vectors over the units, and a counter that no permutation touches."""
    vectors: Axes = {f"{name}.{tensor}": (group,) for tensor in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def build_spec(state: Mapping[str, Tensor], axes: Axes, taps: Mapping[str, str]) -> PermutationSpec:
    """Join the axes of a network with the group sizes that its tensors have.

    Args:
        state: the network's state dict.
        axes: the group per axis of each tensor in `state`.
        taps: group -> name of the module whose output holds the group's units on axis 1.

    Returns:
        The specification; its groups are in the order in which the network produces them.
    """
    sizes = {groups[0]: len(state[name]) for name, groups in axes.items() if groups and groups[0] is not None}
    return PermutationSpec(axes=axes, sizes=sizes, taps={group: taps[group] for group in sizes})
