"""Code that all networks share: the interface to the study, channel counts, initialisation, permutation groups.

The blocks of permutation specifications are one per kind of layer, as in Git Re-Basin (Ainsworth et al., 2023). Each
returns tensor name -> group per axis, as in :class:`trainables.symmetry.permutations.PermutationSpec`. A model joins
the blocks of its layers in the order of its state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from trainables.host.cpu import WIDEST_REGISTER
from trainables.symmetry.permutations import PermutationSpec

CLASSIFIER = "fc"
SHORTCUT = "downsample"
Axes = dict[str, tuple[str | None, ...]]


class Network(nn.Module):
    """A classifier that knows its permutation symmetries and its prunable weights.

    All networks call the last linear layer ``fc`` and the convolutions on a shortcut ``downsample``, as torchvision
    does. Each tap is a separate ReLU module that does not work in place, so a forward hook sees the units' activations.
    """

    mask: Mapping[str, Tensor] = MappingProxyType({})
    """The mask of a pruned network from ``trainables.load_network``: name -> bool tensor, True where kept."""
    manifest: Mapping[str, Any] = MappingProxyType({})
    """The store's record of a network from ``trainables.load_network``."""

    def permutation_spec(self) -> PermutationSpec:
        """Return the permutation group that acts on each axis of each tensor in the state dict."""
        raise NotImplementedError

    def prunable_names(self, *, prune_shortcuts: bool = False, prune_classifier: bool = True) -> tuple[str, ...]:
        """Return the names of the prunable weights, in state dict order.

        These are the weights of convolutions and linear layers, including the first and the last layer. Biases and
        BatchNorm are never pruned. The defaults follow the paper's code, which leaves shortcuts unpruned.

        Args:
            prune_shortcuts: include the convolutions on shortcuts.
            prune_classifier: include the classifier.
        """
        skipped = {SHORTCUT} if not prune_shortcuts else set()
        if not prune_classifier:
            skipped.add(CLASSIFIER)
        return tuple(
            f"{name}.weight"
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and skipped.isdisjoint(name.split("."))
        )

    def initialise(self, init: str) -> None:
        """Redraw all weights of convolutions and linear layers; `init` is a name in ``trainables.models.INITS``."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        if init == "fan_in":
            kaiming_normal(self)
        elif init == "fan_out":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        else:
            assert init == "pytorch", init


def scaled(channels: int, width: float) -> int:
    """Return the channel count of a layer at `width`."""
    count = int(channels * width)
    assert count == channels * width, f"{channels} channels x {width} is not whole; check_width() should have said so"
    return count


def kaiming_normal(model: nn.Module) -> None:
    """Redraw all convolution and linear weights from N(0, 2 / fan-in); biases and BatchNorm are not changed."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def fits_channels_last(model: nn.Module) -> bool:
    """Return whether a CPU can compute a network whose tensors lie in memory channels last.

    In that layout oneDNN corrupts memory in a strided 1x1 convolution that has fewer input channels than a vector
    register holds numbers (oneDNN issue 6035; seen with AVX2 below 8 channels). The contiguous layout is safe.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < WIDEST_REGISTER
        for module in model.modules()
    )


# --- permutation specifications ----------------------------------------------------------------------------------
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
