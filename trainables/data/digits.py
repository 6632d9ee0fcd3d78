"""The 8x8 grey digits that come with scikit-learn: the dataset for a laptop, a test and a first look."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import torch
from sklearn.datasets import load_digits

from trainables.data import DATASETS
from trainables.data.dataset import Dataset, Split
from trainables.seeding import derive_seed

TEST_IMAGES: Final = 899
"""Half: with fewer, the noise of the measurement would hide what is measured."""
SPLIT_SEED: Final = 0
"""Part of the definition of the dataset: every job sees the same split."""
BRIGHTEST: Final = 16
"""The largest pixel value in scikit-learn's arrays."""


def load(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """Return the digits: 898 training and 899 test images, stratified by class; both directories are unused."""
    entry = DATASETS[name]
    assert entry.num_classes is not None
    assert entry.image_size is not None
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    pixels = np.rint(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)[:, None]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[_test_indices(labels.tolist())] = True
    train, test = (
        Split(images=torch.from_numpy(pixels[chosen]), labels=torch.from_numpy(labels[chosen]))
        for chosen in (~in_test, in_test)
    )
    return Dataset(
        train=train,
        test=test,
        num_classes=entry.num_classes,
        in_channels=entry.in_channels,
        image_size=entry.image_size,
        mean=entry.mean,
        std=entry.std,
        augmentation=entry.augmentation,
        class_names=tuple(str(digit) for digit in range(entry.num_classes)),
        fingerprint="",
    )


def _test_indices(labels: list[int]) -> list[int]:
    """Choose `TEST_IMAGES` indices, from each class its share.

    Sorted by hash and not drawn from a random generator, whose stream may change with the library's version.
    """
    classes = sorted(set(labels))
    shares = {c: Fraction(labels.count(c) * TEST_IMAGES, len(labels)) for c in classes}
    counts = {c: int(share) for c, share in shares.items()}
    by_remainder = sorted(classes, key=lambda c: (counts[c] - shares[c], c))
    for c in by_remainder[: TEST_IMAGES - sum(counts.values())]:
        counts[c] += 1
    chosen: list[int] = []
    for c in classes:
        members = [index for index, label in enumerate(labels) if label == c]
        members.sort(key=lambda index: derive_seed(SPLIT_SEED, "digits split", index))
        chosen += members[: counts[c]]
    return chosen
