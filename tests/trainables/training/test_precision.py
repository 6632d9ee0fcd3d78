"""Precisions: what PyTorch is told, when, and that it is told the opposite afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_training import FEW, bits, start
from tiny_study import tiny_space
from torch import nn

from study.plan import make_plan
from trainables.config import Task
from trainables.data import check_dataset
from trainables.jobs import train
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.schema import DENSE, MATCH
from trainables.storage.store import Store
from trainables.training.loop import tensor_float


def told() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("allowed", [True, False])
def test_it_holds_until_the_block_ends_however_it_ends(allowed: bool) -> None:
    def fails() -> None:
        with tensor_float(allowed):
            assert told() == (allowed, allowed)
            with tensor_float(not allowed):
                assert told() == (not allowed, not allowed)
            assert told() == (allowed, allowed)
            raise ZeroDivisionError

    before = told()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert told() == before


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_only_the_steps_of_a_recipe_that_says_so_may_round(precision: str, allowed: bool) -> None:
    seen: dict[bool, set[tuple[bool, bool]]] = {True: set(), False: set()}

    def note(model: nn.Module, _: object) -> None:
        seen[model.training].add(told())

    training = start(dataclasses.replace(FEW, precision=precision))
    training.model.register_forward_pre_hook(note)
    with tensor_float(False):
        training.run_epoch()
    assert seen == {True: {(allowed, allowed)}, False: {(False, False)}}


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_a_gpu_evaluates_epochs_in_the_recipe_s_precision_and_measures_its_convolutions(
    precision: str, allowed: bool
) -> None:
    seen = set()

    def note(model: nn.Module, _: object) -> None:
        seen.add((model.training, told(), torch.backends.cudnn.benchmark, torch.is_autocast_enabled("cuda")))

    training = start(dataclasses.replace(FEW, precision=precision), device="cuda")
    training.model.register_forward_pre_hook(note)
    with tensor_float(False):
        training.run_epoch()
        assert told() == (False, False)
    assert seen == {(mode, (allowed, allowed), True, precision == "bf16") for mode in (True, False)}
    assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "channels_last"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_tensors_on_a_gpu_lie_as_the_precision_needs(precision: str, channels_last: bool, tmp_path: Path) -> None:
    task = Task(model="resnet8", width=0.25, dataset="digits", data_version=check_dataset("digits", None).fingerprint)
    data = TaskData(task, Context(store=Store(tmp_path), device=torch.device("cuda")), precision)
    weight = next(each for each in data.model().parameters() if each.dim() == 4 and min(each.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert data.test.channels_last is channels_last


@pytest.mark.parametrize("allowed", [True, False])
def test_both_of_pytorch_s_settings_say_the_same_and_the_general_one_does_not_matter(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    operations = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [each.fp32_precision for each in operations]
    with tensor_float(allowed):
        assert [each.fp32_precision for each in operations] == ["tf32" if allowed else "ieee"] * 3
        assert told() == (allowed, allowed)
    assert [each.fp32_precision for each in operations] == before


def test_deterministic_algorithms_do_without_measured_convolutions() -> None:
    training = start(FEW)
    torch.use_deterministic_algorithms(True)
    try:
        with training.arithmetic():
            assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
    with training.arithmetic():
        assert torch.backends.cudnn.benchmark


def test_on_a_cpu_it_makes_no_difference() -> None:
    plain, rounded = (start(dataclasses.replace(FEW, precision=precision)) for precision in ("fp32", "tf32"))
    assert plain.run_epoch() == rounded.run_epoch()
    assert bits(plain) == bits(rounded)


def test_measurements_never_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tiny_space(seeds=(0,), precision="tf32", epochs=2, rewind_epoch=(1,)))
    seen: list[tuple[str, tuple[bool, bool]]] = []

    def note(job: train.Job, context: Context) -> None:
        seen.append((job.kind, told()))
        measured(job, context)

    measured = train.measure
    monkeypatch.setattr(train, "measure", note)
    context = Context(store=Store(tmp_path))
    match = next(job for job in plan.jobs.values() if job.kind == MATCH)
    with tensor_float(True):
        kinds = {row["stage"] for row in compute(match, [None], context)}
    assert kinds == {DENSE}
    assert seen == [(MATCH, (False, False))]
