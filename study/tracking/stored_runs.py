"""A study's runs as the analysis reads them from MLflow, but from the plan and the store alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Final

import pandas as pd

from analysis.load import frame_of
from analysis.sources import Experiment, Record
from study.plan import Plan
from study.tracking.contents import Contents, Metric, Outcome, RunSpec, gaps, outcome_of
from study.tracking.labels import settings_tag
from trainables import schema
from trainables.schema import FAILED, FINISHED, SCHEDULED
from trainables.storage.store import Store

AT_ONCE: Final = 256
"""Number of results whose epochs are in memory at the same time."""


def stored_runs(plan: Plan, store: Store, fresh: Collection[str] = ()) -> pd.DataFrame:
    """Return the frame that :func:`analysis.load.runs` returns once MLflow has everything, without asking MLflow.

    The frame has one row per job, whether or not the job is published, and the columns, types and ``attrs`` of the
    frame from MLflow. A job of which the plan needs no final result has a row only if it has failed. These differ:

    - ``run_id`` is the job's key, because the store does not know MLflow's.
    - ``started`` is the job's end minus its computing time; MLflow has the real start of a job that it saw running.
    - A job that is neither published nor noted as failed has the status SCHEDULED, also while it runs.

    Damaged results are set aside, as always when they are read, and their jobs are SCHEDULED again.

    Args:
        plan: the study.
        store: holds the results and the notes on failures.
        fresh: keys of the jobs that this study has computed itself; the others are ``reused``.

    Raises:
        StorageError: the storage cannot be read.
    """
    contents = Contents(plan, store, fresh)
    specs = {key: contents.spec(key) for key in plan.jobs}
    outcomes: dict[str, Outcome] = {}
    keys = list(plan.jobs)
    for start in range(0, len(keys), AT_ONCE):
        for key, result in store.results(keys[start : start + AT_ONCE], [schema.METRICS])[0].items():
            outcome = outcome_of(result, specs[key].epochs)
            outcomes[key] = dataclasses.replace(outcome, metrics=_latest(outcome.metrics))
    accuracies = {key: outcome.accuracy for key, outcome in outcomes.items()}
    failed = store.failures() & plan.jobs.keys() - outcomes.keys()
    records = []
    for key, outcome in outcomes.items():
        metrics = {name: value for name, value, _, _ in outcome.metrics}
        metrics |= gaps(key, contents.references(key), accuracies.get)
        records.append(_record(specs[key], FINISHED, outcome.tags, metrics, outcome.started, outcome.finished))
    for key in plan.jobs.keys() - outcomes.keys():
        if key in failed and (note := store.failure(key)) is not None:
            records.append(_record(specs[key], FAILED, {schema.TAG_ERROR: note["error"]}, ended=note.get("at")))
        elif None in plan.closure.outputs[key]:
            records.append(_record(specs[key], SCHEDULED, {}))
    order = {key: place for place, key in enumerate(plan.jobs)}
    records.sort(key=lambda record: (record.started is None, record.started or 0, order[record.run_id]))
    tags = {
        schema.TAG_RECIPE: contents.recipe,
        schema.TAG_SETTINGS: settings_tag(plan.space),
        schema.NOTE: plan.space.question,
    }
    experiment = Experiment(id="", name=plan.space.name, active=True, tags=tags)
    return frame_of(experiment, records, store.uri)


def _latest(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the latest point of each metric."""
    return list({metric[0]: metric for metric in sorted(metrics, key=lambda metric: (metric[3], metric[2]))}.values())


def _record(
    spec: RunSpec,
    status: str,
    tags: dict[str, str],
    metrics: dict[str, float] | None = None,
    started: int | None = None,
    ended: int | None = None,
) -> Record:
    return Record(
        run_id=spec.key,
        name=spec.name,
        status=status,
        started=started,
        ended=ended,
        params=spec.params,
        metrics=metrics or {},
        tags=spec.tags | tags,
        artifacts="",
    )
