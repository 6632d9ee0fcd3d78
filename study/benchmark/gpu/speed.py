"""How fast a GPU trains in every way, alone and with several trials, and how fast it loads, evaluates and matches."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from study.benchmark.contest import MEBIBYTE, Team, compared, in_turns, ready, timed
from study.benchmark.gpu.sections import Checks, Outcome, Scale
from study.benchmark.results import Figure, Row
from study.benchmark.settings import Training, cpu_precisions
from study.benchmark.training import CONVENTIONAL
from study.benchmark.ways import images_in_a_second
from study.benchmark.workloads import BareStep, ConventionalLoop, OurTrial, images_on_disk, prepared, rate
from study.scheduling.placement import PROCESS_BYTES, device_bytes
from trainables.config import Cell
from trainables.data import load_dataset
from trainables.graph import Job, target
from trainables.host.devices import memory_of
from trainables.host.processes import cores
from trainables.knobs import TF32
from trainables.symmetry.matching import activation_moments
from trainables.symmetry.permutations import permutation_spec
from trainables.training.engines import CPU, GPU
from trainables.training.evaluation import evaluate
from trainables.training.way import WAYS, Way

_ON: Final = {GPU: "GPU", CPU: "CPU"}
"""Device -> its name in results."""
PACKED_PRECISION: Final = TF32
"""Precision of several trials on a GPU; a CPU has single precision instead."""


def ways(scale: Scale, model: str, batch_size: int) -> list[Way]:
    """Return the ways of training on a GPU; on a CPU, those of them that it has without compiling or emulation."""
    found = [way for way in WAYS if GPU in way.engine.devices and way.fits(model, batch_size)]
    if scale.device == GPU:
        return found
    on_cpu = [way for way in found if CPU in way.engine.devices and not way.engine.needs_compiler]
    return [way for way in on_cpu if way.precision in cpu_precisions()]


def setting_of(scale: Scale, width: float) -> Training:
    """Return the setting of a section's width: as many steps as take about a second."""
    own = scale.widths[width]
    steps = images_in_a_second(scale.model, own, scale.image_size, scale.device) // scale.batch_size
    return Training(
        model=scale.model,
        width=own,
        batch_size=scale.batch_size,
        image_size=scale.image_size,
        device=scale.device,
        steps=max(scale.least_steps, min(scale.most_steps, steps)),
        precisions=tuple(dict.fromkeys(way.precision for way in ways(scale, scale.model, scale.batch_size))),
    )


class Entrant(NamedTuple):
    """A trial that trains a number of networks at once in a way."""

    way: Way
    nets: int

    def __str__(self) -> str:
        return f"{self.way}, {self.nets} nets in a process" if self.nets > 1 else str(self.way)


def entrants(scale: Scale, width: float, *, compiling: bool, precision: str | None = None) -> list[Entrant]:
    """Return the trials to measure; engines that train several networks at once train one network, too.

    Args:
        scale: sizes of the measurements.
        width: of the section.
        compiling: whether to return the ways that compile, or the others.
        precision: of the ways; None for all.
    """
    return [
        Entrant(way, nets)
        for way in ways(scale, scale.model, scale.batch_size)
        if way.engine.compiles == compiling and precision in (way.precision, None)
        for nets in ((1, scale.nets[width]) if way.engine.shares_trial else (1,))
    ]


# --- training ---------------------------------------------------------------------------------------------------------
def training(scale: Scale, stack: ExitStack, *, width: float) -> Checks:
    """Return a contest for each precision: all ways that do not compile, the bare step and the conventional loop."""
    return _contests(scale, stack, width, compiling=False)


def compiling(scale: Scale, stack: ExitStack, *, width: float) -> Checks:
    """Return the same contests of the ways that compile; a CPU has none, because it would compile for minutes."""
    return _contests(scale, stack, width, compiling=True)


def _contests(scale: Scale, stack: ExitStack, width: float, *, compiling: bool) -> Checks:
    setting = setting_of(scale, width)
    contest = _Contest(setting, scale, stack)
    found: Checks = {}
    for precision in setting.precisions:
        if its := entrants(scale, width, compiling=compiling, precision=precision):
            words = f"training {setting.model} x{setting.width:g} {precision}{' compiled' if compiling else ''}"
            found[words] = partial(contest.measure, its)
    return found


class _Contest:
    """Contests at one setting, which share the images and the process of the conventional loop."""

    def __init__(self, setting: Training, scale: Scale, stack: ExitStack) -> None:
        self._setting, self._scale, self._stack = setting, scale, stack
        self.images = cache(lambda: stack.enter_context(images_on_disk(setting.images, setting.image_size)))
        self.conventional = cache(self._conventional)

    def _conventional(self) -> Team:
        team = Team(self._stack, CONVENTIONAL, ConventionalLoop, self._setting, self.images(), threads=cores())
        team.wait()
        return team

    def measure(self, its: Sequence[Entrant]) -> Outcome:
        """Time trials of one precision, the bare step and the conventional loop, alternately.

        They take turns, but all stay in the GPU's memory. Trials that do not fit together compete one group after
        another.
        """
        groups, too_large = self._groups(its)
        rows: list[Row] = []
        ratios: dict[str, float] = {}
        fits: list[bool] = []
        for group in groups:
            self._compete(group, rows, ratios, fits)
        missing = [str(each) for each in chain(*groups) if str(each) not in ratios]
        found = {
            "fastest": max(ratios, key=lambda name: ratios[name], default=""),
            "times the conventional loop": max(ratios.values(), default=0.0),
            **({"memory as predicted": all(fits)} if fits else {}),
            **({"not measured": ", ".join(missing)} if missing else {}),
            **({"too large for this GPU": ", ".join(map(str, too_large))} if too_large else {}),
        }
        return Outcome(ok=all(fits) and not missing if groups else None, found=found, rows=rows)

    def _groups(self, its: Sequence[Entrant]) -> tuple[list[list[Entrant]], list[Entrant]]:
        """Return the trials in groups that fit on the GPU together by prediction, and those that do not fit at all."""
        loop, bare = Way(), Way(precision=its[0].way.precision)
        beside = sum(self.needed(Entrant(way, 1)) for way in (loop, bare))
        room = memory_of(torch.device(self._setting.device)) - beside
        groups: list[list[Entrant]] = []
        too_large, left = [], 0.0
        for each in its:
            if (needed := self.needed(each)) > room:
                too_large.append(each)
                continue
            if needed > left:
                groups.append([])
                left = room
            groups[-1].append(each)
            left -= needed
        return groups, too_large

    def _compete(self, its: Sequence[Entrant], rows: list[Row], ratios: dict[str, float], fits: list[bool]) -> None:
        """Time a group; add its rows, speeds as multiples of the conventional loop's, and whether its memory fits."""
        setting, folder = self._setting, self.images()
        bare = f"bare {its[0].way.precision}"
        what, on = f"training {setting.model} x{setting.width:g}", _ON[setting.device]
        pairs = {
            f"{what} {each}, {on}, against the {against}": (str(each), other)
            for each in its
            for against, other in (("conventional loop", CONVENTIONAL), ("bare model step", bare))
        }
        self.conventional()
        with ExitStack() as stack:
            started = {
                str(each): Team(stack, str(each), OurTrial, setting, folder, each.way, each.nets) for each in its
            }
            started[bare] = Team(stack, bare, BareStep, setting, folder, its[0].way.precision)
            teams = ready(started.items())
            works = {name: team.seconds for name, team in teams.items()} | {CONVENTIONAL: self.conventional().seconds}
            seconds = in_turns(works, range(self._scale.rounds))
            median = {name: statistics.median(each) for name, each in seconds.items()}
            rows += compared(pairs, seconds, setting.images)
            for each in (each for each in its if str(each) in teams):
                team, name = teams[str(each)], f"{what} {each}, {on}"
                ratios[str(each)] = median[CONVENTIONAL] / median[str(each)]
                used, predicted = team.ask("device_bytes"), self.needed(each) - PROCESS_BYTES
                host_share = team.ask("host_share")
                lost = max(0.0, setting.images * each.nets * (team.seconds("run afresh") - median[str(each)]))
                fits += [used <= predicted] if setting.device == GPU else []
                rows += [
                    Figure(name=name, value=1 / median[str(each)], unit="images/s"),
                    Figure(name=f"{name}: host's share of the time", value=host_share),
                    Figure(name=f"{name}: lost at the start of a job", value=lost, unit="s"),
                    Figure(name=f"{name}: memory", value=used / MEBIBYTE, unit="MiB"),
                    Figure(name=f"{name}: predicted memory", value=predicted / MEBIBYTE, unit="MiB"),
                ]
                if each.nets > 1 or not each.way.engine.shares_trial:
                    of_trial = rate(setting, each.way, median[str(each)], lost)
                    rows.append(dataclasses.replace(of_trial, conventional=1 / median[CONVENTIONAL]))

    def needed(self, entrant: Entrant) -> float:
        """Return the bytes of GPU memory that placement expects of a trial, those of its process included."""
        facts = load_dataset("image_folder", self.images())
        job = job_of(self._setting, facts.fingerprint, entrant.way)
        return device_bytes(job, facts, entrant.nets)


def job_of(setting: Training, data_version: str, way: Way) -> Job:
    """Return the job that trains the setting's dense network in a way."""
    task: dict[str, Any] = {"model": setting.model, "width": setting.width, "dataset": "image_folder"}
    settings = {"batch_size": setting.batch_size, **way.settings}
    return target(Cell(method="dense", data_version=data_version, **task, **settings))


# --- several trials ---------------------------------------------------------------------------------------------------
def processes(scale: Scale, stack: ExitStack) -> Checks:
    """Return a contest for each way: numbers of processes on the GPU, and one conventional loop."""
    setting = setting_of(scale, 1.0)
    contest = _Contest(setting, scale, stack)
    precision = PACKED_PRECISION if PACKED_PRECISION in setting.precisions else setting.precisions[0]

    def measure(entrant: Entrant) -> Outcome:
        what, on = f"training {setting.model} x{setting.width:g} {entrant}", _ON[setting.device]
        room = memory_of(torch.device(setting.device)) - contest.needed(Entrant(Way(), 1))
        most = room / contest.needed(entrant)
        counts = [count for count in scale.processes if count <= most]
        if not counts:
            return Outcome(found={"too large for this GPU": str(entrant)})
        conventional = contest.conventional()
        with ExitStack() as own:
            arguments = (setting, contest.images(), entrant.way, entrant.nets)
            team = Team(own, str(entrant), OurTrial, *arguments, count=max(counts))
            team.wait()
            works = {str(count): partial(team.seconds, count=count) for count in counts}
            seconds = in_turns(works | {CONVENTIONAL: conventional.seconds}, range(scale.rounds))
        pairs = {
            f"{what}, {count} processes, {on}, against one conventional": (str(count), CONVENTIONAL)
            for count in counts
            if count > 1
        }
        speeds = {count: 1 / statistics.median(seconds[str(count)]) for count in counts}
        best = max(speeds, key=lambda count: speeds[count])
        found = {"most images/s": speeds[best], "with processes": best, "images/s of one": speeds[counts[0]]}
        return Outcome(found=found, rows=list(compared(pairs, seconds, setting.images)))

    return {
        f"processes {each}": partial(measure, each)
        for each in entrants(scale, 1.0, compiling=False, precision=precision)
    }


def launches(scale: Scale, stack: ExitStack) -> Checks:
    """Return a check for each way that does not compile: what PyTorch's profiler counts in a training step."""
    setting = setting_of(scale, 1.0)
    contest = _Contest(setting, scale, stack)

    def measure(entrant: Entrant) -> Outcome:
        trial = OurTrial(setting, contest.images(), entrant.way, entrant.nets)
        trial.run()
        counts = trial.launches()
        name = f"training {setting.model} x{setting.width:g} {entrant}, {_ON[setting.device]}"
        return Outcome(found=counts, rows=[Figure(name=f"{name}: {of} per step", value=counts[of]) for of in counts])

    return {f"launches {each}": partial(measure, each) for each in entrants(scale, 1.0, compiling=False)}


# --- other work -------------------------------------------------------------------------------------------------------
def passes(scale: Scale, stack: ExitStack) -> Checks:
    """Return the rates of the loader, of evaluation and of collecting the moments of a match, at each width."""
    size = scale.image_size

    @cache
    def images() -> Path:
        return stack.enter_context(images_on_disk(scale.images, size))

    def per_second(name: str, work: Callable[[], object]) -> Outcome:
        work()  # uncounted
        seconds = statistics.median(timed(work)[0] for _ in range(scale.rounds))
        speed = scale.images / seconds
        return Outcome(found={"images/s": speed}, rows=[Figure(name=name, value=speed, unit="images/s")])

    def loader() -> Outcome:
        trial = OurTrial(setting_of(scale, 1.0), images(), Way())
        (batches,) = (training.batches for training in trial.trainings)
        return per_second("loading", lambda: [None for _ in batches.epoch(0)])

    def evaluation(width: float) -> Outcome:
        data, model, _ = prepared(setting_of(scale, width), images())
        return per_second(f"evaluating {_net(scale, width)} fp32", lambda: evaluate(model, data.train_plain))

    def matching(width: float) -> Outcome:
        (data, model_a, _), (_, model_b, _) = (prepared(setting_of(scale, width), images()) for _ in range(2))
        spec = permutation_spec(model_a)
        batches = data.measuring(scale.images, 0)
        return per_second(f"matching {_net(scale, width)}", lambda: activation_moments(model_a, model_b, spec, batches))

    found: Checks = {"loading": loader}
    for width in scale.widths:
        found[f"evaluating {_net(scale, width)}"] = partial(evaluation, width)
        found[f"matching {_net(scale, width)}"] = partial(matching, width)
    return found


def _net(scale: Scale, width: float) -> str:
    return f"{scale.model} x{scale.widths[width]:g}"
