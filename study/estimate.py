"""Estimates of a plan's time: multiply-adds over a rate, corrected by the times that similar published jobs took.

The rate is the one that ``python -m study.benchmark`` measured for the model, if possible in the job's way of training;
without a measurement it is a first guess for a core, by the network's width and the engine that trains it.

An estimate affects only the output and the order of jobs, never a result.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from study.benchmark.results import FILE, Rate, read, read_rates
from study.plan import Plan
from study.scheduling.cards import Card, is_called
from trainables import schema
from trainables.config import (
    BARRIER_ALPHAS,
    TRAINING_CONFIGS,
    EnsembleConfig,
    MatchConfig,
    OverlapConfig,
    PlaneConfig,
    PruneConfig,
    SparseConfig,
    input_size,
)
from trainables.graph import Job
from trainables.host import cpu
from trainables.host.cpu import WIDEST_REGISTER
from trainables.models import MODELS
from trainables.storage.store import DamagedArtifact, Store
from trainables.training import correction_passes, eval_batch
from trainables.training.engines import CPU
from trainables.training.way import Way

_log = logging.getLogger(__name__)

MULTIPLY_ADDS_PER_SECOND = 4e10
"""One core of a current server processor, in fp32, on a network that fills its registers: a first guess for a machine
without measurements."""
SECONDS_PER_PASS = 1.4e-3
"""Fixed cost of a forward pass over a batch; a training step costs three times as much."""
LAUNCHED_ONCE = 0.25
"""Part of the fixed cost that is left where a GPU gets a step as a whole: the kernels of a small network still follow
each other. An assumption."""
OBSERVED = 2.3
"""Time of a forward pass of which every layer's statistics are taken, in times of an evaluation: 1.9 to 2.7 with
ResNet20 at widths 0.25 to 2 and VGG11 on one core of an Intel Xeon."""
SECONDS_PER_JOB = 0.15
"""Fixed cost of a job: reading parents, building networks, publishing."""
SAMPLES_PER_CLASS = 5
"""Maximum number of published jobs whose time is looked up, per kind, model, width and dataset."""

FIRST_GUESS = "a first guess for one core"
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Net(NamedTuple):
    """The properties of a job that determine its speed."""

    model: str
    width: float
    image_size: int
    way: Way = Way()
    sparsity: float = 0.0


@dataclass(frozen=True)
class Estimates:
    """Seconds per job.

    Attributes:
        seconds: key -> seconds of the job.
        measured: number of published jobs that the estimates are based on.
        basis: what the estimates are based on, in words.
    """

    seconds: Mapping[str, float]
    measured: int
    basis: str = FIRST_GUESS

    def total(self, keys: Collection[str]) -> float:
        """Return the total seconds of some jobs."""
        return sum(self.seconds[key] for key in keys)

    def makespan(self, plan: Plan, keys: Collection[str], slots: int, done: Mapping[str, float] = _NOTHING) -> float:
        """Return the seconds of some jobs on `slots` slots: total / `slots`, but at least the longest chain of jobs.

        Args:
            plan: the jobs.
            keys: of the jobs.
            slots: number of jobs at a time, at least 1.
            done: key -> the fraction of the job, in [0, 1], that is done already.
        """
        left = {key: self.seconds[key] * (1.0 - done.get(key, 0.0)) for key in keys}
        finished: dict[str, float] = {}
        for key in plan.jobs:
            if key in left:
                parents = (finished.get(ref.job.key, 0.0) for _, ref in plan.jobs[key].parents)
                finished[key] = max(parents, default=0.0) + left[key]
        return max(sum(left.values()) / slots, max(finished.values(), default=0.0))


def estimate(plan: Plan, store: Store, published: Collection[str]) -> Estimates:
    """Estimate every job of a plan on one core, corrected by the times that the published ones among them took."""
    path = benchmark_file(store)
    try:
        rates, basis = read_rates(path, device=CPU), FIRST_GUESS
    except ValueError as error:  # an estimate does not need the file
        _log.warning("%s: estimates do without it", error)
        rates, basis = [], f"{FIRST_GUESS}: {error}"
    nets = {key: _net(plan, job) for key, job in plan.jobs.items()}
    found = {net: nearest(rates, net) for net in set(nets.values())}
    if any(found.values()):
        basis = f"from {path}"

    def guess(key: str, needed: Collection[int | None]) -> float:
        return _first_guess(plan, plan.jobs[key], needed, nets[key], found[nets[key]])

    todo = plan.closure.todo(published)
    first = {key: guess(key, todo.get(key, plan.closure.outputs[key])) for key in plan.jobs}
    tasks = {key: job.config.task for key, job in plan.jobs.items()}
    classes = {key: (plan.jobs[key].kind, task.model, task.width, task.dataset) for key, task in tasks.items()}
    ratios: dict[tuple[str, str, float, str], list[float]] = defaultdict(list)
    for key, kind in classes.items():
        if key in published and len(ratios[kind]) < SAMPLES_PER_CLASS:
            seconds = _measured(store, key)
            if seconds is not None:
                ratios[kind].append(seconds / guess(key, [None]))
    measured = [ratio for each in ratios.values() for ratio in each]
    overall = statistics.median(measured) if measured else 1.0
    corrections = {kind: statistics.median(each) for kind, each in ratios.items() if each}
    return Estimates(
        {key: first[key] * corrections.get(kind, overall) for key, kind in classes.items()},
        measured=len(measured),
        basis=f"from {len(measured)} published jobs" if measured else basis,
    )


class OnCard(NamedTuple):
    """How a job runs alone on a kind of GPU.

    Attributes:
        seconds: its time.
        busy: fraction of the time, in [0, 1], for which it keeps the GPU busy.
        measured: whether the time comes from a measured rate.
    """

    seconds: float
    busy: float
    measured: bool


def on_card(plan: Plan, job: Job, card: Card, rates: Sequence[Rate] = ()) -> OnCard:
    """Estimate a job on a kind of GPU, from rates that were measured on it, or else by arithmetic.

    The arithmetic takes multiply-adds over the card's rate, but at least the time that launching the kernels takes.
    """
    net, needed = _net(plan, job), plan.closure.outputs[job.key]

    def seconds(per_pass: float) -> float:
        def forward(images: int, batch: int) -> float:
            passes = -(-images // batch)
            multiply_adds = images * multiply_adds_per_image(net.model, net.width, net.image_size)
            return card.seconds(multiply_adds, passes * per_pass, net.way.precision)

        return _seconds(plan, job, needed, forward)

    rate = nearest(rates, net)
    whole = seconds(launching(job)) if rate is None else _first_guess(plan, job, needed, net, rate)
    return OnCard(whole, min(1.0, (seconds(0.0) - SECONDS_PER_JOB) / whole), rate is not None)


def on_gpus(estimates: Estimates, plan: Plan, keys: Collection[str], cards: Sequence[Card], store: Store) -> Estimates:
    """Return estimates in which some jobs run alone on the kind of GPU, of several, that is fastest for them."""
    rates = {card: rates_on(store, card) for card in cards}
    found = {
        key: min((on_card(plan, plan.jobs[key], card, rates[card]) for card in cards), key=lambda each: each.seconds)
        for key in keys
    }
    measured = sum(each.measured for each in found.values())
    part = f"{measured} of {len(found)} jobs from measured rates, the others " if measured else ""
    seconds = {key: each.seconds for key, each in found.items()}
    return Estimates({**estimates.seconds, **seconds}, measured, f"{part}by arithmetic, not measured")


def launching(job: Job) -> float:
    """Return the fixed cost of a job's forward pass on a GPU, in seconds; a training step costs three times that."""
    its_engine = job.config.recipe.engine if isinstance(job.config, TRAINING_CONFIGS) else None
    return SECONDS_PER_PASS * (LAUNCHED_ONCE if its_engine is not None and its_engine.launches_once else 1.0)


def rates_on(store: Store, card: Card) -> list[Rate]:
    """Return the rates that were measured on a known kind of GPU; an empty list if their file is damaged."""
    try:
        path = benchmark_file(store)
        names = {str(entry.get("machine", {}).get("device", "")) for entry in read(path)}
        return [rate for name in sorted(names) if is_called(card, name) for rate in read_rates(path, device=name)]
    except ValueError:  # the basis of the estimates reports the damage
        return []


def rates_here(store: Store) -> list[Rate]:
    """Return the rates that were measured on this model of CPU; an empty list if their file is damaged."""
    try:
        return read_rates(benchmark_file(store), cpu=cpu.name(), device=CPU)
    except ValueError:  # the basis of the estimates reports the damage
        return []


def benchmark_file(store: Store) -> Path:
    """Return the path of the measurements."""
    return store.beside / FILE


def image_size(plan: Plan, job: Job) -> int:
    """Return the side length, in pixels, of a job's images; the model's reference size if the dataset does not say."""
    return input_size(job.config.task, plan.facts[job.config.task.dataset])


def masked(job: Job) -> float:
    """Return the sparsity, in [0, 1), of the mask that a job trains under; 0 without a mask."""
    if isinstance(job.config, SparseConfig):
        job = job.parent("mask").job
    return job.config.sparsity if isinstance(job.config, PruneConfig) else 0.0


def nearest(rates: Sequence[Rate], net: Net) -> Rate | None:
    """Return the measured rate that is nearest to a network's; None if the model has no rate that tells about it.

    A rate in the network's own way goes before one in the default way of the same precision. Among these, the nearest
    in width counts; ties are broken by image size, then sparsity, then the latest measurement.
    """

    def distance(rate: Rate) -> tuple[float, float, float]:
        pairs = ((rate.width, net.width), (rate.image_size, net.image_size))
        width, size = (max(pair) / min(pair) for pair in pairs)
        return width, size, abs((rate.sparsity or 0.0) - net.sparsity)

    for way in (net.way, Way(precision=net.way.precision)):
        fitting = [rate for rate in rates if rate.model == net.model and Way.of(rate) == way]
        if fitting:
            return min(reversed(fitting), key=distance)
    return None


def _net(plan: Plan, job: Job) -> Net:
    """Return what determines a job's speed; jobs that do not train compute in single precision."""
    config, size = job.config, image_size(plan, job)
    if not isinstance(config, TRAINING_CONFIGS):
        return Net(config.task.model, config.task.width, size)
    way = Way.of(config.recipe)
    sparsity = masked(job) if way.engine.gains_from else 0.0
    return Net(config.task.model, config.task.width, size, way, sparsity)


def multiply_adds_per_image(model: str, width: float, image_size: int) -> float:
    """Return the multiply-adds of one forward pass over one image."""
    entry = MODELS[model]
    return entry.mult_adds * width**2 * (image_size / entry.reference_image_size) ** 2


def _work(model: str, width: float, image_size: int, way: Way) -> float:
    """Return how long a forward pass over one image takes, in multiply-adds of the plain engine at full registers.

    The time of a network with fewer channels than a register holds falls with its width, not with the width squared.
    """
    engine = way.engine
    filled = 1.0 if engine.fills_registers else min(1.0, MODELS[model].base_channels[0] * width / WIDEST_REGISTER)
    return multiply_adds_per_image(model, width, image_size) / (filled * engine.gain)


def _measured(store: Store, key: str) -> float | None:
    try:
        return float(store.read_json(key, schema.METRICS)["final"][schema.SECONDS])
    except (KeyError, DamagedArtifact):  # gone or set aside: the run handles that, and an estimate does not need it
        return None


def _first_guess(plan: Plan, job: Job, needed: Collection[int | None], net: Net, rate: Rate | None) -> float:
    """Return the estimated seconds of a job from the nearest measured rate."""
    per_second, pass_seconds, compile_seconds = MULTIPLY_ADDS_PER_SECOND, SECONDS_PER_PASS, 0.0
    if rate is not None:
        per_second = 3 * rate.images_per_second * _work(rate.model, rate.width, rate.image_size, Way.of(rate))
        # A rate measured on images no larger than the job's already includes the fixed cost of a pass.
        pass_seconds = SECONDS_PER_PASS if net.image_size < rate.image_size else 0.0
        compile_seconds = rate.compile_seconds
    seconds_per_image = _work(net.model, net.width, net.image_size, net.way) / per_second

    def forward(images: int, batch: int) -> float:
        return images * seconds_per_image + -(-images // batch) * pass_seconds

    return compile_seconds + _seconds(plan, job, needed, forward)


def _seconds(plan: Plan, job: Job, needed: Collection[int | None], forward: Callable[[int, int], float]) -> float:
    """Return the seconds of a job up to its needed outputs from those of forward passes over images in batches."""
    config = job.config
    facts = plan.facts[config.task.dataset]
    if isinstance(config, OverlapConfig):
        return SECONDS_PER_JOB
    batch = eval_batch(image_size(plan, job))
    test = forward(facts.test_images, batch)
    if not isinstance(config, TRAINING_CONFIGS):
        asked = getattr(config, "images", 0) or facts.train_images
        images = min(asked, facts.train_images)
        measured = forward(images, batch)
        model = MODELS[config.task.model]
        observed = OBSERVED * measured
        corrected = observed * correction_passes(model.corrected_layers, -(-images // batch))
        if isinstance(config, MatchConfig):  # both networks, and the barrier before and after the match
            points = 2 * len(BARRIER_ALPHAS) - 1  # B is measured once
            return SECONDS_PER_JOB + 2 * observed + points * (test + corrected)
        if isinstance(config, EnsembleConfig):
            return SECONDS_PER_JOB + len(job.parents) * test
        effective = config.correction == "repair" or (config.correction == "bn_reset" and model.batchnorm)
        correction = corrected * effective
        if isinstance(config, PlaneConfig):
            return SECONDS_PER_JOB + config.resolution**2 * (test + correction)
        return SECONDS_PER_JOB + config.points * (test + measured + correction)
    steps = 3 * forward(facts.train_images, config.recipe.batch_size)
    epoch = steps / plan.workers(job.key) + test  # the leader evaluates; what the workers exchange is not counted
    measuring = (forward(facts.train_images, batch) + test) * (None in needed)
    return SECONDS_PER_JOB + job.epochs_to(needed) * epoch + measuring
