"""How long a plan takes: multiply-adds by a rate, corrected by what the store says that like jobs really took.

The rate is what ``python -m study.benchmark training`` has measured of the model, if it has, else a constant.

An estimate decides only what is printed and which job goes first, never what is computed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from study.benchmark.results import FILE, nearest, read_rates
from study.plan import Plan
from trainables import schema
from trainables.config import PRECISIONS, TRAINING_CONFIGS, ConnectConfig, MatchConfig, OverlapConfig, PlaneConfig
from trainables.graph import Job
from trainables.models import MODELS
from trainables.store import DamagedArtifact, Store

MULTIPLY_ADDS_PER_SECOND = 4e10
"""One core of a current server processor, fp32; a first guess, for a machine that nothing is known of."""
SECONDS_PER_PASS = 1.4e-3
"""Fixed cost of one forward pass over a batch; a training step costs three."""
SECONDS_PER_JOB = 0.15
"""Reading parents, building networks, publishing."""
EVAL_BATCH = 1000
SAMPLES_PER_CLASS = 5
"""Published jobs whose time is looked up, per kind, model, width and dataset."""

WORTH_SAYING = 1.2
"""How many times faster another precision must be to be mentioned."""

FIRST_GUESS = "a first guess for one core"

_Class = tuple[str, str, float, str]
_Net = tuple[str, float, str]
"""Model, width and precision."""


@dataclass(frozen=True)
class Estimates:
    """Seconds per job.

    Attributes:
        seconds: key -> seconds on one device.
        measured: how many published jobs the rates rest on.
        basis: what they rest on, in words.
    """

    seconds: Mapping[str, float]
    measured: int
    basis: str = FIRST_GUESS

    def total(self, keys: Collection[str]) -> float:
        """Return the sum over some jobs, in seconds."""
        return sum(self.seconds[key] for key in keys)

    def makespan(self, plan: Plan, keys: Collection[str], slots: int) -> float:
        """Return the seconds that some jobs take on so many slots: their share, but at least the longest chain."""
        finished: dict[str, float] = {}
        for key in plan.jobs:
            if key in keys:
                parents = (finished.get(ref.job.key, 0.0) for _, ref in plan.jobs[key].parents)
                finished[key] = max(parents, default=0.0) + self.seconds[key]
        return max(self.total(keys) / slots, max(finished.values(), default=0.0))


def estimate(plan: Plan, store: Store, published: Collection[str]) -> Estimates:
    """Estimate every job of a plan.

    Args:
        plan: the plan.
        store: where the times of published jobs are looked up.
        published: the store's keys.
    """
    speeds, basis = _speeds(plan, store)
    first = {key: _first_guess(plan, job, speeds[_net(job)]) for key, job in plan.jobs.items()}
    ratios: dict[_Class, list[float]] = defaultdict(list)
    for key, job in plan.jobs.items():
        kind = _class(job)
        if key in published and len(ratios[kind]) < SAMPLES_PER_CLASS:
            seconds = _measured(store, key)
            if seconds is not None:
                ratios[kind].append(seconds / first[key])
    measured = [ratio for each in ratios.values() for ratio in each]
    overall = statistics.median(measured) if measured else 1.0
    corrections = {kind: statistics.median(each) for kind, each in ratios.items() if each}
    return Estimates(
        {key: first[key] * corrections.get(_class(job), overall) for key, job in plan.jobs.items()},
        measured=len(measured),
        basis=f"from {len(measured)} published jobs" if measured else basis,
    )


def quicker_precisions(plan: Plan, store: Store) -> list[str]:
    """Return a sentence for each measured network near to the plan's that trains quicker in another precision.

    That is the user's to decide: in another precision it is another result, with a key of its own.
    """
    try:
        rates = read_rates(_benchmark(store))
    except ValueError:  # estimate() says so
        return []
    sentences: dict[str, None] = {}
    for model, width, own in sorted({_net(job) for job in plan.jobs.values() if job.epochs}):
        asked = nearest(rates, model, width, own)
        for precision in PRECISIONS if asked else ():
            other = nearest(rates, model, width, precision)
            if other and asked and (ratio := other.images_per_second / asked.images_per_second) >= WORTH_SAYING:
                sentences[f"precision={precision} trains {model} x{other.width:g} {ratio:.1f} times as fast here"] = (
                    None
                )
    return list(sentences)


def _benchmark(store: Store) -> Path:
    return (store.root if store.is_local else Path("outputs")) / FILE


def _speeds(plan: Plan, store: Store) -> tuple[dict[_Net, float], str]:
    """Return the multiply-adds per second for each network of the plan, and in words where they are from."""
    path = _benchmark(store)
    try:
        rates, basis = read_rates(path), FIRST_GUESS
    except ValueError as error:  # an estimate can do without
        rates, basis = [], f"{FIRST_GUESS}: {error}"
    speeds = {}
    for net in {_net(job) for job in plan.jobs.values()}:
        rate = nearest(rates, *net)
        if rate is None:
            speeds[net] = MULTIPLY_ADDS_PER_SECOND
        else:
            speeds[net] = 3 * rate.images_per_second * _multiply_adds(rate.model, rate.width, rate.image_size)
            basis = f"from {path}"
    return speeds, basis


def _net(job: Job) -> _Net:
    """Return what decides a network's speed; where nothing is trained, precision is single."""
    precision = job.config.recipe.precision if isinstance(job.config, TRAINING_CONFIGS) else "fp32"
    return job.config.task.model, job.config.task.width, precision


def _multiply_adds(model: str, width: float, image_size: int) -> float:
    """Return the multiply-adds for one image."""
    entry = MODELS[model]
    return entry.mult_adds * width**2 * (image_size / entry.reference_image_size) ** 2


def _measured(store: Store, key: str) -> float | None:
    try:
        return float(store.read_json(key, schema.METRICS)["final"][schema.SECONDS])
    except (KeyError, DamagedArtifact):  # gone or set aside: the run will deal with it, an estimate can do without
        return None


def _class(job: Job) -> _Class:
    task = job.config.task
    return job.kind, task.model, task.width, task.dataset


def _first_guess(plan: Plan, job: Job, speed: float) -> float:
    """Return the seconds of a job at so many multiply-adds per second."""
    config = job.config
    facts = plan.facts[config.task.dataset]
    size = facts.image_size or MODELS[config.task.model].reference_image_size
    seconds_per_image = _multiply_adds(config.task.model, config.task.width, size) / speed

    def forward(images: int, batch: int) -> float:
        return images * seconds_per_image + -(-images // batch) * SECONDS_PER_PASS

    if isinstance(config, OverlapConfig):
        return SECONDS_PER_JOB
    test = forward(facts.test_images, EVAL_BATCH)
    if not isinstance(config, TRAINING_CONFIGS):
        asked = getattr(config, "images", 0) or facts.train_images
        estimation = forward(min(asked, facts.train_images), EVAL_BATCH)
        if isinstance(config, MatchConfig):
            return SECONDS_PER_JOB + 2 * estimation
        points = {ConnectConfig: "points", PlaneConfig: "resolution"}.get(type(config))
        number = getattr(config, points) if points else len(job.parents)
        return SECONDS_PER_JOB + (number**2 if isinstance(config, PlaneConfig) else number) * (test + estimation)
    epoch = 3 * forward(facts.train_images, config.recipe.batch_size) + test
    return SECONDS_PER_JOB + config.recipe.epochs * epoch + forward(facts.train_images, EVAL_BATCH) + 2 * test


def duration(seconds: float) -> str:
    """Return seconds as people say them: 48 s, 3 min 5 s, 42 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
