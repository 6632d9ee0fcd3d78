"""BatchNorm in training with what follows it, a sum with the residual stream and a ReLU, in one go, on lanes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.kernels.library import Shape, address, library


class Normalization(nn.Module):
    """The twin of a BatchNorm, of the sum after it if there is one, and of the ReLU after that."""

    def __init__(self, batchnorm: nn.BatchNorm2d, *, rectified: bool) -> None:
        """Take over parameters and running statistics.

        Args:
            batchnorm: with weight, bias, running statistics and a momentum.
            rectified: whether a ReLU follows.
        """
        super().__init__()
        assert batchnorm.affine
        assert batchnorm.track_running_stats
        assert batchnorm.momentum is not None
        self.batchnorm = batchnorm
        self._rectified, self._momentum = rectified, batchnorm.momentum

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise (blocks, channels, height, width, 16) by the batch, add `residual`, cut at 0; note statistics."""
        norm = self.batchnorm
        assert norm.training, "on lanes is for training"
        out: Tensor
        out, mean, variance = _Normalize.apply(x, residual, norm.weight, norm.bias, norm.eps, self._rectified)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            norm.get_buffer("running_mean").lerp_(mean, self._momentum)
            norm.get_buffer("running_var").lerp_(variance * (count / (count - 1)), self._momentum)
            norm.get_buffer("num_batches_tracked").add_(1)
        return out


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, rectified: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        mean, inverse, variance = torch.empty(3, x.shape[1]).unbind()
        library().normalize(
            address(x),
            None if residual is None else address(residual),
            Shape(*x.shape[1:4]),
            address(weight),
            address(bias),
            eps,
            rectified,
            address(out),
            address(mean),
            address(inverse),
            address(variance),
            len(x),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, out if rectified and residual is not None else None, weight, bias, mean, inverse)
        ctx.rectified, ctx.summed = rectified, residual is not None
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, bias, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_x = torch.empty_like(x)
        # Without a ReLU in between, the sum hands the gradient on as it is.
        of_residual = None if out is None else torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        library().normalize_gradients(
            address(gradient),
            address(x),
            None if out is None else address(out),
            Shape(*x.shape[1:4]),
            address(weight),
            address(bias),
            address(mean),
            address(inverse),
            ctx.rectified,
            address(of_x),
            None if of_residual is None else address(of_residual),
            address(of_weight),
            address(of_bias),
            len(x),
            torch.get_num_threads(),
        )
        if ctx.summed and not ctx.rectified:
            of_residual = gradient
        return of_x, of_residual, of_weight, of_bias, None, None
