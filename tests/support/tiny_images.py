"""Tiny datasets as folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")
MIXED = {
    "grey.jpg": "L",
    "ink.jpg": "CMYK",
    "photo.jpg": "RGB",
    "palette.png": "P",
    "plain.png": "RGB",
    "small.webp": "RGB",
}
"""File -> Pillow's mode."""
TURNED = "turned.jpg"
"""A file that its EXIF orientation turns."""


def picture(seed: int, width: int = 8, height: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folders(root: Path, *, test_folder: str = "test", per_class: int = 4) -> Path:
    """Write 8x8 images without loss: image i of class c in train is `picture(10 * c + i)`, in test negated."""
    for label, name in enumerate(CLASSES):
        for split in ("train", test_folder):
            (root / split / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = picture(10 * label + index)
                path = root / split / name / f"{index}.png"
                Image.fromarray(pixels if split == "train" else 255 - pixels).save(path)
    return root


def scene(seed: int, width: int, height: int) -> Image.Image:
    """Return a smooth picture, which formats with loss and several ways to scale keep alike."""
    return Image.fromarray(picture(seed, 4, 4)).resize((width, height), Image.Resampling.BICUBIC)


def write_mixed(root: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Write classes of images in all formats and modes, of the given sizes in turn, one of them turned by EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index, (file, mode) in enumerate(MIXED.items()):
                number = 10 * label + index
                scene(number, *sizes[number % len(sizes)]).convert(mode).save(folder / file)
            scene(label, *sizes[label % len(sizes)]).save(folder / TURNED, exif=turned)
    return root


def spoilt(content: bytes, at: int | None = None) -> bytes:
    """Return a file, such as a PNG, that is whole by its ends."""
    at = content.index(b"IDAT") + 12 if at is None else at
    return content[:at] + bytes(byte ^ 255 for byte in content[at : at + 8]) + content[at + 8 :]
