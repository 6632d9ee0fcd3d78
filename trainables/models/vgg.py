"""VGG11 with a single linear layer, with and without BatchNorm (Simonyan and Zisserman, 2015).

The paper's net has no BatchNorm and keeps PyTorch's default initialisation.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from trainables.models.network import Axes, Network, batchnorm, build_spec, conv, linear, scaled
from trainables.symmetry.permutations import PermutationSpec

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
POOL_AFTER = (1, 2, 4, 6, 8)


def vgg11(*, width: float, num_classes: int, in_channels: int) -> VGG11:
    """Build the paper's VGG11: convolutions with bias, no BatchNorm."""
    return VGG11(width, num_classes, in_channels, batchnorm=False)


def vgg11_bn(*, width: float, num_classes: int, in_channels: int) -> VGG11:
    """Build VGG11 with BatchNorm; its shift replaces the convolutions' bias."""
    return VGG11(width, num_classes, in_channels, batchnorm=True)


class VGG11(Network):
    """Eight 3x3 convolutions with five poolings in between, mean over positions, linear classifier.

    The poolings reduce a 32-pixel image to a single position. At other sizes the mean does, so that the classifier's
    columns are always the last convolution's channels. Each convolution's output is one permutation group.
    """

    def __init__(self, width: float, num_classes: int, in_channels: int, *, batchnorm: bool) -> None:
        super().__init__()
        self.batchnorm = batchnorm
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = in_channels
        for index, base in enumerate(CHANNELS, start=1):
            channels = scaled(base, width)
            layers[f"conv{index}"] = nn.Conv2d(before, channels, 3, padding=1, bias=not batchnorm)
            if batchnorm:
                layers[f"bn{index}"] = nn.BatchNorm2d(channels)
            layers[f"relu{index}"] = nn.ReLU()
            if index in POOL_AFTER:
                # Rounding sizes up keeps at least one position for images below 32 pixels; at 32 it changes nothing.
                layers[f"pool{index}"] = nn.MaxPool2d(2, ceil_mode=True)
            before = channels
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        return cast(Tensor, self.fc(self.features(x).mean(dim=(2, 3))))

    def permutation_spec(self) -> PermutationSpec:
        """Return one group per convolution."""
        axes: Axes = {}
        taps = {}
        before = None
        for index in range(1, len(CHANNELS) + 1):
            group = f"conv{index}"
            axes |= conv(f"features.{group}", before, group, bias=not self.batchnorm)
            if self.batchnorm:
                axes |= batchnorm(f"features.bn{index}", group)
            taps[group] = f"features.relu{index}"
            before = group
        return build_spec(self.state_dict(), axes | linear("fc", before, None), taps)
