"""Engine that launches each training step as one CUDA graph, and trains several networks side by side on a GPU.

A step of a small network is some 200 short kernels, and the host takes longer to launch them than the GPU to compute
them. A graph is launched at once: forward and backward pass, optimiser, mask and running sums. It always computes on
the memory on which it was captured, so a network is copied there for an epoch and copied back afterwards. One capture
therefore serves all networks of a process that have the same architecture and batch shape, with masks, weights and
learning rates of their own.

Several networks train at a time, each with a graph on a stream of its own, and get the same bits as alone in the same
process; cuDNN may choose other algorithms in another one.

A network whose step cannot be captured is trained by the plain engine, and the job's log says why.
"""

from __future__ import annotations

import copy
import logging
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from trainables.errors import Verdict, causes, first_line, verdict
from trainables.training.engines import GPU, plain
from trainables.training.loop import Training
from trainables.training.optimizer import MaskedSGD, copy_all

_WARM_UP: Final = 3
"""Steps before a capture, in which PyTorch allocates, and cuDNN chooses its algorithms."""
_TOLERANCE: Final = 0.01
"""How far a replayed step may be from a computed one, as a share of the step. Some kernels add in a random order."""

_log = logging.getLogger(__name__)


class Trainer(plain.Trainer):
    """Trains a network by replaying a captured step, together with others or alone."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Prepare to train `model`; the capture happens at its first epoch, unless an earlier network left one."""
        super().__init__(model, mask)
        self._uncapturable = False
        if not Lane.runs_on(device := next(model.parameters()).device):
            self.give_up(f"{device.type} has no CUDA graphs")

    @staticmethod
    def free_idle_memory() -> None:
        """Free the captured steps that wait for a network."""
        _idle.clear()

    def give_up(self, reason: str) -> None:
        """Train this network by the plain engine from now on."""
        self._uncapturable = True
        _log.warning("graphs=true: the steps are launched kernel by kernel, because %s", reason)

    def profile(self, training: Training) -> Hashable | None:
        """Return what networks share that use the same captured steps; None if this one cannot use any."""
        return None if self._uncapturable else _profile(training)

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train one or several networks for one epoch."""
        if self._uncapturable:
            return super().train_epoch(trainings)
        each = [training.steps() for training in trainings]
        batches = zip(*each, strict=True)
        first = next(batches)
        try:
            steps = [_captured(training, *batch) for training, batch in zip(trainings, first, strict=True)]
        except RuntimeError as error:
            if verdict(error) is Verdict.OUT_OF_GPU_MEMORY and len(trainings) > 1:
                self.free_idle_memory()
                raise  # so that fewer networks share the next trial
            # A capture that ends badly says only that there was an error; its cause is the context.
            reason = ", after ".join(dict.fromkeys(first_line(cause) for cause in causes(error, contexts=True)))
        else:
            return _train(steps, trainings, chain([first], batches))
        for unused in each:
            unused.close()  # which ends the processes that decode its images
        return [_train_plainly(training, reason) for training in trainings]


def _train(
    steps: Sequence[_Step], trainings: Sequence[Training], batches: Iterator[Sequence[tuple[Tensor, Tensor]]]
) -> list[tuple[float, float]]:
    """Train networks for one epoch, each by its captured step; then leave the steps to the next networks."""
    for step, training in zip(steps, trainings, strict=True):
        step.load(training)
    try:
        for batch in batches:
            for step, training, (images, labels) in zip(steps, trainings, batch, strict=True):
                step.replay(images, labels, training.optimizer.rate)
            # The next batches get these ones' memory once they have been copied. Otherwise the memory of all batches
            # that the host is ahead by would be in use, up to a whole epoch.
            for step in steps:
                step.release()
    finally:
        for step in steps:
            step.join()  # after an error, too: others get the memory on which the graphs are still computing
    sums = [step.store(training) for step, training in zip(steps, trainings, strict=True)]
    _idle[_profile(trainings[0])] += steps
    return sums


def _train_plainly(training: Training, reason: str) -> tuple[float, float]:
    assert isinstance(training.trainer, Trainer)
    training.trainer.give_up(reason)
    (sums,) = training.trainer.train_epoch([training])
    return sums


def _profile(training: Training) -> Hashable:
    recipe = training.recipe
    constants = recipe.momentum, recipe.weight_decay, torch.are_deterministic_algorithms_enabled()
    return *plain.likeness(training), *constants


_idle: dict[Hashable, list[_Step]] = {}
"""Profile -> captured steps that wait for a network. At most one profile is kept: each step holds memory of the GPU."""


def _captured(training: Training, images: Tensor, labels: Tensor) -> _Step:
    """Return a captured step for a network: one that waits, or a new one.

    Raises:
        RuntimeError: the step cannot be captured, or replaying it does something else than computing it.
    """
    profile = _profile(training)
    if profile not in _idle:
        Trainer.free_idle_memory()
    if waiting := _idle.setdefault(profile, []):
        return waiting.pop()
    return _Step(training, images, labels)


class _Step:
    """A training step of a network, captured on memory of its own."""

    def __init__(self, training: Training, images: Tensor, labels: Tensor) -> None:
        """Capture a training's step; the training and its network stay as they are.

        Args:
            training: the first training that uses this step.
            images: a batch of its images.
            labels: their labels.

        Raises:
            RuntimeError: the step cannot be captured, or replaying it does something else than computing it.
        """
        self._network = copy.deepcopy(training.model)
        self._parameters = tuple(self._network.parameters())
        # A mask on all parameters fits any network's mask. Multiplying the others by 1 changes nothing.
        everything = {name: torch.ones_like(each, dtype=torch.bool) for name, each in self._network.named_parameters()}
        self._optimizer = MaskedSGD(self._network, training.recipe, everything, rate_on_device=True)
        self._images, self._labels = images.clone(), labels.clone()
        self._loss, self._hits = torch.zeros(2, device=training.device).unbind()
        self._autocast, self._micro_batches = training.autocast(), training.micro_batches
        self._lane = Lane(training.device)
        with self._lane.entered():
            for _ in range(_WARM_UP - 1):
                self._compute()
            self._lane.rehearse(self._compute)
        self._lane.capture(self._compute)
        self._check(training)
        self._network.zero_grad(set_to_none=True)  # the graph has gradients of its own

    def _compute(self) -> None:
        """Take a step on the batch, and add its loss and hits to the sums."""
        loss, hits = plain.compute_gradients(
            self._parameters, self._network, self._images, self._labels, self._autocast, self._micro_batches
        )
        self._optimizer.step()
        self._loss += loss
        self._hits += hits

    def _check(self, training: Training) -> None:
        """Raise RuntimeError unless replaying the step does to a network what computing it does."""
        self.load(training)
        before, ends = self._weights(), []
        for run in (self._compute, self._lane.replay):
            self.load(training)
            with self._lane.entered():
                run()
            self._lane.join()
            ends.append((self._weights(), self._loss.clone()))
        (computed, loss), (replayed, again) = ends
        off, moved = (replayed - computed).norm(), (computed - before).norm()
        if not (off <= _TOLERANCE * moved and (loss - again).abs() <= _TOLERANCE * loss):
            raise RuntimeError(f"the captured step is off by {float(off):.1e} of a step of {float(moved):.1e}")

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._network.parameters()])

    def load(self, training: Training) -> None:
        """Copy a network here, with its mask, momenta and learning rate, and set the sums to zero."""
        copy_all(zip(_tensors(self._network), _tensors(training.model), strict=True))
        self._optimizer.take_over(training.optimizer)
        self._loss.zero_()
        self._hits.zero_()

    def replay(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """Take a step on a batch at a learning rate; the host does not wait for it."""
        with self._lane.entered():
            self._images.copy_(images)
            self._labels.copy_(labels)
            self._lane.mark()
            self._optimizer.rate = rate
            self._lane.replay()

    def release(self) -> None:
        """Let the current stream wait until the last batch has been copied; the host does not wait."""
        self._lane.join_mark()

    def join(self) -> None:
        """Let the current stream wait for the steps; the host does not wait."""
        self._lane.join()

    def store(self, training: Training) -> tuple[float, float]:
        """Copy the network back with its momenta; return the sums of losses and hits since :meth:`load`.

        Call :meth:`join` first.
        """
        copy_all(zip(_tensors(training.model), _tensors(self._network), strict=True))
        training.optimizer.set_momenta(self._optimizer.momenta)
        mean_losses, right = torch.stack((self._loss, self._hits)).tolist()  # the host waits once
        return mean_losses, right


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class Lane:
    """A CUDA stream, and the work that is captured on it."""

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """Return whether a device can capture work."""
        return device.type == GPU

    _unused: ClassVar[list[torch.cuda.Stream]] = []
    """Streams of lanes that are gone. cuBLAS keeps a workspace for every stream that it has been used on."""

    def __init__(self, device: torch.device) -> None:
        """Open a stream on a device, the same one as all other lanes of this process."""
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        self._stream = self._unused.pop() if self._unused else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        weakref.finalize(self, self._unused.append, self._stream)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Queue the block's work on the stream, after all work that the current stream has been given so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        except BaseException:
            self.join()  # others get the memory on which the abandoned work is still computing
            raise

    def mark(self) -> None:
        """Mark how far the stream's work has been queued; call it within :meth:`entered`."""
        self._mark = self._stream.record_event()

    def join_mark(self) -> None:
        """Let the current stream wait for the work before the last mark; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_event(self._mark)

    def join(self) -> None:
        """Let the current stream wait for this one; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def rehearse(self, work: Callable[[], None]) -> None:
        """Do `work` and notice where the host waits for the GPU; call it within :meth:`entered`.

        A capture notices all waits, but one that fails leaves the allocator of PyTorch 2.11 unable to free memory. This
        notices most of them before. It does so in all threads of the process; the others, which read data and write
        checkpoints, never wait for the GPU.

        Raises:
            RuntimeError: the host waits for the GPU, which no graph can repeat.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not notice every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, work: Callable[[], None]) -> None:
        """Capture the kernels that `work` launches, without computing them."""
        # Other threads of the process, which read data, may use the GPU meanwhile.
        captured = torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.stream(self._stream), captured:  # which does not leave the stream if the capture ends badly
            work()

    def replay(self) -> None:
        """Launch the captured work on the current stream; call it within :meth:`entered`."""
        self._graph.replay()
