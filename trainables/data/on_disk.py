"""Datasets on disk: torchvision's archives of CIFAR-10, CIFAR-100 and SVHN, and folders of images."""

from __future__ import annotations

import socket
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainables.data.dataset import Dataset
from trainables.data.decoded import open_decoded
from trainables.data.image_folder import decode_folder
from trainables.data.layout import CROPPED_SIZE, Archive, find_source
from trainables.data.registry import DATASETS

DOWNLOAD_TIMEOUT: Final = 30.0
"""Seconds without a byte before a download is given up."""


def load(name: str, data_dir: Path | None) -> Dataset:
    """Return the training and test split, in the order of the archive or of the folders.

    Raises:
        ValueError: the files do not fit the registry, an archive is damaged or an image cannot be decoded.
    """
    source, entry = find_source(name, data_dir), DATASETS[name]
    facts, augmentation = source.facts(), entry.augmentation
    if facts.image_size == CROPPED_SIZE:
        augmentation = replace(augmentation, crop_padding=0, random_resized_crop=True)
    decode = partial(unpack, source) if isinstance(source, Archive) else partial(decode_folder, source)
    train, test = open_decoded(name, source.root, source.state(), decode)
    return Dataset(**asdict(facts), train=train, test=test, mean=entry.mean, std=entry.std, augmentation=augmentation)


def download(name: str, data_dir: Path) -> None:
    """Download and unpack a dataset; an archive that already lies in `data_dir` is unpacked without a network.

    Raises:
        OSError: if the network or the disk fails.
        RuntimeError: if a file is not the published one.
    """
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    for split in ("train", "test"):
        _open(name, data_dir, split, download=True)


def _open(name: str, root: Path, split: str, *, download: bool = False) -> Any:
    from torchvision import datasets  # takes a second, and is not needed where decoded arrays are found

    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    return getattr(datasets, name.upper())(root, download=download, **which)


def unpack(source: Archive, directory: Path) -> None:
    """Write torchvision's arrays into `directory`."""
    for split in ("train", "test"):
        try:
            dataset = _open(source.name, source.root, split)
        except RuntimeError as error:  # torchvision compares checksums
            raise ValueError(f"dataset {source.name!r} in {source.root} is damaged: {error}") from error
        if source.name == "svhn":
            images, labels = dataset.data, dataset.labels
        else:
            images, labels = dataset.data.transpose(0, 3, 1, 2), dataset.targets
        np.save(directory / f"{split}_images.npy", np.ascontiguousarray(images, dtype=np.uint8))
        np.save(directory / f"{split}_labels.npy", np.asarray(labels, dtype=np.int64))
