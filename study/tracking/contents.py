"""The contents of the runs of a study's jobs, from its plan and its results: what MLflow holds, and tables show."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.plan import Plan
from study.tracking.labels import place_tags, recipe_digest, run_name, run_params
from trainables import schema
from trainables.storage.store import Result, Store

SOURCE, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
GAPS = {schema.GAP_TO_DENSE: schema.TAG_DENSE_KEY, schema.GAP_TO_LTH: schema.TAG_LTH_KEY}
"""Metric -> the tag that names the job with which it compares a run."""

Row = Mapping[str, Any]
"""An epoch: ``step``, ``timestamp`` (ms since 1970) and metrics."""
Metric = tuple[str, float, int, int]
"""Name, value, timestamp (ms since 1970), step."""


@dataclass(frozen=True)
class RunSpec:
    """The data of a run that are known before its job starts.

    Attributes:
        key: the job's key.
        name: the run's name, for people.
        epochs: number of epochs of the job, and the step of its final metrics.
        params: the job's place in the grid and its recipe, for people and charts.
        tags: the job's relations to other jobs and its place in the grid, for programs.
    """

    key: str
    name: str
    epochs: int
    params: dict[str, str]
    tags: dict[str, str]


class Contents:
    """The contents of a study's runs that its plan decides."""

    def __init__(self, plan: Plan, store: Store, fresh: Collection[str] = ()) -> None:
        """Prepare; the storage is not read.

        Args:
            plan: the study's plan.
            store: holds the results.
            fresh: keys of the jobs that this study computes itself; the runs of the others are tagged as reused.
        """
        self._plan, self._fresh = plan, fresh
        self.recipe = recipe_digest(plan.space, plan.ways)
        self.storage = hashlib.sha256(store.uri.encode()).hexdigest()[:12]
        self._places = place_tags(plan)
        self._commit = project_commit() if fresh else None

    def spec(self, key: str) -> RunSpec:
        """Return the run data of a job of the plan."""
        job, cell = self._plan.jobs[key], self._plan.cells[key]
        fresh = key in self._fresh
        tags = {
            schema.TAG_KEY: key,
            schema.TAG_REUSED: "false" if fresh else "true",
            schema.TAG_STORAGE: self.storage,
            schema.TAG_PARENTS: ",".join(ref.key for _, ref in job.parents),
            SOURCE: "study.run",
            SOURCE_TYPE: "LOCAL",
            **self.shared_tags(key),
        }
        if fresh and self._commit:
            tags[schema.TAG_COMMIT] = self._commit
        if job.config.task.data_version:
            tags[schema.TAG_DATA_VERSION] = job.config.task.data_version
        params = {name: str(value) for name, value in run_params(job, cell).items()}
        return RunSpec(key, run_name(job, cell), job.epochs, params, tags)

    def shared_tags(self, key: str) -> dict[str, str]:
        """Return the tags that a study also adds to another study's run: place in the grid, jobs compared with."""
        return self._places[key] | {GAPS[gap]: other for gap, other in self._compared(key).items()}

    def references(self, key: str) -> dict[str, str]:
        """Return the jobs that a job's accuracy is compared with: name of the gap -> key of the reference job."""
        return {gap: other for gap, other in self._compared(key).items() if other != key}

    def _compared(self, key: str) -> dict[str, str]:
        """Return the dense and the LTH job of a sparse job; an LTH job is its own."""
        job, lth = self._plan.jobs[key], self._plan.lth_keys.get(key)
        if job.kind != schema.SPARSE:
            return {}
        dense = {schema.GAP_TO_DENSE: job.parent("init").job.key}
        return {**dense, schema.GAP_TO_LTH: lth} if lth else dense


@dataclass(frozen=True)
class Outcome:
    """The data of a run that are known once its job is published.

    Attributes:
        metrics: those of the epochs, then the final ones.
        tags: the device, and the versions of PyTorch and Python.
        accuracy: final test accuracy in percent; None if the job has none.
        started: ms since 1970; after an interruption, the time at which the job would have started without one.
        finished: ms since 1970.
    """

    metrics: list[Metric]
    tags: dict[str, str]
    accuracy: float | None
    started: int
    finished: int


def outcome_of(result: Result, epochs: int) -> Outcome:
    """Return the run data in a published result.

    Args:
        result: as read, with its metrics.
        epochs: number of epochs of the job.
    """
    manifest, document = result.manifest, result.documents[schema.METRICS]
    finished, final = int(manifest["finished"]), document["final"]
    metrics = epoch_metrics(document["history"])
    by_epoch = {name for name, *_ in metrics}
    metrics += [(name, value, finished, epochs) for name, value in final.items() if name not in by_epoch]
    environment = manifest["environment"]
    tags = {name: str(environment[name]) for name in ("device", "torch", "python") if name in environment}
    started = finished - round(1000 * final[schema.SECONDS])
    return Outcome(metrics, tags, final.get(schema.TEST_ACCURACY), started, finished)


def epoch_metrics(rows: Iterable[Row]) -> list[Metric]:
    """Return the metrics in rows of a job's history."""
    return [
        (name, value, int(row["timestamp"]), int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "timestamp")
    ]


def gaps(key: str, references: Mapping[str, str], accuracy: Callable[[str], float | None]) -> dict[str, float]:
    """Return the gaps (percentage points) of a job to those reference jobs that have an accuracy.

    Args:
        key: the job.
        references: name of the gap -> key of the reference job.
        accuracy: returns a published job's test accuracy in percent.
    """
    found = {gap: (accuracy(other), accuracy(key)) for gap, other in references.items()}
    return {gap: theirs - own for gap, (theirs, own) in found.items() if theirs is not None and own is not None}


def project_commit() -> str | None:
    """Return the commit of the project's code; None if it does not run from a repository or git cannot read it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # git is missing, or refuses to read the repository
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None
