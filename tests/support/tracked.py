"""Studies that are tracked without being run, what MLflow then holds, and a client that fails by a plan."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny_study import tiny_space
from waiting import HANG_SECONDS, wait_until

from search_spaces import SearchSpace
from study.plan import Plan
from study.tracking import delivery
from study.tracking.delivery import Tracker
from trainables import schema
from trainables.graph import Job
from trainables.storage.artifacts import read_metrics
from trainables.storage.store import Store

SPACE = tiny_space(interpolation_points=3)
AWAY = ConnectionError("connection refused")
Logged = tuple[str, dict[str, Run]]
"""A tracking URI, and the runs by their job."""


def track(plan: Plan, store: Store, uri: str, fresh: set[str] | None = None) -> Tracker:
    """Return a study's tracker."""
    return Tracker(plan, store, uri, fresh=set(plan.jobs) if fresh is None else fresh)


def log_all(
    plan: Plan, store: Store, uri: str, fresh: set[str] | None = None, *, beside: Tracker | None = None
) -> None:
    """Do what a study does that finds everything published, maybe beside a driver that is still at work."""
    for thread in threading.enumerate():
        if thread.name == "tracking" and (beside is None or thread is not beside._thread):
            # As if an earlier driver's process had ended.
            thread.join(HANG_SECONDS)
    tracker = track(plan, store, uri, fresh)
    tracker.start()
    assert tracker.close(HANG_SECONDS), tracker.behind


def log_failure(plan: Plan, store: Store, uri: str, job: Job, error: str = "first") -> Tracker:
    """Do what a study does in which a job fails for good; return its tracker, which is closed."""
    without(store, job)
    tracker = track(plan, store, uri)
    tracker.start()
    tracker.failed(job.key, error)
    assert tracker.close(HANG_SECONDS)
    return tracker


def all_runs(uri: str, space: SearchSpace = SPACE) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(space.name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def by_key(uri: str) -> dict[str, Run]:
    """Return the runs by their job; no job has two."""
    runs = [run for run in all_runs(uri) if schema.TAG_KEY in run.data.tags]
    found = {run.data.tags[schema.TAG_KEY]: run for run in runs}
    assert len(found) == len(runs)
    return found


def artifact(uri: str, run: Run, name: str) -> str:
    client = MlflowClient(uri)
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, name, folder)).read_text(encoding="utf-8")


def points(uri: str) -> list[tuple[str, str, int, float, int]]:
    """Return every metric point: (run, name, step, value, time stamp)."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        rows = database.execute("SELECT run_uuid, key, step, value, timestamp FROM metrics").fetchall()
    return sorted(tuple(row) for row in rows)


def curve(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    return [(step, value) for run_id, key, step, value, _ in points(uri) if (run_id, key) == (run.info.run_id, name)]


def job_of(plan: Plan, kind: str, method: str | None = None) -> Job:
    """Return the last job of a kind (and of a method)."""
    return [job for key, job in plan.jobs.items() if job.kind == kind and method in (None, plan.cells[key].method)][-1]


def without(store: Store, *jobs: Job) -> None:
    for job in jobs:
        shutil.move(store.directory(job.key), store.root / job.key)


def bring_back(store: Store, *jobs: Job) -> None:
    for job in jobs:
        shutil.move(store.root / job.key, store.directory(job.key))


def computing(plan: Plan, store: Store, uri: str, epochs: int) -> tuple[Tracker, Job, list[dict[str, Any]]]:
    """Return the tracker of a driver that computes a dense job, once its run shows some epochs; the job; all epochs."""
    job = job_of(plan, schema.DENSE)
    history: list[dict[str, Any]] = read_metrics(store, job.key)["history"]
    without(store, job)
    tracker = track(plan, store, uri)
    tracker.start()
    for row in history[:epochs]:
        tracker.epoch(job.key, row)
    wait_for(lambda: len(curve(uri, by_key(uri)[job.key], schema.TEST_LOSS)) == epochs)
    assert by_key(uri)[job.key].info.status == "RUNNING"
    return tracker, job, history


def wait_for(condition: Any) -> None:
    """Wait until the condition holds; until then what it looks at may be missing."""

    def holds() -> bool:
        with contextlib.suppress(KeyError, AssertionError):
            return bool(condition())
        return False

    wait_until(holds)


class Moody:
    """Stands for ``MlflowClient``; calls fail by a plan."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
        self.log: list[tuple[str, Any]] = []
        self.calls = 0
        outer = self

        class Client(MlflowClient):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                attribute = super().__getattribute__(name)
                if name.startswith("_") or not callable(attribute):
                    return attribute

                def call(*args: Any, **kwargs: Any) -> Any:
                    outer.calls += 1
                    error = fails(outer.calls, name)
                    if error is not None:
                        raise error
                    outer.log.append((name, args))
                    return attribute(*args, **kwargs)

                return call

        monkeypatch.setattr(mlflow, "MlflowClient", Client)
        monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
