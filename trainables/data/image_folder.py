"""Folders of images, decoded once to arrays.

Square images of one size, up to 128 pixels, are stored as they are. If there are others, every image is resized,
shorter side to 256 pixels, and the 224 pixels square in the centre is stored; images are then augmented by random
resized crops instead of shifts. Everything is converted to RGB; transparency is dropped.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data import DATASETS
from trainables.data.dataset import Augmentation, Dataset, DatasetEntry
from trainables.data.decoded import open_decoded
from trainables.data.index import FileState, remember
from trainables.data.layout import CROPPED_SIZE, RESIZED_SIDE, ImageFile, ImageFolder, find_source, unusable
from trainables.data.pictures import digest_of, open_picture, unreadable

DECODING_THREADS: Final = 4
"""Pillow decodes without the interpreter's lock; more threads than these mostly wait for the disk."""
_FILES_PER_TASK: Final = 256


def load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """Return the images in ``<data_dir>/train/<class>/`` and ``test/`` or ``val/``, see `find_source`."""
    source = find_source(name, DATASETS[name], data_dir, cache_dir)
    assert isinstance(source, ImageFolder)
    return load_folder(source, DATASETS[name], cache_dir)


def load_folder(source: ImageFolder, entry: DatasetEntry, cache_dir: Path | None) -> Dataset:
    """Return a dataset found as a folder of images.

    Raises:
        ValueError: if the folders do not fit the entry, or an image cannot be decoded or has a size of its own.
    """
    facts, image_size = source.facts(entry), source.image_size()

    def decode(directory: Path) -> Sequence[str]:
        return _decode(source, image_size, cache_dir, directory)

    decoded = open_decoded(source.name, source.root, facts.fingerprint, cache_dir, decode)
    return Dataset(
        train=decoded.train,
        test=decoded.test,
        num_classes=facts.num_classes,
        in_channels=facts.in_channels,
        image_size=image_size,
        mean=entry.mean,
        std=entry.std,
        augmentation=_augmentation(entry.augmentation, image_size),
        class_names=decoded.class_names,
        fingerprint=facts.fingerprint,
    )


def _augmentation(of_entry: Augmentation, image_size: int) -> Augmentation:
    if image_size < CROPPED_SIZE:
        return of_entry
    return replace(of_entry, crop_padding=0, random_resized_crop=True)


def _decode(source: ImageFolder, size: int, cache_dir: Path | None, directory: Path) -> Sequence[str]:
    """Write the arrays of both splits into `directory`.

    Raises:
        ValueError: images cannot be decoded; all of them are named, and remembered until they change.
    """
    needed, free = (len(source.train) + len(source.test)) * 3 * size**2, shutil.disk_usage(directory).free
    if needed > free:  # a mapped file on a full disk would kill the process without a word
        raise ValueError(f"{needed:,} bytes are needed in {directory.parent} for decoded images, {free:,} are free")
    problems: dict[FileState, str] = {}
    for split, files in (("train", source.train), ("test", source.test)):
        images = np.lib.format.open_memmap(
            directory / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, size, size)
        )
        problems |= _decode_files(source, files, images)
        images.flush()
        np.save(directory / f"{split}_labels.npy", np.array([file.label for file in files], dtype=np.int64))
    if problems:
        remember(source.root, problems, cache_dir)
        raise unusable(source.name, source.root, {state.path: why for state, why in problems.items()})
    return source.class_names


def _decode_files(
    source: ImageFolder, files: Sequence[ImageFile], images: npt.NDArray[np.uint8]
) -> dict[FileState, str]:
    """Decode files to the rows of `images`; return why some of them could not be."""

    def decode_part(start: int) -> dict[FileState, str]:
        problems = {}
        for index in range(start, min(start + _FILES_PER_TASK, len(files))):
            state, _, picture = files[index]
            try:
                images[index] = _decode_file(source.root / state.path, images.shape[2], picture.digest)
            except unreadable() as error:
                problems[state] = str(error)
        return problems

    with ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
        parts = [pool.submit(decode_part, start) for start in range(0, len(files), _FILES_PER_TASK)]
        try:
            return {state: problem for part in parts for state, problem in part.result().items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode_file(path: Path, size: int, digest: str) -> npt.NDArray[np.uint8]:
    """Return one image as uint8 (3, size, size)."""
    data = path.read_bytes()
    if digest_of(data) != digest:
        raise ValueError("has changed since it was looked at")
    with open_picture(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    if size == CROPPED_SIZE:
        image = _resize_and_crop(image)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _resize_and_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    width, height = (max(RESIZED_SIDE, round(side * RESIZED_SIDE / shorter)) for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # smooths when it scales down
    left, top = (width - CROPPED_SIZE) // 2, (height - CROPPED_SIZE) // 2
    return image.crop((left, top, left + CROPPED_SIZE, top + CROPPED_SIZE))
