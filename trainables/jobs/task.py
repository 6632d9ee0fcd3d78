"""A task's dataset on the device, and networks that fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config import Recipe, Task
from trainables.data import counts, forget, load_dataset
from trainables.data.batches import EvalBatches, TrainBatches, parts, random_order
from trainables.data.dataset import Augmentation, Dataset, Reading, Split
from trainables.errors import HostFault
from trainables.host.places import is_uri
from trainables.jobs.publishing import Context
from trainables.knobs import FP32
from trainables.models.network import Network, fits_channels_last
from trainables.storage.store import Store
from trainables.training import eval_batch
from trainables.training.crew import own_gpu
from trainables.training.determinism import fix_workspace
from trainables.training.engines import CPU, GPU
from trainables.training.loop import Training


def _planned(task: Task, context: Context) -> Dataset:
    """Return the task's dataset, checked against the data version that is part of the job's key.

    Raises:
        HostFault: the data are missing on this host, or differ from the planned version.
        ValueError: the data in a bucket differ from the planned version, so they do for all hosts.
        StorageError: a bucket cannot be read.
    """
    data_dir, reading = context.data_dir, replace(context.reading, image_size=task.image_size)
    try:
        dataset = load_dataset(task.dataset, data_dir, reading)
        if dataset.fingerprint != task.data_version:
            forget()  # this process may have loaded them before they changed
            dataset = load_dataset(task.dataset, data_dir, reading)
    except ValueError as error:
        raise HostFault(str(error)) from error
    if dataset.fingerprint == task.data_version:
        return dataset
    forget()  # so that the next job of this process reloads the data, which may be complete by then
    planned, found = (counts(task.dataset, version) for version in (task.data_version, dataset.fingerprint))
    text = f"{task.dataset} in {data_dir} is not what was planned: planned {planned}, found {found}"
    if is_uri(str(data_dir)):
        raise ValueError(f"{text}; the bucket has changed, and the same command plans for what it has now")
    raise HostFault(text)


@dataclass(frozen=True, kw_only=True)
class TaskAssignment:
    """What the workers of a job know of it; see ``trainables.training.crew.Assignment``.

    Attributes:
        task: the network and its dataset.
        recipe: how it is trained.
        seed: determines data order and augmentation.
        mask: as in the training, on the CPU.
        state: of the training, so far.
        storage: URI of the store.
        data_dir: as in the leader's context.
        reading: as in the leader's context.
        device: kind of device that computes.
        micro_batches: as in the leader's context.
        threads: threads of each worker.
    """

    task: Task
    recipe: Recipe
    seed: int
    mask: Mapping[str, Tensor] | None
    state: tuple[Mapping[str, Tensor], Mapping[str, Any]]
    storage: str
    data_dir: str | None
    reading: Reading
    device: str
    micro_batches: int
    threads: int

    @property
    def deterministic(self) -> bool:
        """Whether the workers use only deterministic algorithms; on a CPU, the usual ones are."""
        return self.task.deterministic and self.device != CPU

    def training(self, rank: int, workers: int) -> Training:
        """Return the training of a worker, in the process that is to work."""
        torch.set_num_threads(self.threads)
        device = torch.device(CPU)
        if self.device == GPU:
            fix_workspace()
            device = own_gpu(rank)
            torch.cuda.set_device(device)
        context = Context(
            store=Store(self.storage),
            data_dir=self.data_dir,
            reading=self.reading,
            device=device,
            micro_batches=self.micro_batches,
        )
        return TaskData(self.task, context, self.recipe.precision).part(self, rank, workers)


class TaskData:
    """The task's dataset and networks that fit it, on the device; loaded once per process."""

    def __init__(self, task: Task, context: Context, precision: str = FP32) -> None:
        """Load the dataset.

        Args:
            task: the network and its dataset.
            context: the device, and where the data are.
            precision: the precision in which the networks train; measurements are in single precision.

        Raises:
            HostFault, ValueError, StorageError: the data cannot be used, see :func:`_planned`.
        """
        self._task, self._context, self._device = task, context, context.device
        self._dataset = _planned(task, context)
        if self._device.type == CPU:
            with torch.device("meta"):
                self._channels_last = fits_channels_last(self._build())
        else:
            self._channels_last = precision != FP32  # GPUs' tensor cores read it; single precision does without them
        self.num_classes = self._dataset.num_classes
        self.test = self._eval(self._dataset.test)
        self.train_plain = self._eval(self._dataset.train)

    def _eval(
        self, split: Split, order: Tensor | None = None, augmentation: Augmentation | None = None, seed: int = 0
    ) -> EvalBatches:
        dataset = self._dataset
        return EvalBatches(
            split,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=eval_batch(dataset.image_size, self._context.micro_batches),
            order=order,
            augmentation=augmentation,
            seed=seed,
            device=self._device,
            channels_last=self._channels_last,
        )

    def model(self, weights: Mapping[str, Tensor] | None = None, *, stream_taps: str = "end") -> Network:
        """Build the task's network on the device, freshly initialised or with the given weights."""
        model = self._build(stream_taps)
        if weights is not None:
            model.load_state_dict(weights)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return model.to(self._device).to(memory_format=layout)

    def _build(self, stream_taps: str = "end") -> Network:
        data = self._dataset
        return self._task.network(
            image_size=data.image_size,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            stream_taps=stream_taps,
        )

    def training(
        self, model: nn.Module, recipe: Recipe, seed: int, mask: Mapping[str, Tensor] | None = None
    ) -> Training:
        """Return the training of `model` by `recipe`; `seed` determines data order and augmentation.

        As many workers of the context's crew train it as the recipe allows; this process leads them.
        """
        crew, log = self._context.crew, self._context.log
        if (workers := recipe.workers(crew.workers)) == 1:
            if crew.workers > 1:
                log.write(
                    f"{recipe.engine.setting} trains a network in one process: 1 of {crew.workers} workers is used"
                )
            return self._training(model, recipe, seed, mask)
        log.write(f"{workers} workers train the network, each with its part of every batch")

        def assignment(training: Training) -> TaskAssignment:
            return TaskAssignment(
                task=self._task,
                recipe=recipe,
                seed=seed,
                mask=None if mask is None else {name: keep.cpu() for name, keep in mask.items()},
                state=training.state(),
                storage=self._context.store.uri,
                data_dir=self._context.data_dir,
                reading=self._context.reading,
                device=self._device.type,
                micro_batches=self._context.micro_batches,
                threads=torch.get_num_threads(),
            )

        led = partial(crew.leading, assignment)
        return self._training(model, recipe, seed, mask, 0, workers, led=led)

    def part(self, assignment: TaskAssignment, rank: int, workers: int) -> Training:
        """Return a worker's part of a training that another process leads."""
        training = self._training(self.model(), assignment.recipe, assignment.seed, assignment.mask, rank, workers)
        training.restore(*assignment.state)
        return training

    def _training(
        self,
        model: nn.Module,
        recipe: Recipe,
        seed: int,
        mask: Mapping[str, Tensor] | None,
        rank: int = 0,
        workers: int = 1,
        **led: Any,
    ) -> Training:
        trainer = None
        if workers > 1:
            shared = recipe.engine.worker_trainer()
            trainer = partial(shared, rank=rank, workers=workers, batch_size=recipe.batch_size, **led)
        dataset = self._dataset
        batches = TrainBatches(
            dataset.train,
            mean=dataset.mean,
            std=dataset.std,
            augmentation=dataset.augmentation if self._task.augment else Augmentation(),
            batch_size=recipe.batch_size,
            seed=seed,
            device=self._device,
            channels_last=self._channels_last,
            part=parts(recipe.batch_size, workers)[rank] if workers > 1 else None,
        )
        return Training(model, recipe, batches, self.test, mask, self._context.micro_batches, trainer)

    def measuring(self, images: int, seed: int, *, augment: bool = False) -> EvalBatches:
        """Return a random selection of training images in random order.

        The order must be random: image folders are sorted by class, so a batch would hold a single class.

        Args:
            images: number of images; all of them if 0 or more than there are.
            seed: seeds selection, order and augmentation.
            augment: whether to augment as in training.
        """
        train = self._dataset.train
        order = random_order(train, seed, images if 0 < images < len(train) else None)
        return self._eval(train, order, self._dataset.augmentation if augment else None, seed)
