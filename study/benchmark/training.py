"""Sparse training: our trial against the conventional loop, against the bare model, and a grid of trials."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from study.benchmark.contest import Part, Team, compared, in_turns, ready
from study.benchmark.results import Figure, Row
from study.benchmark.settings import Training
from study.benchmark.workloads import STACK, BareStep, ConventionalLoop, OurTrial, images_on_disk, rate
from trainables.host.processes import cores
from trainables.host.toolchain import find_compiler
from trainables.training.engines import GPU
from trainables.training.way import Way

CONVENTIONAL = "conventional"


def parts(setting: Training, stack: ExitStack) -> dict[str, Part]:
    """Return the contests between the ways to train, title -> contest; `stack` removes the images that they need."""
    folder = stack.enter_context(images_on_disk(setting.images, setting.image_size, setting.test_images))
    network = f"{setting.model} x{setting.width:g}"
    ways = ", ".join([CONVENTIONAL, *map(str, setting.ways)])
    found: dict[str, Part] = {}
    for threads in [cores()] if setting.device == GPU else dict.fromkeys([cores(), 1]):
        title = f"one trial of {network}, {_on(setting, threads)}: {ways}, bare model step"
        found[title] = partial(_one_trial, setting, threads, folder)
    for way in setting.ways:
        together = setting.trials if setting.device == GPU else min(setting.trials, cores())
        title = f"{together} trials of {network} {way} at a time, against one conventional"
        found[title] = partial(_grid, setting, way, together, folder)
    for precision in setting.precisions:
        found[f"{network} {precision}, compiled and stacked"] = partial(_alternatives, setting, precision, folder)
    return found


def _on(setting: Training, threads: int) -> str:
    return "GPU" if setting.device == GPU else f"{threads} thread{'s' * (threads > 1)}"


def _one_trial(setting: Training, threads: int, folder: Path, rounds: Iterable[int]) -> Iterator[Row]:
    """Compare one trial with the conventional loop and with the bare step, each on `threads` threads."""
    on, what = _on(setting, threads), f"training {setting.model} x{setting.width:g}"
    makers: dict[str, tuple[Any, ...]] = {CONVENTIONAL: (ConventionalLoop, setting, folder)}
    makers |= {f"ours {way}": (OurTrial, setting, folder, way) for way in setting.ways}
    makers |= {f"bare {precision}": (BareStep, setting, folder, precision) for precision in setting.precisions}
    pairs = {
        f"{what} {way}, {on}, against the {against}": (f"ours {way}", other)
        for way in setting.ways
        for against, other in (("conventional loop", CONVENTIONAL), ("bare model step", f"bare {way.precision}"))
    }
    with ExitStack() as stack:
        teams = ready((name, Team(stack, name, *maker, threads=threads)) for name, maker in makers.items())
        seconds = in_turns({name: team.seconds for name, team in teams.items()}, rounds)
        yield from compared(pairs, seconds, setting.images)
        for name, team in teams.items():
            speed = 1 / statistics.median(seconds[name])
            yield Figure(name=f"training {name}, {on}", value=speed, unit="images/s")
            yield Figure(name=f"peak memory {name}, {on}", value=team.memory(), unit="MiB")


def _alternatives(setting: Training, precision: str, folder: Path, rounds: Iterable[int]) -> Iterator[Row]:
    """Compare compiled and stacked training with the default, one uncompiled network at a time, on one thread."""
    what, plain = f"training {setting.model} x{setting.width:g} {precision}", Way(precision=precision)
    ways = {"trial": (plain, 1), "stacked": (replace(plain, stacked=True), 1)}
    if find_compiler():
        ways["compiled"] = replace(plain, compiled=True), 1
    if setting.device == GPU:  # several trials can share a GPU
        ways["side by side"] = plain, STACK
    pairs = {
        f"{what}, compiled, against as it is": ("compiled", "trial"),
        f"{what}, {STACK} nets stacked, against one after another": ("stacked", "trial"),
        f"{what}, {STACK} nets stacked, against side by side": ("stacked", "side by side"),
    }
    with ExitStack() as stack:
        teams = ready(
            (name, Team(stack, name, OurTrial, setting, folder, way, count=count))
            for name, (way, count) in ways.items()
        )
        seconds = in_turns({name: team.seconds for name, team in teams.items()}, rounds)
        yield from compared(pairs, seconds, setting.images)


def _grid(setting: Training, way: Way, together: int, folder: Path, rounds: Iterable[int]) -> Iterator[Row]:
    """Compare trials side by side, one thread each, with one conventional trial on all cores."""
    what = f"training {setting.model} x{setting.width:g} {way}, {together} trials at a time"
    with ExitStack() as stack:
        alone = Team(stack, CONVENTIONAL, ConventionalLoop, setting, folder, threads=cores())
        trials = Team(stack, "trials", OurTrial, setting, folder, way, count=together)
        teams = ready([("ours", trials), (CONVENTIONAL, alone)])
        if len(teams) < 2:
            return
        seconds = in_turns({name: team.seconds for name, team in teams.items()}, rounds)
    yield from compared({f"{what}, against one conventional": ("ours", CONVENTIONAL)}, seconds, setting.images)
    yield replace(
        rate(setting, way, together * statistics.median(seconds["ours"])),
        conventional=1 / (together * statistics.median(seconds[CONVENTIONAL])),
    )
