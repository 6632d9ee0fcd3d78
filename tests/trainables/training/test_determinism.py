"""The deterministic switch: on during a job that asks for it, and off for the next one of the process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_study import publish, tiny_cell, tiny_space

from study.fastest import left_open
from trainables.graph import Closure, Ref, dense_job, target
from trainables.jobs import train
from trainables.jobs.execution import compute_together
from trainables.jobs.publishing import Context
from trainables.training import loop
from trainables.training.determinism import deterministic
from trainables.training.engines import ENGINES, plain, stacked
from trainables.training.way import WAYS


def state() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


ON = (True, False, True, False, False)


@pytest.mark.parametrize("benchmark", [False, True])
def test_switch_is_on_within_its_block_only(monkeypatch: pytest.MonkeyPatch, benchmark: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    before = state()
    with deterministic(False):
        assert state() == before
    with deterministic(True):
        assert state() == ON
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert state() == before
    with contextlib.suppress(ZeroDivisionError), deterministic(True):
        raise ZeroDivisionError
    assert state() == before


def test_workspace_that_the_user_has_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("asked", [False, True])
def test_every_step_of_a_job_that_asks_for_it_is_deterministic(
    context: Context, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """The jobs compute on the CPU, as if it were a GPU."""
    seen: set[bool] = set()

    def noted(function: Any) -> Any:
        def note(*arguments: Any, **options: Any) -> Any:
            seen.add(torch.are_deterministic_algorithms_enabled())
            return function(*arguments, **options)

        return note

    monkeypatch.setattr(train, "CPU", "none")
    monkeypatch.setattr(plain.Trainer, "train_epoch", noted(plain.Trainer.train_epoch))
    monkeypatch.setattr(loop, "evaluate", noted(loop.evaluate))
    monkeypatch.setattr(train, "evaluate", noted(train.evaluate))
    monkeypatch.setattr(train, "measure", noted(train.measure))
    before = state()
    job = target(tiny_cell(deterministic=asked))
    assert all(each.config.task.deterministic == asked for each in Closure([Ref(job)]).jobs.values())
    publish([Ref(job)], context)
    assert seen == {asked}
    assert state() == before


def test_on_a_cpu_the_switch_is_not_needed(context: Context) -> None:
    assert not train._is_deterministic(dense_job(tiny_cell(deterministic=True), 0), context)
    on_gpu = dataclasses.replace(context, device=torch.device("cuda"))
    assert train._is_deterministic(dense_job(tiny_cell(deterministic=True), 0), on_gpu)
    assert not train._is_deterministic(dense_job(tiny_cell(), 0), on_gpu)


def test_networks_that_train_together_do_so_deterministically(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint: list[bool] = []
    train_epoch = stacked.Trainer.train_epoch

    def note(trainer: stacked.Trainer, trainings: Sequence[loop.Training]) -> Any:
        if len(trainings) > 1:
            joint.append(torch.are_deterministic_algorithms_enabled())
        return train_epoch(trainer, trainings)

    monkeypatch.setattr(stacked.Trainer, "train_epoch", note)
    monkeypatch.setattr(train, "_is_deterministic", lambda job, context: True)
    jobs = [dense_job(tiny_cell(model="mlp", stacked=True), seed) for seed in (0, 1)]
    for _ in compute_together([(job, [None]) for job in jobs], context):
        pass
    assert joint == [True] * 3
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_cannot_repeat_itself_is_refused_with_the_switch(way: Any) -> None:
    changes = {**way.settings, "model": "resnet8", "batch_size": 128, "deterministic": True}
    if way.engine.repeatable:
        tiny_cell(**changes)
    else:
        with pytest.raises(ValueError, match=f"deterministic=True excludes {way.engine.setting}: which networks"):
            tiny_cell(**changes)
    space = tiny_space(deterministic=True)
    assert (way in left_open(space, ("resnet8", 0.25), {})) == way.engine.repeatable


def test_some_engine_cannot_repeat_itself() -> None:
    assert {engine.repeatable for engine in ENGINES.values()} == {False, True}
