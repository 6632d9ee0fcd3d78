"""Where a dataset's files lie and what can be said about them without decoding one: two layouts, no torch.

A dataset lies either in the files that torchvision's download unpacks, or in folders of images
``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), labelled by the sorted names of the classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from trainables.data.dataset import DatasetEntry, DatasetFacts
from trainables.places import expanded

IMAGE_SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TRAIN_FOLDER: Final = "train"
TEST_FOLDERS: Final = ("test", "val")
"""The first that has folders of classes is taken; ImageNet's ``test`` has none, as its labels are secret."""

LARGE_SIDE: Final = 128
"""Pixels. Images with a longer shorter side are resized to `RESIZED_SIDE` and cropped to `CROPPED_SIZE`."""
RESIZED_SIDE: Final = 256
CROPPED_SIZE: Final = 224

ARCHIVE_FILES: Final[dict[str, tuple[str, ...]]] = {
    "cifar10": tuple(
        f"cifar-10-batches-py/{part}"
        for part in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    ),
    "cifar100": tuple(f"cifar-100-python/{part}" for part in ("train", "test", "meta")),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}
"""What torchvision's download leaves behind, for every dataset that it can download."""


class FileState(NamedTuple):
    """A file as its directory lists it: path below the root with forward slashes, bytes, time of change (ns)."""

    path: str
    size: int
    mtime_ns: int


class ImageFile(NamedTuple):
    """An image in a folder of its class, and the number of the class."""

    state: FileState
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A dataset in torchvision's layout.

    Attributes:
        name: of the dataset.
        root: the directory that torchvision is given.
        files: that it will read.
    """

    name: str
    root: Path
    files: tuple[FileState, ...]

    def facts(self, entry: DatasetEntry) -> DatasetFacts:
        """Return the facts, which are those of the registry: the archives never change."""
        assert entry.num_classes is not None
        assert entry.train_images is not None
        assert entry.test_images is not None
        return DatasetFacts(
            num_classes=entry.num_classes,
            in_channels=entry.in_channels,
            image_size=entry.image_size,
            train_images=entry.train_images,
            test_images=entry.test_images,
            fingerprint="",
        )

    def state(self) -> str:
        """Return a digest that changes whenever a file does."""
        return _digest(f"{file.path}\0{file.size}\0{file.mtime_ns}" for file in self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """A dataset of image files in folders of classes.

    Attributes:
        name: of the dataset.
        root: directory above ``train``.
        class_names: sorted; the position is the label.
        train: files by class, then by name.
        test: likewise.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]

    def facts(self, entry: DatasetEntry) -> DatasetFacts:
        """Return the facts; reads the header of one image, if Pillow is there to do it.

        Raises:
            ValueError: if the number of classes or the size of the images is not that of the entry.
        """
        if entry.num_classes not in (None, len(self.class_names)):
            raise ValueError(
                f"{self.root / TRAIN_FOLDER} has {len(self.class_names)} classes ({_shortened(self.class_names)}), "
                f"but {self.name} has {entry.num_classes}"
            )
        image_size = _header_size(self.root / self.train[0].state.path)
        if image_size is not None and entry.image_size not in (None, image_size):
            raise ValueError(
                f"{self.root / self.train[0].state.path} has {image_size} pixels a side, "
                f"but {self.name} has {entry.image_size}"
            )
        return DatasetFacts(
            num_classes=len(self.class_names),
            in_channels=entry.in_channels,
            image_size=image_size,
            train_images=len(self.train),
            test_images=len(self.test),
            fingerprint=_digest(f"{file.state.path}\0{file.state.size}" for file in (*self.train, *self.test)),
        )

    def state(self) -> str:
        """Return a digest that changes whenever a file is added, removed, renamed or changed."""
        states = (file.state for file in (*self.train, *self.test))
        return _digest(f"{state.path}\0{state.size}\0{state.mtime_ns}" for state in states)


def find_source(name: str, entry: DatasetEntry, data_dir: str | Path | None) -> Archive | ImageFolder:
    """Find a dataset in `data_dir` or in its folder called `name`, in either layout.

    Raises:
        ValueError: if it is not there or not complete; the message says how to get it.
    """
    if data_dir is None:
        raise ValueError(f"dataset {name!r} needs --data-dir DIR (data_dir= in Python): {_wanted(name)}")
    given = expanded(data_dir).absolute()
    if not given.is_dir():
        raise ValueError(f"dataset {name!r}: {given} is not a directory; wanted: {_wanted(name)}")
    for root in (given, given / name):
        if _has_archive(name, root):
            return _find_archive(name, root)
        if (root / TRAIN_FOLDER).is_dir():
            return _scan_folders(name, root)
    found = _shortened(sorted(entry.name for entry in os.scandir(given))) or "nothing"
    raise ValueError(f"dataset {name!r} is not in {given} (which has: {found}); wanted: {_wanted(name)}")


def stored_size(width: int, height: int) -> int:
    """Return the side, in pixels, of the square that an image of `width` x `height` pixels is stored as.

    Raises:
        ValueError: if the image is small and not square: small images are stored as they are.
    """
    if min(width, height) > LARGE_SIDE:
        return CROPPED_SIZE
    if width != height:
        raise ValueError(
            f"{width}x{height} pixels; images whose shorter side is at most {LARGE_SIDE} pixels must be square"
        )
    return width


def _has_archive(name: str, root: Path) -> bool:
    return any((root / file).exists() for file in ARCHIVE_FILES.get(name, ()))


def _find_archive(name: str, root: Path) -> Archive:
    missing = [file for file in ARCHIVE_FILES[name] if not (root / file).is_file()]
    if missing:
        raise ValueError(f"dataset {name!r} in {root} lacks {', '.join(missing)}; to repair it: {_download(name)}")
    files = []
    for file in ARCHIVE_FILES[name]:
        stat = (root / file).stat()
        files.append(FileState(file, stat.st_size, stat.st_mtime_ns))
    return Archive(name=name, root=root, files=tuple(files))


def _scan_folders(name: str, root: Path) -> ImageFolder:
    class_names = _class_names(root / TRAIN_FOLDER)
    if not class_names:
        raise ValueError(f"{root / TRAIN_FOLDER} has no folders of classes; wanted: {_wanted(name)}")
    test_folder = next((folder for folder in TEST_FOLDERS if _class_names(root / folder)), None)
    if test_folder is None:
        wanted = " or ".join(str(root / folder / "<class>") for folder in TEST_FOLDERS)
        raise ValueError(f"dataset {name!r} has no images to test on: {wanted} is missing")
    in_test = _class_names(root / test_folder)
    if in_test != class_names:
        raise ValueError(
            f"the classes in {root} differ: only in {TRAIN_FOLDER}: "
            f"{_shortened(sorted({*class_names} - {*in_test})) or 'none'}; "
            f"only in {test_folder}: {_shortened(sorted({*in_test} - {*class_names})) or 'none'}"
        )
    return ImageFolder(
        name=name,
        root=root,
        class_names=class_names,
        train=_list_images(root, TRAIN_FOLDER, class_names),
        test=_list_images(root, test_folder, class_names),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in `folder`, hidden ones left out; none if there is no such folder."""
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _list_images(root: Path, split: str, class_names: Iterable[str]) -> tuple[ImageFile, ...]:
    """List the images of one split; hidden files and files that are no images by their suffix are left out."""
    images: list[ImageFile] = []
    for label, class_name in enumerate(class_names):
        folder = root / split / class_name
        states = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                stat = entry.stat()
                states.append(FileState(f"{split}/{class_name}/{entry.name}", stat.st_size, stat.st_mtime_ns))
        if not states:
            raise ValueError(f"{folder} has no images; known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}")
        images += (ImageFile(state, label) for state in sorted(states))
    return tuple(images)


def _header_size(path: Path) -> int | None:
    """Return the side of the square that an image will be stored as, or ``None`` without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return None
    try:
        with Image.open(path) as image:
            return stored_size(*image.size)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not an image that can be used: {error}") from error


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _shortened(names: Iterable[str], limit: int = 10) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _wanted(name: str) -> str:
    folders = f"{TRAIN_FOLDER}/<class>/*.jpg with {' or '.join(f'{folder}/<class>/*.jpg' for folder in TEST_FOLDERS)}"
    if name not in ARCHIVE_FILES:
        return f"a directory that has {folders}"
    first = ARCHIVE_FILES[name][0]
    return f"a directory that has torchvision's {first} and so on, or {folders}; to download it: {_download(name)}"


def _download(name: str) -> str:
    return f"python -m trainables.data --download {name} --data-dir DIR"
