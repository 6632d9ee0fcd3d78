"""Batches for training and evaluation, cut from arrays that are on the device already.

There are no loader processes: the datasets of a study fit into memory as uint8, and small networks would spend more
time waiting for a loader than computing. A chunk of many batches is gathered, augmented and normalised at once, so that
a single batch costs almost nothing. The size of the chunks does not influence the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from trainables.data.augmentation import Draws, augment, draw, normalize
from trainables.data.dataset import Augmentation, Split
from trainables.seeding import derive_seed

if TYPE_CHECKING:
    from trainables.data.dataset import Device

CHUNK_BYTES: Final = 8 * 2**20
"""float32 bytes prepared at once. Larger chunks exceed the processor's cache, smaller ones cost more calls."""
RESIDENT_BYTES: Final = 16 * 2**30
"""A larger split stays mapped from its file, and is copied to the device chunk by chunk."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_residents: WeakKeyDictionary[Split, WeakValueDictionary[torch.device, Split]] = WeakKeyDictionary()
"""Split -> device -> its copy there, shared by the networks of a process while any of them uses it."""

Batch = tuple[Tensor, Tensor]
"""Images float32 (B, C, H, W), normalised, and labels int64 (B,)."""


def cpu_generator(root: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a generator on the CPU, seeded by `derive_seed` of the arguments."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(derive_seed(root, purpose, *counters))
    return generator


def random_order(split: Split, seed: int, count: int | None = None) -> Tensor:
    """Return the indices of all images of a split, or of `count` of them, in random order: a pure function of `seed`.

    Raises:
        ValueError: if the split has fewer images, or `count` is not positive.
    """
    if count is not None and not 1 <= count <= len(split):
        raise ValueError(f"a subset needs 1 to {len(split)} images (all of the split), got {count}")
    return torch.randperm(len(split), generator=cpu_generator(seed, "subset"))[:count]


class TrainBatches:
    """Shuffled, augmented batches of full size; every epoch is a pure function of the seed and its number."""

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        device: Device = "cpu",
        channels_last: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Bring the split to the device.

        Args:
            split: images to train on.
            mean: per channel, see `normalize`.
            std: per channel, see `normalize`.
            augmentation: random changes, drawn independently for every epoch.
            batch_size: images in every batch; the images left over at the end of an epoch are dropped.
            seed: root of order and augmentation.
            device: of the batches.
            channels_last: memory format of the images; some devices convolve it faster.
            chunk_bytes: see `CHUNK_BYTES`; it only affects the speed.

        Raises:
            ValueError: if `batch_size` is not within 1 and the size of the split.
        """
        if not 1 <= batch_size <= len(split):
            raise ValueError(f"batch_size must be within 1 and {len(split)} (images to train on), got {batch_size}")
        self.batch_size = batch_size
        self.shape = (batch_size, *split.images.shape[1:])
        """Shape of the images of a batch."""
        self.steps_per_epoch = len(split) // batch_size
        self._split = _resident(split, device)
        self._augmentation = augmentation
        self._seed = seed
        self._device = torch.device(device)
        self._prepare = _Preparation(mean, std, channels_last)
        self._chunk = _chunk_images(split, batch_size, chunk_bytes)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Args:
            number: of the epoch, >= 0. Epochs may be requested in any order, so resuming needs no state.
        """
        if number < 0:
            raise ValueError(f"epochs count from 0, got {number}")
        split = self._split
        # Drawn for the whole split, so that the change of an image does not depend on the batch size.
        order = torch.randperm(len(split), generator=cpu_generator(self._seed, "order", number))
        draws = draw(self._augmentation, len(split), cpu_generator(self._seed, "augment", number))
        order, draws = order.to(split.images.device), draws.to(self._device)
        used = self.steps_per_epoch * self.batch_size
        starts = range(0, used, self._chunk)
        chunks = (order[start : min(start + self._chunk, used)] for start in starts)
        for start, (images, labels) in zip(starts, _on_device(split, chunks, self._device), strict=True):
            images = self._prepare(augment(images, draws.part(start, start + len(labels))))
            yield from _cut(images, labels, self.batch_size)


class EvalBatches:
    """Images of a split: all in their own order, or some in a given order. Can be iterated repeatedly.

    The last batch has the remaining images and may be smaller.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        order: Tensor | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: Device = "cpu",
        channels_last: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Bring the split to the device; the arguments are those of `TrainBatches`, except these.

        Args:
            split: the images.
            mean: per channel.
            std: per channel.
            batch_size: images in every batch but the last.
            order: indices of the images, in the order of the batches; None: all images in the order of the split.
            augmentation: random changes, the same in every iteration; None: no changes.
            seed: root of the augmentation.
            device: of the batches.
            channels_last: memory format of the images.
            chunk_bytes: see `CHUNK_BYTES`.

        Raises:
            ValueError: if `batch_size` is not positive or the split is empty.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if not len(split):
            raise ValueError("cannot evaluate on a split without images")
        self.batch_size = batch_size
        self.num_images = len(split) if order is None else len(order)
        self._split = _resident(split, device)
        self._order = None if order is None else order.to(self._split.images.device)
        self._device = torch.device(device)
        self._draws: Draws | None = None
        if augmentation is not None:
            self._draws = draw(augmentation, self.num_images, cpu_generator(seed, "augment")).to(self._device)
        self._prepare = _Preparation(mean, std, channels_last)
        self._chunk = _chunk_images(split, batch_size, chunk_bytes)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, self.num_images, self._chunk)
        parts = (slice(start, min(start + self._chunk, self.num_images)) for start in starts)
        chunks = parts if self._order is None else (self._order[part] for part in parts)
        for start, (images, labels) in zip(starts, _on_device(self._split, chunks, self._device), strict=True):
            if self._draws is not None:
                images = augment(images, self._draws.part(start, start + len(labels)))
            yield from _cut(self._prepare(images), labels, self.batch_size)


class _Preparation:
    """Converts uint8 pixels to the input of a network."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        # Rearranged first, while a pixel has one byte instead of four.
        return normalize(images.contiguous(memory_format=self.memory_format), self.mean, self.std)


def _cut(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[Batch]:
    """Yield views of `batch_size` images each; the last one may be smaller."""
    for start in range(0, len(labels), batch_size):
        yield images[start : start + batch_size], labels[start : start + batch_size]


def _on_device(split: Split, chunks: Iterable[Tensor | slice], device: torch.device) -> Iterator[Batch]:
    """Yield chunks of a split on the device, uint8; if it is elsewhere, the next chunk is fetched while one is used."""

    def gathered(chunk: Tensor | slice) -> Batch:
        if isinstance(chunk, slice):
            return split.images[chunk], split.labels[chunk]
        return split.images.index_select(0, chunk), split.labels.index_select(0, chunk)

    def pinned(chunk: Tensor | slice) -> Batch:
        images, labels = gathered(chunk)
        return images.pin_memory(), labels.pin_memory()  # otherwise this process would wait for the copy to a GPU

    if split.images.device.type == device.type:
        yield from map(gathered, chunks)
    else:
        for images, labels in one_ahead(pinned if device.type == "cuda" else gathered, chunks):
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def one_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of `function` for `items`; a thread computes the next one in the meantime."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="one-ahead") as thread:
        waiting: Future[_Result] | None = None
        for item in items:
            coming = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = coming
        if waiting:
            yield waiting.result()


def _resident(split: Split, device: Device) -> Split:
    """Return the split on the device, or unchanged if it is too large."""
    if split.images.numel() > RESIDENT_BYTES:
        return split
    device = torch.device(device)
    copies = _residents.setdefault(split, WeakValueDictionary())
    resident = copies.get(device)
    if resident is None:
        resident = copies[device] = split.to(device)
    return resident


def _chunk_images(split: Split, batch_size: int, chunk_bytes: int) -> int:
    """Return the number of images to prepare at once: whole batches, at least one."""
    batch_bytes = batch_size * split.images[0].numel() * 4
    return max(1, chunk_bytes // batch_bytes) * batch_size
