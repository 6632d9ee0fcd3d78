"""A convolution, with gradients, that computes only with the weights that its mask keeps.

Activations have the shape (N / lanes, channels, height, width, lanes), with one image per lane of a vector register;
see ``sparse.cpp``. Results equal those of PyTorch's convolutions up to the order of summation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from trainables.training.engines.sparse_cpu.library import Taps, library

_TILE: Final = 8
"""Positions of a row that are computed together."""
_NEAR: Final = 512
"""Positions whose values fit into the L1 cache: 32 KiB with 16 lanes."""


class SparseConvolution(nn.Module):
    """A convolution's twin on lanes; it shares the parameters."""

    def __init__(self, convolution: nn.Conv2d, keep: Tensor) -> None:
        """Take over the parameters.

        Args:
            convolution: square, ungrouped, undilated, padded with zeros by less than the kernel size.
            keep: bool tensor of the weight's shape; where it is False, the weight counts as zero and its gradient is
                zero.
        """
        super().__init__()
        kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
        assert not isinstance(padding, str)
        assert all(len(set(each)) == 1 for each in (kernel, stride, padding))
        assert padding[0] < kernel[0]
        assert (convolution.groups, convolution.dilation, convolution.padding_mode) == (1, (1, 1), "zeros")
        self.weight, self.bias = convolution.weight, convolution.bias
        self._stride, self._padding = stride[0], padding[0]
        self._keep = keep.cpu().numpy()
        self._plans: dict[tuple[int, ...], Plan] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (blocks, in_channels, height, width, lanes) to (blocks, out_channels, height', width', lanes)."""
        out: Tensor = _Convolve.apply(x, self.weight, self.plan(x))
        return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)

    def plan(self, x: Tensor) -> Plan:
        """Return the computation for inputs of the size of `x`."""
        size = (*x.shape[1:4], *self.weight.stride())
        if size not in self._plans:
            self._plans[size] = Plan(self._keep, self.weight.stride(), self._stride, self._padding, x.shape)
        return self._plans[size]


def _taps(
    written: tuple[np.ndarray, int],
    residue: tuple[np.ndarray, int],
    place: tuple[np.ndarray, np.ndarray, np.ndarray],
    index: np.ndarray,
    source: tuple[int, int, int],
    reach: int,
) -> Taps:
    """Sort the kept weights by their order of use.

    Args:
        written: for each weight, the channel that it writes; and the number of those channels.
        residue: for each weight, the residue class (position modulo stride) that it writes; and the number of residue
            classes.
        place: for each weight, channel, row and column of the value in the padded source that it multiplies for a tile
            at row and column 0.
        index: memory offset of each weight in the layer's weight tensor.
        source: channels, height and width of the padded source.
        reach: source positions, per channel, that the weights of a tile can read.
    """
    channel, row, column = place
    channels, height, width = source
    groups = -(-channels * reach // _NEAR)
    group = channel // -(-channels // groups)
    part = (residue[0] * groups + group) * written[1] + written[0]
    order = np.lexsort((column, row, channel, part))
    pointer = np.searchsorted(part[order], np.arange(residue[1] * groups * written[1] + 1))
    offset = ((channel * height + row) * width + column)[order]
    paired = _paired(np.split(offset, pointer[1:-1]), written[1])
    return Taps(_int32(pointer), _int32(offset), _int32(index[order]), paired, groups=groups)


def _int32(numbers: np.ndarray) -> np.ndarray:
    assert numbers.size == 0 or (numbers.min() >= 0 and numbers.max() < 2**31)
    return numbers.astype(np.int32)


def _paired(offsets: list[np.ndarray], channels: int) -> np.ndarray:
    """Return uint8 flags, 1 where a channel is computed together with the next one.

    Args:
        offsets: for each channel, the source offsets of the weights that write it; all parts of the list in a row.
        channels: number of channels in each part.
    """
    paired = np.zeros(len(offsets), np.uint8)
    for each in range(len(offsets) - 1):
        first, last = each % channels == 0, (each + 1) % channels == 0
        if not last and (first or not paired[each - 1]):
            paired[each] = np.array_equal(offsets[each], offsets[each + 1])
    return paired


class Plan:
    """The forward and backward computation of a layer for one image size.

    Attributes:
        source: channels, height and width of the layer's input.
        target: channels, height and width of its output.
        forward: the kept weights, by the output channels that they write.
        backward: the kept weights, by residue class (position modulo stride) and the input channels that they write.
        border: padding of the output's gradient in the backward pass.
    """

    def __init__(
        self, keep: np.ndarray, strides: tuple[int, ...], stride: int, padding: int, shape: tuple[int, ...]
    ) -> None:
        self.stride, self.padding = stride, padding
        out_channels, in_channels, kernel, _ = keep.shape
        height, width = shape[2:4]
        outputs = [(each + 2 * padding - kernel) // stride + 1 for each in (height, width)]
        self.source, self.target = (in_channels, height, width), (out_channels, *outputs)
        o, i, ky, kx = (each.astype(np.int64) for each in np.nonzero(keep))
        index = np.stack((o, i, ky, kx)).T @ np.array(strides)

        size = in_channels, height + 2 * padding, width + 2 * padding
        reach = kernel * ((_TILE - 1) * stride + kernel)
        self.forward = _taps((o, out_channels), (np.zeros_like(o), 1), (i, ky, kx), index, size, reach)

        # In the forward pass, weight ky multiplied input position y * stride + r for output position
        # y + (r + padding - ky) / stride, where r is the only residue that makes the quotient an integer.
        beyond = [
            (each - 1 + padding) // stride - (out - 1) for each, out in zip((height, width), outputs, strict=True)
        ]
        self.border = border = max(0, -((padding + 1 - kernel) // stride), *beyond)
        ry, rx = (ky - padding) % stride, (kx - padding) % stride
        up, left = (ry + padding - ky) // stride + border, (rx + padding - kx) // stride + border
        size = out_channels, outputs[0] + 2 * border, outputs[1] + 2 * border
        reach = -(-kernel // stride) * (_TILE - 1 + -(-kernel // stride))
        residue = ry * stride + rx, stride**2
        self.backward = _taps((i, in_channels), residue, (o, up, left), index, size, reach)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        return _convolved(x, plan.padding, plan.stride, plan.target, 1, plan.forward, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        plan: Plan = ctx.plan
        gradient = gradients[0].contiguous()
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight, threads = torch.zeros_like(weight), torch.get_num_threads()
            block = padded_blocks(x, plan.padding, threads)
            library().sparse_weight_gradients(
                *(x, plan.padding, plan.stride, gradient, plan.forward),
                *(of_weight.data_ptr(), threads, block.data_ptr()),
            )
        # Computed last, so that the gradient is still in the processor's cache when the preceding layer reads it.
        if ctx.needs_input_grad[0]:
            of_x = _convolved(gradient, plan.border, 1, plan.source, plan.stride, plan.backward, weight)
        return of_x, of_weight, None


def _convolved(
    source: Tensor, padding: int, step: int, shape: tuple[int, ...], target_step: int, taps: Taps, weight: Tensor
) -> Tensor:
    out, threads = source.new_empty(len(source), *shape, source.shape[-1]), torch.get_num_threads()
    block = padded_blocks(source, padding, threads)
    library().sparse_convolve(
        source, padding, step, out, target_step, taps, weight.data_ptr(), threads, block.data_ptr()
    )
    return out


_rooms: dict[tuple[int, ...], Tensor] = {}


def padded_blocks(source: Tensor, padding: int, threads: int) -> Tensor:
    """Return a buffer for one zero-bordered block per thread; all layers with this shape and padding share it."""
    _, channels, height, width, lanes = source.shape
    size = (threads, channels, height + 2 * padding, width + 2 * padding, lanes)
    if (padding, *size) not in _rooms:
        _rooms[padding, *size] = torch.zeros(size)
    return _rooms[padding, *size]
