"""The contents of the runs of a study's jobs, from its plan and its results: what MLflow holds, and tables show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from study.plan import Plan
from study.tracking.labels import place_tags, recipe_digest, run_name, run_params
from trainables import schema
from trainables.host.places import user
from trainables.host.redaction import redact
from trainables.host.version import project_commit
from trainables.storage.store import Result, Store

SOURCE_TYPE = "mlflow.source.type"
USER, TRIAL_NAME = "mlflow.user", "trial_name"
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
        self.storage = redact(store.uri)
        self._places = place_tags(plan)
        self._commit, self._user = project_commit() if fresh else None, user()

    def spec(self, key: str) -> RunSpec:
        """Return the run data of a job of the plan."""
        job, cell = self._plan.jobs[key], self._plan.cells[key]
        fresh, name = key in self._fresh, run_name(job, cell)
        tags = {
            schema.TAG_KEY: key,
            schema.TAG_REUSED: "false" if fresh else "true",
            schema.TAG_STORE: self.storage,
            schema.TAG_PARENTS: ",".join(ref.key for _, ref in job.parents),
            schema.TAG_SOURCE: "study.run",
            SOURCE_TYPE: "LOCAL",
            USER: self._user,
            TRIAL_NAME: name,
            **self.shared_tags(key),
        }
        if fresh and self._commit:
            tags[schema.TAG_COMMIT] = self._commit
        if job.config.task.data_version:
            tags[schema.TAG_DATA_VERSION] = job.config.task.data_version
        params = {name: str(value) for name, value in run_params(job, cell).items()}
        return RunSpec(key, name, job.epochs, params, tags)

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
        tags: those of ``schema.ENVIRONMENT`` and the commit of the project, as far as the result says them.
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
    said = {name: name for name in schema.ENVIRONMENT} | {"commit": schema.TAG_COMMIT}
    tags = {tag: str(environment[name]) for name, tag in said.items() if name in environment}
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
