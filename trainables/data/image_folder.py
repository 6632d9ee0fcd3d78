"""Folders of images, decoded once to arrays.

If all images are squares of one size, up to 128 pixels, they are stored as they are. Otherwise every image is resized
to 256 pixels on its shorter side, the central 224x224 pixels are stored, and images are augmented by random resized
crops instead of shifts. All images are converted to RGB; transparency is dropped.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data.index import FileState, in_parts, remember
from trainables.data.layout import CROPPED_SIZE, RESIZED_SIDE, ImageFile, ImageFolder, unusable
from trainables.data.pictures import digest_of, open_picture, unreadable

DECODING_THREADS: Final = 4
"""Pillow decodes without the interpreter's lock; more threads would mostly wait for the disk."""
_FILES_PER_TASK: Final = 256
_CHANGED: Final = "has changed since it was looked at"


def decode_folder(source: ImageFolder, directory: Path) -> None:
    """Write the arrays of both splits into `directory`.

    Raises:
        ValueError: images cannot be decoded; the message names all of them, and they are not tried again until they
            change.
    """
    size = source.image_size()
    needed, free = (len(source.train) + len(source.test)) * 3 * size**2, shutil.disk_usage(directory).free
    if needed > free:  # writing to a mapped file on a full disk would kill the process without a message
        raise ValueError(f"{needed:,} bytes are needed in {directory.parent} for decoded images, {free:,} are free")
    problems: dict[FileState, str] = {}
    for split, files in (("train", source.train), ("test", source.test)):
        images = np.lib.format.open_memmap(
            directory / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, size, size)
        )
        problems |= _decode_files(source.root, files, images)
        images.flush()
        np.save(directory / f"{split}_labels.npy", np.array([file.label for file in files], dtype=np.int64))
    if problems:
        remember(source.root, {state: why.removeprefix(_CHANGED) for state, why in problems.items()})
        raise unusable(source.name, source.root, {state.path: why for state, why in problems.items()})


def _decode_files(root: Path, files: Sequence[ImageFile], images: npt.NDArray[np.uint8]) -> dict[FileState, str]:
    """Decode files into the rows of `images`; return problems: file -> message."""

    def decode_part(rows: Sequence[int]) -> dict[FileState, str]:
        problems = {}
        for row in rows:
            state, _, picture = files[row]
            try:
                images[row] = _decode_file(root / state.path, images.shape[2], picture.digest)
            except unreadable() as error:
                if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the image
                    raise
                problems[state] = str(error)
        return problems

    threads = min(DECODING_THREADS, os.cpu_count() or 1)
    parts = in_parts(decode_part, range(len(files)), _FILES_PER_TASK, threads)
    return {state: problem for problems in parts for state, problem in problems.items()}


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
