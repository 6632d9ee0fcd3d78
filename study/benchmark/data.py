"""Decoding images for training, against a plain torchvision loader with as many worker processes."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from study.benchmark.contest import Part, Team, compared, in_turns, ready
from study.benchmark.results import Figure, Row
from study.benchmark.settings import CLASSES, Data
from trainables.data import Reading, load_dataset
from trainables.data.batches import TrainBatches
from trainables.data.layout import Form
from trainables.training.allocation import keep_freed_memory

PICTURE = (500, 375)
"""Width and height in pixels of most images of ImageNet."""
BATCH = 64
TIMES_LARGER = 4
"""Images of the larger folder, over those of the other: the peak memory of both should be alike."""


def parts(setting: Data, stack: ExitStack) -> dict[str, Part]:
    """Return the contest of the loaders, title -> contest; `stack` removes the images that they need."""
    folder = stack.enter_context(pictures(setting.pictures))
    title = f"loading {PICTURE[0]}x{PICTURE[1]} JPEGs at {setting.side} pixels, {_workers(setting)}"
    return {title: partial(_loaders, setting, title, folder)}


def _workers(setting: Data) -> str:
    return f"{setting.loaders} worker{'s' * (setting.loaders > 1)}"


def _loaders(setting: Data, title: str, folder: Path, rounds: Iterable[int]) -> Iterator[Row]:
    ours, larger = "ours", f"ours, {TIMES_LARGER} times the images"
    same, usual = "torchvision, the same transforms", "torchvision, the usual transforms"
    with ExitStack() as stack:
        many = stack.enter_context(more(folder))
        makers: dict[str, tuple[Any, ...]] = {ours: (Streamed, setting, folder), larger: (Streamed, setting, many)}
        makers |= {same: (Plain, setting, folder, False), usual: (Plain, setting, folder, True)}
        teams = ready((name, Team(stack, name, *maker, threads=setting.loaders)) for name, maker in makers.items())
        timed = {name: team.seconds for name, team in teams.items() if name != larger}
        seconds = in_turns(timed, rounds)
        pairs = {f"{title}, against {other}": (ours, other) for other in (same, usual)}
        yield from compared(pairs, seconds, setting.pictures)
        for name, team in teams.items():
            if name in seconds:
                speed = 1 / statistics.median(seconds[name])
                yield Figure(name=f"{title}, {name}", value=speed, unit="images/s")
            yield Figure(name=f"peak memory of {title}, {name}", value=team.memory(), unit="MiB")


class Streamed:
    """A workload that loads the training batches of one epoch per run, as a job on streamed images does."""

    def __init__(self, setting: Data, folder: Path) -> None:
        keep_freed_memory()
        data = load_dataset("image_folder", folder, Reading(image_size=setting.side, streaming=True))
        self._batches = TrainBatches(
            data.train, mean=data.mean, std=data.std, augmentation=data.augmentation, batch_size=BATCH, seed=0
        )
        self._epoch = 0

    def run(self) -> int:
        """Load the batches; return the number of images."""
        self._epoch += 1
        return sum(len(labels) for _, labels in self._batches.epoch(self._epoch))


class Plain:
    """A workload that loads as many batches by torchvision's ``ImageFolder`` and PyTorch's ``DataLoader``."""

    def __init__(self, setting: Data, folder: Path, is_usual: bool) -> None:
        from torchvision import datasets, transforms  # the memory that it takes would count as ours

        data = load_dataset("image_folder", folder, Reading(image_size=setting.side, streaming=True))
        form = Form(setting.side, cropped=True, chosen=True)
        square = [] if is_usual else [transforms.Resize(form.shorter_side), transforms.CenterCrop(form.size)]
        transform = transforms.Compose(
            [
                *square,
                transforms.RandomResizedCrop(form.size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )
        self._loader = DataLoader(
            datasets.ImageFolder(str(folder / "train"), transform),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=setting.loaders,
            persistent_workers=True,
        )

    def run(self) -> int:
        """Load the batches; return the number of images."""
        return sum(len(labels) for _, labels in self._loader)


@contextmanager
def pictures(count: int) -> Iterator[Path]:
    """Yield a folder of JPEGs, smooth with some noise, as photographs are; remove it afterwards."""
    noise, (width, height) = np.random.default_rng(0), PICTURE
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        for split, number in (("train", count), ("test", CLASSES)):
            for index in range(number):
                folder = Path(name, split, f"{index % CLASSES}")
                folder.mkdir(parents=True, exist_ok=True)
                coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize(PICTURE, Image.Resampling.BICUBIC), dtype=np.int16)
                pixels = pixels + noise.integers(-12, 13, (height, width, 1), dtype=np.int16)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
        yield Path(name)


@contextmanager
def more(folder: Path) -> Iterator[Path]:
    """Yield a folder that has every training image several times; remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        for file in folder.rglob("*.jpg"):
            below = file.relative_to(folder)
            for copy in range(TIMES_LARGER if below.parts[0] == "train" else 1):
                link = Path(name, below).with_name(f"{copy}-{below.name}")
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, link)
        yield Path(name)
