"""The frame of a study's runs that needs no MLflow."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import tiny_space
from tracked import SPACE, Logged, job_of, log_all, without

from analysis import load
from search_spaces import SearchSpace
from study.plan import Plan, make_plan
from study.tracking.stored_runs import stored_runs
from trainables import schema
from trainables.storage.store import Store


def assert_same_frame(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Assert that two frames hold the same, apart from the ids and the order of the runs."""
    assert ours["run_id"].equals(ours["key"])
    assert ours.attrs | {"experiment": theirs.attrs["experiment"]} == theirs.attrs
    left, right = (each.drop(columns="run_id").set_index("key").sort_index() for each in (ours, theirs))
    pd.testing.assert_frame_equal(left, right)


def publish_made_up(plan: Plan, store: Store) -> None:
    """Publish a result for every job of a plan, with numbers that cannot be had by chance, and some that are none."""
    for number, (key, job) in enumerate(plan.jobs.items()):
        stamp = 1_700_000_000_000 + 10_000 * number
        history = [
            {"step": step, "timestamp": stamp + step, schema.TRAIN_LOSS: 1 / (number + step), "correlation/conv1": 0.5}
            for step in range(1, job.epochs + 1)
        ]
        final = {schema.SECONDS: 1.5, schema.TEST_ACCURACY: 90 + number / 7, schema.GENERALIZATION_GAP: math.inf}
        metrics = json.dumps({"history": history, "final": final}).encode()
        about = {
            "kind": job.kind,
            "finished": stamp + 5_000,
            "environment": {"device": "cpu", schema.CORES: 4, "ray": "2.60.0", schema.WORKERS: 2},
        }
        store.publish(key, {schema.METRICS: metrics}, about)


def test_the_frame_of_a_finished_study_is_the_one_that_mlflow_gives(
    plan: Plan, published: Store, logged: Logged
) -> None:
    uri, _ = logged
    assert_same_frame(stored_runs(plan, published, fresh=plan.jobs), load.runs(SPACE.name, uri))


@pytest.mark.parametrize(
    "space",
    [
        tiny_space(lr=(0.1, 0.2), match_images=(100, 200), match_epoch=(1, 3), sparsity=(0.5, 0.9), model="vgg11"),
        tiny_space(method="lth", sparsity=(0.8, 0.82), prune_tolerance=0.1),
    ],
    ids=["varied settings", "asked sparsity"],
)
def test_what_a_study_varies_has_the_same_columns(space: SearchSpace, tmp_path: Path, uri: str) -> None:
    plan, store = make_plan(space), Store(tmp_path / "made up")
    publish_made_up(plan, store)
    log_all(plan, store, uri, fresh=set())
    frame = stored_runs(plan, store)
    assert frame["reused"].all()
    assert {(*row,) for row in frame[[schema.CORES, "ray", schema.WORKERS]].values} == {("4", "2.60.0", "2")}
    assert_same_frame(frame, load.runs(space.name, uri))


def test_every_job_has_a_row_whatever_became_of_it(plan: Plan, own_copy: Store) -> None:
    waiting, failed = job_of(plan, schema.SPARSE, "naive"), job_of(plan, schema.SPARSE, "permuted")
    without(own_copy, waiting, failed)
    own_copy.record_failure(failed.key, {"error": "loss is nan", "at": 1_700_000_000_000})
    frame = stored_runs(plan, own_copy).set_index("key")
    assert set(frame.index) == set(plan.jobs)
    assert frame["status"].value_counts().to_dict() == {"FINISHED": len(plan.jobs) - 2, "FAILED": 1, "SCHEDULED": 1}
    assert frame.loc[failed.key, ["status", "error"]].tolist() == ["FAILED", "loss is nan"]
    assert frame.loc[waiting.key, "method"] == "naive"
    assert pd.isna(frame.loc[waiting.key, schema.TEST_ACCURACY])


def test_a_net_of_which_only_a_state_is_needed_is_no_run_to_come(tmp_path: Path) -> None:
    plan, store = make_plan(tiny_space(method=("dense", "reinit"))), Store(tmp_path)
    frame = stored_runs(plan, store).set_index("key")
    (only_its_state,) = plan.jobs.keys() - frame.index
    assert plan.closure.outputs[only_its_state] == {0}
    store.record_failure(only_its_state, {"error": "no memory", "at": 1_700_000_000_000})
    assert stored_runs(plan, store).set_index("key").loc[only_its_state, "status"] == "FAILED"


def test_nothing_at_all_is_a_frame_of_jobs_to_come(plan: Plan, own_copy: Store) -> None:
    without(own_copy, *plan.jobs.values())
    assert set(stored_runs(plan, own_copy)["status"]) == {"SCHEDULED"}
