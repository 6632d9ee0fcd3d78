"""Averages in MLflow: one run each, nothing twice, what has changed is replaced, and jobs are listed without them."""

from __future__ import annotations

import json
import sqlite3
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs as synthetic
from mlflow import MlflowClient
from mlflow.entities import Run
from tracked import SPACE, all_runs, by_key, curve, job_of, log_all, points, track, wait_for, without
from waiting import HANG_SECONDS

from analysis import load, mlflow_report
from study.plan import Plan
from study.tracking import views
from study.tracking.cell_runs import CellRuns
from study.tracking.delivery import Tracker
from study.tracking.experiment import Experiment
from study.tracking.views import VIEWS
from trainables import schema
from trainables.storage.store import Store

COMMAND = "python -m study.run --space tiny"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database of a finished study with known numbers, recorded under the tiny study's name."""
    folder = tmp_path_factory.mktemp("written")
    synthetic.write_study(folder, SPACE.name)
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture(scope="module")
def averaged(plan: Plan, written: bytes, published: Store, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same database with averages, which take seconds."""
    folder = tmp_path_factory.mktemp("averaged")
    (folder / "mlflow.db").write_bytes(written)
    update(plan, synthetic.tracking_uri(folder), published)
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def study(tmp_path: Path, averaged: bytes) -> str:
    """A copy of the study's database, with averages."""
    (tmp_path / "mlflow.db").write_bytes(averaged)
    return synthetic.tracking_uri(tmp_path)


def opened(plan: Plan, uri: str, store: Store) -> Experiment:
    experiment = Experiment(plan.space, store, uri)
    experiment.open()
    return experiment


def update(plan: Plan, uri: str, store: Store, command: str = COMMAND) -> Experiment:
    experiment = opened(plan, uri, store)
    CellRuns(plan, uri, command).update(experiment)
    return experiment


def derived(uri: str) -> dict[str, Run]:
    """Return the runs that show averages, by their digest; none is there twice."""
    runs = [run for run in all_runs(uri) if schema.TAG_AVERAGE in run.data.tags]
    found = {run.data.tags[schema.TAG_AVERAGE]: run for run in runs}
    assert len(found) == len(runs)
    return found


def parent(uri: str) -> Run:
    (run,) = [run for run in all_runs(uri) if schema.TAG_STUDY in run.data.tags]
    return run


def rows(uri: str) -> list[Any]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        tables = ("runs", "tags", "params", "metrics", "experiment_tags")
        return [sorted(map(str, database.execute(f"SELECT * FROM {table}"))) for table in tables]


def test_updating_again_adds_nothing(plan: Plan, study: str, published: Store) -> None:
    before = rows(study)
    update(plan, study, published)
    assert rows(study) == before


def test_averages_are_finished_children_of_the_study_without_a_key(study: str) -> None:
    runs = derived(study).values()
    assert {run.data.tags[schema.TAG_LEVEL] for run in runs} == {schema.CELL, schema.METHOD}
    for run in runs:
        assert schema.TAG_KEY not in run.data.tags
        assert run.data.tags["mlflow.parentRunId"] == parent(study).info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.runColor"].startswith("#")
    (cell,) = [run for run in runs if run.info.run_name == "permuted · w0.5 · S0.8 · n = 3"]
    assert cell.data.params == {
        "row": "permuted",
        "method": "permuted",
        "model": "resnet20",
        "dataset": "cifar10",
        "width": "0.5",
        "sparsity": "0.8",
    }
    history = MlflowClient(study).get_metric_history(cell.info.run_id, schema.TEST_ACCURACY)
    assert sorted(point.step for point in history) == list(synthetic.REWINDS)


@pytest.mark.slow
def test_a_deleted_cell_run_comes_back(
    plan: Plan, study: str, published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.tracking.cell_runs.BATCH", 7)
    before = derived(study)
    key, gone = next(iter(before.items()))
    MlflowClient(study).delete_run(gone.info.run_id)
    update(plan, study, published)
    after = derived(study)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name].info.run_id != before[name].info.run_id] == [key]
    assert after[key].data.to_dictionary() == gone.data.to_dictionary()
    lines = [[each[1:4] for each in points(study) if each[0] == run.info.run_id] for run in (gone, after[key])]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 7, "it took several requests"


@pytest.mark.slow
def test_a_run_that_a_killed_driver_left_incomplete_is_replaced(plan: Plan, study: str, published: Store) -> None:
    client, (key, run) = MlflowClient(study), next(iter(derived(study).items()))
    client.delete_tag(run.info.run_id, schema.TAG_CONTENT)
    update(plan, study, published)
    assert derived(study)[key].info.run_id != run.info.run_id


def test_only_what_has_changed_is_replaced(plan: Plan, study: str, published: Store, tmp_path: Path) -> None:
    before = derived(study)
    late = synthetic.Recorder(tmp_path, SPACE.name)
    late.sparse("naive", 1.0, 0.8, 10, (8, 9))  # a pair more in one cell
    update(plan, study, published)
    after = derived(study)
    changed = {after[key].info.run_name for key in before if after[key].info.run_id != before[key].info.run_id}
    assert "naive · w1 · S0.8 · n = 3-4".replace("-", "\N{EN DASH}") in changed
    assert not [name for name in changed if "w0.5" in name]


def test_readers_of_jobs_pass_averages_and_the_parent_over(study: str, written: bytes, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "mlflow.db").write_bytes(written)
    before = load.runs(SPACE.name, synthetic.tracking_uri(tmp_path / "before"))
    assert load.runs(SPACE.name, study).equals(before)


def test_without_results_there_is_a_parent_and_views_and_nothing_else(plan: Plan, uri: str, own_copy: Store) -> None:
    experiment = update(plan, uri, own_copy)
    assert [run.info.run_id for run in all_runs(uri)] == [parent(uri).info.run_id]
    assert {schema.VIEW_TAG + view for view in VIEWS} <= experiment.tags.keys()
    with pytest.raises(load.AnalysisError, match="no runs yet"):
        load.runs(SPACE.name, uri)


def test_the_parent_says_what_was_asked_and_how_and_keeps_the_report(
    plan: Plan, study: str, published: Store, tmp_path: Path
) -> None:
    page = tmp_path / "index.html"
    page.write_text("report")
    assert mlflow_report.log_report(SPACE.name, study, [page], "It helps.") == parent(study).info.run_id
    update(plan, study, published, command := f"{COMMAND} --retries 3")
    run = parent(study)
    said, _, report = run.data.tags[schema.NOTE].partition(schema.RULE)
    assert report == "It helps."
    assert said.startswith(SPACE.question)
    assert f"{len(plan.jobs)} jobs" in said
    assert f"`{command}`" in said
    assert run.data.tags[schema.TAG_COMMAND] == command
    assert [each.path for each in MlflowClient(study).list_artifacts(run.info.run_id)] == ["index.html"]


def test_a_driver_of_an_earlier_recipe_leaves_the_parent_as_it_is(plan: Plan, uri: str, own_copy: Store) -> None:
    update(plan, uri, own_copy)
    earlier = opened(plan, uri, own_copy)
    MlflowClient(uri).set_experiment_tag(earlier.id, schema.TAG_RECIPE, "that of a later driver")
    before = parent(uri).data.tags
    CellRuns(plan, uri, "another command").update(earlier)
    assert parent(uri).data.tags == before


def test_averages_are_computed_while_no_other_driver_can_create_runs(
    plan: Plan, uri: str, own_copy: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = opened(plan, uri, own_copy)
    alone: list[bool] = []

    def averages(_: CellRuns) -> tuple[list[Any], list[Any]]:
        alone.append(experiment._is_sole_creator)
        return [], []

    monkeypatch.setattr(CellRuns, "_averages", averages)
    CellRuns(plan, uri, COMMAND).update(experiment)
    assert alone == [True]


def test_an_earlier_version_s_description_is_renewed_and_a_user_s_is_not(plan: Plan, uri: str, own_copy: Store) -> None:
    experiment = opened(plan, uri, own_copy)
    new = experiment.tags[schema.NOTE]
    for said, expected in ((views.earlier_note(plan.space, experiment.id), new), ("mine", "mine")):
        experiment.client.set_experiment_tag(experiment.id, schema.NOTE, said)
        experiment.open()
        experiment.refresh()
        assert experiment.tags[schema.NOTE] == expected


def test_the_run_of_an_earlier_report_becomes_the_parent(
    plan: Plan, written: bytes, own_copy: Store, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(written)
    study, page = synthetic.tracking_uri(tmp_path), tmp_path / "index.html"
    page.write_text("report")
    run_id = mlflow_report.log_report(SPACE.name, study, [page], "It helps.")
    update(plan, study, own_copy)
    assert parent(study).info.run_id == run_id
    assert parent(study).data.tags[schema.NOTE].startswith(SPACE.question)


def test_views_that_a_user_has_edited_stay_and_others_are_brought_up_to_date(
    plan: Plan, study: str, published: Store
) -> None:
    experiment = opened(plan, study, published)
    tags = dict(experiment.tags)
    ours, edited = schema.VIEW_TAG + schema.VIEW, schema.VIEW_TAG + "gap_by_width"
    mine = json.dumps({**json.loads(tags[edited]), "updatedAt": 1})
    for name, value in (
        (ours, json.dumps({"name": "Old", "createdAt": 5, "updatedAt": 5, "state": "{}"})),
        (edited, mine),
    ):
        experiment.client.set_experiment_tag(experiment.id, name, value)
    now = update(plan, study, published).tags
    assert now == {**tags, edited: mine}


def test_a_view_draws_only_metrics_that_the_runs_it_shows_have(plan: Plan, study: str, published: Store) -> None:
    experiment = opened(plan, study, published)
    for view in VIEWS:
        packed = json.loads(experiment.tags[schema.VIEW_TAG + view])["state"]
        state = json.loads(zlib.decompress(b64decode(packed.removeprefix("deflate;"))))
        shown = experiment.client.search_runs([experiment.id], state["searchFilter"], max_results=1000)
        assert 0 < len(shown) <= 100
        metrics = {name for run in shown for name in run.data.metrics}
        params = {name for run in shown for name in run.data.params}
        assert state["compareRunCharts"]
        for chart in state["compareRunCharts"]:
            if chart["type"] == "LINE":
                assert {chart["metricKey"], *chart["selectedMetricKeys"]} <= metrics
                assert chart["selectedXAxisMetricKey"] in {"", *metrics}
            else:
                assert chart["type"] == "SCATTER"
                assert chart["xaxis"]["key"] in params
                assert chart["yaxis"]["key"] in metrics


def test_the_tracker_updates_averages_after_the_last_result(plan: Plan, published: Store, uri: str) -> None:
    tracker = Tracker(plan, published, uri, fresh=set(plan.jobs), average=CellRuns(plan, uri, COMMAND).update)
    tracker.start()
    assert tracker.close(HANG_SECONDS), tracker.behind
    assert tracker.page is not None
    assert f"viewStateShareKey={schema.VIEW}" in tracker.page
    methods = {run.data.params["row"] for run in derived(uri).values()}
    assert methods == {"dense", "lth", "naive", "permuted", "imp"}


def test_averages_follow_the_last_result_before_anybody_waits_for_them(
    dense_plan: Plan, published: Store, uri: str
) -> None:
    tracker = track(dense_plan, published, uri)
    calls: list[int] = []
    tracker._average = lambda _: calls.append(tracker._logged)
    tracker.start()
    for key in dense_plan.jobs:
        tracker.done(key)
    tracker.last()
    wait_for(lambda: not tracker._thread.is_alive())
    assert calls == [len(dense_plan.jobs)]
    assert tracker.close(HANG_SECONDS), tracker.behind


def test_the_tracker_updates_averages_while_results_come_but_not_after_each(
    plan: Plan, published: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.tracking.delivery.AVERAGE_SECONDS", 0.0)
    monkeypatch.setattr("study.tracking.delivery.AVERAGE_REST", 0.0)
    log_all(plan, published, uri)
    calls: list[int] = []
    tracker = track(plan, published, uri)
    tracker._average = lambda _: calls.append(tracker._logged)
    tracker.start()
    for key in plan.jobs:
        tracker.done(key)
    assert tracker.close(HANG_SECONDS), tracker.behind
    assert calls[-1] == len(plan.jobs)
    assert len(calls) <= 2


@pytest.mark.parametrize("last_works", [True, False])
def test_averages_that_fail_hold_up_no_epoch_and_only_the_last_failure_is_said(
    dense_plan: Plan, own_copy: Store, uri: str, monkeypatch: pytest.MonkeyPatch, last_works: bool
) -> None:
    monkeypatch.setattr("study.tracking.delivery.AVERAGE_RESULTS", 0)
    monkeypatch.setattr("study.tracking.delivery.RETRY_SECONDS", (0.0,))
    monkeypatch.setattr("study.tracking.delivery.FLUSH_SECONDS", 0.0)
    job, fails = job_of(dense_plan, schema.DENSE), [True]
    without(own_copy, job)
    tracker = track(dense_plan, own_copy, uri)

    def average(_: Experiment) -> None:
        calls.append(tracker._logged)
        if fails:
            raise KeyError("no such cell")

    calls: list[int] = []
    tracker._average = average
    tracker.start()
    tracker._rested = 0.0
    tracker.epoch(job.key, {"step": 1, "timestamp": 1, schema.TEST_LOSS: 1.0})
    wait_for(lambda: curve(uri, by_key(uri)[job.key], schema.TEST_LOSS) == [(1, 1.0)])
    assert calls == [0]
    assert tracker.behind is None
    if last_works:
        fails.clear()
    assert tracker.close(HANG_SECONDS) is last_works
    assert (tracker.behind is None) is last_works
