"""A convolution that computes only with the weights that its mask keeps, and its gradients.

Activations have the shape (N / 16, channels, height, width, 16): 16 images of the batch lie side by side, see
``sparse.cpp``. Sums are added up in another order than by PyTorch's convolutions; apart from that they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config import LANES
from trainables.kernels.library import Shape, Taps, address, library


class SparseConvolution(nn.Module):
    """A convolution's twin on lanes, with the same parameters."""

    def __init__(self, convolution: nn.Conv2d, keep: Tensor) -> None:
        """Take over the parameters.

        Args:
            convolution: square, not grouped, not dilated, padded with zeros.
            keep: bool tensor of its weight's shape; where it is False, the weight counts as zero and its gradient is
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
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (blocks, in_channels, height, width, 16) to (blocks, out_channels, height', width', 16)."""
        size = (*x.shape[1:4], *self.weight.stride())
        if size not in self._plans:
            self._plans[size] = _Plan.make(self._keep, self.weight.stride(), self._stride, self._padding, x.shape)
        out: Tensor = _Convolve.apply(x, self.weight, self._plans[size])
        return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class _List:
    """Kept weights by what is written: the arrays of ``Taps``, which live as long as this does."""

    pointer: Tensor
    offset: Tensor
    index: Tensor

    @classmethod
    def make(cls, group: Any, groups: int, place: tuple[Any, Any, Any], index: Any, size: tuple[int, int]) -> _List:
        """Put the kept weights in order.

        Args:
            group: of each weight, what is written by it: a channel, of one residue if there are several.
            groups: how many there are.
            place: channel, row and column of the padded source that each weight looks at from a tile at row and
                column 0.
            index: place of each weight among the layer's.
            size: height and width of the padded source.
        """
        channel, row, column = place
        order = np.lexsort((column, row, channel, group))
        pointer = np.searchsorted(group[order], np.arange(groups + 1))
        arrays = (pointer, ((channel * size[0] + row) * size[1] + column)[order], index[order])
        assert all(each.size == 0 or (each.min() >= 0 and each.max() < 2**31) for each in arrays)
        tensors = (torch.from_numpy(each.astype(np.int32)) for each in arrays)
        return cls(*tensors)

    @property
    def taps(self) -> Taps:
        return Taps(*map(address, (self.pointer, self.offset, self.index)))


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be computed in a layer for images of one size."""

    stride: int
    padding: int
    source: Shape
    target: Shape
    forward: _List
    backward: _List
    """By input channel, for each residue of a position by the stride."""
    backward_padding: int

    @classmethod
    def make(
        cls, keep: np.ndarray, strides: tuple[int, ...], stride: int, padding: int, shape: tuple[int, ...]
    ) -> _Plan:
        out_channels, in_channels, kernel, _ = keep.shape
        _, _, height, width, _ = shape
        outputs = [(each + 2 * padding - kernel) // stride + 1 for each in (height, width)]
        o, i, ky, kx = (each.astype(np.int64) for each in np.nonzero(keep))
        index = np.stack((o, i, ky, kx)).T @ np.array(strides)

        forward = _List.make(o, out_channels, (i, ky, kx), index, (height + 2 * padding, width + 2 * padding))

        # Weight ky has met input position y * stride + r at output position y + (r + padding - ky) / stride, where r is
        # the one residue for which that is whole.
        beyond = [
            (each - 1 + padding) // stride - (out - 1) for each, out in zip((height, width), outputs, strict=True)
        ]
        border = max(0, -((padding + 1 - kernel) // stride), *beyond)
        ry, rx = (ky - padding) % stride, (kx - padding) % stride
        up, left = (ry + padding - ky) // stride + border, (rx + padding - kx) // stride + border
        group, groups = (ry * stride + rx) * in_channels + i, stride**2 * in_channels
        size = outputs[0] + 2 * border, outputs[1] + 2 * border
        backward = _List.make(group, groups, (o, up, left), index, size)
        return cls(
            stride,
            padding,
            Shape(in_channels, height, width),
            Shape(out_channels, *outputs),
            forward,
            backward,
            border,
        )


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        return _convolved(x, plan.source, plan.padding, plan.stride, plan.target, 1, plan.forward, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        plan: _Plan = ctx.plan
        gradient = gradients[0].contiguous()
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolved(
                gradient, plan.target, plan.backward_padding, 1, plan.source, plan.stride, plan.backward, weight
            )
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            threads = torch.get_num_threads()
            library().sparse_weight_gradients(
                address(x),
                plan.source,
                plan.padding,
                plan.stride,
                address(gradient),
                plan.target,
                plan.forward.taps,
                of_weight.data_ptr(),
                len(x),
                threads,
                address(_room(plan.source, plan.padding, threads)),
            )
        return of_x, of_weight, None


def _convolved(
    source: Tensor, shape: Shape, padding: int, step: int, target: Shape, target_step: int, taps: _List, weight: Tensor
) -> Tensor:
    out = source.new_empty(len(source), target.channels, target.height, target.width, LANES)
    threads = torch.get_num_threads()
    library().sparse_convolve(
        address(source),
        shape,
        padding,
        step,
        address(out),
        target,
        target_step,
        taps.taps,
        weight.data_ptr(),
        len(source),
        threads,
        address(_room(shape, padding, threads)),
    )
    return out


_rooms: dict[tuple[int, ...], Tensor] = {}


def _room(shape: Shape, padding: int, threads: int) -> Tensor:
    """Return room for one padded block per thread, whose border is zero; shared by all layers of that shape."""
    size = (threads, shape.channels, shape.height + 2 * padding, shape.width + 2 * padding, LANES)
    if (padding, *size) not in _rooms:
        _rooms[padding, *size] = torch.zeros(size)
    return _rooms[padding, *size]
