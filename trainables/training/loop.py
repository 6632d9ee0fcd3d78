"""The training loop: SGD on a network whose masked weights are zero after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.config import Recipe
from trainables.data.batches import Batch, EvalBatches, TrainBatches
from trainables.errors import WouldRecur
from trainables.knobs import BF16, TF32
from trainables.masks import apply_mask
from trainables.schema import LEARNING_RATE, TEST_ACCURACY, TEST_LOSS, TRAIN_ACCURACY, TRAIN_LOSS
from trainables.training.allocation import keep_freed_memory
from trainables.training.engines import GPU, TrainerFactory
from trainables.training.evaluation import evaluate
from trainables.training.optimizer import MaskedSGD
from trainables.training.schedule import learning_rate

_TF32 = "tf32"
"""PyTorch's name of TensorFloat-32."""
_MOMENTUM = "momentum/"
_MODEL = "model/"


class Diverged(WouldRecur, RuntimeError):
    """A loss is infinite or not a number. A repetition would diverge in the same way."""


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
        micro_batches: int = 1,
        trainer: TrainerFactory | None = None,
    ) -> None:
        """Take over `model`, which is trained in place.

        Args:
            model: the network, on the device that trains it.
            recipe: hyper-parameters, schedule and engine.
            train: gives the training batches of any epoch.
            test: the test set, evaluated after each epoch.
            mask: name -> bool tensor, True where a weight is kept; None trains all weights.
            micro_batches: number of parts in which the gradients of a batch are computed, see
                :func:`trainables.training.engines.plain.compute_gradients`.
            trainer: makes the trainer of the network under its mask; None: that of the recipe's engine.

        Raises:
            ValueError: the mask names a tensor that is not a parameter or has another shape, or the recipe's engine
                cannot train this network or does not run on this machine.
        """
        self.model = model
        self.recipe = recipe
        self.micro_batches = micro_batches
        """Number of parts in which the gradients of a batch are computed."""
        for layer in model.modules() if micro_batches > 1 else ():
            if isinstance(layer, _BatchNorm) and layer.momentum is not None:
                # The running statistics, which now move at each micro-batch, move as far in a batch as without them.
                layer.momentum = 1.0 - (1.0 - layer.momentum) ** (1.0 / micro_batches)
        self.epoch = 0
        """Epochs completed."""
        self.train_seconds = 0.0
        """Time spent in training steps, evaluation excluded."""
        self.batches = train
        """The training batches of any epoch."""
        self._test = test
        self.parameters = tuple(model.parameters())
        """The network's parameters, collected once."""
        self.device = self.parameters[0].device
        """The device that trains the network."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self._mask = dict(mask or {})
        self.optimizer = MaskedSGD(model, recipe, self._mask)
        """Updates the parameters, and keeps masked weights zero."""
        self.trainer = (trainer or recipe.engine.trainer())(model, self._mask)
        """Computes losses and gradients."""

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, then evaluate on the test set.

        Returns:
            The epoch's metrics, names as in ``schema.EPOCH_METRICS``.

        Raises:
            Diverged: the loss is infinite or not a number.
        """
        (end,) = train_epoch([self])
        return end()

    def train_with_others(self) -> None:
        """Train the next epoch as a worker that does not lead: what becomes of the epoch is the leader's business."""
        with self.arithmetic():
            self.trainer.train_epoch([self])
        self.epoch += 1

    @property
    def profile(self) -> Hashable | None:
        """A value that networks must share to be trained together; None if this one must be trained alone."""
        own = self.trainer.profile(self)
        return None if own is None else (type(self.trainer), own)

    # --- what trainers use ----------------------------------------------------------------------------------------
    def autocast(self) -> torch.autocast:
        """Return the autocast context of a forward pass in the recipe's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == BF16)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Set how GPUs compute products in the recipe's precision, for the block; CPUs are unaffected."""
        with tensor_float(self.recipe.precision == TF32), measured_convolutions():
            yield

    def steps(self) -> Generator[Batch, None, None]:
        """Yield the batches of the next epoch; the learning rate is set before each one.

        The caller computes a batch's gradients and calls :meth:`update`. :meth:`finish_epoch` ends the epoch.
        """
        assert self.epoch < self.recipe.epochs
        self.model.train()
        steps = self.batches.steps_per_epoch
        for index, batch in enumerate(self.batches.epoch(self.epoch)):
            self.optimizer.rate = learning_rate(self.recipe, self.epoch * steps + index, steps)
            yield batch

    def update(self) -> None:
        """Take the optimiser's step, then set the masked weights to zero again."""
        self.optimizer.step()

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
        with self._evaluating():
            test = evaluate(self.trainer.network, self._test)
        return {
            TRAIN_LOSS: mean_loss,
            TRAIN_ACCURACY: 100.0 * hits / (steps * self.batches.batch_size),
            TEST_LOSS: test.loss,
            TEST_ACCURACY: test.accuracy,
            LEARNING_RATE: self.optimizer.rate,
        }

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluate epochs in the recipe's precision on a GPU, and in single precision on a CPU, for the block."""
        if self.device.type != GPU:
            yield
            return
        with self.arithmetic(), self.autocast():
            yield

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
        tensors |= {_MOMENTUM + name: momentum for name, momentum in self.optimizer.momenta.items()}
        mask = {_MODEL + name: keep for name, keep in self._mask.items()}
        return apply_mask(mask, _on_host(tensors)), {"epoch": self.epoch, "train_seconds": self.train_seconds}

    def restore(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Restore a state that :meth:`state` returned.

        Raises:
            ValueError: the state belongs to another network or a longer training; this training is unchanged.
        """
        self._check_fits(tensors, data)
        self.model.load_state_dict(_part(_MODEL, tensors))
        self.optimizer.set_momenta(_part(_MOMENTUM, tensors))
        self.epoch, self.train_seconds = int(data["epoch"]), float(data["train_seconds"])

    def _check_fits(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        if not 0 <= data["epoch"] <= self.recipe.epochs:
            raise ValueError(
                f"a state after {data['epoch']} epochs does not belong to a training of {self.recipe.epochs} epochs"
            )
        network = {_MODEL + name: tensor for name, tensor in self.model.state_dict().items()}
        momenta = {_MOMENTUM + name: tensor for name, tensor in self.model.named_parameters()}
        if missing := network.keys() - tensors.keys():
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
        for name, tensor in tensors.items():
            own = {**network, **momenta}.get(name)
            if own is None or (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{name} of {tensor.dtype}, {tuple(tensor.shape)}, matches no tensor of the network")


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU; this process waits for a GPU only once, after the last of them."""
    copies = {name: tensor.detach().to("cpu", non_blocking=True, copy=True) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
    with first.arithmetic():
        sums = first.trainer.train_epoch(trainings)
    share = (time.perf_counter() - start) / number
    return [partial(training.finish_epoch, *own, share) for training, own in zip(trainings, sums, strict=True)]


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 (10-bit mantissa) in convolutions and matrix products on GPUs, for the block.

    PyTorch's default allows it in convolutions and forbids it in matrix products. CPUs are unaffected.
    """
    cudnn: Any = torch.backends.cudnn
    operations = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)

    def tell(precisions: Sequence[str]) -> None:
        # PyTorch refuses to read its older flags, as other libraries do, while they contradict the newer settings.
        cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = precisions[0] == _TF32, precisions[-1] == _TF32
        for operation, precision in zip(operations, precisions, strict=True):
            operation.fp32_precision = precision

    before = [operation.fp32_precision for operation in operations]
    tell([_TF32 if allowed else "ieee"] * len(operations))
    try:
        yield
    finally:
        tell(before)


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """Let cuDNN measure which of its algorithms is the fastest for each convolution, for the block.

    The choice depends on timing, and with it the rounding, so deterministic algorithms do without it.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
