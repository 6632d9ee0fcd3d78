"""The datasets of a study, by name. Torch and the data itself are loaded only when arrays are asked for.

To add one, write a module with ``load(name, data_dir) -> Dataset`` and add a row to
`trainables.data.registry.DATASETS`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from trainables.data.dataset import Augmentation, Dataset, DatasetFacts, Split
from trainables.data.layout import find_source
from trainables.data.registry import DATASETS, get_entry
from trainables.host.places import expanded

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "DatasetFacts",
    "Split",
    "check_dataset",
    "counts",
    "forget",
    "get_entry",
    "load_dataset",
]


def check_dataset(name: str, data_dir: str | Path | None = None) -> DatasetFacts:
    """Check, before any training, that a dataset is complete, and return the facts about it.

    Every file of a folder is read once, and again only after it has changed (see `trainables.data.index`); images are
    not decoded, and torch is not imported.

    Args:
        name: one of `DATASETS`.
        data_dir: the directory of the data, or the one above it with a folder called `name`; unused by datasets that
            come with a library.

    Raises:
        ValueError: if the name is unknown, or the data are missing, unusable or differ from the entry; the message
            names all files that cannot be used.
    """
    entry = get_entry(name)
    return find_source(name, data_dir).facts() if entry.needs_data_dir else entry.facts()


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a dataset, once per process.

    Image files are decoded once per machine, to arrays in ``<data_dir>/.decoded`` (see `trainables.data.decoded`), and
    memory-mapped from there: the processes of a machine share one copy in memory.

    Args:
        name: one of `DATASETS`.
        data_dir: as in `check_dataset`.

    Raises:
        ValueError: as in `check_dataset`, and if an image cannot be decoded; the message names the file.
    """
    get_entry(name)
    try:
        return _load(name, None if data_dir is None else expanded(data_dir).absolute())
    except OSError as error:
        raise ValueError(f"dataset {name!r} cannot be read or kept decoded: {error}") from error


@functools.lru_cache(maxsize=4)
def _load(name: str, data_dir: Path | None) -> Dataset:
    dataset: Dataset = importlib.import_module(DATASETS[name].module).load(name, data_dir)
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
