"""The datasets of a study, by name. Torch and the data itself are loaded only when arrays are asked for.

To add one, write a module with ``load(name, data_dir, reading) -> Dataset`` and add a row to
`trainables.data.registry.DATASETS`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from trainables.data.bucket import named_by_uri
from trainables.data.dataset import BY_DEFAULT, Augmentation, Dataset, DatasetEntry, DatasetFacts, Reading, Split
from trainables.data.layout import find_source
from trainables.data.registry import DATASETS, get_entry
from trainables.host.places import located

__all__ = [
    "BY_DEFAULT",
    "DATASETS",
    "Augmentation",
    "Dataset",
    "DatasetFacts",
    "Reading",
    "Split",
    "check_dataset",
    "counts",
    "forget",
    "get_entry",
    "load_dataset",
]


def check_dataset(name: str, data_dir: str | Path | None = None, reading: Reading = BY_DEFAULT) -> DatasetFacts:
    """Check, before any training, that a dataset is complete, and return the facts about it.

    Every file of a folder is read once, and again only after it has changed (see `trainables.data.index`); images are
    not decoded, and torch is not imported.

    Args:
        name: one of `DATASETS`.
        data_dir: the directory of the data, or the one above it with a folder called `name`; or the URI of such a
            directory in a bucket, of which this node then has a copy (see `trainables.data.bucket`). Unused by datasets
            that come with a library.
        reading: how a folder of images is read.

    Raises:
        ValueError: if the name is unknown, or the data are missing, unusable or differ from the entry; the message
            names all files that cannot be used.
        StorageError: if a bucket cannot be read.
    """
    entry = _entry(name, reading)
    with named_by_uri():
        return find_source(name, data_dir, reading).facts() if entry.needs_data_dir else entry.facts()


def load_dataset(name: str, data_dir: str | Path | None = None, reading: Reading = BY_DEFAULT) -> Dataset:
    """Load a dataset, once per process.

    Image files are decoded once per machine, to arrays in ``<data_dir>/.decoded`` (see `trainables.data.decoded`), and
    memory-mapped from there: the processes of a machine share one copy in memory. Where the arrays would be too large,
    the images are decoded as they are needed (see `trainables.data.streaming`).

    Args:
        name: one of `DATASETS`.
        data_dir: as in `check_dataset`.
        reading: how a folder of images is read.

    Raises:
        ValueError: as in `check_dataset`, and if an image cannot be decoded; the message names the file.
        StorageError: as in `check_dataset`.
    """
    _entry(name, reading)
    try:
        with named_by_uri():
            return _load(name, None if data_dir is None else located(data_dir), reading)
    except OSError as error:
        raise ValueError(f"dataset {name!r} cannot be read or kept decoded: {error}") from error


def _entry(name: str, reading: Reading) -> DatasetEntry:
    """Return the entry of a dataset; raises ValueError if there is none, or if its images always have another size."""
    entry = get_entry(name)
    if reading.image_size and entry.image_size is not None:
        size = f"{entry.image_size}x{entry.image_size}"
        raise ValueError(f"image_size={reading.image_size}: images of {name} always have {size} pixels; leave it at 0")
    return entry


@functools.lru_cache(maxsize=4)
def _load(name: str, data_dir: str | None, reading: Reading) -> Dataset:
    dataset: Dataset = importlib.import_module(DATASETS[name].module).load(name, data_dir, reading)
    return dataset


def forget() -> None:
    """Make the next call of `load_dataset` read the disk again."""
    _load.cache_clear()


def counts(name: str, fingerprint: str) -> str:
    """Describe in words how many images a dataset with this fingerprint has."""
    entry, (train, plus, rest) = get_entry(name), fingerprint.partition("+")
    if plus:
        test, _, digest = rest.partition("-")
        return f"{int(train):,} training and {int(test):,} test images, content {digest[:12]}"
    if fingerprint or entry.train_images is None:
        return f"version {fingerprint!r}"
    return f"{entry.train_images:,} training and {entry.test_images:,} test images as they were published"
