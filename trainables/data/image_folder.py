"""Folders of images, decoded once to arrays.

Small images (shorter side up to 128 pixels) are stored as they are and must all be square and equally large. Larger
ones are resized, shorter side to 256 pixels, and the 224 pixels square in the centre is stored; they are then
augmented by random resized crops instead of shifts. Everything is converted to RGB; transparency is dropped.
"""

from __future__ import annotations

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
from trainables.data.layout import CROPPED_SIZE, RESIZED_SIDE, ImageFile, ImageFolder, find_source, stored_size

DECODING_THREADS: Final = 4
"""Pillow decodes without the interpreter's lock; more threads than these mostly wait for the disk."""
_FILES_PER_TASK: Final = 256


def load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """Return the images in ``<data_dir>/train/<class>/`` and ``test/`` or ``val/``, see `find_source`."""
    source = find_source(name, DATASETS[name], data_dir)
    assert isinstance(source, ImageFolder)
    return load_folder(source, DATASETS[name], cache_dir)


def load_folder(source: ImageFolder, entry: DatasetEntry, cache_dir: Path | None) -> Dataset:
    """Return a dataset found as a folder of images.

    Raises:
        ValueError: if the folders do not fit the entry, or an image cannot be decoded or has a size of its own.
    """
    facts = source.facts(entry)
    image_size = facts.image_size
    assert image_size is not None, "Pillow is here"
    decoded = open_decoded(
        source.name, source.root, source.state(), cache_dir, lambda directory: _decode(source, image_size, directory)
    )
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


def _decode(source: ImageFolder, size: int, directory: Path) -> Sequence[str]:
    """Write the arrays of both splits into `directory`."""
    needed, free = (len(source.train) + len(source.test)) * 3 * size**2, shutil.disk_usage(directory).free
    if needed > free:  # a mapped file on a full disk would kill the process without a word
        raise ValueError(f"{needed:,} bytes are needed in {directory.parent} for decoded images, {free:,} are free")
    for split, files in (("train", source.train), ("test", source.test)):
        images = np.lib.format.open_memmap(
            directory / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, size, size)
        )
        _decode_files(source, files, images)
        images.flush()
        np.save(directory / f"{split}_labels.npy", np.array([file.label for file in files], dtype=np.int64))
    return source.class_names


def _decode_files(source: ImageFolder, files: Sequence[ImageFile], images: npt.NDArray[np.uint8]) -> None:
    first = source.root / source.train[0].state.path

    def decode_part(start: int) -> None:
        for index in range(start, min(start + _FILES_PER_TASK, len(files))):
            images[index] = _decode_file(source.root / files[index].state.path, images.shape[2], first)

    with ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
        parts = [pool.submit(decode_part, start) for start in range(0, len(files), _FILES_PER_TASK)]
        try:
            for part in parts:  # in order, so that of several bad files the same one is named every time
                part.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode_file(path: Path, size: int, first: Path) -> npt.NDArray[np.uint8]:
    """Return one image as uint8 (3, size, size)."""
    try:
        with Image.open(path) as opened:
            own_size = stored_size(*opened.size)
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot use the image {path}: {error}") from error
    if own_size != size:
        raise ValueError(
            f"images of different sizes: {path} is stored as {own_size}x{own_size} pixels, but {first} as {size}x{size}"
        )
    if image.size != (size, size):
        image = _resize_and_crop(image)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _resize_and_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    width, height = (max(RESIZED_SIDE, round(side * RESIZED_SIDE / shorter)) for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # smooths when it scales down
    left, top = (width - CROPPED_SIZE) // 2, (height - CROPPED_SIZE) // 2
    return image.crop((left, top, left + CROPPED_SIZE, top + CROPPED_SIZE))
