"""Images that are decoded as batches need them, where all of them decoded would not fit into memory.

Worker processes decode a bounded number of images ahead. Which images a batch has, and how they are changed, is decided
in `trainables.data.batches`; so batches have the same bits as those from memory, with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from trainables.data.bucket import by_uri
from trainables.data.dataset import Split
from trainables.data.image_folder import decode_file, refusal
from trainables.data.layout import ImageFile, ImageFolder, scan_folders
from trainables.errors import HostFault

PART_BYTES: Final = 2**20
"""Decoded bytes that a worker sends at a time."""
_FILES_PER_PART: Final = 16
"""When all files are decoded to find those that cannot be."""

Decoded = Tensor | dict[int, str]
"""Images uint8 (N, 3, H, W), or the problems of those that cannot be decoded, index -> message."""


def open_streamed(source: ImageFolder) -> tuple[Split, Split]:
    """Return the training and the test split of a folder; their images are decoded whenever they are used."""
    size = source.form().size
    train, test = (
        Split(
            images=torch.empty((len(files), 3, size, size), dtype=torch.uint8, device="meta"),
            labels=torch.tensor([file.label for file in files]),
            decoder=Decoder(source, files),
        )
        for files in (source.train, source.test)
    )
    return train, test


class Decoder(TorchDataset[Decoded]):
    """Decodes images of a folder by their index.

    What it knows of the files is in arrays: worker processes share their memory with the parent, and reading a Python
    object would copy it.
    """

    def __init__(self, source: ImageFolder, files: Sequence[ImageFile]) -> None:
        self._name, self._root, self._reading, self._form = source.name, source.root, source.reading, source.form()
        self._paths = np.array([os.fsencode(file.state.path) for file in files])
        self._digests = np.array([file.picture.digest.encode() for file in files])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, indices: list[int]) -> Decoded:
        """Decode images; called by PyTorch in a worker process."""
        found = {
            index: decode_file(self._root / os.fsdecode(self._paths[index]), self._form, self._digests[index].decode())
            for index in indices
        }
        if problems := {index: each for index, each in found.items() if isinstance(each, str)}:
            return problems
        return torch.from_numpy(np.stack([found[index] for index in indices]))

    def decoded(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of chunks of indices, uint8 (N, 3, H, W); workers decode about one chunk ahead.

        Raises:
            HostFault: an image cannot be decoded. All files are then decoded once, and the message names those that
                cannot be; the next plan knows them.
            OSError: a file cannot be read.
        """
        chunks, size = list(chunks), max(1, PART_BYTES // (3 * self._form.size**2))
        ahead = max(map(len, chunks), default=0)  # so that no worker waits while this process uses a chunk
        parts = self._fetched((part for chunk in chunks for part in torch.split(chunk, size)), -(-ahead // size))
        for chunk in chunks:
            images = np.empty((len(chunk), 3, self._form.size, self._form.size), np.uint8)
            for start in range(0, len(chunk), size):  # by NumPy: threads of PyTorch would keep the workers' CPUs busy
                images[start : start + size] = self._usable(next(parts)).numpy()
            yield torch.from_numpy(images)

    def _usable(self, part: Decoded) -> Tensor:
        if isinstance(part, Tensor):
            return part
        source = scan_folders(self._name, self._root, self._reading)
        whole, states = Decoder(source, source.files), [file.state for file in source.files]
        parts = torch.split(torch.arange(len(whole)), _FILES_PER_PART)
        problems = {
            states[index]: problem
            for each in whole._fetched(parts)
            if isinstance(each, dict)
            for index, problem in each.items()
        }
        if not problems:  # the file has been mended in the meantime, and its digest may differ from the planned one
            index, problem = next(iter(part.items()))
            raise HostFault(by_uri(f"{self._root / os.fsdecode(self._paths[index])}: {problem}"))
        raise HostFault(by_uri(str(refusal(source, problems))))

    def _fetched(self, parts: Iterable[Tensor], ahead: int = 0) -> Iterator[Decoded]:
        """Yield parts, decoded by one worker process for each thread of this process, at least `ahead` in advance."""
        loader = DataLoader(
            self,
            batch_sampler=(part.tolist() for part in parts),
            collate_fn=_unchanged,
            num_workers=workers(),
            prefetch_factor=max(2, -(-ahead // workers())),
            multiprocessing_context="fork",  # shares this object; the workers use no GPU
            generator=torch.Generator(),  # the global one would be advanced
        )
        yield from loader


def workers() -> int:
    """Return the number of worker processes: one for each CPU that this process may keep busy."""
    return max(1, torch.get_num_threads())


def _unchanged(part: Any) -> Any:
    return part
