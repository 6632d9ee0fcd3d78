"""A job whose batches a GPU does not hold, from its first error to its result, on a pretended GPU that is full."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from one_node import ask, one_node
from pretended_cuda import pretended_cuda
from tiny_study import tiny_space

from study.estimate import Estimates
from study.plan import make_plan
from study.scheduling.searcher import NO_MORE_TRIALS, PlanSearcher
from study.scheduling.states import DONE
from study.tracking.contents import outcome_of
from trainables import schema
from trainables import tune as tune_module
from trainables.storage.store import Store
from trainables.tune import PlannedJob

ROOM = 300_000
"""Bytes for the first layer's output of 146 images, of 32 x 8 x 8 bytes each."""


def test_a_job_that_a_whole_gpu_does_not_hold_goes_on_in_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(tune_module, "problem", lambda precisions: None)
    monkeypatch.setattr(PlannedJob, "trial_resources", None)
    plan = make_plan(tiny_space(method=("dense",), width=0.5, batch_size=449))
    ((key, job),) = plan.jobs.items()
    store, lines, asked, steps = Store(tmp_path), list[str](), list[int](), list[int]()
    searcher = PlanSearcher(
        plan,
        plan.closure.todo(set()),
        Estimates({key: 1.0}, 0),
        {"storage": store.uri, "checkpoint_seconds": 0.0},
        needs=ask(plan, CPU=1, GPU=1.0),
        hosts=one_node(),
        say=lines.append,
    )
    with pretended_cuda() as traffic:
        while (config := searcher.suggest(f"t{len(asked)}")) != NO_MORE_TRIALS:
            assert isinstance(config, dict)
            asked.append(config.get(schema.MICRO_BATCHES, 1))
            trial, result = PlannedJob.__new__(PlannedJob), {"done": False}
            trial._begin(config)
            while not result["done"]:
                result = trial.step()
                steps += [result["step"]] if "step" in result else []
                traffic.largest = ROOM  # others take the rest from the second epoch on
            searcher.on_trial_complete(f"t{len(asked) - 1}", result)
    print(lines)
    assert searcher.state == {key: DONE}, searcher.errors
    assert asked == [1, 2, 4, 8], "57 images would fit in fours, but 250 for the evaluation would not"
    assert steps == [1, 2, 3], "it has gone on from its checkpoint"
    assert "449 images in 2 micro-batches" in lines[0]
    assert store.manifest(key)["environment"][schema.MICRO_BATCHES] == 8
    assert outcome_of(store.result(key, [schema.METRICS]), job.epochs).tags[schema.MICRO_BATCHES] == "8"
    assert "warning: the GPU's memory does not hold batches of 449 images" in store.read(key, schema.LOG).decode()


def test_what_was_once_divided_says_so_though_it_ends_on_a_larger_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(PlannedJob, "trial_resources", None)
    plan = make_plan(tiny_space(method=("dense",), model="mlp"))
    ((key, job),) = plan.jobs.items()
    store = Store(tmp_path)
    searcher = PlanSearcher(
        plan,
        plan.closure.todo(set()),
        Estimates({key: 1.0}, 0),
        {"storage": store.uri, "checkpoint_seconds": 0.0},
        hosts=one_node(),
    )
    config = searcher.suggest("t")
    assert isinstance(config, dict)
    for divided in ({schema.MICRO_BATCHES: 4}, {}):
        trial = PlannedJob.__new__(PlannedJob)
        trial._begin({**config, **divided})
        while not trial.step()["done"] and not divided:
            pass
        trial.cleanup()
    assert store.manifest(key)["environment"][schema.MICRO_BATCHES] == 4
    assert outcome_of(store.result(key, [schema.METRICS]), job.epochs).tags[schema.MICRO_BATCHES] == "4"
