"""A task made concrete: its dataset on the device, and networks that fit it."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainables.config import Recipe, Task, model_options
from trainables.data import counts, forget, load_dataset
from trainables.data.batches import EvalBatches, TrainBatches, random_order
from trainables.data.dataset import Augmentation, Dataset, Split
from trainables.errors import HostFault
from trainables.jobs.publishing import Context
from trainables.models import build_model, image_options
from trainables.models.network import Network, fits_channels_last
from trainables.training.loop import Training

EVAL_BATCH = 1000
"""Images per batch where no gradients are needed."""


def _planned(task: Task, data_dir: str | None) -> Dataset:
    """Return the dataset that a task names: the name and version of its data are in the key of the job."""
    try:
        dataset = load_dataset(task.dataset, data_dir)
        if dataset.fingerprint != task.data_version:
            forget()  # the next job of this process looks again: the data may be complete by then
            planned, found = (counts(task.dataset, version) for version in (task.data_version, dataset.fingerprint))
            raise ValueError(f"{task.dataset} in {data_dir} is not what was planned: planned {planned}, found {found}")
    except ValueError as error:
        raise HostFault(f"host {platform.node()}: {error}") from error
    return dataset


class TaskData:
    """The task's dataset and networks that fit it, on the device."""

    def __init__(self, task: Task, context: Context) -> None:
        """Load the dataset, once per process.

        Raises:
            HostFault: the data are not there on this machine, or are not those that the task names.
        """
        self._task, self._device = task, context.device
        self._dataset = _planned(task, context.data_dir)
        with torch.device("meta"):
            self._channels_last = self._device.type != "cpu" or fits_channels_last(self._build())
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
            batch_size=EVAL_BATCH,
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
        task, dataset = self._task, self._dataset
        return build_model(
            task.model,
            width=task.width,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            init=task.init,
            **model_options(task.shortcut, stream_taps),
            **image_options(task.model, dataset.image_size),
        )

    def training(
        self, model: nn.Module, recipe: Recipe, seed: int, mask: Mapping[str, Tensor] | None = None
    ) -> Training:
        """Return the training of `model` by `recipe`; order and augmentation come from `seed`."""
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
        )
        return Training(model, recipe, batches, self.test, mask)

    def measuring(self, images: int, seed: int, *, augment: bool = False) -> EvalBatches:
        """Return training images in random order: `images` of them, or all if it is 0 or more than there are.

        Folders lie sorted by class: in their own order a batch would hold one class only.

        Args:
            images: how many.
            seed: of their choice, order and augmentation.
            augment: whether they are augmented as for training.
        """
        train = self._dataset.train
        order = random_order(train, seed, images if 0 < images < len(train) else None)
        return self._eval(train, order, self._dataset.augmentation if augment else None, seed)
