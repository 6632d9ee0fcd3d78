"""Image files, decoded one by one to squares of one size, and whole folders of them to arrays.

`trainables.data.layout.Form` says what every image becomes. All images are converted to RGB; transparency is dropped.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data.index import FileState, in_parts, remember
from trainables.data.layout import Form, ImageFile, ImageFolder, unusable
from trainables.data.pictures import digest_of, open_picture, turn, unreadable
from trainables.host.processes import cores

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
    form, needed, free = source.form(), source.decoded_bytes, shutil.disk_usage(directory).free
    if needed > free:  # writing to a mapped file on a full disk would kill the process without a message
        raise ValueError(
            f"{needed:,} bytes are needed in {directory.parent} for decoded images, {free:,} are free; "
            "streaming=true needs none"
        )
    problems: dict[FileState, str] = {}
    for split, files in (("train", source.train), ("test", source.test)):
        images = np.lib.format.open_memmap(
            directory / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(files), 3, form.size, form.size)
        )
        problems |= _decode_files(source.root, files, form, images)
        images.flush()
        np.save(directory / f"{split}_labels.npy", np.array([file.label for file in files], dtype=np.int64))
    if problems:
        raise refusal(source, problems)


def refusal(source: ImageFolder, problems: Mapping[FileState, str]) -> ValueError:
    """Enter files that cannot be decoded, file -> the problem, in the index, and return the error that names them."""
    remember(source.root, {state: why.removeprefix(_CHANGED) for state, why in problems.items()})
    return unusable(source.name, source.root, {state.path: why for state, why in problems.items()}, source.reading)


def _decode_files(
    root: Path, files: Sequence[ImageFile], form: Form, images: npt.NDArray[np.uint8]
) -> dict[FileState, str]:
    """Decode files into the rows of `images`; return problems: file -> message."""

    def decode_part(rows: Sequence[int]) -> dict[FileState, str]:
        problems = {}
        for row in rows:
            state, _, picture = files[row]
            if isinstance(decoded := decode_file(root / state.path, form, picture.digest), str):
                problems[state] = decoded
            else:
                images[row] = decoded
        return problems

    threads = min(DECODING_THREADS, cores())
    parts = in_parts(decode_part, range(len(files)), _FILES_PER_TASK, threads)
    return {state: problem for problems in parts for state, problem in problems.items()}


def decode_file(path: Path, form: Form, digest: str) -> npt.NDArray[np.uint8] | str:
    """Return one image as uint8 (3, size, size), or the problem of the image.

    Raises:
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    if digest_of(data) != digest:
        return _CHANGED
    try:
        with open_picture(io.BytesIO(data)) as opened:
            if form.chosen and form.cropped:
                opened.draft("RGB", (form.shorter_side,) * 2)  # affects JPEGs only
            image = opened.convert("RGB")
            if form.chosen and (turned := turn(opened)) is not None:
                image = image.transpose(turned)
        if form.cropped:
            image = _resize_and_crop(image, form)
    except unreadable() as error:
        return str(error) or type(error).__name__
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _resize_and_crop(image: Image.Image, form: Form) -> Image.Image:
    shorter = min(image.size)
    width, height = (max(form.shorter_side, round(side * form.shorter_side / shorter)) for side in image.size)
    left, top = (width - form.size) // 2, (height - form.size) // 2
    across, down = image.width / width, image.height / height
    square = (left * across, top * down, (left + form.size) * across, (top + form.size) * down)
    # Pixels outside the square would be computed and thrown away: that takes a quarter of the time for one image.
    return image.resize((form.size,) * 2, Image.Resampling.BILINEAR, box=square)  # smooths when it scales down
