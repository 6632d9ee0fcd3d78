"""MLflow as a projection of the store: what a run says, nothing twice, and nothing lost to a bad server."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import importlib.metadata
import io
import json
import random
import re
import shutil
import sqlite3
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from tiny_study import flip_bit, tiny_space
from waiting import HANG_SECONDS, wait_until

from search_spaces import SearchSpace
from study import sweep
from study.options import Options
from study.plan import Plan, make_plan
from study.tracking import delivery
from study.tracking import mlflow_runs as study_runs
from study.tracking.delivery import Tracker, check_tracking, default_tracking_uri
from trainables import schema
from trainables.data import check_dataset
from trainables.graph import Job
from trainables.host.databases import sqlite_file
from trainables.storage import errors as storage_errors
from trainables.storage.artifacts import read_metrics
from trainables.storage.objects import ObjectStorage
from trainables.storage.store import Store

SPACE = tiny_space(interpolation_points=3)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SPACE)


@pytest.fixture(scope="module")
def dense_plan() -> Plan:
    """A study of a single job, for what does not take more."""
    return make_plan(tiny_space(method="dense"))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs; making one takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


def track(plan: Plan, store: Store, uri: str, fresh: set[str] | None = None) -> Tracker:
    """Return a study's tracker; studies of one database have one place for their outboxes."""
    database = sqlite_file(uri)
    outbox = database.parent / "outbox" if database else None
    return Tracker(plan, store, uri, fresh=set(plan.jobs) if fresh is None else fresh, outbox=outbox)


def outboxes(uri: str) -> list[Path]:
    database = sqlite_file(uri)
    assert database is not None
    return sorted((database.parent / "outbox").glob("*"))


def log_all(
    plan: Plan, store: Store, uri: str, fresh: set[str] | None = None, *, beside: Tracker | None = None
) -> None:
    """Do what a study does that finds everything published, maybe beside a driver that is still at work."""
    for thread in threading.enumerate():
        if thread.name == "tracking" and (beside is None or thread is not beside._thread):
            # As if an earlier driver's process had ended: only then others may deliver for it.
            thread.join(HANG_SECONDS)
    tracker = track(plan, store, uri, fresh)
    tracker.start()
    assert tracker.close(HANG_SECONDS), tracker.behind


def all_runs(uri: str, space: SearchSpace = SPACE) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(space.name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def by_key(uri: str) -> dict[str, Run]:
    """Return the runs by their job; no job has two."""
    runs = all_runs(uri)
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


# --- helpers that stand for time and for servers ---------------------------------------------------------------------
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


# --- the contract ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def logged(
    plan: Plan, published: Store, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Run]]:
    """A study logged once: tracking URI and runs by key."""
    folder = tmp_path_factory.mktemp("logged")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = default_tracking_uri(folder)
    log_all(plan, published, uri)
    return uri, by_key(uri)


Logged = tuple[str, dict[str, Run]]


def test_one_finished_run_per_job_found_by_its_key(plan: Plan, logged: Logged) -> None:
    _, runs = logged
    assert runs.keys() == plan.jobs.keys()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for key, run in runs.items():
        assert run.data.tags[schema.TAG_REUSED] == "false"
        parents = [ref.key for _, ref in plan.jobs[key].parents]
        assert run.data.tags[schema.TAG_PARENTS] == ",".join(parents)


def test_names_that_people_recognise(logged: Logged) -> None:
    names = sorted(run.info.run_name for run in logged[1].values())
    assert names == [
        "connect activation · w0.25 · A0→B1 · 200 images",
        "connect identity · w0.25 · A0→B1 · 200 images",
        "dense · w0.25 · A0",
        "dense · w0.25 · B1",
        "imp · w0.25 · S=20% · round 1 · A0",
        "imp · w0.25 · S=36% · round 2 · A0",
        "imp · w0.25 · S=48.8% · round 3 · A0",
        "imp · w0.25 · S=50% · round 4 · A0",
        "lth · w0.25 · S=50% · k=1 · A0",
        "match activation · w0.25 · A0→B1 · 200 images",
        "match identity · w0.25 · A0→B1 · 200 images",
        "naive · w0.25 · S=50% · k=1 · A0→B1",
        "permuted · w0.25 · S=50% · k=1 · A0→B1 · 200 images",
    ]


def test_params_of_a_sparse_run(plan: Plan, logged: Logged) -> None:
    params = logged[1][job_of(plan, schema.SPARSE, "permuted").key].data.params
    expected = {
        "stage": "sparse",
        "method": "permuted",
        "model": "resnet8",
        "dataset": "digits",
        "width": "0.25",
        "sparsity": "0.5",
        "rewind_epoch": "1",
        "seed_a": "0",
        "seed_b": "1",
        "matcher": "activation",
        "epochs": "2",
        "batch_size": "128",
        "lr": "0.02",
        "momentum": "0.9",
        "weight_decay": "0.0005",
        "schedule": "cosine",
        "precision": "fp32",
    }
    assert {name: params[name] for name in expected} == expected


def test_params_that_a_run_does_not_have(plan: Plan, logged: Logged) -> None:
    runs = logged[1]
    assert "seed_b" not in runs[job_of(plan, schema.SPARSE, "lth").key].data.params
    assert "matcher" not in runs[job_of(plan, schema.SPARSE, "naive").key].data.params
    dense = runs[job_of(plan, schema.DENSE).key].data.params
    assert dense["method"] == "dense"
    assert not {"sparsity", "rewind_epoch", "matcher"} & dense.keys()


def test_metrics_by_epoch_have_the_epoch_as_step(plan: Plan, published: Store, logged: Logged) -> None:
    uri, runs = logged
    for key, job in plan.jobs.items():
        history = read_metrics(published, key)["history"]
        names = schema.EPOCH_METRICS if job.epochs else ()
        for name in names:
            assert curve(uri, runs[key], name) == [(row["step"], row[name]) for row in history]
        assert len(history) == job.epochs or job.kind == schema.CONNECT


def test_interpolation_has_alpha_as_step(plan: Plan, published: Store, logged: Logged) -> None:
    uri, runs = logged
    job = job_of(plan, schema.CONNECT)
    values = curve(uri, runs[job.key], schema.INTERPOLATION_ACCURACY)
    history = read_metrics(published, job.key)["history"]
    assert values == [
        (step, row[schema.INTERPOLATION_ACCURACY]) for step, row in zip((0, 50, 100), history, strict=True)
    ]


def test_final_metrics(plan: Plan, published: Store, logged: Logged) -> None:
    for key, run in logged[1].items():
        final = read_metrics(published, key)["final"]
        assert {name: run.data.metrics[name] for name in final} == final
        if plan.jobs[key].epochs:
            gap = final[schema.FINAL_TRAIN_ACCURACY] - final[schema.TEST_ACCURACY]
            assert run.data.metrics[schema.GENERALIZATION_GAP] == gap
            assert run.data.metrics[schema.IMAGES_PER_SECOND] > 0


def test_gaps_to_dense_and_to_lth_by_hand(plan: Plan, logged: Logged) -> None:
    runs = logged[1]
    named = {run.info.run_name.split(" ")[0]: run for run in runs.values() if run.data.params["stage"] == "sparse"}
    dense = {run.info.run_name[-2:]: run for run in runs.values() if run.data.params["stage"] == "dense"}
    accuracy = {name: run.data.metrics["test_accuracy"] for name, run in (*named.items(), *dense.items())}
    for method, net in (("lth", "A0"), ("naive", "B1"), ("permuted", "B1")):
        metrics, tags = named[method].data.metrics, named[method].data.tags
        assert metrics["gap_to_dense"] == accuracy[net] - accuracy[method]
        assert tags["dense_key"] == dense[net].data.tags["job_key"]
        assert tags["lth_key"] == named["lth"].data.tags["job_key"]
        if method != "lth":
            assert metrics["gap_to_lth"] == accuracy["lth"] - accuracy[method]
    assert "gap_to_lth" not in named["lth"].data.metrics


def test_times_are_those_of_the_work(plan: Plan, published: Store, logged: Logged) -> None:
    for key, run in logged[1].items():
        assert run.info.end_time == published.manifest(key)["finished"]
        seconds = read_metrics(published, key)["final"][schema.SECONDS]
        assert run.info.end_time - run.info.start_time == pytest.approx(1000 * seconds, abs=2)


# --- nothing twice --------------------------------------------------------------------------------------------------
def said(uri: str) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return all that the runs say, by job."""
    return {
        key: (run.info.run_id, run.data.to_dictionary(), run.inputs.to_dictionary()) for key, run in by_key(uri).items()
    }


def test_runs_name_their_dataset(logged: Logged) -> None:
    for run in logged[1].values():
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == (run.data.params[schema.PARAM_DATASET], "standard")
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
        assert schema.TAG_DATA_VERSION not in run.data.tags


def test_runs_on_data_of_a_folder_name_its_fingerprint(
    own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = check_dataset("digits")
    facts = dataclasses.replace(known, fingerprint="0123456789abcdef" * 4)
    monkeypatch.setattr("study.plan.check_dataset", lambda *_: facts)
    plan = make_plan(tiny_space(method="dense"))
    (key,) = plan.jobs
    for _ in range(2):  # the second driver finds what the first has said
        tracker = track(plan, own_copy, uri)
        tracker.start()
        tracker.failed(key, "broken")
        assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[key]
    assert run.data.tags[schema.TAG_DATA_VERSION] == facts.fingerprint
    assert [used.dataset.digest for used in run.inputs.dataset_inputs] == [facts.fingerprint[:36]]


def test_a_run_takes_one_request_of_each_kind(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moody = Moody(monkeypatch, lambda *_: None)
    log_all(dense_plan, published, uri)
    asked = [name for name, _ in moody.log]
    after = Counter(asked[asked.index("create_run") :])
    assert after == {
        "create_run": 1,
        "log_batch": 1,
        "log_inputs": 1,
        "log_text": 1,
        "log_artifact": 1,
        "set_terminated": 1,
    }


def test_logging_again_adds_nothing(plan: Plan, own_copy: Store, logged: Logged, tmp_path: Path) -> None:
    shutil.copy(logged[0].removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    uri = default_tracking_uri(tmp_path)
    before = points(uri), said(uri)
    for _ in range(2):
        tracker = track(plan, own_copy, uri, fresh=set())
        tracker.start()
        for key in plan.jobs:
            tracker.done(key)
        assert tracker.close(HANG_SECONDS)
    assert (points(uri), said(uri)) == before


def test_reused_jobs_have_runs_that_say_so(plan: Plan, published: Store, uri: str) -> None:
    fresh = {job_of(plan, schema.SPARSE, "permuted").key}
    log_all(plan, published, uri, fresh)
    for key, run in by_key(uri).items():
        assert run.data.tags[schema.TAG_REUSED] == ("false" if key in fresh else "true")


def test_a_wider_grid_adds_to_the_same_runs(plan: Plan, published: Store, uri: str) -> None:
    log_all(make_plan(tiny_space(method=("dense", "lth"))), published, uri)
    first = {key: run.info.run_id for key, run in by_key(uri).items()}
    log_all(plan, published, uri)
    runs = by_key(uri)
    assert runs.keys() == plan.jobs.keys()
    assert {key: runs[key].info.run_id for key in first} == first


def test_other_recipe_in_the_same_experiment_tags_the_runs_that_it_shares(
    plan: Plan, published: Store, uri: str
) -> None:
    log_all(plan, published, uri)
    count = len(points(uri))
    # Has no influence on any job that is published here, but is a param of some of their runs.
    other = make_plan(tiny_space(interpolation_points=3, sparsity=0.2, prune_fraction=0.5))
    log_all(other, published, uri)
    tags = [f"{schema.TAG_RECIPE}.{delivery.recipe_digest(each.space)}" for each in (plan, other)]
    runs = by_key(uri)
    shared = [key for key in other.jobs if key in runs]
    assert any(other.jobs[key].kind == schema.PRUNE for key in shared)
    assert all(set(tags) <= runs[key].data.tags.keys() for key in shared)
    assert all(tags[1] not in run.data.tags for key, run in runs.items() if key not in other.jobs)
    assert len(points(uri)) == count
    experiment = MlflowClient(uri).get_experiment_by_name(SPACE.name)
    assert experiment.tags[schema.TAG_RECIPE] == delivery.recipe_digest(other.space)


# --- gaps that come due later ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("reference", "gap"), [("lth", schema.GAP_TO_LTH), ("dense", schema.GAP_TO_DENSE)])
def test_gap_is_logged_once_its_other_end_exists(
    plan: Plan, own_copy: Store, uri: str, reference: str, gap: str, restart: bool
) -> None:
    naive = job_of(plan, schema.SPARSE, "naive")
    late = job_of(plan, schema.SPARSE, "lth") if reference == "lth" else naive.parent("init").job
    without(own_copy, late)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    if restart:
        assert tracker.close(HANG_SECONDS)
        assert gap not in by_key(uri)[naive.key].data.metrics
        bring_back(own_copy, late)
        log_all(plan, own_copy, uri)
    else:
        wait_for(lambda: by_key(uri)[naive.key].info.status == "FINISHED")
        assert gap not in by_key(uri)[naive.key].data.metrics
        bring_back(own_copy, late)
        tracker.done(late.key)
        assert tracker.close(HANG_SECONDS)
    own, other = (read_metrics(own_copy, job.key)["final"][schema.TEST_ACCURACY] for job in (naive, late))
    run = by_key(uri)[naive.key]
    assert curve(uri, run, gap) == [(naive.epochs, other - own)]
    assert run.info.status == "FINISHED"


# --- failures -------------------------------------------------------------------------------------------------------
def test_failed_job_and_its_later_success_are_one_run(plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(plan, schema.SPARSE, "permuted")
    without(own_copy, job)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "training loss is nan in epoch 2")
    assert tracker.close(HANG_SECONDS)
    failed = by_key(uri)[job.key]
    assert failed.info.status == "FAILED"
    assert failed.data.tags[schema.TAG_ERROR] == "training loss is nan in epoch 2"
    bring_back(own_copy, job)
    log_all(plan, own_copy, uri)
    run = by_key(uri)[job.key]
    assert run.info.run_id == failed.info.run_id
    assert run.info.status == "FINISHED"
    assert schema.TAG_ERROR not in run.data.tags
    assert run.data.metrics[schema.TEST_ACCURACY] == read_metrics(own_copy, job.key)["final"][schema.TEST_ACCURACY]


def test_failure_and_success_in_one_study(plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(plan, schema.SPARSE, "naive")
    without(own_copy, job)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "x" * 10_000)
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert (run.info.status, schema.TAG_ERROR in run.data.tags) == ("FINISHED", False)


def test_damaged_result_is_left_out_and_logged_once_it_is_there_again(
    plan: Plan, published: Store, own_copy: Store, uri: str
) -> None:
    job = job_of(plan, schema.SPARSE, "permuted")
    flip_bit(own_copy.directory(job.key) / schema.METRICS)
    log_all(plan, own_copy, uri)
    assert {run.info.status for key, run in by_key(uri).items() if key != job.key} == {"FINISHED"}
    shutil.copytree(published.directory(job.key), own_copy.directory(job.key))
    log_all(plan, own_copy, uri)
    assert by_key(uri)[job.key].info.status == "FINISHED"


def test_failed_job_keeps_its_epochs_and_its_log_without_passwords(dense_plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in history[:2]:
        tracker.epoch(job.key, row)
    tracker.failed(job.key, "no s3://key:secret@bucket", "epoch 1\nGET http://me:secret@host/?token=secret\n")
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert run.info.status == "FAILED"
    for name in schema.EPOCH_METRICS:
        assert curve(uri, run, name) == [(row["step"], row[name]) for row in history[:2]]
    assert run.data.tags[schema.TAG_ERROR] == "no s3://***@bucket"
    assert artifact(uri, run, schema.LOG) == "epoch 1\nGET http://***@host/?token=***\n"
    assert run.data.params["stage"] == "dense", "a run that did not end well can be charted, too"


def test_log_that_a_failed_job_has_left_in_the_store_is_attached(dense_plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    own_copy.record_failure(job.key, {"error": "loss is nan", "log": "epoch 1\nepoch 2\n"})
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "loss is nan")
    assert tracker.close(HANG_SECONDS)
    assert artifact(uri, by_key(uri)[job.key], schema.LOG) == "epoch 1\nepoch 2\n"


def test_logs_of_published_jobs_are_attached(plan: Plan, published: Store, logged: Logged) -> None:
    for key, run in logged[1].items():
        assert artifact(logged[0], run, schema.LOG) == published.read(key, schema.LOG).decode()


def test_job_that_is_computed_again_is_running_again(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.epoch(job.key, history[0])
    tracker.failed(job.key, "out of memory")
    assert tracker.close(HANG_SECONDS)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.epoch(job.key, history[1])
    wait_for(lambda: by_key(uri)[job.key].info.status == "RUNNING")
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert (run.info.status, schema.TAG_ERROR in run.data.tags) == ("FINISHED", False)
    assert run.info.end_time == own_copy.manifest(job.key)["finished"]
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history]


def test_failure_that_success_has_overtaken_is_history(dense_plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(dense_plan, schema.DENSE)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "its worker died")  # while another driver published it
    assert tracker.close(HANG_SECONDS)
    assert by_key(uri)[job.key].info.status == "FINISHED"


# --- epochs of running jobs -----------------------------------------------------------------------------------------
def later(rows: list[dict[str, Any]], milliseconds: int) -> list[dict[str, Any]]:
    return [{**row, "timestamp": row["timestamp"] + milliseconds} for row in rows]


def test_epochs_are_seen_while_the_job_runs_and_not_doubled_at_its_end(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in history[:2]:
        tracker.epoch(job.key, row)
    wait_for(lambda: len(curve(uri, by_key(uri)[job.key], schema.TEST_LOSS)) == 2)
    running = by_key(uri)[job.key]
    assert running.info.status == "RUNNING"
    assert (running.data.params["stage"], running.data.params["width"]) == ("dense", "0.25")
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history]
    assert run.info.status == "FINISHED"


def test_short_jobs_are_sent_once_at_their_end(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moody = Moody(monkeypatch, lambda *_: None)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in history[:2]:
        tracker.epoch(job.key, row)
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    writing = Counter(name for name, _ in moody.log if name in ("create_run", "log_batch", "update_run"))
    assert writing == {"create_run": 1, "log_batch": 1}


def test_epochs_of_an_interrupted_job_are_kept_in_a_run_that_says_so(
    dense_plan: Plan, own_copy: Store, uri: str
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.epoch(job.key, {"step": 1, "timestamp": 1, schema.TEST_LOSS: 1.0})
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert run.info.status == "KILLED"
    assert curve(uri, run, schema.TEST_LOSS) == [(1, 1.0)]


@pytest.mark.parametrize("restart", [False, True])
def test_attempt_that_was_cut_off_leaves_no_second_points(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in later(history[:2], -60_000):  # the attempt that dies
        tracker.epoch(job.key, row)
    if restart:
        assert tracker.close(HANG_SECONDS)
        assert by_key(uri)[job.key].info.status == "KILLED"
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
    for row in history[1:]:  # goes on from a checkpoint after epoch 1
        tracker.epoch(job.key, row)
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    for name in schema.EPOCH_METRICS:
        assert curve(uri, run, name) == [(row["step"], row[name]) for row in history]
    assert run.info.status == "FINISHED"


def test_latest_value_wins_where_an_attempt_gave_other_numbers(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    tracker = track(dense_plan, own_copy, uri)
    without(own_copy, job)
    tracker.start()
    for row in later(history, -60_000):
        tracker.epoch(job.key, {**row, schema.TEST_ACCURACY: 12.5})  # such as on a GPU, which rounds as it likes
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    assert by_key(uri)[job.key].data.metrics[schema.TEST_ACCURACY] == history[-1][schema.TEST_ACCURACY]


# --- servers that are slow, away or in a bad mood -------------------------------------------------------------------
def finished_order(moody: Moody, runs: dict[str, Run]) -> list[str]:
    keys = {run.info.run_id: key for key, run in runs.items()}
    return [keys[args[0]] for name, args in moody.log if name == "set_terminated"]


def test_server_that_is_away_at_first_gets_everything_later_in_order(
    plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ConnectionError("connection refused")
    moody = Moody(monkeypatch, lambda call, _: away if call <= 20 else None)
    tracker = track(plan, published, uri)
    tracker.start()
    assert tracker.close(HANG_SECONDS)
    assert moody.calls > 20
    runs = by_key(uri)
    assert runs.keys() == plan.jobs.keys()
    assert finished_order(moody, runs) == list(plan.jobs)


def test_server_that_fails_now_and_then_ends_with_the_same(
    plan: Plan, published: Store, uri: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    luck = random.Random(0)
    moody = Moody(monkeypatch, lambda *_: OSError("reset by peer") if luck.random() < 0.15 else None)
    log_all(plan, published, uri)
    runs, expected = by_key(uri), logged[1]
    assert moody.calls > len(moody.log)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    names = {run.info.run_id: key for key, run in (*runs.items(), *expected.items())}
    assert sorted((names[p[0]], *p[1:]) for p in points(uri)) == sorted(
        (names[p[0]], *p[1:]) for p in points(logged[0])
    )


def test_answer_that_is_lost_does_not_make_a_second_run(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    create, lost = MlflowClient.create_run, []

    def create_and_lose(client: MlflowClient, *args: Any, **kwargs: Any) -> Run:
        run = create(client, *args, **kwargs)
        if not lost:
            lost.append(run.info.run_id)
            raise ConnectionError("read timed out")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_and_lose)
    log_all(dense_plan, published, uri)
    (run,) = by_key(uri).values()
    assert [run.info.run_id] == lost
    assert run.info.status == "FINISHED"


def test_close_says_what_has_not_been_delivered_and_does_not_wait_for_ever(
    plan: Plan, published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "http://user:secret@127.0.0.1:9"
    Moody(monkeypatch, lambda *_: MlflowException(f"API request to {uri}/api/2.0 failed: refused\nmore"))
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 2 * HANG_SECONDS)
    tracker = track(plan, published, uri)
    tracker.start()
    assert tracker.close(0.5) is False
    assert tracker.behind == "MlflowException: API request to http://***@127.0.0.1:9/api/2.0 failed: refused"


def test_what_the_server_refuses_for_good_does_not_hold_up_the_rest(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_all(plan, own_copy, uri)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    job, other = job_of(plan, schema.SPARSE, "lth"), job_of(plan, schema.SPARSE, "naive")
    client = MlflowClient(uri)
    without(own_copy, job, other)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "first")
    wait_for(lambda: by_key(uri)[job.key].info.status == "FAILED")
    client.delete_run(by_key(uri)[job.key].info.run_id)  # somebody tidies up while the study runs
    bring_back(own_copy, job)
    tracker.done(job.key)
    tracker.failed(other.key, "later")
    assert tracker.close(HANG_SECONDS) is False
    assert tracker.behind is not None
    assert by_key(uri)[other.key].info.status == "FAILED"
    log_all(plan, own_copy, uri)
    assert by_key(uri)[job.key].info.status == "FINISHED", "a new start makes a new run"


def test_a_job_that_is_gone_is_no_error(plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(plan, schema.SPARSE, "lth")
    without(own_copy, job)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    assert job.key not in by_key(uri)


# --- the outbox -----------------------------------------------------------------------------------------------------
AWAY = ConnectionError("connection refused")


def test_what_a_driver_could_not_deliver_the_next_one_does(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    job, lost = job_of(plan, schema.SPARSE, "lth"), job_of(plan, schema.SPARSE, "naive")
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job, lost)
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY)
        tracker = track(plan, own_copy, uri)
        tracker.start()
        for row in history:
            tracker.epoch(lost.key, row)
        tracker.failed(lost.key, "training loss is nan", "the log\n")
        for row in history[:1]:
            tracker.epoch(job.key, row)
        assert tracker.close(HANG_SECONDS) is False
        assert tracker.behind == "ConnectionError: connection refused"
    assert len(outboxes(uri)) == 1
    log_all(plan, own_copy, uri, fresh=set())
    runs = by_key(uri)
    assert {key: run.info.status for key, run in runs.items()} == {
        **dict.fromkeys(plan.jobs, "FINISHED"),
        lost.key: "FAILED",
        job.key: "KILLED",
    }
    assert artifact(uri, runs[lost.key], schema.LOG) == "the log\n"
    for key, count in ((lost.key, len(history)), (job.key, 1)):
        assert curve(uri, runs[key], schema.TEST_LOSS) == [(r["step"], r[schema.TEST_LOSS]) for r in history[:count]]
        assert runs[key].data.tags[schema.TAG_REUSED] == "false", "as its own driver saw it"
    assert outboxes(uri) == []
    before = points(uri)
    log_all(plan, own_copy, uri, fresh=set())
    assert points(uri) == before


def test_driver_that_dies_while_delivering_is_followed_by_one_that_doubles_nothing(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    jobs = [job_of(plan, schema.SPARSE, method) for method in ("lth", "naive", "permuted")]
    histories = [read_metrics(own_copy, job.key)["history"] for job in jobs]
    without(own_copy, *jobs)
    for calls in range(3, 40, 3):  # the server dies after so many answers more
        with monkeypatch.context() as outage:
            Moody(outage, lambda call, _, calls=calls: AWAY if call > calls else None)
            tracker = track(plan, own_copy, uri)
            tracker.start()
            if calls == 3:
                for job, history in zip(jobs, histories, strict=True):
                    for row in history:
                        tracker.epoch(job.key, row)
                    tracker.failed(job.key, "its worker died")
            tracker.close(HANG_SECONDS)
    assert outboxes(uri) == []
    log_all(plan, own_copy, uri)
    runs = by_key(uri)
    for job, history in zip(jobs, histories, strict=True):
        assert runs[job.key].info.status == "FAILED"
        assert curve(uri, runs[job.key], schema.TEST_LOSS) == [(r["step"], r[schema.TEST_LOSS]) for r in history]


def test_run_of_a_driver_that_was_killed_does_not_say_for_ever_that_it_is_running(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    killed = track(dense_plan, own_copy, uri)
    killed.start()
    for row in history[:2]:
        killed.epoch(job.key, row)
    (file,) = outboxes(uri)
    size = file.stat().st_size
    wait_for(lambda: json.loads(file.read_bytes().splitlines()[0])["delivered"] == size)
    shutil.copy(file, file.with_stem(f"{file.stem}-dead"))  # as it is left when its driver is killed
    log_all(dense_plan, own_copy, uri, beside=killed)
    run = by_key(uri)[job.key]
    assert run.info.status == "KILLED"
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history[:2]]
    assert outboxes(uri) == [file], "that of the driver that lives"
    assert killed.close(HANG_SECONDS)


def test_outbox_that_cannot_be_written_is_said_and_costs_nothing_else(
    dense_plan: Plan, own_copy: Store, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    (tmp_path / "file").write_text("")
    answer = threading.Event()
    Moody(monkeypatch, lambda *_: None if answer.wait(HANG_SECONDS) else AWAY)
    tracker = Tracker(dense_plan, own_copy, uri, fresh=set(), outbox=tmp_path / "file" / "outbox")
    tracker.start()
    tracker.failed(job.key, "its worker died")
    assert tracker.behind is not None
    assert "in memory only" in tracker.behind
    answer.set()
    assert tracker.close(HANG_SECONDS)
    assert by_key(uri)[job.key].info.status == "FAILED"


def test_events_of_a_plan_that_is_not_asked_for_any_more_are_delivered(
    plan: Plan, dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    done, failed = job_of(plan, schema.SPARSE, "naive"), job_of(plan, schema.SPARSE, "permuted")
    without(own_copy, failed)
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY)
        tracker = track(plan, own_copy, uri)
        tracker.start()
        tracker.done(done.key)
        tracker.failed(failed.key, "its worker died")
        assert tracker.close(HANG_SECONDS) is False
    log_all(dense_plan, own_copy, uri)
    runs = by_key(uri)
    assert runs.keys() == {done.key, failed.key, *dense_plan.jobs}
    assert (runs[done.key].info.status, runs[failed.key].info.status) == ("FINISHED", "FAILED")
    assert runs[done.key].data.params["method"] == "naive"
    assert schema.GAP_TO_DENSE in runs[done.key].data.metrics


def test_events_of_a_later_version_are_left_out(
    dense_plan: Plan, own_copy: Store, uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY)
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        tracker.failed(job.key, "its worker died")
        tracker.close(HANG_SECONDS)
    (file,) = outboxes(uri)
    header, spec, failed = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(header + b'{"event": "telepathy", "key": "x"}\n' + spec + failed)
    log_all(dense_plan, own_copy, uri)
    assert any("telepathy" in message for message in caplog.messages)
    assert by_key(uri)[job.key].info.status == "FAILED"


def test_another_server_does_not_get_what_was_meant_for_this_one(
    dense_plan: Plan, own_copy: Store, uri: str, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY)
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        tracker.failed(job.key, "its worker died")
        tracker.close(HANG_SECONDS)
    shutil.copy(empty_database, tmp_path / "other.db")
    tracker = Tracker(dense_plan, own_copy, f"sqlite:///{tmp_path}/other.db", fresh=set(), outbox=tmp_path / "outbox")
    tracker.start()
    assert tracker.close(HANG_SECONDS)
    assert by_key(f"sqlite:///{tmp_path}/other.db") == {}
    assert len(outboxes(uri)) == 1


@pytest.mark.slow  # it waits for what does not come
def test_server_that_does_not_answer_does_not_hold_up_the_end(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 10.0)
    moody = Moody(monkeypatch, lambda *_: AWAY)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (600.0,))
    tracker = track(dense_plan, published, uri)
    tracker.start()
    wait_for(lambda: moody.calls == 1)
    assert tracker.close(HANG_SECONDS) is False
    assert moody.calls > 1, "tried again at the end without waiting for the pause to pass"


def test_feeding_goes_on_while_the_server_hangs(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    answer = threading.Event()
    Moody(monkeypatch, lambda *_: None if answer.wait(HANG_SECONDS) else AWAY)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()

    def feed(number: int) -> None:
        for step in range(number, 640, 32):
            tracker.epoch(job.key, {"step": step, "timestamp": step, schema.TEST_LOSS: 0.1 * step})

    threads = [threading.Thread(target=feed, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # does not come back if feeding waits for an answer
    assert not answer.is_set()
    answer.set()
    assert tracker.close(HANG_SECONDS)
    values = curve(uri, by_key(uri)[job.key], schema.TEST_LOSS)
    assert sorted(values) == [(step, 0.1 * step) for step in range(640)], "everything, and nothing twice"


def test_values_that_are_no_finite_numbers_are_not_doubled(dense_plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(dense_plan, schema.DENSE)
    without(own_copy, job)
    row = {"step": 1, schema.TEST_LOSS: float("nan"), schema.TRAIN_LOSS: float("inf"), schema.TEST_ACCURACY: 10.0}
    for attempt in range(3):
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        tracker.epoch(job.key, {**row, "timestamp": attempt})
        assert tracker.close(HANG_SECONDS)
    assert len(points(uri)) == 3


# --- one run per job ------------------------------------------------------------------------------------------------
def test_two_drivers_at_once_make_one_run_of_each_job(plan: Plan, published: Store, uri: str) -> None:
    trackers = [track(plan, published, uri) for _ in range(3)]
    for tracker in trackers:
        tracker.start()
    for key in plan.jobs:
        for tracker in trackers:
            tracker.done(key)
    assert all(tracker.close(120) for tracker in trackers)
    runs = by_key(uri)
    assert runs.keys() == plan.jobs.keys()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    steps = Counter((run, name, step) for run, name, step, *_ in points(uri))
    assert set(steps.values()) == {1}


def test_run_of_a_driver_that_died_before_the_answer_is_found(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    create, made = MlflowClient.create_run, []

    def create_and_die(client: MlflowClient, *args: Any, **kwargs: Any) -> Run:
        made.append(create(client, *args, **kwargs).info.run_id)
        raise AWAY

    with monkeypatch.context() as death:
        death.setattr(MlflowClient, "create_run", create_and_die)
        Moody(death, lambda *_: AWAY if made else None)
        tracker = track(dense_plan, published, uri)
        tracker.start()
        assert tracker.close(HANG_SECONDS) is False
    assert len(made) == 1
    log_all(dense_plan, published, uri)
    (run,) = by_key(uri).values()
    assert [run.info.run_id] == made
    assert run.info.status == "FINISHED"
    assert run.data.params["stage"] == "dense"


def test_run_that_a_slow_server_makes_later_does_not_stay(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    create, log_batch, asked = MlflowClient.create_run, MlflowClient.log_batch, []

    def time_out_once(client: MlflowClient, *args: Any, **kwargs: Any) -> Run:
        asked.append((args, kwargs))
        if len(asked) == 1:
            raise ConnectionError("read timed out")
        return create(client, *args, **kwargs)

    def meanwhile(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        late_args, late_kwargs = asked[0]
        create(client, *late_args, **late_kwargs)
        log_batch(client, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", time_out_once)
    monkeypatch.setattr(MlflowClient, "log_batch", meanwhile)
    log_all(dense_plan, published, uri)
    (run,) = by_key(uri).values()
    assert run.info.status == "FINISHED"
    assert run.data.metrics


def test_of_two_runs_of_a_job_the_finished_one_stays(dense_plan: Plan, published: Store, uri: str) -> None:
    log_all(dense_plan, published, uri)
    (first,) = by_key(uri).values()
    client = MlflowClient(uri)
    tags = {schema.TAG_KEY: first.data.tags[schema.TAG_KEY]}
    for started in (1, first.info.start_time, first.info.start_time + 1):
        client.create_run(first.info.experiment_id, started, tags)
    client.create_run(first.info.experiment_id, 1, {"somebody": "else"})
    before = points(uri)
    log_all(dense_plan, published, uri)
    left = all_runs(uri)
    assert {run.info.run_id for run in left if schema.TAG_KEY in run.data.tags} == {first.info.run_id}
    assert len(left) == 2, "runs of other people are left alone"
    assert points(uri) == before


def test_mlflow_client_does_not_try_again_by_itself(dense_plan: Plan, published: Store, tmp_path: Path) -> None:
    # It would repeat the creation of a run without looking what became of the first attempt.
    with refusing_server() as (address, asked):
        runs = study_runs.Runs(dense_plan, published, f"http://{address}", recipe="", fresh=set())
        with pytest.raises(MlflowException):
            runs.connect()
    assert len(asked) == 1


@contextlib.contextmanager
def refusing_server() -> Iterator[tuple[str, list[str]]]:
    """Serve errors; yield the address and a list that fills with what was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{httpd.server_port}", asked
        finally:
            httpd.shutdown()
            thread.join()


# --- artifacts ------------------------------------------------------------------------------------------------------
def test_artifact_store_that_is_closed_to_us_costs_only_the_artifacts(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    with monkeypatch.context() as closed:
        Moody(closed, lambda _, name: PermissionError("/mlflow of s3://k:secret@b") if name == "log_text" else None)
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        assert tracker.close(HANG_SECONDS) is False
        assert tracker.behind is not None
        assert "log.txt" in tracker.behind
        assert "secret" not in tracker.behind
    run = by_key(uri)[job.key]
    assert (run.info.status, run.data.tags[schema.TAG_UNATTACHED]) == ("FINISHED", schema.LOG)
    log_all(dense_plan, own_copy, uri)
    run = by_key(uri)[job.key]
    assert (run.info.status, schema.TAG_UNATTACHED in run.data.tags) == ("FINISHED", False)
    assert artifact(uri, run, schema.LOG) == own_copy.read(job.key, schema.LOG).decode()


def test_runs_of_jobs_computed_here_name_the_commit(plan: Plan, published: Store, uri: str) -> None:
    fresh = {job_of(plan, schema.SPARSE, "permuted").key}
    log_all(plan, published, uri, fresh)
    root = Path(study_runs.__file__).parents[2]
    here = (root / ".git").exists()
    for key, run in by_key(uri).items():
        assert (study_runs.COMMIT in run.data.tags) == (here and key in fresh)
        assert re.fullmatch("[0-9a-f]{40}", run.data.tags.get(study_runs.COMMIT, "0" * 40))
        assert run.data.tags[study_runs.SOURCE] == "study.run"


# --- catching up ----------------------------------------------------------------------------------------------------
@pytest.fixture
def remote(plan: Plan, published: Store) -> Store:
    """The results of the plan in an object store."""
    store = Store(f"memory://bucket/{uuid.uuid4().hex}")
    for key in plan.jobs:
        manifest = published.manifest(key)
        store.publish(key, {name: published.read(key, name) for name in manifest["files"]}, manifest)
    return store


def test_catching_up_reads_results_side_by_side_and_each_document_once(
    plan: Plan, remote: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    request, together = ObjectStorage._request, threading.Barrier(4)

    def count(storage: ObjectStorage, name: str, path: str, *values: Any, **options: Any) -> Any:
        asked.append((name, path))
        if sum(path.endswith(schema.MANIFEST) for _, path in asked) <= 4 and path.endswith(schema.MANIFEST):
            together.wait(HANG_SECONDS)  # breaks unless so many results are asked for at the same time
        return request(storage, name, path, *values, **options)

    monkeypatch.setattr(ObjectStorage, "_request", count)
    log_all(plan, remote, uri)
    documents = Counter(path for name, path in asked if name == "cat_file" and "/store/" in path)
    assert set(documents.values()) == {1}
    assert len(documents) == 3 * len(plan.jobs), "manifest, metrics and log"
    assert len(asked) - len(documents) <= 12, "one list, and a lease for all of them"
    monkeypatch.undo()
    assert {run.info.status for run in by_key(uri).values()} == {"FINISHED"}


def published_study(plan: Plan, store: Store, uri: str) -> int:
    """Run a study that finds everything published; return its exit code."""
    return sweep.run_sweep(plan, uri, store, Options(space=plan.space.name), "python -m study.run --space tiny")


def test_what_a_tracking_server_that_is_away_lacks_is_named(
    plan: Plan, own_copy: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    Moody(monkeypatch, lambda *_: AWAY)
    assert published_study(plan, own_copy, "http://user:secret@127.0.0.1:9") == 1
    out = capsys.readouterr().out
    assert f"reached http://***@127.0.0.1:9 (ConnectionError: connection refused); 13 of {len(plan.jobs)} runs" in out
    assert "dense · w0.25 · A0" in out
    assert "to deliver it: python -m study.run --space tiny\n" in out
    assert "secret" not in out


def test_who_does_not_want_to_wait_reads_what_is_missing(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish, at_work, go_on = study_runs.Runs.finish, threading.Event(), threading.Event()

    def slow(runs: study_runs.Runs, spec: study_runs.RunSpec, *more: Any) -> None:
        if len(runs._runs) == 3:
            at_work.set()
            go_on.wait()
        finish(runs, spec, *more)

    monkeypatch.setattr(study_runs.Runs, "finish", slow)

    def interrupt(left: int) -> None:
        if at_work.is_set():
            raise KeyboardInterrupt

    close = Tracker.close
    monkeypatch.setattr(Tracker, "close", lambda tracker, show: close(tracker, show=interrupt))
    assert published_study(plan, own_copy, uri) == 130
    go_on.set()  # a driver would end here
    out = capsys.readouterr().out
    assert f"(interrupted); 10 of {len(plan.jobs)} runs are missing: " in out
    assert "to deliver it: python -m study.run --space tiny\n" in out


def test_a_slow_server_gets_the_time_that_it_takes(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "SHOW_SECONDS", 0.0)
    hours = iter(range(0, 3600_000, 3600))
    monkeypatch.setattr(delivery.time, "monotonic", lambda: float(next(hours)))
    assert published_study(plan, own_copy, uri) == 0
    assert re.search(r"recording in MLflow: \d+ runs? to go", capsys.readouterr().out)
    assert {run.info.status for run in by_key(uri).values()} == {"FINISHED"}


def test_a_job_that_is_computed_again_has_system_metrics_once_per_step(
    dense_plan: Plan, own_copy: Store, uri: str
) -> None:
    job = job_of(dense_plan, schema.DENSE)
    names = own_copy.manifest(job.key)["files"]
    files, manifest = {name: own_copy.read(job.key, name) for name in names}, own_copy.manifest(job.key)
    system = (*schema.SYSTEM_METRICS, schema.IMAGES_PER_SECOND, schema.SECONDS)
    for number in range(3):
        own_copy.remove(job.key)
        document = json.loads(files[schema.METRICS])
        for row in document["history"]:
            row |= dict.fromkeys(schema.SYSTEM_METRICS, 100.0 * number + row["step"])
        document["final"] |= {schema.IMAGES_PER_SECOND: 1000.0 + number, schema.SECONDS: 1.0 + number}
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        for row in document["history"]:
            tracker.epoch(job.key, row)
        own_copy.publish(job.key, {**files, schema.METRICS: json.dumps(document).encode()}, manifest)
        tracker.done(job.key)
        assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert run.info.status == "FINISHED"
    for name in (*schema.EPOCH_METRICS, *system):
        steps = [step for step, _ in curve(uri, run, name)]
        assert steps
        assert len(steps) == len(set(steps)), name


# --- addresses ------------------------------------------------------------------------------------------------------
@pytest.fixture
def server() -> Iterator[int]:
    """A web server that answers any request; returns its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_address[1]
    httpd.shutdown()
    httpd.server_close()


def test_a_server_that_answers_is_good_with_and_without_a_password(server: int) -> None:
    check_tracking(f"http://127.0.0.1:{server}/")
    check_tracking(f"http://user:secret@127.0.0.1:{server}")


def answering(answers: list[tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let servers give these answers, one after the other; return a list that fills with what was asked for."""
    asked: list[str] = []

    def urlopen(request: Any, timeout: float) -> Any:
        asked.append(request.full_url)
        code, document = answers.pop(0)
        if code >= 400:
            raise urllib.error.HTTPError(request.full_url, code, "no", http.client.HTTPMessage(), None)
        return contextlib.closing(io.BytesIO(json.dumps(document).encode()))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(storage_errors, "FIRST_PAUSE", 0.0)
    return asked


def test_a_server_that_starts_again_is_waited_for_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering([(502, {}), (503, {}), (200, {}), (500, {}), (404, {})], monkeypatch)
    said: list[str] = []
    with storage_errors.announced(said.append):
        check_tracking("http://user:secret@tracking.example", "space")
    assert len(asked) == 5
    assert said[0].startswith(
        "tracking server http://***@tracking.example cannot be reached: it answers 502; trying again"
    )


def test_an_experiment_deleted_on_a_server_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = {"experiment_id": "7", "lifecycle_stage": "deleted"}
    answering([(200, {}), (200, {"experiment": experiment})], monkeypatch)
    with pytest.raises(ValueError, match="mlflow experiments restore --experiment-id 7"):
        check_tracking("http://tracking.example", "space")


def test_a_server_that_is_not_there_is_an_error_without_the_password(
    server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_errors, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"http://\*\*\*@127.0.0.1:9 cannot be reached") as raised:
        check_tracking("http://user:secret@127.0.0.1:9", timeout=2)
    assert "secret" not in str(raised.value)


def test_directories_are_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(ValueError, match=f"use sqlite:///{tmp_path}/mlflow.db"):
            check_tracking(uri)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not writable"):
        check_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")
    check_tracking(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert not (tmp_path / "new").exists(), "only looked at"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://x", "unknown tracking scheme 'foo'; known: sqlite, postgresql, mysql, mssql, http, https, databricks"),
        ("sqlit:///x/mlflow.db", r"unknown tracking scheme 'sqlit' \(did you mean 'sqlite'\?\); known: sqlite, "),
        ("postgres://me:secret@host/db", r"unknown tracking scheme 'postgres' \(did you mean 'postgresql'\?\)"),
        ("postgresql+nosuch://me:secret@host/db", "postgresql.nosuch://.*@host/db: the Python package.* 'nosuch'"),
        ("localhost:5000", "has no scheme; a server is http://localhost:5000"),
        ("sqlite://mlflow.db", "names no file; write sqlite:///DIRECTORY/mlflow.db"),
        ("me_too:secret@host", "is a directory"),
    ],
)
def test_addresses_that_mlflow_does_not_know_are_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_tracking(uri)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "sqlite+pysqlite:///{}/mlflow.db?timeout=30"])
def test_addresses_that_mlflow_knows_are_not(uri: str, tmp_path: Path) -> None:
    check_tracking(uri.format(tmp_path))


def test_plugins_of_mlflow_bring_schemes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = importlib.metadata.EntryPoint("arn", "plugin:store", "mlflow.tracking_store")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [plugin] if group == plugin.group else [])
    check_tracking("arn:aws:sagemaker:eu-west-1:1:mlflow-tracking-server/x")
    with pytest.raises(ValueError, match="databricks, arn"):
        check_tracking("foo://x")
