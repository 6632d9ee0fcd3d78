"""Sparse training: our trial against the conventional loop, against the model by itself, and a grid of trials.

All train the same network under the same mask on the same images, which are noise of CIFAR's shape: what they show
does not change how long they take.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study import fastest
from study.benchmark.contest import Budget, Contestant, Team, Way, in_turns
from study.benchmark.results import Comparison, Figure, Rate
from trainables.config import CPU_PRECISIONS, PRECISIONS, Recipe, Task, bounded, fits_lanes, known
from trainables.data import load_dataset
from trainables.host.cpu import emulates_bf16
from trainables.host.processes import cores
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.masks import magnitude_mask
from trainables.models import MODELS, check_width
from trainables.storage.store import Store
from trainables.training.allocation import keep_freed_memory
from trainables.training.engines.sparse_cpu.compiler import find_compiler
from trainables.training.engines.stacked import train_as_one
from trainables.training.precision import tensor_float

if TYPE_CHECKING:
    from study.benchmark.conventional import ConventionalLoop

CLASSES = 10
CONVENTIONAL = "conventional"
STACK = 4
"""Networks of a trial that trains several as one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained.

    Attributes:
        model: a name of ``MODELS``.
        width: its width.
        sparsity: of the mask, in [0, 1).
        batch_size: images per step.
        image_size: pixels a side.
        steps: per run.
        precisions: names of ``PRECISIONS`` that our trial is measured in; the conventional loop knows fp32 only.
        trials: of the grid: as many train at the same time, on a CPU at most one per core.
    """

    model: str = "resnet20"
    width: float = 1.0
    sparsity: float = 0.9
    batch_size: int = 128
    image_size: int = 32
    steps: int = 10
    precisions: tuple[str, ...] = field(default_factory=lambda: _precisions())
    trials: int = 8

    def __post_init__(self) -> None:
        known("model", self.model, MODELS)
        check_width(self.model, self.width)
        bounded("sparsity", self.sparsity, 0, 1, below_high=True)
        bounded("batch_size", self.batch_size, CLASSES, whole=True)
        bounded("image_size", self.image_size, 1, whole=True)
        bounded("steps", self.steps, 1, whole=True)
        bounded("trials", self.trials, 1, whole=True)
        if not self.precisions:
            raise ValueError(f"no precision to measure in; known: {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            known("precision", precision, PRECISIONS)

    @property
    def ways(self) -> list[fastest.Way]:
        """How our trial is measured: in each precision and, where they fit, on the sparse kernels."""
        ways = [fastest.Way(precision=precision) for precision in self.precisions]
        fitting = fits_lanes(self.model, self.batch_size) and self.sparsity > 0
        if "fp32" in self.precisions and fitting and find_compiler() and not torch.cuda.is_available():
            ways.append(fastest.Way(kernels="sparse"))
        return ways

    @property
    def images(self) -> int:
        """Images of a run."""
        return self.batch_size * self.steps

    def recipe(self) -> Recipe:
        """Return a recipe that never ends."""
        return Recipe(
            epochs=10**6,
            batch_size=self.batch_size,
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="constant",
        )


# --- the ways ---------------------------------------------------------------------------------------------------------
class OurTrial:
    """Trains an epoch per run, as a trial of a study does, and evaluates on as good as no test images."""

    def __init__(self, setting: Setting, folder: Path, way: fastest.Way) -> None:
        settings: dict[str, Any] = way.settings
        recipe = replace(setting.recipe(), **settings)
        self.trainings = []
        for seed in range(STACK if way.stacked else 1):
            data, model, mask = _prepared(setting, folder)
            self.trainings.append(data.training(model, recipe, seed, mask))
        self._images = len(self.trainings) * setting.images

    def run(self) -> int:
        """Train one epoch; return the number of images."""
        if len(self.trainings) == 1:
            self.trainings[0].run_epoch()
        else:
            for finish in train_as_one(self.trainings):
                finish()
        return self._images

    def helpers(self) -> Sequence[int]:
        """Return nothing: a trial is one process."""
        return ()


class BareStep:
    """Forward and backward pass of the model over one batch again and again: what no loop can be faster than."""

    def __init__(self, setting: Setting, folder: Path, precision: str) -> None:
        keep_freed_memory()  # as our trial does
        data, self._model, _ = _prepared(setting, folder)
        images, labels = next(iter(data.train_plain))
        self._images, self._labels = images[: setting.batch_size], labels[: setting.batch_size]
        self._steps, self._precision = setting.steps, precision

    def run(self) -> int:
        """Take the steps of a run; return the number of images."""
        self._model.train()
        with tensor_float(self._precision == "tf32"):
            for _ in range(self._steps):
                with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                    logits = self._model(self._images)
                cross_entropy(logits.float(), self._labels).backward()  # type: ignore[no-untyped-call]
                for parameter in self._model.parameters():
                    parameter.grad = None
        return self._steps * len(self._labels)

    def helpers(self) -> Sequence[int]:
        """Return nothing."""
        return ()


def conventional(setting: Setting, folder: Path) -> ConventionalLoop:
    """Return the conventional loop with a loader process per core."""
    # It brings torchvision along, for which other contestants need not wait.
    from study.benchmark.conventional import ConventionalLoop

    _, model, mask = _prepared(setting, folder)
    dataset, recipe = load_dataset("image_folder", folder), setting.recipe()
    return ConventionalLoop(
        model.to(memory_format=torch.contiguous_format),
        mask,
        dataset.train,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=setting.batch_size,
        workers=cores(),
        device=_device(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def _prepared(setting: Setting, folder: Path) -> tuple[TaskData, nn.Module, dict[str, Tensor]]:
    """Return the data, the network and a mask of its smallest weights; the same ones in every process."""
    version = load_dataset("image_folder", folder).fingerprint
    task = Task(model=setting.model, width=setting.width, dataset="image_folder", data_version=version)
    data = TaskData(task, Context(store=Store(folder / "outputs"), data_dir=str(folder), device=_device()))
    torch.manual_seed(0)
    model = data.model()
    weights = {name: model.get_parameter(name).detach() for name in model.prunable_names()}
    return data, model, magnitude_mask(weights, setting.sparsity)


def _precisions() -> tuple[str, ...]:
    """Return those that make a difference on this machine, without what its CPU only emulates."""
    if torch.cuda.is_available():
        return tuple(PRECISIONS)
    return tuple(each for each in CPU_PRECISIONS if each != "bf16" or not emulates_bf16())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def images_on_disk(count: int, image_size: int) -> Iterator[Path]:
    """Yield a folder of noise images in the layout of ``image_folder``, decoded already; removed afterwards."""
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        for split, number in (("train", count), ("test", CLASSES)):
            for index in range(number):
                folder = Path(name, split, f"{index % CLASSES}")
                folder.mkdir(parents=True, exist_ok=True)
                pixels = noise.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        load_dataset("image_folder", name)
        yield Path(name)


# --- the contests ----------------------------------------------------------------------------------------------------
def parts(setting: Setting) -> int:
    """Return how many parts the measurement has."""
    return len(_thread_counts()) + len(setting.precisions) + len(setting.ways)


def measure(setting: Setting, budget: Budget) -> Iterator[Comparison | Figure | Rate]:
    """Compare the ways to train; each row comes as soon as it is measured.

    Args:
        setting: what is trained.
        budget: how long it may take.

    Raises:
        RuntimeError: one of the ways failed.
    """
    network = f"{setting.model} x{setting.width:g}"
    with images_on_disk(setting.images, setting.image_size) as folder:
        for threads in _thread_counts():
            ways = ", ".join([CONVENTIONAL, *map(str, setting.ways)])
            if budget.begins(f"one trial of {network}, {_on(threads)}: {ways}, bare model step"):
                yield from _one_trial(setting, threads, folder, budget)
        for precision in setting.precisions:
            if budget.begins(f"{network} {precision}, compiled and stacked"):
                yield from _alternatives(setting, precision, folder, budget)
        for way in setting.ways:
            together = setting.trials if torch.cuda.is_available() else min(setting.trials, cores())
            if budget.begins(f"{together} trials of {network} {way} at a time, against one conventional"):
                yield from _grid(setting, way, together, folder, budget)


def _thread_counts() -> list[int]:
    return [cores()] if torch.cuda.is_available() else list(dict.fromkeys([cores(), 1]))


def _on(threads: int) -> str:
    return "GPU" if torch.cuda.is_available() else f"{threads} thread{'s' * (threads > 1)}"


def _one_trial(setting: Setting, threads: int, folder: Path, budget: Budget) -> Iterator[Comparison | Figure]:
    """Compare one trial with the conventional loop and with the bare step, all on so many threads."""
    on = _on(threads)
    with ExitStack() as stack:
        teams = {CONVENTIONAL: Team(stack, Contestant(CONVENTIONAL, threads, conventional, setting, folder))}
        for way in setting.ways:
            teams[f"ours {way}"] = Team(stack, Contestant(f"ours {way}", threads, OurTrial, setting, folder, way))
        for precision in setting.precisions:
            bare = f"bare {precision}"
            teams[bare] = Team(stack, Contestant(bare, threads, BareStep, setting, folder, precision))
        seconds = in_turns(teams, budget.rounds())
        for way in setting.ways:
            what = f"training {setting.model} x{setting.width:g} {way}, {on}"
            for against, other in (("conventional loop", CONVENTIONAL), ("bare model step", f"bare {way.precision}")):
                name = f"{what}, against the {against}"
                yield _comparison(name, seconds[f"ours {way}"], seconds[other], setting.images)
        for name, team in teams.items():
            speed = 1 / statistics.median(seconds[name])
            yield Figure(name=f"training {name}, {on}", value=speed, unit="images/s")
            yield Figure(name=f"peak memory {name}, {on}", value=team.memory(), unit="MiB")


def _alternatives(setting: Setting, precision: str, folder: Path, budget: Budget) -> Iterator[Comparison]:
    """Compare what might be quicker with what is done: one network at a time, as it comes; on one thread."""
    plain = fastest.Way(precision=precision)
    ways: dict[str, tuple[Callable[..., Way], fastest.Way, int]] = {
        "trial": (OurTrial, plain, 1),
        "stacked": (OurTrial, replace(plain, stacked=True), 1),
    }
    if find_compiler():
        ways["compiled"] = OurTrial, replace(plain, compiled=True), 1
    if torch.cuda.is_available():  # which as many trials can share
        ways["side by side"] = OurTrial, plain, STACK
    with ExitStack() as stack:
        teams = {
            name: Team(stack, *(Contestant(name, 1, way, setting, folder, how) for _ in range(count)))
            for name, (way, how, count) in ways.items()
        }
        seconds = in_turns(teams, budget.rounds())
    what = f"training {setting.model} x{setting.width:g} {precision}"
    for name, ours, other in (
        ("compiled, against as it is", "compiled", "trial"),
        (f"{STACK} nets stacked, against one after another", "stacked", "trial"),
        (f"{STACK} nets stacked, against side by side", "stacked", "side by side"),
    ):
        if {ours, other} <= seconds.keys():
            yield _comparison(f"{what}, {name}", seconds[ours], seconds[other], setting.images)


def _grid(
    setting: Setting, way: fastest.Way, together: int, folder: Path, budget: Budget
) -> Iterator[Comparison | Rate]:
    """Compare trials side by side, one thread each, with one conventional trial on all cores."""
    with ExitStack() as stack:
        alone = Contestant(CONVENTIONAL, cores(), conventional, setting, folder)
        trials = [Contestant(f"trial {each}", 1, OurTrial, setting, folder, way) for each in range(together)]
        seconds = in_turns({"ours": Team(stack, *trials), CONVENTIONAL: Team(stack, alone)}, budget.rounds())
    what = f"{setting.model} x{setting.width:g} {way}"
    name = f"training {what}, {together} trials at a time, against one conventional"
    yield _comparison(name, seconds["ours"], seconds[CONVENTIONAL], setting.images)
    yield replace(
        rate(setting, way, together * statistics.median(seconds["ours"])),
        conventional=1 / (together * statistics.median(seconds[CONVENTIONAL])),
    )


def rate(setting: Setting, way: fastest.Way, seconds: float, compile_seconds: float = 0.0) -> Rate:
    """Return how fast a trial trains that takes so many seconds for an image."""
    return Rate(
        model=setting.model,
        width=setting.width,
        image_size=setting.image_size,
        images_per_second=1 / seconds,
        sparsity=setting.sparsity if way.kernels == "sparse" else None,
        compile_seconds=compile_seconds,
        precision=way.precision,
        compiled=way.compiled,
        kernels=way.kernels,
        stacked=way.stacked,
    )


def _comparison(name: str, ours: Sequence[float], other: Sequence[float], images: int) -> Comparison:
    """Return a comparison of the seconds for so many images, from the seconds for one."""
    return Comparison(
        name=name, ours=tuple(images * each for each in ours), other=tuple(images * each for each in other)
    )
