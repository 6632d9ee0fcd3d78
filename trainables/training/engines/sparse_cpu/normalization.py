"""BatchNorm on lanes, fused with an optional residual sum and an optional ReLU after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.training.engines.sparse_cpu.library import library


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
        self.rectified, self.twice = rectified, twice
        # Kept here, because a module searches for a buffer at every access.
        self._running = batchnorm.get_buffer("running_mean"), batchnorm.get_buffer("running_var")
        self._batches = batchnorm.get_buffer("num_batches_tracked")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise (blocks, channels, height, width, lanes), add `residual` if given, apply the ReLU if there is one.

        Training uses the statistics of the batch and updates the running ones. Evaluation uses the running statistics
        and supports no gradients.
        """
        norm = self.batchnorm
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        if norm.training:
            self._batches.add_(1)
            first, second = _Normalize.apply(x, residual, norm.weight, norm.bias, norm, self._running, self.rectified)
        else:
            assert not (torch.is_grad_enabled() and x.requires_grad), "gradients are for training"
            first = second = _normalized(x, residual, norm, self._running, self.rectified)[0]
        return (first, second) if self.twice else first


def _normalized(
    x: Tensor, residual: Tensor | None, norm: nn.BatchNorm2d, running: tuple[Tensor, Tensor], rectified: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and in training the mean and the inverse standard deviation of each channel."""
    out = torch.empty_like(x)
    mean, inverse = torch.empty(2, x.shape[1]).unbind()
    inputs, results = map(_address, (residual, norm.weight, norm.bias)), map(_address, (out, mean, inverse, *running))
    settings = norm.eps, norm.momentum, rectified, norm.training
    library().normalize(x, *inputs, *settings, *results, torch.get_num_threads())
    return out, mean, inverse


def _address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor without gaps; null for None."""
    return None if tensor is None else tensor.data_ptr()


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        running: tuple[Tensor, Tensor],
        rectified: bool,
    ) -> tuple[Tensor, Tensor]:
        out, mean, inverse = _normalized(x, residual, norm, running, rectified)
        ctx.save_for_backward(x, out if rectified and residual is not None else None, weight, bias, mean, inverse)
        ctx.rectified, ctx.summed = rectified, residual is not None
        ctx.set_materialize_grads(False)
        return out, out.data  # two tensors that share memory

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, *_ = saved = ctx.saved_tensors
        gradient, *others = (each.contiguous() for each in gradients if each is not None)
        more = others[0] if others else None
        of_x = torch.empty_like(x)
        # Without a ReLU, the residual's gradient is the incoming one.
        of_residual = None if out is None else torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        results = map(_address, (of_x, of_residual, of_weight, of_bias))
        library().normalize_gradients(
            *(_address(gradient), _address(more), x, *map(_address, saved[1:]), ctx.rectified),
            *(*results, torch.get_num_threads()),
        )
        if ctx.summed and not ctx.rectified:
            of_residual = gradient if more is None else gradient + more
        return of_x, of_residual, of_weight, of_bias, None, None, None
