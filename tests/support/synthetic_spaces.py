"""Finished studies of whole search spaces with made-up numbers, in MLflow's tables as a real study would leave them.

The jobs are those of the plan, their names and params those of ``study.tracking.labels``, every other name is of
``trainables.schema``: what a figure looks for is what a study writes. Only the numbers are invented, of about the
paper's size: a test may rely on their order, not on their values. Rows go into the database directly, because twenty
thousand runs through MLflow's client would take half an hour.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mlflow import MlflowClient
from synthetic_runs import Rows, tracking_uri, with_tables

from search_spaces import SearchSpace
from study.plan import Plan, Ways, make_plan
from study.tracking.labels import place_tags, recipe_digest, run_name, run_params
from trainables import schema
from trainables.config import Cell, ConnectConfig, EnsembleConfig, MatchConfig, PlaneConfig, PruneConfig
from trainables.data import DATASETS
from trainables.data.dataset import DatasetFacts
from trainables.graph import Job
from trainables.methods import MATCHERS, METHODS

STARTED = 1_700_000_000_000
CLASSES = {"image_folder": 1000}
DENSE = {
    # (model, dataset): accuracy at width 1, accuracy that width leads to, how fast it leads there
    ("resnet20", "cifar10"): (92.9, 96.5, 1.3),
    ("resnet20", "cifar100"): (69.3, 83.0, 0.8),
    ("resnet20", "svhn"): (96.0, 96.8, 1.0),
    ("vgg11", "cifar10"): (91.6, 93.0, 1.0),
    ("resnet50", "image_folder"): (76.1, 79.0, 1.0),
    ("resnet8", "digits"): (99.4, 99.6, 1.0),
}
OTHERS = (85.0, 90.0, 1.0)
"""The same for any other model and dataset, as those of a new space may be."""
SHARE_OF_MATCHER = {"activation": 1.0, "activation_inner": 0.9, "weight": 0.75, "identity": 0.0, "random": -0.02}
"""Matcher -> share of the activation match's gain."""


@dataclass
class Result:
    """What a job has measured: final numbers, and numbers by step."""

    final: dict[str, float]
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


def facts(name: str, *_: object) -> DatasetFacts:
    """Return what is known about a dataset without having it."""
    entry = DATASETS[name]
    size = entry.image_size or 224
    return DatasetFacts(
        num_classes=entry.num_classes or CLASSES[name],
        in_channels=entry.in_channels,
        image_size=size,
        train_images=entry.train_images or 1_281_167,
        test_images=entry.test_images or 50_000,
        fingerprint="",
    )


def plan_of(space: SearchSpace, ways: Ways | None = None) -> Plan:
    """Return the plan of a space, whether or not its data is there."""
    with mock.patch("study.plan.check_dataset", facts):
        return make_plan(space, ways=ways)


def write_space(
    folder: Path,
    space: SearchSpace,
    *,
    status: Callable[[Job, Cell], str | None] = lambda _job, _cell: "FINISHED",
    ways: Ways | None = None,
) -> Plan:
    """Write all runs of a space to the MLflow database in a folder.

    Args:
        folder: of ``mlflow.db`` and the artifacts.
        space: what to pretend to have run.
        status: of each job's run; None leaves it out.
        ways: network -> settings of its recipe in place of the space's.
    """
    plan = plan_of(space, ways)
    client = MlflowClient(tracking_uri=tracking_uri(with_tables(folder)))
    artifacts = folder / "mlartifacts" / space.name
    experiment = client.create_experiment(space.name, artifact_location=artifacts.as_uri())
    client.set_experiment_tag(experiment, "mlflow.note.content", space.question)
    client.set_experiment_tag(experiment, schema.TAG_RECIPE, recipe_digest(space, ways))
    results, places = Results(plan), place_tags(plan)
    rows = Rows()
    for number, key in enumerate(plan.jobs):
        job, cell = plan.jobs[key], plan.cells[key]
        state = status(job, cell)
        if state is not None and None in plan.closure.outputs[key]:
            _add_run(rows, plan, results, places, key, state, number, int(experiment), artifacts)
    rows.insert(folder)
    return plan


def _add_run(
    rows: Rows,
    plan: Plan,
    results: Results,
    places: Mapping[str, Mapping[str, str]],
    key: str,
    status: str,
    number: int,
    experiment: int,
    artifacts: Path,
) -> None:
    job, cell = plan.jobs[key], plan.cells[key]
    run_id = hashlib.md5(f"{plan.space.name} {key}".encode()).hexdigest()
    started, done = STARTED + 60_000 * number, status == "FINISHED"
    ended = None if status == "RUNNING" else started + 50_000
    tags = {schema.TAG_KEY: key, schema.TAG_REUSED: "false"}
    tags |= {**places[key], "device": "x86_64 cpu", "torch": "2.11.0"}
    tags[schema.TAG_PARENTS] = ",".join(ref.key for _, ref in job.parents)
    if job.kind == schema.SPARSE:
        tags[schema.TAG_DENSE_KEY] = job.parent("init").job.key
    if key in plan.lth_keys:
        tags[schema.TAG_LTH_KEY] = plan.lth_keys[key]
    if status == "FAILED":
        tags[schema.TAG_ERROR] = "FloatingPointError: loss is nan at epoch 3"
    params, points = dict[str, str](), list[tuple[str, float, int, int]]()
    if done:  # params come with the result
        params = {name: str(value) for name, value in run_params(job, cell).items()}
        result = results[key]
        for name, curve in result.curves.items():
            points += [(name, value, ended, step) for step, value in curve.items()]
        final = result.final | results.gaps(key)
        # The last epoch's value is the final one.
        points += [(name, value, ended, job.epochs) for name, value in final.items() if name not in result.curves]
        for name, text in result.artifacts.items():
            file = artifacts / run_id / "artifacts" / name
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")
    rows.add(
        run_id,
        run_name(job, cell),
        status,
        started,
        ended,
        experiment,
        artifacts.as_uri(),
        tags=tags,
        params=params,
        points=points,
    )


# --- numbers --------------------------------------------------------------------------------------------------------
def noise(std: float, *about: object) -> float:
    """Return a normal deviate that depends on its subject alone."""
    return random.Random(repr(about)).gauss(0, std)


class Results:
    """The invented result of each job of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[str, Result] = {}

    def __getitem__(self, key: str) -> Result:
        if key not in self._known:
            job, cell = self._plan.jobs[key], self._plan.cells[key]
            self._known[key] = _MAKERS[job.kind](job, cell)
        return self._known[key]

    def gaps(self, key: str) -> dict[str, float]:
        """Return the gaps of a sparse net, as the study logs them once both ends are there."""
        job, lth = self._plan.jobs[key], self._plan.lth_keys.get(key)
        if job.kind != schema.SPARSE:
            return {}
        others = {schema.GAP_TO_DENSE: job.parent("init").job.key}
        if lth not in (None, key):
            others[schema.GAP_TO_LTH] = lth
        own = self[key].final[schema.TEST_ACCURACY]
        return {name: self[other].final[schema.TEST_ACCURACY] - own for name, other in others.items()}


def dense_accuracy(model: str, dataset: str, width: float) -> float:
    """Return the accuracy (percent) of a dense net without noise."""
    narrow, wide, speed = DENSE.get((model, dataset), OTHERS)
    return wide - (wide - narrow) * width**-speed


def sparse_accuracy(cell: Cell, sparsity: float) -> float:
    """Return the accuracy (percent) of a cell's net without noise."""
    dense = dense_accuracy(cell.model, cell.dataset, cell.width)
    scale = (100 - dense) ** 0.5 / 2.6
    halvings = math.log2(0.4 / (1 - sparsity)) if sparsity < 1 else 0
    lth = dense - scale * max(0.0, 0.9 * halvings) * cell.width**-0.55
    if cell.method == "imp":
        return lth + 0.2
    warm = 1 - math.exp(-cell.rewind_epoch / 6)
    lth -= 1.6 * scale * (1 - warm)
    lead = scale * (0.3 + 0.9 * halvings) * cell.width**-0.4 * (0.1 + 0.9 * warm) * (1 + cell.rewind_epoch / 400)
    share = (1 - 0.7 * cell.width**-0.45) * SHARE_OF_MATCHER[cell.matcher]
    if cell.match_epoch not in (-1, cell.epochs):
        share *= 0.5 + 0.5 * cell.match_epoch / cell.epochs
    behind = {
        "lth": 0.0,
        "own_mask": 0.02,
        "permuted": 1 - share,
        "naive": 1.0,
        "shuffled": 1.01,
        "layerwise_random": 1.08,
        "reinit": 1.15,
    }
    return lth - lead * behind[cell.method]


def _trained(job: Job, accuracy: float, classes: int) -> Result:
    """Return what every net that was trained has measured."""
    accuracy = min(accuracy, 99.9)
    seen = min(100.0, accuracy + 0.8 * (100 - accuracy))
    steps = dict.fromkeys((1, max(1, job.epochs // 2), max(1, job.epochs)))
    rise = [0.55, 0.9, 1.0][-len(steps) :]
    loss = (100 - accuracy) / 25
    final = {
        schema.FINAL_TRAIN_LOSS: (100 - seen) / 25,
        schema.FINAL_TRAIN_ACCURACY: seen,
        schema.GENERALIZATION_GAP: seen - accuracy,
        schema.IMAGES_PER_SECOND: 9000.0,
        schema.SECONDS: 5.0 * job.epochs,
        schema.TEST_LOSS: loss,
        schema.TEST_ACCURACY: accuracy,
    }
    if classes > 20:
        final[schema.TEST_TOP5_ACCURACY] = 100 - 0.33 * (100 - accuracy)
    curves = {
        schema.TEST_ACCURACY: {step: accuracy * part for step, part in zip(steps, rise, strict=True)},
        schema.TEST_LOSS: {step: loss / part for step, part in zip(steps, rise, strict=True)},
        schema.TRAIN_LOSS: {step: (100 - seen) / 20 / part for step, part in zip(steps, rise, strict=True)},
        schema.TRAIN_ACCURACY: {step: seen * part for step, part in zip(steps, rise, strict=True)},
        schema.LEARNING_RATE: dict.fromkeys(steps, 0.01),
    }
    return Result(final, curves)


def _classes(job: Job) -> int:
    return facts(job.config.task.dataset).num_classes


def _dense(job: Job, cell: Cell) -> Result:
    task = job.config.task
    accuracy = dense_accuracy(task.model, task.dataset, task.width)
    return _trained(job, accuracy + noise(0.12, task.width, job.config.seed), _classes(job))


def _prune(job: Job, cell: Cell) -> Result:
    config = job.config
    assert isinstance(config, PruneConfig)
    own = dataclasses.replace(cell, method="imp", dataset=config.task.dataset, mask_dataset="")
    accuracy = sparse_accuracy(own, config.sparsity) + noise(0.12, config.seed, config.task.width, config.sparsity)
    result = _trained(job, accuracy, _classes(job))
    result.final |= {schema.SPARSITY_PRUNABLE: config.sparsity, schema.SPARSITY_NETWORK: 0.92 * config.sparsity}
    return result


def _sparse(job: Job, cell: Cell) -> Result:
    place = (cell.width, cell.sparsity, cell.rewind_epoch)
    shared = noise(0.15, cell.seed, place)
    own = noise(0.1, cell.method, cell.matcher, cell.match_epoch, cell.seed, cell.member, place)
    result = _trained(job, sparse_accuracy(cell, cell.sparsity) + shared + own, _classes(job))
    result.final |= {schema.SPARSITY_PRUNABLE: cell.sparsity, schema.SPARSITY_NETWORK: 0.92 * cell.sparsity}
    return result


def _barrier(width: float, matched: float, *about: object) -> float:
    """Return the error barrier (percentage points) between two nets, matched to a share in [0, 1]."""
    apart, near = 80 / (1 + 0.05 * width), 26 * width**-1.1
    return max(0.0, apart + (near - apart) * matched + noise(0.8, *about))


def _match(job: Job, cell: Cell) -> Result:
    config = job.config
    assert isinstance(config, MatchConfig)
    images = config.images or 50_000
    matched = max(0.0, SHARE_OF_MATCHER[config.matcher]) * images / (images + 150)
    width, about = config.task.width, (cell.seed, config.matcher, config.task.width, cell.match_epoch)
    final = {
        schema.MEAN_CORRELATION: 0.08 + matched * (0.75 - 0.35 * width**-0.4) + noise(0.01, *about),
        schema.MEAN_CORRELATION_IDENTITY: 0.05 + noise(0.005, *about),
        schema.MOVED_UNITS: 0.0 if config.matcher == "identity" else 0.98,
        schema.LOSS_BARRIER_BEFORE: _barrier(width, 0, *about) / 25,
        schema.LOSS_BARRIER_AFTER: _barrier(width, matched, *about) / 25,
        schema.SECONDS: 30.0,
    }
    if MATCHERS[config.matcher].needs_data:
        final[schema.AGREEMENT_WITH_WEIGHT] = 0.5 * matched + noise(0.005, *about)
    return Result(final)


def _connect(job: Job, cell: Cell) -> Result:
    config = job.config
    assert isinstance(config, ConnectConfig)
    width, end = config.task.width, job.parent("b").job.config
    if isinstance(end, PruneConfig):
        collapse = 0.25 * end.round**2.2 / 2 if config.correction == "none" else 0.03 * end.round
        depth = max(0.0, collapse * width**-0.3 + noise(0.1, end.seed, end.round, config.correction))
    else:
        found = job.parent("permutation").job.config
        assert isinstance(found, MatchConfig)
        depth = _barrier(width, max(0.0, SHARE_OF_MATCHER[found.matcher]), cell.seed, found.matcher, width)
    top = dense_accuracy(config.task.model, config.task.dataset, width)
    alphas = [index / (config.points - 1) for index in range(config.points)]
    dips = {round(100 * alpha): depth * math.sin(math.pi * alpha) ** 2 for alpha in alphas}
    curves = {
        schema.INTERPOLATION_LOSS: {step: (100 - top + dip) / 25 for step, dip in dips.items()},
        schema.INTERPOLATION_ACCURACY: {step: top - dip for step, dip in dips.items()},
    }
    final = {schema.MIDPOINT_ACCURACY: top - depth, schema.LOSS_BARRIER: depth / 25, schema.ERROR_BARRIER: depth}
    return Result({**final, schema.SECONDS: 20.0}, curves)


def _plane(job: Job, cell: Cell) -> Result:
    config = job.config
    assert isinstance(config, PlaneConfig)
    best = 100 - dense_accuracy(config.task.model, config.task.dataset, config.task.width)
    size = 20 * config.task.width**0.5
    nets = ((0.0, 0.0), (0.8 * size, 0.0), (0.45 * size, 0.9 * size + noise(0.5, cell.seed)))
    errors = (best, best + 1, best + 2)
    reach = (0.45 * size, 0.4 * size, 0.35 * size)

    def error(x: float, y: float) -> float:
        hills = [
            1 - math.exp(-(math.hypot(x - net[0], y - net[1]) ** 2) / (2 * wide**2))
            for net, wide in zip(nets, reach, strict=True)
        ]
        floor = min(bottom + 60 * hill for bottom, hill in zip(errors, hills, strict=True))
        return min(floor, 90.0) if floor < 90 else 90.0

    xs, ys = (_axis([net[axis] for net in nets], config.resolution, config.margin) for axis in (0, 1))
    grid = [[error(x, y) for x in xs] for y in ys]
    at_nets = [error(*net) for net in nets]
    document = {
        "networks": ["dense", "lth", "permuted"],
        "xs": xs,
        "ys": ys,
        "losses": [[value / 25 for value in line] for line in grid],
        "errors": grid,
        "coordinates": nets,
        "network_losses": [value / 25 for value in at_nets],
        "network_errors": at_nets,
    }
    named = zip(document["networks"], at_nets, strict=True)
    final = {f"{schema.PLANE_ERROR}/{name}": value for name, value in named}
    return Result({**final, schema.SECONDS: 60.0}, artifacts={schema.PLANE_GRID: json.dumps(document)})


def _axis(values: Iterable[float], resolution: int, margin: float) -> list[float]:
    low, high = min(values := list(values)), max(values)
    start, stop = low - margin * (high - low), high + margin * (high - low)
    return [start + (stop - start) * step / (resolution - 1) for step in range(resolution)]


def _ensemble(job: Job, cell: Cell) -> Result:
    assert isinstance(job.config, EnsembleConfig)
    members = [100 - 1.3 * (100 - dense_accuracy(cell.model, cell.dataset, cell.width))] * len(job.parents)
    diverse = 0.3 if cell.method == "lth" else 1.0
    if METHODS[cell.method].mask is not None and cell.method != "imp":
        members = [sparse_accuracy(cell, cell.sparsity) + noise(0.15, cell.method, n) for n in range(len(members))]
    mean = sum(members) / len(members)
    spread = math.sqrt(sum((value - mean) ** 2 for value in members) / (len(members) - 1))
    final = {
        schema.MEMBERS: float(len(members)),
        schema.MEMBER_ACCURACY_MEAN: mean,
        schema.MEMBER_ACCURACY_STD: spread,
        schema.ENSEMBLE_ACCURACY: mean + 2.3 * diverse,
        schema.DISAGREEMENT: 0.11 * diverse,
        schema.KL_DIVERGENCE: 0.28 * diverse**2,
        schema.JS_DIVERGENCE: 0.09 * diverse**2,
        schema.SECONDS: 10.0,
    }
    return Result(final)


def _overlap(job: Job, cell: Cell) -> Result:
    chance = (1 - cell.sparsity) / (1 + cell.sparsity)
    identity = chance * (1.02 + noise(0.02, cell.seed, cell.width, cell.sparsity))
    matched = SHARE_OF_MATCHER[cell.matcher] * (0.2 + 0.1 * math.log2(1 + cell.width))
    final = {
        schema.MASK_OVERLAP: identity + matched * (1 - identity),
        schema.MASK_OVERLAP_IDENTITY: identity,
        schema.MASK_OVERLAP_RANDOM: chance,
        schema.SECONDS: 1.0,
    }
    return Result(final)


_MAKERS: dict[str, Callable[[Job, Cell], Result]] = {
    schema.DENSE: _dense,
    schema.PRUNE: _prune,
    schema.MATCH: _match,
    schema.SPARSE: _sparse,
    schema.CONNECT: _connect,
    schema.PLANE: _plane,
    schema.ENSEMBLE: _ensemble,
    schema.OVERLAP: _overlap,
}


def half_way(job: Job, cell: Cell) -> str | None:
    """Return the status of a job in a study that is still at it: the second half has not begun, some failed."""
    place = int(job.key[:8], 16) % 20
    if job.kind in (schema.SPARSE, schema.CONNECT, schema.PLANE, schema.ENSEMBLE) and place < 8:
        return None
    return {8: "FAILED", 9: "RUNNING"}.get(place, "FINISHED")
