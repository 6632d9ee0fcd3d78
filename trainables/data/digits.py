"""The 8x8 grey digits that come with scikit-learn: the dataset for a laptop, a test and a first look."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import torch
from sklearn.datasets import load_digits

from trainables.data.dataset import Dataset, Split
from trainables.data.registry import DATASETS
from trainables.seeding import derive_seed

SPLIT_SEED: Final = 0
"""Part of the definition of the dataset: every job sees the same split."""
BRIGHTEST: Final = 16
"""The largest pixel value in scikit-learn's arrays."""


def load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """Return the digits, split in halves that are stratified by class; both directories are unused.

    With a smaller test split, the noise of the measurement would hide the effects that a study measures.
    """
    entry = DATASETS[name]
    facts = entry.facts()
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    pixels = np.rint(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)[:, None]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[_test_indices(labels.tolist(), facts.test_images)] = True
    train, test = (
        Split(images=torch.from_numpy(pixels[chosen]), labels=torch.from_numpy(labels[chosen]))
        for chosen in (~in_test, in_test)
    )
    return entry.dataset(facts, train, test, entry.class_names)


def _test_indices(labels: list[int], count: int) -> list[int]:
    """Choose `count` indices, from each class in proportion to its size.

    Members are sorted by hash, because the stream of a random generator may change with the library's version.
    """
    classes = sorted(set(labels))
    shares = {c: Fraction(labels.count(c) * count, len(labels)) for c in classes}
    counts = {c: int(share) for c, share in shares.items()}
    by_remainder = sorted(classes, key=lambda c: (counts[c] - shares[c], c))
    for c in by_remainder[: count - sum(counts.values())]:
        counts[c] += 1
    chosen: list[int] = []
    for c in classes:
        members = [index for index, label in enumerate(labels) if label == c]
        members.sort(key=lambda index: derive_seed(SPLIT_SEED, "digits split", index))
        chosen += members[: counts[c]]
    return chosen
