"""ResNets for small images: a stem and three stages of basic blocks with 16, 32 and 64 channels (He et al., 2016).

The paper's ResNet20 has strided 3x3 convolutions on the shortcuts between stages; usually these are 1x1.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trainables.models.axes import Axes, batchnorm, build_spec, conv, linear
from trainables.models.network import Network, kaiming_normal, scaled
from trainables.symmetry.permutations import PermutationSpec

STAGES = (1, 2, 3)
KERNELS = {"conv3x3": 3, "conv1x1": 1}


def resnet20(
    *, width: float, num_classes: int, in_channels: int, shortcut: str = "conv3x3", stream_taps: str = "end"
) -> ResNetCifar:
    """Build the paper's ResNet20.

    Args:
        width: channel multiplier.
        num_classes: number of logits.
        in_channels: channels of the images.
        shortcut: kernel of the shortcut convolutions, ``conv3x3`` or ``conv1x1``.
        stream_taps: where matching observes the residual streams: ``end`` is after each stage's last block;
            ``paper_code`` observes stage 3 one block earlier, after block 8 of 9, as the paper's code does.
    """
    channels = (scaled(16, width), scaled(32, width), scaled(64, width))
    early_tap = stream_taps == "paper_code"
    return ResNetCifar(3, channels, num_classes, in_channels, KERNELS[shortcut], early_tap=early_tap)


def resnet8(*, width: float, num_classes: int, in_channels: int, shortcut: str = "conv3x3") -> ResNetCifar:
    """Build a ResNet with one block per stage; arguments as for :func:`resnet20`."""
    channels = (scaled(16, width), scaled(32, width), scaled(64, width))
    return ResNetCifar(1, channels, num_classes, in_channels, KERNELS[shortcut])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, the shortcut is a convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            padding = shortcut_kernel // 2
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, shortcut_kernel, stride, padding, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return cast(Tensor, self.relu2(out))


class ResNetCifar(Network):
    """Stem, three stages, mean over positions, linear classifier.

    Permutation groups: ``stream1`` to ``stream3``, the residual stream of each stage; and one group per block, the
    channels between its two convolutions, named after the first convolution.
    """

    def __init__(
        self,
        blocks: int,
        channels: tuple[int, int, int],
        num_classes: int,
        in_channels: int,
        shortcut_kernel: int,
        *,
        early_tap: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            blocks: basic blocks per stage.
            channels: channels of each stage.
            num_classes: number of logits.
            in_channels: channels of the images.
            shortcut_kernel: 3 or 1.
            early_tap: tap the last residual stream before the last block; needs at least 2 blocks per stage.
        """
        super().__init__()
        assert blocks >= 1 + early_tap, f"an early tap needs 2 blocks per stage, got {blocks}"
        self.blocks = blocks
        self.early_tap = early_tap
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, first, first, 1, shortcut_kernel)
        self.layer2 = _stage(blocks, first, second, 2, shortcut_kernel)
        self.layer3 = _stage(blocks, second, third, 2, shortcut_kernel)
        self.fc = nn.Linear(third, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(x.mean(dim=(2, 3))))

    def permutation_spec(self) -> PermutationSpec:
        """Return the groups of the residual streams and of the channels inside the blocks."""
        stream = "stream1"
        axes = conv("conv1", None, stream) | batchnorm("bn1", stream)
        taps = {}
        for stage in STAGES:
            for index in range(self.blocks):
                block, before, stream = f"layer{stage}.{index}", stream, f"stream{stage}"
                axes |= _block_axes(block, before, stream)
                taps[f"{block}.conv1"] = f"{block}.relu1"
            tapped = self.blocks - 1 - (self.early_tap and stage == STAGES[-1])
            taps[stream] = f"layer{stage}.{tapped}.relu2"
        return build_spec(self.state_dict(), axes | linear("fc", stream, None), taps)


def _stage(blocks: int, in_channels: int, channels: int, stride: int, shortcut_kernel: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut_kernel)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut_kernel) for _ in range(blocks - 1)))


def _block_axes(block: str, before: str, after: str) -> Axes:
    inside = f"{block}.conv1"
    axes = conv(f"{block}.conv1", before, inside) | batchnorm(f"{block}.bn1", inside)
    axes |= conv(f"{block}.conv2", inside, after) | batchnorm(f"{block}.bn2", after)
    if before != after:
        axes |= conv(f"{block}.downsample.0", before, after) | batchnorm(f"{block}.downsample.1", after)
    return axes
