"""Where a dataset's files are, and what is known about them without decoding: two layouts. Torch-free.

A dataset lies either in the files that torchvision's download unpacks, or in folders of images
``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), labelled by the sorted names of the classes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from trainables.data.bucket import Objects, by_uri, local_copy
from trainables.data.dataset import BY_DEFAULT, DatasetEntry, DatasetFacts, Reading
from trainables.data.index import FileState, look_at
from trainables.data.pictures import FORMATS, FRAMES, ORIENTED, TRANSPARENT, Picture
from trainables.data.registry import DATASETS
from trainables.host.places import is_uri, located
from trainables.host.processes import memory
from trainables.storage import open_storage

IMAGE_SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
    | {".webp"}
)
"""A file with such a suffix that is not a picture is an error; other files that are not pictures are left out."""
TRAIN_FOLDER: Final = "train"
TEST_FOLDERS: Final = ("test", "val")
"""The first one with folders of classes is used; ImageNet's ``test`` has none, because its labels are secret."""

LARGE_SIDE: Final = 128
"""Pixels; square images of one size up to this keep it by default and are augmented by shifts, larger ones by crops."""
CROPPED_SIZE: Final = 224
"""Pixels a side of all other images, if no size was chosen."""
SHORTER_SIDE: Final = 256 / 224
"""The shorter side of an image, over the side of the central square that is cut out of it."""
IN_MEMORY: Final = 0.5
"""Share of this machine's memory; decoded images that take more are streamed."""
_NAMED: Final = 100
"""Most files that a message names."""


class ImageFile(NamedTuple):
    """An image in the folder of its class, the label, and what is known of the file."""

    state: FileState
    label: int
    picture: Picture


class Form(NamedTuple):
    """What every image of a folder becomes: one decision for all of them.

    Attributes:
        size: side of the square, in pixels.
        cropped: whether images are resized, and the central square is cut out; otherwise they are such squares.
        chosen: whether the user has chosen the size. Then images are turned as their EXIF orientation says, and JPEGs
            are decoded at a half, a quarter or an eighth of their size if that is large enough.
    """

    size: int
    cropped: bool
    chosen: bool

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side of an image before the square is cut out."""
        return round(self.size * SHORTER_SIDE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A dataset in torchvision's layout.

    Attributes:
        name: of the dataset.
        root: the directory that torchvision is given.
        files: that torchvision will read.
    """

    name: str
    root: Path
    files: tuple[FileState, ...]

    def facts(self) -> DatasetFacts:
        """Return the facts, which are those of the registry: the archives never change."""
        return DATASETS[self.name].facts(by_uri(str(self.root / os.path.dirname(self.files[0].path))))

    def state(self) -> str:
        """Return a digest that changes whenever a file does."""
        return _digest("\0".join(map(str, file)) for file in self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """A dataset of image files in folders of classes.

    Attributes:
        name: of the dataset.
        root: directory above ``train``.
        test_folder: one of `TEST_FOLDERS`.
        class_names: sorted; the position is the label.
        train: files by class, then by name.
        test: likewise.
        left_out: paths below the root of files that are not pictures.
        damaged: files that cannot be used and are left out, path below the root -> the problem.
        reading: how the user wants the folder to be read.
    """

    name: str
    root: Path
    test_folder: str
    class_names: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    left_out: tuple[str, ...]
    damaged: Mapping[str, str]
    reading: Reading

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """The training images, then the test images."""
        return (*self.train, *self.test)

    def facts(self) -> DatasetFacts:
        """Return the facts.

        Raises:
            ValueError: if the number of classes or the size of the images differs from the registry's.
        """
        entry = DATASETS[self.name]
        folder, names = self.root / TRAIN_FOLDER, _shortened(self.class_names)
        if entry.num_classes not in (None, len(self.class_names)):
            raise ValueError(
                f"{folder} has {len(self.class_names)} classes ({names}), but {self.name} has {entry.num_classes}"
            )
        if len(self.class_names) < 2:
            raise ValueError(f"{folder} has one class ({names}); there is nothing to tell apart")
        for name, other in DATASETS.items() if entry.class_names else ():
            # Classes that are only numbered say nothing about the dataset.
            if name != self.name and other.class_names == self.class_names and not self.class_names[0].isdigit():
                raise ValueError(f"{folder} has the classes of {name} ({names}), not those of {self.name}")
        image_size = self.form().size
        if entry.image_size not in (None, image_size):
            others = [file for file in self.files if file.picture[2:4] != (entry.image_size,) * 2]
            raise ValueError(
                f"{self.name} has {entry.image_size}x{entry.image_size} pixels, but {len(others):,} of the "
                f"{len(self.files):,} images in {self.root} differ: {_shortened(map(_with_size, others))}"
            )
        return DatasetFacts(
            num_classes=len(self.class_names),
            in_channels=entry.in_channels,
            image_size=image_size,
            train_images=len(self.train),
            test_images=len(self.test),
            fingerprint=self.state(),
            source=by_uri(f"{self.root / TRAIN_FOLDER} and {self.test_folder}"),
            warnings=tuple(self._warnings(entry)),
        )

    def form(self) -> Form:
        """Return what every image becomes.

        Squares of one size are stored as they are, if it is the chosen size or, without one, small. Otherwise all
        images are resized and cropped in the same way, even small ones: whether an image is enlarged must not depend on
        the image.
        """
        sizes, chosen = {file.picture[2:4] for file in self.files}, self.reading.image_size
        width, height = sizes.pop()
        if not sizes and width == height and (width == chosen if chosen else width <= LARGE_SIDE):
            return Form(width, cropped=False, chosen=bool(chosen))
        return Form(chosen or CROPPED_SIZE, cropped=True, chosen=bool(chosen))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all decoded images."""
        return len(self.files) * 3 * self.form().size ** 2

    def is_streamed(self) -> bool:
        """Return whether images are decoded as they are needed: on request, or because of this machine's memory."""
        return self.reading.streaming or self.decoded_bytes > IN_MEMORY * memory()

    def state(self) -> str:
        """Return the numbers of images and a digest of the names and contents of all files, wherever they are."""
        digest = _digest(f"{file.state.path}\0{file.picture.digest}" for file in self.files)
        return f"{len(self.train)}+{len(self.test)}-{digest}"

    def _warnings(self, entry: DatasetEntry) -> Iterator[str]:
        """Yield warnings for a person to read before the data are used."""
        files, form = self.files, self.form()
        if self.left_out:
            yield f"{_count(self.left_out, 'file')} left out, which are not pictures: {_shortened(self.left_out, 5)}"
        if self.damaged:
            listed = _shortened((f"{path}: {problem}" for path, problem in self.damaged.items()), _NAMED, "; ")
            yield f"{_count(self.damaged, 'damaged image')} left out, as damaged_images allows: {listed}"
        for loss in (TRANSPARENT, FRAMES, *(() if form.chosen else (ORIENTED,))):
            if lossy := [file.state.path for file in files if file.picture.loss == loss]:
                yield f"{_count(lossy, 'image')} {loss}: {_shortened(lossy, 5)}"
        bound = form.size - 1 if form.chosen else LARGE_SIDE
        small = [file for file in files if min(file.picture[2:4]) <= bound]
        if small and form.cropped:  # costs time, and may be due to a single stray file
            because = "" if form.chosen else " because not all are squares of one size"
            yield (
                f"{_count(small, 'image')} of at most {bound} pixels a side, enlarged to {form.size}{because}: "
                f"{_shortened(map(_with_size, small), 5)}"
            )
        if self.is_streamed() and not self.reading.streaming:
            yield (
                f"decoded images would take {self.decoded_bytes / 2**30:,.1f} GiB of this machine's "
                f"{memory() / 2**30:,.1f}, so images are decoded anew in every epoch"
            )
        if (len(self.train), len(self.test)) != (entry.train_images, entry.test_images) and entry.train_images:
            yield f"{self.name} has {entry.train_images:,} training and {entry.test_images:,} test images"
        if entry.class_names not in ((), self.class_names):
            official, names = _shortened(entry.class_names, 3), _shortened(self.class_names, 3)
            yield f"the classes of {self.name} are called {official}, not {names}"


def find_source(name: str, data_dir: str | Path | None, reading: Reading = BY_DEFAULT) -> Archive | ImageFolder:
    """Find a dataset in the folder of `data_dir` called `name` or in `data_dir` itself, in either layout.

    Of a bucket, this node's copy is brought up to date first.

    Raises:
        ValueError: if it is missing, incomplete or unusable; the message says what to do.
    """
    if data_dir is None:
        raise ValueError(f"dataset {name!r} needs --data-dir DIR (data_dir= in Python): {_wanted(name)}")
    place = located(data_dir)
    try:
        given = _copy(name, place) if is_uri(place) else Path(place)
        if not given.is_dir():
            raise ValueError(f"dataset {name!r}: {given} is not a directory; wanted: {_wanted(name)}")
        for root in (given / name, given):  # in this order: `data_dir` itself may belong to another dataset
            if has_archive(name, root):
                return _find_archive(name, root)
            if (root / TRAIN_FOLDER).is_dir():
                return scan_folders(name, root, reading)
        raise _missing(name, given, (entry.name for entry in os.scandir(given)))
    except OSError as error:
        raise ValueError(f"dataset {name!r} in {place} cannot be read: {error}") from error


def _copy(name: str, uri: str) -> Path:
    """Return this node's copy of a dataset in a bucket, which is looked for in the same places and layouts."""
    try:
        storage = open_storage(uri)
    except ValueError as error:
        raise ValueError(f"dataset {name!r}: {error}") from error
    for prefix in (name, ""):
        objects = Objects(storage, prefix, partial(_of_dataset, name))
        if files := objects.listed():
            return local_copy(objects, files)
    raise _missing(name, uri, {path.partition("/")[0] for path in storage.names("")})


def _of_dataset(name: str, paths: Collection[str]) -> set[str]:
    """Return those of some paths, relative to a dataset's root, that belong to it; none if it is not there."""
    if archive := {*paths} & {*DATASETS[name].archive_files}:
        return archive
    folders = {path.partition("/")[0] for path in paths if path.count("/") > 1}  # that have folders of classes
    used = {TRAIN_FOLDER, next((folder for folder in TEST_FOLDERS if folder in folders), "")}
    return {path for path in paths if path.partition("/")[0] in used} if TRAIN_FOLDER in folders else set()


def _missing(name: str, place: str | Path, found: Iterable[str]) -> ValueError:
    has = _shortened(sorted(found)) or "nothing"
    return ValueError(f"dataset {name!r} is not in {place} (which has: {has}); wanted: {_wanted(name)}")


def has_archive(name: str, root: Path) -> bool:
    """Return whether a directory has at least one file of a dataset's archive."""
    return any((root / file).exists() for file in DATASETS[name].archive_files)


def _find_archive(name: str, root: Path) -> Archive:
    expected = DATASETS[name].archive_files
    missing = [file for file in expected if not (root / file).is_file()]
    if missing:
        raise ValueError(f"dataset {name!r} in {root} lacks {', '.join(missing)}; to repair it: {_download(name)}")
    files = []
    for file in expected:
        state = (root / file).stat()
        files.append(FileState(file, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return Archive(name=name, root=root, files=tuple(files))


def scan_folders(name: str, root: Path, reading: Reading) -> ImageFolder:
    """List the folders in `root` and look at all files.

    Raises:
        ValueError: a folder is missing, or more files than `reading` allows cannot be used.
    """
    class_names = _class_names(root / TRAIN_FOLDER)
    if not class_names:
        raise ValueError(f"{root / TRAIN_FOLDER} has no folders of classes; wanted: {_wanted(name)}")
    test_folder = next((folder for folder in TEST_FOLDERS if _class_names(root / folder)), None)
    if test_folder is None:
        wanted = " or ".join(str(root / folder / "<class>") for folder in TEST_FOLDERS)
        raise ValueError(f"dataset {name!r} has no images to test on: {wanted} is missing")
    in_test = _class_names(root / test_folder)
    if in_test != class_names:
        only = {TRAIN_FOLDER: {*class_names} - {*in_test}, test_folder: {*in_test} - {*class_names}}
        differ = (f"{folder}/ alone has {_shortened(sorted(names))}" for folder, names in only.items() if names)
        raise ValueError(f"the folders of classes in {root} differ: {'; '.join(differ)}")
    left_out: list[str] = []
    problems: dict[str, str] = {}
    listed: dict[str, list[tuple[int, FileState]]] = {}
    for split in (TRAIN_FOLDER, test_folder):
        with os.scandir(root / split) as entries:
            left_out += sorted(
                f"{split}/{entry.name}" for entry in entries if _is_visible(entry) and not entry.is_dir()
            )
        listed[split] = [
            (label, state)
            for label, class_name in enumerate(class_names)
            for state in sorted(_files(root, f"{split}/{class_name}", left_out, problems))
        ]
    states = [state for files in listed.values() for _, state in files]
    pictures = dict(zip(states, look_at(root, states), strict=True))
    for state, picture in pictures.items():
        named_as_image = os.path.splitext(state.path)[1].lower() in IMAGE_SUFFIXES
        if picture.problem and (picture.format or not picture.digest or named_as_image):
            problems[state.path] = picture.problem
        elif picture.problem:
            left_out.append(state.path)
    if len(problems) > reading.damaged_images or any(map(_is_folder, problems)):
        raise unusable(name, root, problems, reading)
    train, test = (
        tuple(ImageFile(state, label, pictures[state]) for label, state in files if not pictures[state].problem)
        for files in listed.values()
    )
    for split, used in ((TRAIN_FOLDER, train), (test_folder, test)):
        if empty := {*range(len(class_names))} - {file.label for file in used}:
            folder = root / split / class_names[min(empty)]
            raise ValueError(f"{folder} has no images; known formats: {', '.join(FORMATS)}")
    return ImageFolder(
        name=name,
        root=root,
        test_folder=test_folder,
        class_names=class_names,
        train=train,
        test=test,
        left_out=tuple(left_out),
        damaged=problems,
        reading=reading,
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the visible folders in `folder`; none if it does not exist."""
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and _is_visible(entry)))


def _is_visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")


def _files(
    root: Path,
    folder: str,
    left_out: list[str],
    problems: dict[str, str],
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[FileState]:
    """Yield the visible files in a folder and its subfolders, and enter what is left out and what is a problem.

    `above` identifies the folders that this one lies in, by device and inode.
    """
    try:
        own = os.stat(root / folder)
        if (own.st_dev, own.st_ino) in above:
            raise OSError(errno.ELOOP, "a link to a folder that it lies in")
        with os.scandir(root / folder) as entries:
            visible = sorted(filter(_is_visible, entries), key=lambda entry: entry.name)
    except OSError as error:
        problems[f"{folder}/"] = str(error.strerror)
        return
    for entry in visible:
        path = f"{folder}/{entry.name}"
        try:
            state = entry.stat()
        except OSError as error:  # a dangling link, for example
            problems[path] = f"{error.strerror}{' (a link)' * entry.is_symlink()}"
            continue
        if stat.S_ISDIR(state.st_mode):
            yield from _files(root, path, left_out, problems, above | {(own.st_dev, own.st_ino)})
        elif stat.S_ISREG(state.st_mode):
            yield FileState(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        else:  # reading from a pipe or a device might never end
            left_out.append(path)


def unusable(name: str, root: Path, problems: Mapping[str, str], reading: Reading) -> ValueError:
    """Return the error for files of the dataset `name` in `root` that cannot be used: path -> the problem."""
    # The first file is in the first line, because some displays show only that line.
    listed = _shortened([f"{root / path}: {problem}" for path, problem in problems.items()], _NAMED, ";\n  ")
    if any(map(_is_folder, problems)):
        remedy = "mend or remove"
    elif len(problems) > reading.damaged_images:
        remedy = f"mend or remove, or --set damaged_images={len(problems)} to leave them out"
    else:  # found while the images were decoded
        remedy = "the same command leaves them out"
    return ValueError(f"dataset {name!r}: {_count(problems, 'file')} cannot be used ({remedy}): {listed}")


def _is_folder(path: str) -> bool:
    """Return whether what has a problem is a folder, which is never left out: it may hold any number of images."""
    return path.endswith("/")


def _with_size(file: ImageFile) -> str:
    return f"{file.state.path} ({file.picture.width}x{file.picture.height})"


def _count(things: Sized, what: str) -> str:
    return f"{len(things):,} {what}{'s' * (len(things) != 1)}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _shortened(names: Iterable[str], limit: int = 10, separator: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return separator.join(listed[:limit]) + more


def _wanted(name: str) -> str:
    folders = f"{TRAIN_FOLDER}/<class>/*.jpg with {' or '.join(f'{folder}/<class>/*.jpg' for folder in TEST_FOLDERS)}"
    archive = DATASETS[name].archive_files
    if not archive:
        return f"a directory that has {folders}"
    return f"a directory that has torchvision's {archive[0]} and so on, or {folders}; to download it: {_download(name)}"


def _download(name: str) -> str:
    return f"python -m trainables.data --download {name} --data-dir DIR"
