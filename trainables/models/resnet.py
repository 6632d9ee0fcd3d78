"""Residual networks (He et al., 2016): those for small images, and torchvision's ResNet50, at any width.

The paper's ResNet20 has strided 3x3 convolutions on the shortcuts between stages; usually these are 1x1.

ResNet50 has its strides in the 3x3 convolutions. Tensor names and shapes at width 1 are torchvision's, so its
checkpoints load. There are two differences: each ReLU is a separate module, because activation matching observes it,
and weights are drawn by fan-in, as in the other ResNets here (``init="fan_out"`` draws them as torchvision does).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from trainables.models import SHORTCUT_KERNELS
from trainables.models.network import Axes, Network, batchnorm, build_spec, conv, kaiming_normal, linear, scaled
from trainables.symmetry.permutations import PermutationSpec


def resnet20(
    *, width: float, num_classes: int, in_channels: int, shortcut: str = "conv3x3", stream_taps: str = "end"
) -> ResNet:
    """Build the paper's ResNet20: three stages of three basic blocks with 16, 32 and 64 channels.

    The shortcut convolutions' kernels are 3x3 (``conv3x3``) or 1x1 (``conv1x1``). Matching observes the residual
    streams after each stage's last block (stream_taps ``end``), or that of stage 3 one block earlier, after block 8 of
    9, as the paper's code does (``paper_code``).
    """
    return _basic(3, width, num_classes, in_channels, shortcut, early_tap=stream_taps == "paper_code")


def resnet8(*, width: float, num_classes: int, in_channels: int, shortcut: str = "conv3x3") -> ResNet:
    """Build a ResNet with one block per stage; arguments as for :func:`resnet20`."""
    return _basic(1, width, num_classes, in_channels, shortcut)


def _basic(
    blocks: int, width: float, num_classes: int, in_channels: int, shortcut: str, *, early_tap: bool = False
) -> ResNet:
    channels = [scaled(base, width) for base in (16, 32, 64)]
    before = channels[0]
    stem = nn.Conv2d(in_channels, before, 3, padding=1, bias=False)
    stages = []
    for after, stride in zip(channels, (1, 2, 2), strict=True):
        stages.append(_stage(blocks, (before, after, after), (3, 3), stride, SHORTCUT_KERNELS[shortcut]))
        before = after
    return ResNet(stem, None, stages, num_classes, early_tap=early_tap)


def resnet50(*, width: float, num_classes: int, in_channels: int, small_images: bool = False) -> ResNet:
    """Build a ResNet50; ``width`` multiplies all channel counts, including the stem's.

    With `small_images` it begins with a 3x3 convolution of stride 1 and no max-pooling, for images of up to 64 pixels.
    """
    before = channels = scaled(64, width)
    kernel, stride = (3, 1) if small_images else (7, 2)
    stem = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    stages = []
    for blocks, stride in zip((3, 4, 6, 3), (1, 2, 2, 2), strict=True):
        stages.append(_stage(blocks, (before, channels, channels, 4 * channels), (1, 3, 1), stride, 1))
        before, channels = 4 * channels, 2 * channels
    return ResNet(stem, None if small_images else nn.MaxPool2d(3, 2, padding=1), stages, num_classes)


class Block(nn.Module):
    """A chain of convolutions, and a shortcut; where the number of channels changes, the shortcut is a convolution.

    The layers of the chain are ``conv1``, ``bn1``, ``relu1``, ``conv2``, ...; the last ReLU follows the sum with the
    shortcut.
    """

    def __init__(
        self, channels: Sequence[int], kernels: Sequence[int], stride: int = 1, shortcut_kernel: int = 1
    ) -> None:
        """Build the layers.

        Args:
            channels: of the block's input, then of the output of each convolution.
            kernels: of each convolution of the chain.
            stride: of the first 3x3 convolution and of the shortcut.
            shortcut_kernel: 3 or 1.
        """
        super().__init__()
        self.depth, self.channels = len(kernels), channels[-1]
        for index, kernel in enumerate(kernels):
            before, after = channels[index : index + 2]
            step = stride if index == kernels.index(3) else 1
            layer = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", layer)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(after))
            self.add_module(f"relu{index + 1}", nn.ReLU())
        self.downsample: nn.Module = nn.Identity()
        if channels[0] != channels[-1]:
            padding = shortcut_kernel // 2
            layer = nn.Conv2d(channels[0], channels[-1], shortcut_kernel, stride, padding, bias=False)
            self.downsample = nn.Sequential(layer, nn.BatchNorm2d(channels[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels before, H, W) to (N, channels after, H / stride, W / stride)."""
        out = x
        for number in range(1, self.depth + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number == self.depth:
                out = out + self.downsample(x)
            out = getattr(self, f"relu{number}")(out)
        return out

    def axes(self, name: str, before: str, after: str) -> Axes:
        """Return the axes of the block called `name` between the groups of its input and its output."""
        inside = [f"{name}.conv{number}" for number in range(1, self.depth)]
        axes: Axes = {}
        for number, groups in enumerate(itertools.pairwise((before, *inside, after)), start=1):
            axes |= conv(f"{name}.conv{number}", *groups) | batchnorm(f"{name}.bn{number}", groups[1])
        if before != after:
            axes |= conv(f"{name}.downsample.0", before, after) | batchnorm(f"{name}.downsample.1", after)
        return axes


def _stage(
    blocks: int, channels: Sequence[int], kernels: Sequence[int], stride: int, shortcut_kernel: int
) -> nn.Sequential:
    """Return blocks of which only the first has a stride and a convolution on its shortcut."""
    first = Block(channels, kernels, stride, shortcut_kernel)
    return nn.Sequential(first, *(Block((channels[-1], *channels[1:]), kernels) for _ in range(blocks - 1)))


class ResNet(Network):
    """Stem, stages of residual blocks, mean over positions, linear classifier.

    Permutation groups: ``stream1``, ``stream2``, ..., the residual stream of each stage; ``stem``, unless the stem is a
    part of ``stream1``; and the channels between two convolutions of a block, named after the first of them.
    """

    def __init__(
        self,
        stem: nn.Conv2d,
        pool: nn.Module | None,
        stages: Sequence[nn.Sequential],
        num_classes: int,
        *,
        early_tap: bool = False,
    ) -> None:
        """Join the layers.

        Args:
            stem: the first convolution.
            pool: follows the stem, if given.
            stages: each consists of blocks; the first is ``layer1``.
            num_classes: number of logits.
            early_tap: tap the last residual stream before the last block.
        """
        super().__init__()
        self.stages, self.early_tap = len(stages), early_tap
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.relu = nn.ReLU()
        self.maxpool = pool
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)
        last = stages[-1][-1]
        assert isinstance(last, Block)
        self.fc = nn.Linear(last.channels, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return cast(Tensor, self.fc(x.mean(dim=(2, 3))))

    def permutation_spec(self) -> PermutationSpec:
        """Return the groups of the stem, of the residual streams and of the channels inside the blocks."""
        stream = "stream1" if isinstance(self.get_submodule("layer1.0.downsample"), nn.Identity) else "stem"
        axes = conv("conv1", None, stream) | batchnorm("bn1", stream)
        taps = {stream: "relu"}
        for stage in range(1, self.stages + 1):
            layer = self.get_submodule(f"layer{stage}")
            blocks = {f"layer{stage}.{name}": block for name, block in layer.named_children()}
            for name, block in blocks.items():
                assert isinstance(block, Block)
                before, stream = stream, f"stream{stage}"
                axes |= block.axes(name, before, stream)
                taps |= {f"{name}.conv{number}": f"{name}.relu{number}" for number in range(1, block.depth)}
            tapped = [*blocks][-2 if self.early_tap and stage == self.stages else -1]
            taps[stream] = f"{tapped}.relu{block.depth}"
        return build_spec(self.state_dict(), axes | linear("fc", stream, None), taps)
