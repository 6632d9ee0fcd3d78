"""Tracking servers that are slow, away or in a bad mood: nothing lost, nothing twice, in order."""

from __future__ import annotations

import errno
import random
import re
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from tracked import (
    AWAY,
    Logged,
    Moody,
    artifact,
    bring_back,
    by_key,
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

from study import sweep
from study.options import Options
from study.plan import Plan
from study.tracking import delivery
from study.tracking import mlflow_runs as study_runs
from study.tracking.delivery import Tracker
from study.tracking.experiment import Experiment
from study.tracking.mlflow_runs import Runs
from trainables import schema
from trainables.host.databases import sqlite_file
from trainables.storage.artifacts import read_metrics
from trainables.storage.store import Store


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
    plan: Plan, own_copy: Store, logged_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = logged_uri
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


def test_a_deleted_run_with_which_others_are_compared_is_made_again_and_holds_up_none(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    job, other = job_of(plan, schema.SPARSE, "lth"), job_of(plan, schema.SPARSE, "naive")
    without(own_copy, job)
    log_all(plan, own_copy, uri)
    tracker = track(plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "first")
    wait_for(lambda: by_key(uri)[job.key].info.status == "FAILED")
    MlflowClient(uri).delete_run(by_key(uri)[other.key].info.run_id)
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS), tracker.behind
    runs = by_key(uri)
    assert {runs[each.key].info.status for each in (job, other)} == {"FINISHED"}
    assert schema.GAP_TO_LTH in runs[other.key].data.metrics


def test_a_job_that_once_failed_is_undelivered_until_its_run_has_the_result(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = dense_plan.jobs.values()
    tracker = log_failure(dense_plan, own_copy, uri, job)
    assert tracker.undelivered == [], "its run says that it has failed"
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    away = threading.Event()
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY if away.is_set() else None)
        tracker = track(dense_plan, own_copy, uri)
        tracker.start()
        wait_for(lambda: tracker._runs._runs)
        away.set()
        bring_back(own_copy, job)
        tracker.done(job.key)
        assert tracker.close(HANG_SECONDS) is False
        assert tracker.undelivered == [job.key]
    log_all(dense_plan, own_copy, uri)


def test_a_database_that_does_not_answer_is_not_gone(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(dense_plan.space, own_copy, uri)
    experiment.open()

    def stale(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as outage:
        outage.setattr(Path, "stat", stale)
        with pytest.raises(OSError, match="Stale file handle"):
            experiment.check()
    experiment.check()


@pytest.mark.parametrize("for_good", [False, True])
def test_what_was_refused_and_is_recorded_in_the_end_is_no_problem(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    (key,) = dense_plan.jobs
    finish, calls = Runs.finish, list[Any]()

    def refused(runs: Runs, *args: Any) -> None:
        calls.append(args)
        if for_good or len(calls) <= 2 * delivery.REFUSALS:  # alone, and with the others
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        finish(runs, *args)

    monkeypatch.setattr(Runs, "finish", refused)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    assert tracker.close(HANG_SECONDS) is not for_good, tracker.behind
    assert (tracker.behind is not None) is for_good
    assert tracker.undelivered == ([key] if for_good else [])


def test_what_a_driver_could_not_deliver_the_next_one_does(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    job, failed = job_of(plan, schema.SPARSE, "lth"), job_of(plan, schema.SPARSE, "naive")
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job, failed)
    own_copy.record_failure(failed.key, {"error": "loss is nan at s3://k:secret@b", "at": 5000, "log": "the log\n"})
    with monkeypatch.context() as outage:
        Moody(outage, lambda *_: AWAY)
        tracker = track(plan, own_copy, uri)
        tracker.start()
        tracker.failed(failed.key, "loss is nan")
        tracker.epoch(job.key, history[0])
        assert tracker.close(HANG_SECONDS) is False
        assert tracker.behind == "ConnectionError: connection refused"
    bring_back(own_copy, job)  # another machine has published it meanwhile
    log_all(plan, own_copy, uri, fresh=set())
    runs = by_key(uri)
    states = {key: run.info.status for key, run in runs.items()}
    assert states == {**dict.fromkeys(plan.jobs, "FINISHED"), failed.key: "FAILED"}
    assert runs[failed.key].data.tags[schema.TAG_ERROR] == "loss is nan at s3://***@b"
    assert runs[failed.key].info.end_time == 5000
    assert artifact(uri, runs[failed.key], schema.LOG) == "the log\n"
    assert curve(uri, runs[job.key], schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history]
    before = points(uri)
    log_all(plan, own_copy, uri, fresh=set())
    assert points(uri) == before


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(calls, marks=[] if calls in (3, 24, 45, 59) else pytest.mark.exhaustive)
        for calls in range(3, 60, 7)
    ],
)
def test_driver_that_dies_while_delivering_is_followed_by_one_that_doubles_nothing(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    done, failed = (job_of(plan, schema.SPARSE, method) for method in ("lth", "naive"))
    history = {job.key: read_metrics(own_copy, job.key)["history"] for job in (done, failed)}
    without(own_copy, done, failed)
    own_copy.record_failure(failed.key, {"error": "its worker died", "at": 5000})
    with monkeypatch.context() as outage:
        Moody(outage, lambda call, _: AWAY if call > calls else None)  # the server dies after so many answers
        tracker = track(plan, own_copy, uri)
        tracker.start()
        for job in (done, failed):
            for row in history[job.key]:
                tracker.epoch(job.key, row)
        tracker.failed(failed.key, "its worker died")
        bring_back(own_copy, done)
        tracker.done(done.key)
        assert tracker.close(HANG_SECONDS) is False
    log_all(plan, own_copy, uri)
    runs = by_key(uri)
    states = {key: run.info.status for key, run in runs.items()}
    assert states == {**dict.fromkeys(plan.jobs, "FINISHED"), failed.key: "FAILED"}
    assert max(Counter((run, name, step) for run, name, step, *_ in points(uri)).values()) == 1
    for key, rows in history.items():
        expected = [(row["step"], row[schema.TEST_LOSS]) for row in rows]
        seen = curve(uri, runs[key], schema.TEST_LOSS)
        assert seen == expected if key == done.key else set(seen) <= set(expected)


def test_epochs_beyond_what_memory_is_for_come_with_the_result(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "WAITING_EPOCHS", 1)
    job = job_of(dense_plan, schema.DENSE)
    history = read_metrics(own_copy, job.key)["history"]
    without(own_copy, job)
    answer = threading.Event()
    Moody(monkeypatch, lambda *_: None if answer.wait(HANG_SECONDS) else AWAY)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    for row in history:
        tracker.epoch(job.key, row)
    assert len(tracker._live[job.key].rows) == 1
    assert "1 epochs wait for MLflow" in caplog.text
    answer.set()
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS)
    (run,) = by_key(uri).values()
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history]


@pytest.mark.parametrize("replaced", [False, True])
def test_database_that_vanishes_in_mid_run_is_one_line_and_comes_back_from_the_store(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.001,))
    job, file = job_of(dense_plan, schema.DENSE), sqlite_file(uri)
    assert file is not None
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)
    tracker.start()
    tracker.failed(job.key, "its worker died")
    wait_for(lambda: by_key(uri)[job.key].info.status == "FAILED")
    aside = shutil.move(file, file.with_name("aside"))
    if replaced:
        file.touch()
    bring_back(own_copy, job)
    tracker.done(job.key)
    assert tracker.close(HANG_SECONDS) is False
    assert tracker.behind == f"{uri} has been removed or replaced while the study ran"
    assert tracker.undelivered == [job.key]
    assert file.exists() is replaced, "nothing is written to a new file without tables"
    if replaced:  # else this process, unlike the next driver, still has the removed file open
        shutil.move(aside, file)
        log_all(dense_plan, own_copy, uri)
        assert by_key(uri)[job.key].info.status == "FINISHED"


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


TABLE = re.compile(r"0\.25 +50% +1 +[\d.]+")


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
    assert TABLE.search(out), "made from the store"
    assert "to deliver the rest: python -m study.run --space tiny\n" in out
    assert "secret" not in out


def test_who_does_not_want_to_wait_reads_what_is_missing(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish, at_work, go_on = study_runs.Runs.finish, threading.Event(), threading.Event()

    def slow(runs: study_runs.Runs, key: str, *more: Any) -> None:
        if len(runs._runs) == 3:
            at_work.set()
            go_on.wait()
        finish(runs, key, *more)

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
    assert TABLE.search(out)
    assert "to deliver the rest: python -m study.run --space tiny\n" in out


def test_a_slow_server_gets_the_time_that_it_takes(
    plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "SHOW_SECONDS", 0.0)
    hours = iter(range(0, 3600_000, 3600))
    monkeypatch.setattr(delivery.time, "monotonic", lambda: float(next(hours)))
    assert published_study(plan, own_copy, uri) == 0
    assert re.search(r"recording in MLflow: \d+ runs? to go", capsys.readouterr().out)
    assert {run.info.status for run in by_key(uri).values()} == {"FINISHED"}
