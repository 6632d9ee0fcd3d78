"""The plain engine where several processes, the workers of a job, train a network: each a part of every batch.

The mean gradient, and the statistics of BatchNorm, are those of the whole batch. So a network trains as in a single
process, up to the order in which numbers are summed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from trainables.data.batches import parts
from trainables.training.engines import plain
from trainables.training.loop import Training

Led = Callable[[Training], AbstractContextManager[bool]]


def _alone(training: Training) -> AbstractContextManager[bool]:
    """Surround an epoch of a worker that another one leads."""
    return nullcontext(False)


class Trainer(plain.Trainer):
    """Trains the copy of the network that one worker holds; all workers of PyTorch's default group call it in step."""

    def __init__(
        self, model: nn.Module, mask: Mapping[str, Tensor], rank: int, workers: int, batch_size: int, led: Led = _alone
    ) -> None:
        """Prepare to train `model`.

        Args:
            model: as in the plain engine.
            mask: as in the plain engine.
            rank: number of this worker, from 0.
            workers: number of workers.
            batch_size: number of images in a batch, of which each worker computes its part.
            led: surrounds each epoch, and says whether the workers begin with another network or state.

        Raises:
            ValueError: the network has a kind of BatchNorm whose statistics cannot be those of the whole batch.
        """
        super().__init__(model, mask)
        self._led, self._joined = led, False
        own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._twin = copy.deepcopy(model, dict(own))  # with the same parameters and buffers
        self._fraction = len(parts(batch_size, workers)[rank]) / batch_size
        for name, module in self._twin.named_modules():
            if isinstance(module, _BatchNorm):
                if type(module).forward is not _BatchNorm.forward:
                    raise ValueError(
                        f"{name} is a {type(module).__name__}, whose statistics workers cannot share; only PyTorch's "
                        "BatchNorm1d, BatchNorm2d and BatchNorm3d go with workers"
                    )
                vars(module)["forward"] = partial(_normalized, module)
        # DistributedDataParallel averages over the workers, whatever the sizes of their parts.
        self.loss_weight = workers * self._fraction

    def _join(self) -> None:
        """Join the other workers' networks, all of which are in the same state."""
        self._joined = True
        self._twin.train()
        with warnings.catch_warnings():  # the argument has another name from PyTorch 2.14 on
            warnings.simplefilter("ignore", FutureWarning)
            self.forward = DistributedDataParallel(self._twin, broadcast_buffers=False)

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train the network for one epoch; the sums are those of all workers."""
        (training,) = trainings
        with self._led(training) as begins:
            if begins or not self._joined:
                self._join()
            ((loss, hits),) = super().train_epoch(trainings)
            # On the CPU, so that this process waits until all workers have ended the epoch.
            sums = torch.tensor([self._fraction * loss, hits], dtype=torch.float64)
            dist.all_reduce(sums)
        mean_losses, right = sums.tolist()
        return [(mean_losses, right)]


class _Normalize(torch.autograd.Function):
    """BatchNorm of a worker's part by the statistics of the whole batch (torch's SyncBatchNorm needs CUDA)."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        single = plain.at_least_single(inputs)
        variance, mean = torch.var_mean(single, _but_channels(single), correction=0)
        own = torch.stack((mean, variance, torch.full_like(mean, inputs.numel() / len(mean))))
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).unbind(1)  # (workers, channels) each
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(inputs, weight, mean, inverse, count)
        unbiased = variance * count / (count - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        normalized = torch.addcmul(_along(shift, single), single, _along(scale, single))
        return normalized.to(inputs.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, inverse, count = ctx.saved_tensors
        gradient = plain.at_least_single(gradients[0])
        centred = plain.at_least_single(inputs) - _along(mean, inputs)
        over = _but_channels(inputs)
        own = torch.stack((gradient.sum(over), (gradient * centred).sum(over)))
        means = own / count
        dist.all_reduce(means)
        scale = inverse if weight is None else inverse * weight
        slope = means[1] * inverse.square()
        gradient = (gradient - _along(means[0], inputs) - centred * _along(slope, inputs)) * _along(scale, inputs)
        of_affine = (None, None) if weight is None else (own[1] * inverse, own[0])
        return gradient.to(inputs.dtype), *of_affine, None


def _normalized(module: _BatchNorm, inputs: Tensor) -> Tensor:
    """Return what a BatchNorm module in training mode makes of a worker's part, and update its running statistics."""
    normalized, mean, variance = _Normalize.apply(inputs, module.weight, module.bias, module.eps)
    if module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        factor = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        module.running_var.mul_(1 - factor).add_(variance, alpha=factor)
    assert isinstance(normalized, Tensor)
    return normalized


def _but_channels(inputs: Tensor) -> list[int]:
    return [0, *range(2, inputs.dim())]


def _along(channels: Tensor, inputs: Tensor) -> Tensor:
    """Return a value per channel in a shape that broadcasts along the inputs' axis of channels."""
    return channels.view(-1, *[1] * (inputs.dim() - 2))
