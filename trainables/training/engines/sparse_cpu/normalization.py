"""BatchNorm on lanes, fused with an optional residual sum and an optional ReLU after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.training.engines.sparse_cpu.library import Shape, address, library


class Normalization(nn.Module):
    """The twin of a BatchNorm, fused with the sum and the ReLU that follow it, if any."""

    def __init__(self, batchnorm: nn.BatchNorm2d, *, rectified: bool, twice: bool = False) -> None:
        """Take over parameters and running statistics.

        Args:
            batchnorm: has weight, bias, running statistics and a momentum.
            rectified: whether a ReLU follows.
            twice: whether to return the result twice, for its two users. The backward pass then gets their gradients
                separately and adds them within its own pass over memory.
        """
        super().__init__()
        assert batchnorm.affine
        assert batchnorm.track_running_stats
        assert batchnorm.momentum is not None
        self.batchnorm = batchnorm
        self._rectified, self._twice = rectified, twice

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise (blocks, channels, height, width, lanes), add `residual` if given, apply the ReLU if there is one.

        Training uses the statistics of the batch and updates the running ones. Evaluation uses the running statistics
        and supports no gradients.
        """
        norm = self.batchnorm
        if not norm.training:
            out = _normalized(x, residual, norm, self._rectified)
            return (out, out) if self._twice else out
        norm.get_buffer("num_batches_tracked").add_(1)
        first, second = _Normalize.apply(x, residual, norm.weight, norm.bias, norm, self._rectified)
        return (first, second) if self._twice else first


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        rectified: bool,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        mean, inverse = torch.empty(2, x.shape[1]).unbind()
        library().normalize(
            address(x),
            None if residual is None else address(residual),
            Shape(*x.shape[1:4]),
            address(weight),
            address(bias),
            norm.eps,
            norm.momentum,
            rectified,
            address(out),
            address(mean),
            address(inverse),
            address(norm.get_buffer("running_mean")),
            address(norm.get_buffer("running_var")),
            len(x),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, out if rectified and residual is not None else None, weight, bias, mean, inverse)
        ctx.rectified, ctx.summed = rectified, residual is not None
        ctx.set_materialize_grads(False)
        return out, out.data  # two tensors that share memory

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, bias, mean, inverse = ctx.saved_tensors
        gradient, *more = (each.contiguous() for each in gradients if each is not None)
        of_x = torch.empty_like(x)
        # Without a ReLU, the residual's gradient is the incoming one.
        of_residual = None if out is None else torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        library().normalize_gradients(
            address(gradient),
            address(more[0]) if more else None,
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
            of_residual = gradient + more[0] if more else gradient
        return of_x, of_residual, of_weight, of_bias, None, None


def _normalized(x: Tensor, residual: Tensor | None, norm: nn.BatchNorm2d, rectified: bool) -> Tensor:
    assert not (torch.is_grad_enabled() and x.requires_grad), "gradients are for training"
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = torch.empty_like(x)
    library().normalize_by(
        address(x),
        None if residual is None else address(residual),
        Shape(*x.shape[1:4]),
        address(norm.weight),
        address(norm.bias),
        norm.eps,
        address(norm.get_buffer("running_mean")),
        address(norm.get_buffer("running_var")),
        rectified,
        address(out),
        len(x),
        torch.get_num_threads(),
    )
    return out
