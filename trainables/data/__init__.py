"""The datasets of a study, by name. Torch and the data itself are loaded only when arrays are asked for.

To add one: write a module with ``load(name, data_dir, cache_dir) -> Dataset`` and a line in `DATASETS`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Final

from trainables.checks import known
from trainables.data.dataset import Augmentation, Dataset, DatasetEntry, DatasetFacts, Split
from trainables.data.layout import find_source
from trainables.host.places import expanded

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "DatasetEntry",
    "DatasetFacts",
    "Split",
    "check_dataset",
    "counts",
    "forget",
    "get_entry",
    "load_dataset",
]

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_SHIFT_AND_FLIP: Final = Augmentation(crop_padding=4, horizontal_flip=True)

DATASETS: Final[dict[str, DatasetEntry]] = {
    "digits": DatasetEntry(
        module="trainables.data.digits",
        num_classes=10,
        in_channels=1,
        image_size=8,
        train_images=898,
        test_images=899,
        mean=(0.3060,),  # of the training split
        std=(0.3762,),
        augmentation=Augmentation(crop_padding=1),
        needs_data_dir=False,
        description="8x8 grey handwritten digits that come with scikit-learn; stratified split by a fixed seed",
    ),
    "cifar10": DatasetEntry(
        module="trainables.data.torchvision_sets",
        num_classes=10,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        mean=_IMAGENET_MEAN,  # the paper's code uses ImageNet's values here
        std=_IMAGENET_STD,
        augmentation=_SHIFT_AND_FLIP,
        needs_data_dir=True,
        description="32x32 colour images of 10 kinds of things",
    ),
    "cifar100": DatasetEntry(
        module="trainables.data.torchvision_sets",
        num_classes=100,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augmentation=_SHIFT_AND_FLIP,
        needs_data_dir=True,
        description="32x32 colour images of 100 kinds of things",
    ),
    "svhn": DatasetEntry(
        module="trainables.data.torchvision_sets",
        num_classes=10,
        in_channels=3,
        image_size=32,
        train_images=73_257,
        test_images=26_032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        augmentation=Augmentation(crop_padding=4),  # a mirrored digit is no digit
        needs_data_dir=True,
        description="32x32 colour photographs of house numbers; the training split without the extra images",
    ),
    "image_folder": DatasetEntry(
        module="trainables.data.image_folder",
        num_classes=None,
        in_channels=3,
        image_size=None,
        train_images=None,
        test_images=None,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        augmentation=_SHIFT_AND_FLIP,
        needs_data_dir=True,
        description="images in train/<class>/ and test/<class>/ or val/<class>/, such as ImageNet",
    ),
}


def get_entry(name: str) -> DatasetEntry:
    """Return the registry's line for `name`.

    Raises:
        ValueError: there is none; the message suggests the nearest and lists all.
    """
    known("dataset", name, DATASETS)
    return DATASETS[name]


def check_dataset(name: str, data_dir: str | Path | None = None) -> DatasetFacts:
    """Find out, before any training, that a dataset is complete and what it is like.

    Every file of a folder is read once, and again only when it has changed (see `trainables.data.index`); images are
    not decoded, and torch is not imported.

    Args:
        name: one of `DATASETS`.
        data_dir: where the data lies, itself or in a folder called `name`; unused by a dataset that needs none.

    Raises:
        ValueError: if the name is unknown, or the data are missing, not as the entry says or not usable; the message
            names all files that are not.
    """
    entry = get_entry(name)
    if not entry.needs_data_dir:
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
    return find_source(name, entry, data_dir).facts(entry)


def load_dataset(name: str, data_dir: str | Path | None = None, *, cache_dir: str | Path | None = None) -> Dataset:
    """Load a dataset, once per process.

    Datasets of many files are decoded once per machine, to arrays in ``<data_dir>/.decoded`` (see
    `trainables.data.decoded`), and mapped from there: the processes of a machine share one copy in memory.

    Args:
        name: one of `DATASETS`.
        data_dir: as in `check_dataset`.
        cache_dir: where to keep decoded arrays instead.

    Raises:
        ValueError: as `check_dataset` does, and if an image cannot be decoded; the message names the file.
    """
    get_entry(name)
    try:
        return _load(name, _absolute(data_dir), _absolute(cache_dir))
    except OSError as error:
        raise ValueError(f"dataset {name!r} cannot be read or kept decoded: {error}") from error


@functools.lru_cache(maxsize=4)
def _load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    module = importlib.import_module(DATASETS[name].module)
    dataset: Dataset = module.load(name, data_dir, cache_dir)
    return dataset


def forget() -> None:
    """Let the next call of `load_dataset` look again at what is on the disk."""
    _load.cache_clear()


def counts(name: str, fingerprint: str) -> str:
    """Return in words how many images a dataset of this fingerprint has."""
    entry, (train, plus, rest) = get_entry(name), fingerprint.partition("+")
    if plus:
        test, _, digest = rest.partition("-")
        return f"{int(train):,} training and {int(test):,} test images, content {digest[:12]}"
    if fingerprint or entry.train_images is None:
        return f"version {fingerprint!r}"
    return f"{entry.train_images:,} training and {entry.test_images:,} test images as they were published"


def _absolute(path: str | Path | None) -> Path | None:
    return None if path is None else expanded(path).absolute()
