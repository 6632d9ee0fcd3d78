"""Whether jobs compute on the device what they compute on the CPU, and the same bits from run to run."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch

from study.benchmark.gpu.sections import Checks, Outcome, Scale
from study.benchmark.gpu.speed import ways
from study.benchmark.workloads import images_on_disk
from trainables import schema
from trainables.config import Cell
from trainables.data import load_dataset
from trainables.graph import Closure, Job, Ref, measurements, target
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.knobs import KNOBS
from trainables.methods import METHODS
from trainables.models import MODELS
from trainables.storage.artifacts import read_mask, read_metrics, read_weights
from trainables.storage.store import Store
from trainables.training.way import Way

TOLERANCE: Final = 0.05
"""Difference from the CPU's result that is rounding, as a share of the metric's value or, if that is below 1, of 1."""
LOSSES: Final = {schema.TEST_LOSS, schema.FINAL_TRAIN_LOSS}
"""Metrics that change little where a precision rounds more, unlike accuracies of hardly trained networks."""
INCOMPARABLE: Final = {*schema.OF_THE_MACHINE, schema.MOVED_UNITS, schema.AGREEMENT_WITH_WEIGHT}
"""Final metrics that are times, or count units whose places rounding may swap."""
DETERMINISM_STEPS: Final = 20
SETTINGS: Final[dict[str, Any]] = {
    "model": "resnet8",
    "dataset": "digits",
    "width": 0.25,
    "sparsity": 0.5,
    "rewind_epoch": 1,
    "epochs": 2,
    "imp_epochs": 1,
    "match_images": 200,
}
"""The networks of the jobs, which take less than a second each."""


def kinds() -> dict[str, Job]:
    """Return a small job of every kind."""
    extras: dict[str, Any] = {"interpolation_points": 3, "members": 2, "plane_resolution": 2, "mask_overlap": True}
    cell = Cell(method="permuted", **SETTINGS, **extras)
    graph = Closure(Ref(job) for job in (target(cell), *measurements(cell)))
    return {job.kind: job for job in graph.jobs.values()}


def jobs(scale: Scale, stack: ExitStack) -> Checks:
    """Return a check for each kind of job, each model and each way of training."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
    cpu, device = torch.device("cpu"), torch.device(scale.device)
    reference = Store(folder / "cpu")

    def kind(job: Job) -> Outcome:
        """Compute all jobs on the CPU, and then this one on the device, from the same parents."""
        for each in kinds().values():
            _publish(each, reference, cpu)
        store = Store(shutil.copytree(reference.root, folder / job.kind))
        store.remove(job.key)
        _publish(job, store, device)
        return _compared(store, job, reference, job)

    def model(name: str) -> Outcome:
        job = target(Cell(method="dense", **{**SETTINGS, "model": name, "epochs": 1, "rewind_epoch": 0}))
        _publish(job, reference, cpu)
        store = Store(folder / "device")
        _publish(job, store, device)
        return _compared(store, job, reference, job)

    @cache
    def pruned_on_cpu() -> Job:
        job = target(_pruned(Way()))
        _publish(job, reference, cpu)
        return job

    def way(its: Way) -> Outcome:
        """Train, prune and train again on the device, and compare with the CPU's plain way."""
        job, store = target(_pruned(its)), Store(folder / "device")
        _publish(job, store, device)
        outcome = _compared(store, job, reference, pruned_on_cpu(), losses_only=True)
        mask, weights = read_mask(store, job.key), read_weights(store, job.key)
        holds = not any(weights[name][~keep].any() for name, keep in mask.items())
        log = store.read(job.key, schema.LOG).decode().splitlines()
        warned = {"log": "; ".join(line for line in log if "warning: " in line)} if its.engine.shares_trial else {}
        found = {**outcome.found, "mask holds": holds, **warned}
        return dataclasses.replace(outcome, ok=outcome.ok and holds and not any(warned.values()), found=found)

    return {
        **{f"job {name}": partial(kind, job) for name, job in kinds().items()},
        **{f"model {name}": partial(model, name) for name in MODELS},
        **{f"way {its}": partial(way, its) for its in ways(scale, SETTINGS["model"], KNOBS["batch_size"].default)},
    }


def _pruned(way: Way) -> Cell:
    method = next(name for name, each in METHODS.items() if each.init == "final")
    return Cell(method=method, pruner="one_shot", **SETTINGS, **way.settings)


def _publish(job: Job, store: Store, device: torch.device, data_dir: Path | None = None) -> None:
    context = Context(store=store, device=device, data_dir=str(data_dir) if data_dir else None)
    for _ in compute(job, [None], context):
        pass


def _compared(store: Store, job: Job, other_store: Store, other: Job, *, losses_only: bool = False) -> Outcome:
    """Compare the final metrics of two jobs, those of the second one being right."""
    found, right = (read_metrics(*each)["final"] for each in ((store, job.key), (other_store, other.key)))
    names = right.keys() & LOSSES if losses_only else right.keys() - INCOMPARABLE
    apart = {name: abs(found[name] - right[name]) / max(1.0, abs(right[name])) for name in sorted(names)}
    worst = max(apart, key=lambda name: apart[name])
    return Outcome(ok=apart[worst] <= TOLERANCE, found={"largest difference": apart[worst], "of": worst})


def determinism(scale: Scale, stack: ExitStack) -> Checks:
    """Return a check for each way that does not compile: two equal jobs, with and without the deterministic switch."""
    device = torch.device(scale.device)

    @cache
    def images() -> Path:
        steps = min(DETERMINISM_STEPS, scale.most_steps)
        return stack.enter_context(images_on_disk(steps * scale.batch_size, scale.image_size))

    def twice(way: Way, switch: bool) -> Outcome:
        folder = images()
        version = load_dataset("image_folder", folder).fingerprint
        network: dict[str, Any] = {"model": scale.model, "width": scale.widths[1.0]}
        data: dict[str, Any] = {"dataset": "image_folder", "data_version": version, "batch_size": scale.batch_size}
        training: dict[str, Any] = {"epochs": 1, "rewind_epoch": 0, **way.settings, "deterministic": switch}
        job = target(Cell(method="dense", **network, **data, **training))
        weights = []
        for attempt in range(2):
            store = Store(folder / "twice" / f"{way} {switch} {attempt}")
            _publish(job, store, device, folder)
            weights.append(read_weights(store, job.key))
        same = all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
        apart = max(float((weights[0][name] - tensor).abs().max()) for name, tensor in weights[1].items())
        return Outcome(ok=same if switch else None, found={"same bits": same, "largest difference": apart})

    measured = [way for way in ways(scale, scale.model, scale.batch_size) if not way.engine.compiles]
    return {
        f"determinism {way}{' with the switch' if switch else ''}": partial(twice, way, switch)
        for switch in (True, False)
        for way in measured
        if way.engine.repeatable or not switch
    }
