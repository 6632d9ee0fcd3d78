"""Datasets on disk: torchvision's archives of CIFAR-10, CIFAR-100 and SVHN, and folders of images."""

from __future__ import annotations

import socket
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainables.data.dataset import BY_DEFAULT, Dataset, Reading
from trainables.data.decoded import open_decoded
from trainables.data.image_folder import decode_folder
from trainables.data.layout import LARGE_SIDE, Archive, find_source
from trainables.data.registry import DATASETS
from trainables.data.streaming import open_streamed

DOWNLOAD_TIMEOUT: Final = 30.0
"""Seconds without a byte before a download is given up."""


def load(name: str, data_dir: str | Path | None, reading: Reading = BY_DEFAULT) -> Dataset:
    """Return the training and test split, in the order of the archive or of the folders.

    Raises:
        ValueError: the files do not fit the registry, an archive is damaged or an image cannot be decoded.
    """
    source, entry = find_source(name, data_dir, reading), DATASETS[name]
    facts, augmentation, state = source.facts(), entry.augmentation, source.state()
    if isinstance(source, Archive):
        train, test = open_decoded(name, source.root, state, partial(unpack, source))
    else:
        form = source.form()
        if form.cropped or form.size > LARGE_SIDE:
            augmentation = replace(augmentation, crop_padding=0, random_resized_crop=True)
        if source.is_streamed():
            train, test = open_streamed(source)
        else:
            state += f" {form.size}" * form.chosen  # folders are decoded once for every size that is asked for
            train, test = open_decoded(name, source.root, state, partial(decode_folder, source))
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
