"""Several drivers and one experiment: a job has one run, whoever dies."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from tracked import (
    AWAY,
    Moody,
    all_runs,
    bring_back,
    by_key,
    computing,
    curve,
    log_all,
    log_failure,
    points,
    track,
)
from waiting import HANG_SECONDS, wait_until

from study.plan import Plan
from study.tracking import delivery
from study.tracking import experiment as experiment_module
from study.tracking import mlflow_runs as study_runs
from study.tracking.experiment import Experiment
from trainables import schema
from trainables.storage.store import Store


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


def test_a_run_that_is_made_while_the_runs_are_listed_costs_no_other_its_place(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_all(dense_plan, published, uri)
    (first,) = by_key(uri).values()
    client, search = MlflowClient(uri), MlflowClient.search_runs
    client.create_run(first.info.experiment_id, first.info.start_time + 1, {"somebody": "else"})
    monkeypatch.setattr(experiment_module, "PAGE", 2)
    later = itertools.count(first.info.start_time + 2)

    def meanwhile(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        page = search(client, *args, **kwargs)
        if kwargs.get("page_token") is None and page.token:
            client.create_run(first.info.experiment_id, next(later), {"somebody": "else"})
        return page

    client.create_run(first.info.experiment_id, 1, {"somebody": "else"})
    monkeypatch.setattr(MlflowClient, "search_runs", meanwhile)
    log_all(dense_plan, published, uri)
    monkeypatch.undo()
    assert next(later) > first.info.start_time + 2, "another run came while the runs were listed"
    assert [run.info.run_id for run in by_key(uri).values()] == [first.info.run_id]


def test_a_tag_that_another_driver_has_deleted_is_no_refusal(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = dense_plan.jobs.values()
    log_failure(dense_plan, own_copy, uri, job)
    bring_back(own_copy, job)
    delete_tag = MlflowClient.delete_tag

    def late(client: MlflowClient, *args: Any) -> None:
        delete_tag(client, *args)
        delete_tag(client, *args)

    monkeypatch.setattr(MlflowClient, "delete_tag", late)
    log_all(dense_plan, own_copy, uri)
    assert by_key(uri)[job.key].info.status == "FINISHED"


def test_driver_that_waits_for_another_one_does_not_give_up(
    dense_plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_module, "LEASE_WAIT", 0.01)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(delivery, "CLOSING_PATIENCE", 0.05)
    other, tracker = Experiment(dense_plan.space, published, uri), track(dense_plan, published, uri)
    with ExitStack() as creating:
        creating.enter_context(other.sole_creator())
        tracker.start()
        tracker.last()
        wait_until(lambda: tracker.behind is not None)
        ends = threading.Timer(10 * delivery.CLOSING_PATIENCE, creating.close)
        ends.start()
        assert tracker.close(HANG_SECONDS), tracker.behind
        ends.join()


def test_mlflow_client_does_not_try_again_by_itself(dense_plan: Plan, published: Store, tmp_path: Path) -> None:
    # It would repeat the creation of a run without looking what became of the first attempt.
    with refusing_server() as (address, asked), pytest.raises(MlflowException):
        Experiment(dense_plan.space, published, f"http://{address}").open()
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


def test_run_of_a_driver_that_was_killed_does_not_say_for_ever_that_it_is_running(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    killed, job, history = computing(dense_plan, own_copy, uri, 1)
    lease = own_copy.lease(job.key)
    assert lease is not None
    with lease:
        log_all(dense_plan, own_copy, uri, beside=killed)
        assert by_key(uri)[job.key].info.status == "RUNNING", "somebody computes it"
    log_all(dense_plan, own_copy, uri, beside=killed)
    run = by_key(uri)[job.key]
    assert run.info.status == "KILLED"
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history[:1]]
    bring_back(own_copy, job)
    log_all(dense_plan, own_copy, uri, beside=killed)
    run = by_key(uri)[job.key]
    assert run.info.status == "FINISHED"
    assert curve(uri, run, schema.TEST_LOSS) == [(row["step"], row[schema.TEST_LOSS]) for row in history]
    assert killed.close(HANG_SECONDS)


@pytest.mark.parametrize("ours", [True, False])
def test_running_run_of_an_earlier_version_is_ended_and_names_its_storage(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    killed, job, _ = computing(dense_plan, own_copy, uri, 1)
    run_id, client = by_key(uri)[job.key].info.run_id, MlflowClient(uri)
    for tag in (schema.TAG_STORE, "trial_name"):
        client.delete_tag(run_id, tag)
    digest = hashlib.sha256(own_copy.uri.encode()).hexdigest()[:12]
    client.set_tag(run_id, "storage", digest if ours else "another")
    log_all(dense_plan, own_copy, uri, beside=killed)
    run = by_key(uri)[job.key]
    assert run.info.status == ("KILLED" if ours else "RUNNING")
    assert run.data.tags.get(schema.TAG_STORE) == (own_copy.uri if ours else None)
    assert run.data.tags.get("trial_name") == (run.info.run_name if ours else None)
    assert killed.close(HANG_SECONDS)


@pytest.mark.parametrize("other", ["driver", "storage", "end"])
def test_run_that_is_another_drivers_to_end_is_left_alone(
    other: str, dense_plan: Plan, own_copy: Store, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job waits for its next attempt, is computed in another storage, or has failed since it was listed."""
    monkeypatch.setattr(delivery, "FLUSH_SECONDS", 0.0)
    owner, job, _ = computing(dense_plan, own_copy, uri, 1)
    store, status = own_copy, "RUNNING"
    if other == "driver":
        lease = {"token": "abcd", "owner": "another-host:1:1", "since": 0, "renewed": time.time(), "note": {}}
        store.storage.write(f"studies/{'ab' * 8}", json.dumps(lease).encode())
    elif other == "storage":
        store = Store(tmp_path / "another")
        for each in dense_plan.jobs:
            if each in own_copy:
                bring_into(store, own_copy, each)
    else:
        listed = study_runs.Runs.interrupt_abandoned
        status = "FAILED"

        def late(runs: study_runs.Runs, known: set[str]) -> None:
            MlflowClient(uri).set_terminated(by_key(uri)[job.key].info.run_id, status)
            listed(runs, known)

        monkeypatch.setattr(study_runs.Runs, "interrupt_abandoned", late)
    log_all(dense_plan, store, uri, beside=owner)
    assert by_key(uri)[job.key].info.status == status
    assert owner.close(HANG_SECONDS)


def bring_into(store: Store, source: Store, key: str) -> None:
    """Publish a result of one store in another."""
    manifest = source.manifest(key)
    store.publish(key, source.result(key, tuple(manifest["files"])).files, {"kind": manifest["kind"]})
