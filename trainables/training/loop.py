"""The training loop: SGD on a network whose masked weights are zero after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config import Recipe
from trainables.data.batches import Batch, EvalBatches, TrainBatches
from trainables.errors import WouldRecur
from trainables.masks import apply_mask, check_fits
from trainables.schema import LEARNING_RATE, TEST_ACCURACY, TEST_LOSS, TRAIN_ACCURACY, TRAIN_LOSS
from trainables.training.allocation import keep_freed_memory
from trainables.training.evaluation import evaluate
from trainables.training.schedule import learning_rate

_MOMENTUM = "momentum/"
_MODEL = "model/"


class Diverged(WouldRecur, RuntimeError):
    """The training loss is infinite or NaN. A repetition would diverge in the same way."""


class Training:
    """A network in training; its whole state can be saved after any epoch and restored elsewhere.

    On a CPU, the same state and seed give bit-identical further epochs, whatever else runs on the machine: data order
    and augmentation depend only on (seed, epoch), and the learning rate only on the step.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: TrainBatches,
        test: EvalBatches,
        mask: Mapping[str, Tensor] | None,
    ) -> None:
        """Take over `model`, which is trained in place.

        Args:
            model: the network, on the device that trains it.
            recipe: hyper-parameters, schedule and engine.
            train: gives the training batches of any epoch.
            test: the test set, evaluated after each epoch.
            mask: name -> bool tensor, True where a weight is kept; None trains all weights.

        Raises:
            ValueError: the mask names a tensor that is not a parameter or has another shape, or the recipe's engine
                cannot train this network or does not run on this machine.
        """
        self.model = model
        self.recipe = recipe
        self.epoch = 0
        """Epochs completed."""
        self.train_seconds = 0.0
        """Time spent in training steps, evaluation excluded."""
        self.batches = train
        """The training batches of any epoch."""
        self._test = test
        self.device = next(model.parameters()).device
        """The device that trains the network."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self._mask = dict(mask or {})
        parameters = dict(model.named_parameters())
        check_fits(self._mask, parameters)
        # Factors of the weights' own dtype and memory layout let one fused call mask all layers.
        self._masked: list[Tensor] = [parameters[name] for name in self._mask]
        self._keep = [torch.empty_like(parameters[name]).copy_(keep) for name, keep in self._mask.items()]
        self.trainer = recipe.engine.trainer()(model, self._mask)
        """Computes losses and gradients."""
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._apply_mask()

    @torch.no_grad()
    def _apply_mask(self) -> None:
        if self._masked:
            torch._foreach_mul_(self._masked, self._keep)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, then evaluate on the test set.

        Returns:
            The epoch's metrics, names as in ``schema.EPOCH_METRICS``.

        Raises:
            Diverged: the loss is infinite or not a number.
        """
        (end,) = train_epoch([self])
        return end()

    @property
    def profile(self) -> Hashable | None:
        """A value that networks must share to be trained together; None if this one must be trained alone."""
        own = self.trainer.profile(self)
        return None if own is None else (type(self.trainer), own)

    # --- what trainers use ----------------------------------------------------------------------------------------
    def autocast(self) -> torch.autocast:
        """Return the autocast context of a forward pass in the recipe's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def steps(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch; the learning rate is set before each one.

        The caller computes a batch's gradients and calls :meth:`update`. :meth:`finish_epoch` ends the epoch.
        """
        assert self.epoch < self.recipe.epochs
        self.model.train()
        steps = self.batches.steps_per_epoch
        for index, batch in enumerate(self.batches.epoch(self.epoch)):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, self.epoch * steps + index, steps)
            yield batch

    def update(self) -> None:
        """Take the optimiser's step, then set the masked weights to zero again."""
        self._optimizer.step()
        self._apply_mask()

    def finish_epoch(self, loss: float, hits: float, seconds: float) -> dict[str, float]:
        """Record the epoch that was trained, and evaluate the network on the test set.

        Args:
            loss: sum of the steps' mean losses, nats.
            hits: number of correctly classified training images.
            seconds: training time of the epoch.

        Returns:
            The epoch's metrics, names as in ``schema.EPOCH_METRICS``.

        Raises:
            Diverged: the loss is infinite or not a number.
        """
        steps = self.batches.steps_per_epoch
        mean_loss = loss / steps
        if not mean_loss < float("inf"):
            raise Diverged(f"training loss is {mean_loss} in epoch {self.epoch + 1} (learning rate {self.recipe.lr:g})")
        self.train_seconds += seconds
        self.epoch += 1
        test = evaluate(self.trainer.network, self._test)
        return {
            TRAIN_LOSS: mean_loss,
            TRAIN_ACCURACY: 100.0 * hits / (steps * self.batches.batch_size),
            TEST_LOSS: test.loss,
            TEST_ACCURACY: test.accuracy,
            LEARNING_RATE: self._optimizer.param_groups[0]["lr"],
        }

    @property
    def images_per_second(self) -> float:
        """Training images per second of training time; 0 before the first epoch."""
        images = self.epoch * self.batches.steps_per_epoch * self.batches.batch_size
        return images / self.train_seconds if self.train_seconds else 0.0

    # --- state --------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the network's state dict on the CPU, masked weights exactly +0.0."""
        return apply_mask(self._mask, _on_host(self.model.state_dict()))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, on the CPU, and the plain data from which :meth:`restore` continues after this epoch."""
        tensors = {_MODEL + name: tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[_MOMENTUM + name] = buffer
        mask = {_MODEL + name: keep for name, keep in self._mask.items()}
        return apply_mask(mask, _on_host(tensors)), {"epoch": self.epoch, "train_seconds": self.train_seconds}

    def restore(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Restore a state that :meth:`state` returned.

        Raises:
            ValueError: the state belongs to another network or a longer training; this training is unchanged.
        """
        self._check_fits(tensors, data)
        weights = {name[len(_MODEL) :]: tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            if _MOMENTUM + name in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[_MOMENTUM + name])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        self.epoch, self.train_seconds = int(data["epoch"]), float(data["train_seconds"])

    def _check_fits(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        if not 0 <= data["epoch"] <= self.recipe.epochs:
            raise ValueError(f"a state after {data['epoch']} epochs is none of a training of {self.recipe.epochs}")
        network = {_MODEL + name: tensor for name, tensor in self.model.state_dict().items()}
        momenta = {_MOMENTUM + name: tensor for name, tensor in self.model.named_parameters()}
        if missing := network.keys() - tensors.keys():
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
        for name, tensor in tensors.items():
            own = {**network, **momenta}.get(name)
            if own is None or (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{name} of {tensor.dtype}, {tuple(tensor.shape)}, fits nothing of the network")


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU; this process waits for a GPU only once, after the last of them."""
    copies = {name: tensor.detach().to("cpu", non_blocking=True, copy=True) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def train_epoch(trainings: Sequence[Training]) -> list[Callable[[], dict[str, float]]]:
    """Train one network, or several together, for one epoch; each network may be at a different epoch.

    Args:
        trainings: one training, or several with equal profiles.

    Returns:
        For each training, a function that ends its epoch: it evaluates the network and returns the epoch's metrics, or
        raises ``Diverged``. The training time is split evenly among the networks.
    """
    first, number = trainings[0], len(trainings)
    assert number == 1 or first.profile is not None, "a network that has to be trained alone"
    assert len({training.profile for training in trainings}) == 1, "networks that do not fit each other"
    start = time.perf_counter()
    with tensor_float(first.recipe.precision == "tf32"):
        sums = first.trainer.train_epoch(trainings)
    share = (time.perf_counter() - start) / number
    return [partial(training.finish_epoch, *own, share) for training, own in zip(trainings, sums, strict=True)]


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 (10-bit mantissa) in convolutions and matrix products on GPUs, for the block.

    PyTorch's default allows it in convolutions and forbids it in matrix products. CPUs are unaffected.
    """
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    convolutions.allow_tf32 = matrices.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before
