"""Sparse training: our trial against the conventional loop, against the bare model, and a grid of trials.

All train the same network under the same mask on the same images. The images are noise of CIFAR's shape: their content
does not affect the time.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study.benchmark.contest import Budget, Contestant, Team, in_turns, ready
from study.benchmark.results import Comparison, Figure, Rate
from trainables.checks import bounded
from trainables.config import Recipe, Task
from trainables.data import load_dataset
from trainables.host.cpu import emulates_bf16
from trainables.host.processes import cores
from trainables.host.toolchain import find_compiler
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.knobs import CPU_PRECISIONS, KNOBS, PRECISIONS
from trainables.masks import magnitude_mask
from trainables.models import check_width
from trainables.storage.store import Store
from trainables.training.allocation import keep_freed_memory
from trainables.training.engines import Engine
from trainables.training.loop import tensor_float, train_epoch
from trainables.training.way import WAYS, Way

if TYPE_CHECKING:
    from study.benchmark.conventional import ConventionalLoop

CLASSES = 10
CONVENTIONAL = "conventional"
STACK = 4
"""Number of networks in a stacked trial."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, data and ways to measure.

    Attributes:
        model: a name in ``MODELS``.
        width: its width.
        sparsity: the mask's sparsity, in [0, 1).
        batch_size: images per step, at least ``CLASSES``.
        image_size: side of the square images, pixels.
        steps: training steps per run.
        precisions: names in ``PRECISIONS`` to measure our trial in; the conventional loop always uses fp32.
        trials: number of trials that the grid trains at a time, on a CPU at most one per core.
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
        KNOBS["model"].checked(self.model)
        check_width(self.model, self.width)
        KNOBS["sparsity"].checked(self.sparsity)
        bounded("batch_size", self.batch_size, f"[{CLASSES}, inf)", whole=True)
        bounded("image_size", self.image_size, "[1, inf)", whole=True)
        bounded("steps", self.steps, "[1, inf)", whole=True)
        bounded("trials", self.trials, "[1, inf)", whole=True)
        if not self.precisions:
            raise ValueError(f"no precision to measure in; known: {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            KNOBS["precision"].checked(precision)

    @property
    def ways(self) -> list[Way]:
        """The ways to measure our trial: in each precision and, if they can be used, on engines that use the mask."""
        found = [way for way in WAYS if way.precision in self.precisions and way.fits(self.model, self.batch_size)]
        return [way for way in found if way.engine.selected_by is None or self._can_use_mask(way.engine)]

    def _can_use_mask(self, engine: Engine) -> bool:
        possible = _device().type in engine.devices and not (engine.needs_compiler and find_compiler() is None)
        return engine.gains_from > 0 and self.sparsity > 0 and possible

    @property
    def images(self) -> int:
        """Number of images per run."""
        return self.batch_size * self.steps

    def recipe(self) -> Recipe:
        """Return a recipe with more epochs than any measurement trains."""
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
    """A workload that trains one epoch per run, as a trial of a study does, with only ``CLASSES`` test images."""

    def __init__(self, setting: Setting, folder: Path, way: Way) -> None:
        recipe = replace(setting.recipe(), **way.settings)
        self.trainings = []
        for seed in range(STACK if way.engine.shares_trial else 1):
            data, model, mask = _prepared(setting, folder)
            self.trainings.append(data.training(model, recipe, seed, mask))
        self._images = len(self.trainings) * setting.images

    def run(self) -> int:
        """Train one epoch; return the number of images."""
        for finish in train_epoch(self.trainings):
            finish()
        return self._images


class BareStep:
    """Repeated forward and backward passes over one batch: a lower bound on the time of any loop around PyTorch."""

    def __init__(self, setting: Setting, folder: Path, precision: str) -> None:
        keep_freed_memory()  # as our trial does
        data, self._model, _ = _prepared(setting, folder)
        images, labels = next(iter(data.train_plain))
        self._images, self._labels = images[: setting.batch_size], labels[: setting.batch_size]
        self._steps, self._precision = setting.steps, precision

    def run(self) -> int:
        """Run the steps; return the number of images."""
        self._model.train()
        with tensor_float(self._precision == "tf32"):
            for _ in range(self._steps):
                with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                    logits = self._model(self._images)
                cross_entropy(logits.float(), self._labels).backward()  # type: ignore[no-untyped-call]
                for parameter in self._model.parameters():
                    parameter.grad = None
        return self._steps * len(self._labels)


def conventional(setting: Setting, folder: Path) -> ConventionalLoop:
    """Return the conventional loop with a loader process per core."""
    # Imported here because it imports torchvision, which the other contestants do not need.
    from study.benchmark.conventional import ConventionalLoop

    _, model, mask = _prepared(setting, folder)
    model = model.to(memory_format=torch.contiguous_format)
    dataset = load_dataset("image_folder", folder)
    return ConventionalLoop(model, mask, dataset, setting.recipe(), workers=cores(), device=_device())


def _prepared(setting: Setting, folder: Path) -> tuple[TaskData, nn.Module, dict[str, Tensor]]:
    """Return the data, the network and its magnitude mask; the same in every process."""
    version = load_dataset("image_folder", folder).fingerprint
    task = Task(model=setting.model, width=setting.width, dataset="image_folder", data_version=version)
    data = TaskData(task, Context(store=Store(folder / "outputs"), data_dir=str(folder), device=_device()))
    torch.manual_seed(0)
    model = data.model()
    weights = {name: model.get_parameter(name).detach() for name in model.prunable_names()}
    return data, model, magnitude_mask(weights, setting.sparsity)


def _precisions() -> tuple[str, ...]:
    """Return the precisions to measure by default: those that this machine supports without emulation."""
    if torch.cuda.is_available():
        return tuple(PRECISIONS)
    return tuple(each for each in CPU_PRECISIONS if each != "bf16" or not emulates_bf16())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def images_on_disk(count: int, image_size: int) -> Iterator[Path]:
    """Yield a folder of noise images in the layout of ``image_folder``, already decoded; remove it afterwards."""
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
    """Return the number of parts of the measurement."""
    return len(_thread_counts()) + len(setting.precisions) + len(setting.ways)


def measure(setting: Setting, budget: Budget) -> Iterator[Comparison | Figure | Rate]:
    """Compare the ways to train; yield each row once it is measured.

    Raises:
        RuntimeError: a contestant failed.
    """
    network = f"{setting.model} x{setting.width:g}"
    with images_on_disk(setting.images, setting.image_size) as folder:
        for threads in _thread_counts():
            ways = ", ".join([CONVENTIONAL, *map(str, setting.ways)])
            if budget.begins(f"one trial of {network}, {_on(threads)}: {ways}, bare model step"):
                yield from _one_trial(setting, threads, folder, budget)
        for way in setting.ways:
            together = setting.trials if torch.cuda.is_available() else min(setting.trials, cores())
            if budget.begins(f"{together} trials of {network} {way} at a time, against one conventional"):
                yield from _grid(setting, way, together, folder, budget)
        for precision in setting.precisions:
            if budget.begins(f"{network} {precision}, compiled and stacked"):
                yield from _alternatives(setting, precision, folder, budget)


def _thread_counts() -> list[int]:
    return [cores()] if torch.cuda.is_available() else list(dict.fromkeys([cores(), 1]))


def _on(threads: int) -> str:
    return "GPU" if torch.cuda.is_available() else f"{threads} thread{'s' * (threads > 1)}"


def _one_trial(setting: Setting, threads: int, folder: Path, budget: Budget) -> Iterator[Comparison | Figure]:
    """Compare one trial with the conventional loop and with the bare step, each on `threads` threads."""
    on = _on(threads)
    with ExitStack() as stack:
        makers: dict[str, tuple[Any, ...]] = {CONVENTIONAL: (conventional, setting, folder)}
        makers |= {f"ours {way}": (OurTrial, setting, folder, way) for way in setting.ways}
        makers |= {f"bare {precision}": (BareStep, setting, folder, precision) for precision in setting.precisions}
        teams: dict[str, Team] = {}
        for name, maker in makers.items():  # one after another, so that each first run has the machine to itself
            teams |= ready(stack, {name: [Contestant(name, threads, *maker)]})
        seconds = in_turns(teams, budget.rounds())
        for way in setting.ways:
            what = f"training {setting.model} x{setting.width:g} {way}, {on}"
            for against, other in (("conventional loop", CONVENTIONAL), ("bare model step", f"bare {way.precision}")):
                if {f"ours {way}", other} <= seconds.keys():
                    name = f"{what}, against the {against}"
                    yield _comparison(name, seconds[f"ours {way}"], seconds[other], setting.images)
        for name, team in teams.items():
            speed = 1 / statistics.median(seconds[name])
            yield Figure(name=f"training {name}, {on}", value=speed, unit="images/s")
            yield Figure(name=f"peak memory {name}, {on}", value=team.memory(), unit="MiB")


def _alternatives(setting: Setting, precision: str, folder: Path, budget: Budget) -> Iterator[Comparison]:
    """Compare compiled and stacked training with the default, one uncompiled network at a time, on one thread."""
    plain = Way(precision=precision)
    ways = {"trial": (plain, 1), "stacked": (replace(plain, stacked=True), 1)}
    if find_compiler():
        ways["compiled"] = replace(plain, compiled=True), 1
    if torch.cuda.is_available():  # several trials can share a GPU
        ways["side by side"] = plain, STACK
    with ExitStack() as stack:
        teams: dict[str, Team] = {}
        for name, (way, count) in ways.items():
            teams |= ready(stack, {name: [Contestant(name, 1, OurTrial, setting, folder, way) for _ in range(count)]})
        seconds = in_turns(teams, budget.rounds())
    what = f"training {setting.model} x{setting.width:g} {precision}"
    for name, ours, other in (
        ("compiled, against as it is", "compiled", "trial"),
        (f"{STACK} nets stacked, against one after another", "stacked", "trial"),
        (f"{STACK} nets stacked, against side by side", "stacked", "side by side"),
    ):
        if {ours, other} <= seconds.keys():
            yield _comparison(f"{what}, {name}", seconds[ours], seconds[other], setting.images)


def _grid(setting: Setting, way: Way, together: int, folder: Path, budget: Budget) -> Iterator[Comparison | Rate]:
    """Compare trials side by side, one thread each, with one conventional trial on all cores."""
    with ExitStack() as stack:
        alone = Contestant(CONVENTIONAL, cores(), conventional, setting, folder)
        trials = [Contestant(f"trial {each}", 1, OurTrial, setting, folder, way) for each in range(together)]
        teams = ready(stack, {"ours": trials, CONVENTIONAL: [alone]})
        if len(teams) < 2:
            return
        seconds = in_turns(teams, budget.rounds())
    what = f"{setting.model} x{setting.width:g} {way}"
    name = f"training {what}, {together} trials at a time, against one conventional"
    yield _comparison(name, seconds["ours"], seconds[CONVENTIONAL], setting.images)
    yield replace(
        rate(setting, way, together * statistics.median(seconds["ours"])),
        conventional=1 / (together * statistics.median(seconds[CONVENTIONAL])),
    )


def rate(setting: Setting, way: Way, seconds: float, compile_seconds: float = 0.0) -> Rate:
    """Return the rate of a trial that takes `seconds` per image."""
    return Rate(
        model=setting.model,
        width=setting.width,
        image_size=setting.image_size,
        images_per_second=1 / seconds,
        sparsity=setting.sparsity if way.engine.gains_from else None,
        compile_seconds=compile_seconds,
        **way.settings,
    )


def _comparison(name: str, ours: Sequence[float], other: Sequence[float], images: int) -> Comparison:
    """Return a comparison of the seconds for `images` images, from the seconds per image."""
    return Comparison(
        name=name, ours=tuple(images * each for each in ours), other=tuple(images * each for each in other)
    )
