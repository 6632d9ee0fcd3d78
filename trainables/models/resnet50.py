"""torchvision's ResNet50 (He et al., 2016; the stride is in the 3x3 convolution), at any width.

Tensor names and shapes at width 1 are torchvision's, so its checkpoints load. There are two differences: each ReLU is a
separate module, because activation matching observes it, and weights are drawn by fan-in, as in the other ResNets here
(``init="fan_out"`` draws them as torchvision does).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trainables.models.axes import Axes, batchnorm, build_spec, conv, linear
from trainables.models.network import Network, kaiming_normal, scaled
from trainables.symmetry.permutations import PermutationSpec

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


def resnet50(*, width: float, num_classes: int, in_channels: int, small_images: bool = False) -> ResNet50:
    """Build a ResNet50.

    Args:
        width: multiplier of all channel counts, including the stem's.
        num_classes: number of logits.
        in_channels: channels of the images.
        small_images: begin with a 3x3 convolution of stride 1 and no max-pooling, for images of up to 64 pixels.
    """
    return ResNet50(scaled(64, width), num_classes, in_channels, small_images=small_images)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the shortcut of a stage's first block is a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * channels, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return cast(Tensor, self.relu3(out))


class ResNet50(Network):
    """Stem, four stages of bottlenecks, mean over positions, linear classifier.

    Permutation groups: ``stem``; ``stream1`` to ``stream4``, the residual stream of each stage; and two groups
    inside each bottleneck, named after the convolutions that produce them.
    """

    def __init__(self, channels: int, num_classes: int, in_channels: int, *, small_images: bool = False) -> None:
        """Build the layers; all channel counts are multiples of the stem's, `channels`."""
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool: nn.Module = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(BLOCKS[0], channels, channels, 1)
        self.layer2 = _stage(BLOCKS[1], 4 * channels, 2 * channels, 2)
        self.layer3 = _stage(BLOCKS[2], 8 * channels, 4 * channels, 2)
        self.layer4 = _stage(BLOCKS[3], 16 * channels, 8 * channels, 2)
        self.fc = nn.Linear(32 * channels, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.fc(x.mean(dim=(2, 3))))

    def permutation_spec(self) -> PermutationSpec:
        """Return the groups of the stem, the residual streams and the inner convolutions of the bottlenecks."""
        stream = "stem"
        axes = conv("conv1", None, stream) | batchnorm("bn1", stream)
        taps = {stream: "relu"}
        for stage, blocks in enumerate(BLOCKS, start=1):
            for index in range(blocks):
                block, before, stream = f"layer{stage}.{index}", stream, f"stream{stage}"
                axes |= _block_axes(block, before, stream)
                taps |= {f"{block}.conv1": f"{block}.relu1", f"{block}.conv2": f"{block}.relu2"}
            taps[stream] = f"layer{stage}.{blocks - 1}.relu3"
        return build_spec(self.state_dict(), axes | linear("fc", stream, None), taps)


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * channels, channels, 1) for _ in range(blocks - 1)))


def _block_axes(block: str, before: str, after: str) -> Axes:
    first, second = f"{block}.conv1", f"{block}.conv2"
    axes = conv(first, before, first) | batchnorm(f"{block}.bn1", first)
    axes |= conv(second, first, second) | batchnorm(f"{block}.bn2", second)
    axes |= conv(f"{block}.conv3", second, after) | batchnorm(f"{block}.bn3", after)
    if before != after:
        axes |= conv(f"{block}.downsample.0", before, after) | batchnorm(f"{block}.downsample.1", after)
    return axes
