"""The 8x8 grey digits that come with scikit-learn: the dataset for a laptop, a test and a first look."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits

from trainables.data.dataset import Dataset, Reading, Split
from trainables.data.registry import DATASETS
from trainables.seeding import derive_seed

SPLIT_SEED: Final = 0
"""Part of the definition of the dataset: every job sees the same split."""
BRIGHTEST: Final = 16
"""The largest pixel value in scikit-learn's arrays."""


def load(name: str, data_dir: str | Path | None, reading: Reading) -> Dataset:
    """Return the digits, split in halves that are stratified by class; directory and reading are unused.

    With a smaller test split, the noise of the measurement would hide the effects that a study measures.
    """
    entry = DATASETS[name]
    facts = entry.facts()
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    pixels = np.rint(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)[:, None]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[_test_indices(labels, facts.test_images)] = True
    train, test = (
        Split(images=torch.from_numpy(pixels[chosen]), labels=torch.from_numpy(labels[chosen]))
        for chosen in (~in_test, in_test)
    )
    augmentation = entry.augmentation
    return Dataset(**asdict(facts), train=train, test=test, mean=entry.mean, std=entry.std, augmentation=augmentation)


def _test_indices(labels: npt.NDArray[np.int64], count: int) -> list[int]:
    """Choose `count` indices, from each class in proportion to its size.

    Members are sorted by hash, because the stream of a random generator may change with the library's version.
    """
    shares, remainders = np.divmod(np.bincount(labels) * count, len(labels))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    chosen: list[int] = []
    for label, share in enumerate(shares):
        members = np.flatnonzero(labels == label).tolist()
        chosen += sorted(members, key=lambda index: derive_seed(SPLIT_SEED, "digits split", index))[:share]
    return chosen
