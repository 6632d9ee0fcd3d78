"""Folders of images, decoded once to arrays.

If all images are squares of one size, up to 128 pixels, they are stored as they are. Otherwise every image is resized
to 256 pixels on its shorter side, the central 224x224 pixels are stored, and images are augmented by random resized
crops instead of shifts. All images are converted to RGB; transparency is dropped.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data import cache
from trainables.data.dataset import Augmentation, Dataset, DatasetEntry
from trainables.data.decoded import MANIFEST, checksum, intact, open_decoded
from trainables.data.index import FileState, remember
from trainables.data.layout import CROPPED_SIZE, RESIZED_SIDE, ImageFile, ImageFolder, find_source, unusable
from trainables.data.pictures import digest_of, open_picture, unreadable
from trainables.data.registry import DATASETS
from trainables.storage.documents import array, mapping

DECODING_THREADS: Final = 4
"""Pillow decodes without the interpreter's lock; more threads would mostly wait for the disk."""
_FILES_PER_TASK: Final = 256
_PARTIAL: Final = mapping(array)
"""Check of the manifest of a partly decoded dataset: file -> checksum, digests of the images in it."""
_CHANGED: Final = "has changed since it was looked at"


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
    augmentation = _augmentation(entry.augmentation, image_size)
    return entry.dataset(facts, decoded.train, decoded.test, decoded.class_names, augmentation)


def _augmentation(of_entry: Augmentation, image_size: int) -> Augmentation:
    if image_size < CROPPED_SIZE:
        return of_entry
    return replace(of_entry, crop_padding=0, random_resized_crop=True)


def _decode(source: ImageFolder, size: int, cache_dir: Path | None, directory: Path) -> Sequence[str]:
    """Write the arrays of both splits into `directory`.

    Raises:
        ValueError: images cannot be decoded; the message names all of them, and they are not tried again until they
            change. The decoded images are kept for the next attempt.
    """
    rest = directory.parent / f"{source.name}-{cache.place(source.root)}-partial"
    decoded = _kept(rest, size)
    needed, free = (len(source.train) + len(source.test)) * 3 * size**2, shutil.disk_usage(directory).free
    if needed > free:  # writing to a mapped file on a full disk would kill the process without a message
        raise ValueError(f"{needed:,} bytes are needed in {directory.parent} for decoded images, {free:,} are free")
    problems: dict[FileState, str] = {}
    for split, files in (("train", source.train), ("test", source.test)):
        images = np.lib.format.open_memmap(
            directory / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, size, size)
        )
        problems |= _decode_files(source, files, images, decoded)
        images.flush()
        np.save(directory / f"{split}_labels.npy", np.array([file.label for file in files], dtype=np.int64))
    shutil.rmtree(rest, ignore_errors=True)
    if problems:
        remember(source.root, {state: why.removeprefix(_CHANGED) for state, why in problems.items()}, cache_dir)
        _keep(source, directory, problems.keys(), rest)
        raise unusable(source.name, source.root, {state.path: why for state, why in problems.items()})
    return source.class_names


def _keep(source: ImageFolder, directory: Path, bad: Collection[FileState], rest: Path) -> None:
    """Keep the decoded images of a dataset that cannot be used yet."""
    kept = {}
    for split, files in (("train", source.train), ("test", source.test)):
        name = f"{split}_images.npy"
        kept[name] = checksum(directory / name), ["" if file.state in bad else file.picture.digest for file in files]
    cache.write_sealed(directory / MANIFEST, kept)
    os.replace(directory, rest)


def _kept(rest: Path, size: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the intact images that `_keep` has kept: digest of the file -> image."""
    found: dict[str, npt.NDArray[np.uint8]] = {}
    for name, (expected, digests) in (cache.read_sealed(rest / MANIFEST, _PARTIAL) or {}).items():
        if intact(rest / name, expected):
            images = np.load(rest / name, mmap_mode="r")
            if images.shape[2] == size:
                found |= {digest: image for digest, image in zip(digests, images, strict=True) if digest}
    return found


def _decode_files(
    source: ImageFolder,
    files: Sequence[ImageFile],
    images: npt.NDArray[np.uint8],
    decoded: Mapping[str, npt.NDArray[np.uint8]],
) -> dict[FileState, str]:
    """Decode files into the rows of `images`, or copy what is decoded already; return problems: file -> message."""

    def decode_part(start: int) -> dict[FileState, str]:
        problems = {}
        for index in range(start, min(start + _FILES_PER_TASK, len(files))):
            state, _, picture = files[index]
            if picture.digest in decoded:
                images[index] = decoded[picture.digest]
                continue
            try:
                images[index] = _decode_file(source.root / state.path, images.shape[2], picture.digest)
            except unreadable() as error:
                if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the image
                    raise
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
        raise ValueError(_CHANGED)
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
