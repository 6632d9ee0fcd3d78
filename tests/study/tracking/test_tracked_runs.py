"""MLflow as a projection of the store: what a run says, and nothing twice."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny_study import tiny_space
from tracked import (
    SPACE,
    Logged,
    Moody,
    all_runs,
    artifact,
    bring_back,
    by_key,
    curve,
    job_of,
    log_all,
    points,
    track,
    wait_for,
    without,
)
from waiting import HANG_SECONDS

from study.plan import Plan, make_plan
from study.tracking.labels import recipe_digest
from trainables import schema
from trainables.data import check_dataset
from trainables.host.places import user
from trainables.host.version import project_commit
from trainables.storage.artifacts import read_metrics
from trainables.storage.store import Store


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


def test_logging_again_adds_nothing(plan: Plan, own_copy: Store, logged_uri: str) -> None:
    before = points(logged_uri), said(logged_uri)
    for _ in range(2):
        tracker = track(plan, own_copy, logged_uri, fresh=set())
        tracker.start()
        for key in plan.jobs:
            tracker.done(key)
        assert tracker.close(HANG_SECONDS)
    assert (points(logged_uri), said(logged_uri)) == before


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


def test_runs_of_an_earlier_version_get_its_tags_and_nothing_else(
    plan: Plan, published: Store, logged_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = logged_uri
    before, expected = points(uri), said(uri)
    recipe = f"{schema.TAG_RECIPE}.{recipe_digest(plan.space)}"
    client = MlflowClient(uri)
    for run in all_runs(uri):
        client.delete_tag(run.info.run_id, schema.TAG_PLACE)
        client.set_tag(run.info.run_id, recipe, "true")
    for _ in range(2):
        moody = Moody(monkeypatch, lambda *_: None)
        log_all(plan, published, uri, fresh=set())
        assert (points(uri), said(uri)) == (before, expected)
    assert not {"create_run", "log_batch", "set_tag", "set_terminated"} & {name for name, _ in moody.log}


def test_other_recipe_in_the_same_experiment_tags_the_runs_that_it_shares(
    plan: Plan, published: Store, logged_uri: str
) -> None:
    uri = logged_uri
    count = len(points(uri))
    # Has no influence on any job that is published here, but is a param of some of their runs.
    other = make_plan(tiny_space(interpolation_points=3, sparsity=0.2, prune_fraction=0.5))
    log_all(other, published, uri)
    tags = [f"{schema.TAG_RECIPE}.{recipe_digest(each.space)}" for each in (plan, other)]
    runs = by_key(uri)
    shared = [key for key in other.jobs if key in runs]
    assert any(other.jobs[key].kind == schema.PRUNE for key in shared)
    assert all(set(tags) <= runs[key].data.tags.keys() for key in shared)
    assert all(tags[1] not in run.data.tags for key, run in runs.items() if key not in other.jobs)
    assert len(points(uri)) == count
    experiment = MlflowClient(uri).get_experiment_by_name(SPACE.name)
    assert experiment.tags[schema.TAG_RECIPE] == recipe_digest(other.space)


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


def test_logs_of_published_jobs_are_attached(plan: Plan, published: Store, logged: Logged) -> None:
    for key, run in logged[1].items():
        assert artifact(logged[0], run, schema.LOG) == published.read(key, schema.LOG).decode()


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


def test_runs_name_the_commit_that_the_store_has(plan: Plan, published: Store, logged: Logged) -> None:
    for key, run in logged[1].items():
        commit = published.manifest(key)["environment"].get("commit")
        assert run.data.tags.get(schema.TAG_COMMIT) == commit == project_commit()
        assert run.data.tags[schema.TAG_SOURCE] == "study.run"


@pytest.mark.parametrize("fresh", [True, False])
def test_results_that_name_no_commit_are_of_this_one_only_if_computed_now(
    dense_plan: Plan, published: Store, uri: str, tmp_path: Path, fresh: bool
) -> None:
    (key,) = dense_plan.jobs
    manifest = published.manifest(key)
    del manifest["environment"]["commit"]
    earlier = Store(str(tmp_path / "earlier"))
    earlier.publish(key, {name: published.read(key, name) for name in manifest["files"]}, manifest)
    log_all(dense_plan, earlier, uri, {key} if fresh else set())
    assert by_key(uri)[key].data.tags.get(schema.TAG_COMMIT) == (project_commit() if fresh else None)


def test_runs_have_the_tags_that_other_tools_expect(plan: Plan, published: Store, logged: Logged) -> None:
    for run in logged[1].values():
        tags = run.data.tags
        assert tags["mlflow.runName"] == tags["trial_name"] == run.info.run_name
        assert tags["mlflow.user"] == user()
        assert tags[schema.TAG_STORE] == published.uri
