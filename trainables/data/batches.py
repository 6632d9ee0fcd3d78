"""Batches for training and evaluation, cut from arrays that are on the device already, or decoded for them.

Datasets that fit into memory as uint8 have no loader processes: small networks would spend more time waiting for a
loader than computing. A chunk of many batches is gathered, augmented and normalised at once, so that a single batch
costs almost nothing. Neither the size of the chunks nor where their images come from influences the result.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from trainables.data.augmentation import Draws, augment, byte_scale, draw, normalize
from trainables.data.dataset import Augmentation, Split
from trainables.host.devices import memory_of
from trainables.seeding import derive_seed

if TYPE_CHECKING:
    from trainables.data.dataset import Device

CHUNK_BYTES: Final = 8 * 2**20
"""float32 bytes prepared at once. Larger chunks exceed the processor's cache, smaller ones cost more calls."""
CHUNKS_AHEAD: Final = 8
"""How many chunks the host copies to a GPU before the GPU has used them. Each takes pinned memory of the host."""
RESIDENT_BYTES: Final = 16 * 2**30
RESIDENT_SHARE: Final = 1 / 4
"""A split that takes more bytes, or a larger share of the device's memory, stays mapped from its file; its chunks are
copied to the device in every epoch."""

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


def parts(batch_size: int, workers: int) -> list[range]:
    """Return the positions in every batch of the images that each worker takes; they differ by one image at most."""
    ends = [rank * batch_size // workers for rank in range(workers + 1)]
    return [range(*each) for each in itertools.pairwise(ends)]


def random_order(split: Split, seed: int, count: int | None = None) -> Tensor:
    """Return the indices of all images of a split, or of `count` of them, in random order: a pure function of `seed`.

    Raises:
        ValueError: if the split has fewer images, or `count` is not positive.
    """
    if count is not None and not 1 <= count <= len(split):
        raise ValueError(f"a subset needs 1 to {len(split)} images (all of the split), got {count}")
    return torch.randperm(len(split), generator=cpu_generator(seed, "subset"))[:count]


@dataclass(kw_only=True, eq=False)
class _Batches:
    """Batches of a split, which is brought to the device.

    Attributes:
        split: the images.
        mean: per channel, on the scale where white is 1.
        std: per channel, on the same scale, > 0.
        batch_size: images in a batch.
        device: of the batches.
        channels_last: memory format of the images; some devices convolve it faster.
        chunk_bytes: see `CHUNK_BYTES`; it only affects the speed.
    """

    split: Split = field(kw_only=False)
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int
    device: Device = "cpu"
    channels_last: bool = False
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        self.split, self.device = _resident(self.split, self.device), torch.device(self.device)
        # On the device once and for all: this process would wait for a copy to a GPU with every chunk.
        self._mean, self._std = (byte_scale(values).to(self.device) for values in (self.mean, self.std))

    def _drawn(self, augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
        """Return the augmentation of `count` images, drawn by `generator`, on the device."""
        device = torch.device(self.device)
        return {name: _sent(values, device) for name, values in draw(augmentation, count, generator).items()}

    def _batches(
        self, count: int, order: Tensor | None, augmentation: Augmentation, draws: Draws, size: int
    ) -> Iterator[Batch]:
        """Yield the first `count` images in an order, by default their own, `size` at a time; the last may be fewer."""
        device = torch.device(self.device)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        batch_bytes = size * self.split.images[0].numel() * 4
        chunk = max(1, self.chunk_bytes // batch_bytes) * size
        parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
        chunks = (part if order is None else order[part] for part in parts)
        for part, (images, labels) in zip(parts, _on_device(self.split, chunks, device), strict=True):
            with _one_thread() if self.split.decoder is not None and device.type == "cpu" else nullcontext():
                images = augment(images, augmentation, {name: values[part] for name, values in draws.items()})
                # Rearranged first, while a pixel has one byte instead of four.
                images = normalize(images.contiguous(memory_format=memory_format), self._mean, self._std)
            for first in range(0, len(labels), size):
                yield images[first : first + size], labels[first : first + size]


@dataclass(kw_only=True, eq=False)
class TrainBatches(_Batches):
    """Shuffled, augmented batches of full size; every epoch is a pure function of the seed and its number.

    Attributes:
        augmentation: random changes, drawn independently for every epoch.
        seed: root of order and augmentation.
        part: the positions in every batch whose images are wanted; None: all.

    Raises:
        ValueError: if `batch_size` is not within 1 and the size of the split.
    """

    augmentation: Augmentation
    seed: int
    part: range | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.split):
            raise ValueError(
                f"batch_size must be within 1 and {len(self.split)} (images to train on), got {self.batch_size}"
            )
        super().__post_init__()
        self.shape = (self.batch_size, *self.split.images.shape[1:])
        """Shape of the images of a batch."""
        self.steps_per_epoch = len(self.split) // self.batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; the images left over at its end are dropped.

        Args:
            number: of the epoch, >= 0. Epochs may be requested in any order, so resuming needs no state.
        """
        if number < 0:
            raise ValueError(f"epochs count from 0, got {number}")
        images = len(self.split)
        order = torch.randperm(images, generator=cpu_generator(self.seed, "order", number))
        # Drawn for all images, so that the change of an image does not depend on the batch size.
        draws = self._drawn(self.augmentation, images, cpu_generator(self.seed, "augment", number))
        count, size = self.steps_per_epoch * self.batch_size, self.batch_size
        if self.part is not None:
            wanted = torch.arange(count).view(-1, size)[:, self.part.start : self.part.stop].flatten()
            count, size, order = len(wanted), len(self.part), order[wanted]
            draws = {name: values[_sent(wanted, values.device)] for name, values in draws.items()}
        yield from self._batches(count, _sent(order, self.split.labels.device), self.augmentation, draws, size)


@dataclass(kw_only=True, eq=False)
class EvalBatches(_Batches):
    """Images of a split: all in their own order, or some in a given order. Can be iterated repeatedly.

    The last batch has the remaining images and may be smaller.

    Attributes:
        order: indices of the images, in the order of the batches; None: all images in the order of the split.
        augmentation: random changes, the same in every iteration; None: no changes.
        seed: root of the augmentation.

    Raises:
        ValueError: if `batch_size` is not positive or the split is empty.
    """

    repeatable: ClassVar[bool] = True
    """Every iteration yields the same batches."""
    order: Tensor | None = None
    augmentation: Augmentation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if not len(self.split):
            raise ValueError("cannot evaluate on a split without images")
        super().__post_init__()
        self.num_images = len(self.split) if self.order is None else len(self.order)
        if self.order is not None:
            self.order = _sent(self.order, self.split.labels.device)
        self._changes = self.augmentation or Augmentation()
        self._draws = self._drawn(self._changes, self.num_images, cpu_generator(self.seed, "augment"))

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches(self.num_images, self.order, self._changes, self._draws, self.batch_size)


def _on_device(split: Split, chunks: Iterable[Tensor | slice], device: torch.device) -> Iterator[Batch]:
    """Yield chunks of a split on the device, uint8; if it is elsewhere, the next chunk is fetched while one is used."""

    def gathered(chunk: Tensor | slice) -> Batch:
        if isinstance(chunk, slice):
            return split.images[chunk], split.labels[chunk]
        return split.images.index_select(0, chunk), split.labels.index_select(0, chunk)

    def pinned(chunk: Tensor | slice) -> Batch:
        return _pinned(gathered(chunk))

    if split.decoder is not None:
        indices = [torch.arange(each.start, each.stop) if isinstance(each, slice) else each for each in chunks]
        decoded = split.decoder.decoded(indices)
        fetched: Iterator[Batch] = zip(decoded, (split.labels[each] for each in indices), strict=True)
        if device.type == "cuda":
            fetched = one_ahead(_pinned, fetched)
    elif split.images.device.type == device.type:
        yield from map(gathered, chunks)
        return
    else:
        fetched = one_ahead(pinned if device.type == "cuda" else gathered, chunks)
    used: deque[torch.cuda.Event] = deque()
    for images, labels in fetched:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if device.type == "cuda":
            used.append(torch.cuda.current_stream(device).record_event())
            if len(used) > CHUNKS_AHEAD:
                used.popleft().synchronize()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leave the other CPUs to the processes that decode: threads that wait for one another would keep them busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pinned(batch: Batch) -> Batch:
    """Return a batch in pinned memory; otherwise this process would wait for the copy to a GPU."""
    images, labels = batch
    return images.pin_memory(), labels.pin_memory()


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; this process does not wait for a copy to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # without it, `non_blocking` has no effect
    return tensor.to(device, non_blocking=True)


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


def resident_bytes(memory: float) -> float:
    """Return the most bytes of a split that is kept on a device with `memory` bytes."""
    return min(RESIDENT_BYTES, RESIDENT_SHARE * memory)


def _resident(split: Split, device: Device) -> Split:
    """Return the split on the device, or unchanged if it is too large or has to be decoded."""
    device = torch.device(device)
    if split.decoder is not None or split.images.numel() > resident_bytes(memory_of(device)):
        return split
    copies = _residents.setdefault(split, WeakValueDictionary())
    resident = copies.get(device)
    if resident is None:
        resident = copies[device] = split.to(device)
    return resident
