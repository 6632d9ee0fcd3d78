"""CIFAR-10, CIFAR-100 and SVHN, from torchvision's archives or from folders of their images."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainables.data.dataset import Dataset
from trainables.data.decoded import open_decoded
from trainables.data.image_folder import load_folder
from trainables.data.layout import Archive, ImageFolder, find_source
from trainables.data.registry import DATASETS, DOWNLOADABLE

DOWNLOAD_TIMEOUT: Final = 30.0
"""Seconds without a byte before a download is given up."""


def load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """Return the official training and test split, in the order of the archive or of the folders."""
    entry = DATASETS[name]
    source = find_source(name, entry, data_dir, cache_dir)
    if isinstance(source, ImageFolder):
        return load_folder(source, entry, cache_dir)
    decoded = open_decoded(name, source.root, source.state(), cache_dir, lambda directory: _unpack(source, directory))
    return entry.dataset(source.facts(entry), decoded.train, decoded.test, decoded.class_names)


def download(name: str, data_dir: Path) -> None:
    """Download and unpack a dataset; an archive that already lies in `data_dir` is unpacked without a network.

    Raises:
        ValueError: if torchvision has no such dataset.
        OSError: if the network or the disk fails.
        RuntimeError: if a file is not the published one.
    """
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    for train in (True, False):
        _open(name, data_dir, train, download=True)


def _open(name: str, root: Path, train: bool, *, download: bool = False) -> Any:
    from torchvision import datasets  # takes a second, and is not needed where decoded arrays are found

    match name:
        case "cifar10":
            return datasets.CIFAR10(root, train=train, download=download)
        case "cifar100":
            return datasets.CIFAR100(root, train=train, download=download)
        case "svhn":
            return datasets.SVHN(root, split="train" if train else "test", download=download)
    raise ValueError(f"torchvision cannot download {name!r}; it can: {', '.join(DOWNLOADABLE)}")


def _unpack(source: Archive, directory: Path) -> Sequence[str]:
    """Write torchvision's arrays into `directory` and return the names of the classes."""
    for split in ("train", "test"):
        try:
            dataset = _open(source.name, source.root, split == "train")
        except RuntimeError as error:  # torchvision compares checksums
            raise ValueError(f"dataset {source.name!r} in {source.root} is damaged: {error}") from error
        if source.name == "svhn":
            images, labels = dataset.data, dataset.labels
        else:
            images, labels = dataset.data.transpose(0, 3, 1, 2), dataset.targets
        np.save(directory / f"{split}_images.npy", np.ascontiguousarray(images, dtype=np.uint8))
        np.save(directory / f"{split}_labels.npy", np.asarray(labels, dtype=np.int64))
    return DATASETS[source.name].class_names
