"""What the networks have in common: the interface to the study, channel counts, initialisation."""

from __future__ import annotations

from torch import nn

from trainables.permutations import PermutationSpec

CLASSIFIER = "fc"
SHORTCUT = "downsample"


class Network(nn.Module):
    """A classifier that knows its permutation symmetries and which of its weights may be pruned.

    All networks call the last linear layer ``fc`` and the convolutions on a shortcut ``downsample``, as torchvision
    does. Each tap is a ReLU module of its own that does not work in place, so a forward hook sees what the units send.
    """

    def permutation_spec(self) -> PermutationSpec:
        """Return which permutation group acts on each axis of each tensor of the state dict."""
        raise NotImplementedError

    def prunable_names(self, *, prune_shortcuts: bool = False, prune_classifier: bool = True) -> tuple[str, ...]:
        """Return the names of the weights that pruning ranks, in state dict order.

        These are the weights of convolutions and linear layers, the first and the last layer included; biases and
        BatchNorm are never pruned. The defaults follow the paper's code.

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


def scaled(channels: int, width: float) -> int:
    """Return the channel count of a layer at `width`."""
    count = int(channels * width)
    assert count == channels * width, f"{channels} channels x {width} is not whole; check_width() should have said so"
    return count


def kaiming_normal(model: nn.Module) -> None:
    """Redraw all convolution and linear weights from N(0, 2 / fan_in); biases and BatchNorm keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
