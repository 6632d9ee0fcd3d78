"""Epochs, ends and failures of jobs on their way to MLflow, live and from the store."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stored import file_of
from tiny_study import flip_bit, tiny_space
from tracked import (
    Moody,
    artifact,
    bring_back,
    by_key,
    computing,
    curve,
    job_of,
    log_all,
    log_failure,
    points,
    track,
    wait_for,
    without,
)
from waiting import HANG_SECONDS

from study.plan import Plan, make_plan
from study.tracking import delivery
from trainables import schema
from trainables.graph import snapshot_key
from trainables.storage.artifacts import read_metrics
from trainables.storage.objects import ObjectStorage
from trainables.storage.store import Store


def test_failed_job_and_its_later_success_are_one_run(plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(plan, schema.SPARSE, "permuted")
    log_failure(plan, own_copy, uri, job, "training loss is nan in epoch 2")
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
    flip_bit(file_of(own_copy, job.key, schema.METRICS))
    log_all(plan, own_copy, uri)
    assert {run.info.status for key, run in by_key(uri).items() if key != job.key} == {"FINISHED"}
    shutil.copytree(published.directory(job.key), own_copy.directory(job.key), dirs_exist_ok=True)
    log_all(plan, own_copy, uri)
    assert by_key(uri)[job.key].info.status == "FINISHED"


def test_failed_job_keeps_its_epochs_and_its_log_without_passwords(dense_plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    log = "epoch 1\nGET http://me:secret@host/?token=secret\n"
    own_copy.record_failure(job.key, {"error": "as in the log", "at": 5000, "log": log})
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in history[:2]:
        tracker.epoch(job.key, row)
    tracker.failed(job.key, "no s3://key:secret@bucket")
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert run.info.status == "FAILED"
    for name in schema.EPOCH_METRICS:
        assert curve(uri, run, name) == [(row["step"], row[name]) for row in history[:2]]
    assert run.data.tags[schema.TAG_ERROR] == "no s3://***@bucket"
    assert artifact(uri, run, schema.LOG) == "epoch 1\nGET http://***@host/?token=***\n"
    assert run.data.params["stage"] == "dense", "a run that did not end well can be charted, too"


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
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
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


def later(rows: list[dict[str, Any]], milliseconds: int) -> list[dict[str, Any]]:
    return [{**row, "timestamp": row["timestamp"] + milliseconds} for row in rows]


def test_epochs_are_seen_while_the_job_runs_and_not_doubled_at_its_end(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    tracker, job, history = computing(dense_plan, own_copy, uri, 2)
    running = by_key(uri)[job.key]
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


def test_a_net_of_which_only_a_state_is_needed_has_a_run_only_while_it_has_failed(tmp_path: Path, uri: str) -> None:
    plan, store = make_plan(tiny_space(method=("dense", "reinit"))), Store(tmp_path / "states")
    (key,) = {key for key, outputs in plan.closure.outputs.items() if None not in outputs}
    tracker = track(plan, store, uri)
    tracker.start()
    tracker.failed(key, "out of memory")
    assert tracker.close(HANG_SECONDS)
    assert by_key(uri)[key].info.status == "FAILED"
    tracker = track(plan, store, uri)
    tracker.start()
    tracker.epoch(key, {"step": 1, "timestamp": 1, schema.TEST_LOSS: 1.0})
    for epoch in plan.closure.outputs[key]:
        assert epoch is not None
        store.publish(snapshot_key(key, epoch), {}, {})
    tracker.done(key)
    assert tracker.close(HANG_SECONDS)
    assert key not in by_key(uri), "it has succeeded, and no result will ever end its run"
    assert tracker.undelivered == []


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


def test_a_job_that_is_gone_is_no_error(plan: Plan, own_copy: Store, uri: str) -> None:
    job = job_of(plan, schema.SPARSE, "lth")
    without(own_copy, job)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    assert job.key not in by_key(uri)


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
    assert len(asked) - len(documents) <= 16, "some lists, and a lease for all of them"
    monkeypatch.undo()
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


@pytest.mark.parametrize("live", [False, True])
def test_a_run_says_what_the_result_says_where_an_attempt_gave_other_numbers(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    job = job_of(dense_plan, schema.DENSE)
    document = own_copy.read_json(job.key, schema.METRICS)
    names, manifest = own_copy.manifest(job.key)["files"], own_copy.manifest(job.key)
    files = {name: own_copy.read(job.key, name) for name in names}
    other = json.loads(json.dumps(document))
    for row in other["history"]:  # such as on a GPU, which rounds as it likes
        row |= {"timestamp": row["timestamp"] - 60_000, schema.TEST_ACCURACY: 12.5}
    other["final"] |= {schema.TEST_ACCURACY: 12.5}
    own_copy.remove(job.key)
    if not live:
        own_copy.publish(job.key, {**files, schema.METRICS: json.dumps(other).encode()}, manifest)
        log_all(dense_plan, own_copy, uri)
        assert by_key(uri)[job.key].data.metrics[schema.TEST_ACCURACY] == 12.5
        own_copy.remove(job.key)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in other["history"] if live else ():
        tracker.epoch(job.key, row)
    if live:
        wait_for(lambda: len(curve(uri, by_key(uri)[job.key], schema.TEST_LOSS)) == len(other["history"]))
    own_copy.publish(job.key, files, manifest)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    run = by_key(uri)[job.key]
    assert run.info.status == "FINISHED"
    for name in schema.EPOCH_METRICS:
        assert curve(uri, run, name) == [(row["step"], row[name]) for row in document["history"]]
