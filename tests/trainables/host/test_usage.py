"""System metrics: sampled seldom, in the units that their names say."""

from __future__ import annotations

import time

import pytest
import torch
from pretended_cuda import pretended_cuda
from tiny_study import publish, tiny_cell

from trainables import schema
from trainables.graph import Ref, target
from trainables.host import usage
from trainables.host.usage import Usage
from trainables.jobs.publishing import Context
from trainables.storage.artifacts import read_metrics

CPU = torch.device("cpu")


def test_a_short_job_has_none(context: Context) -> None:
    job = target(tiny_cell("dense"))
    publish([Ref(job)], context)
    assert not any(
        name in row for row in read_metrics(context.store, job.key)["history"] for name in row if "/" in name
    )


def test_a_long_job_has_them_by_epoch(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SAMPLE_SECONDS", 0.0)
    job = target(tiny_cell("dense"))
    publish([Ref(job)], context)
    for row in read_metrics(context.store, job.key)["history"]:
        assert 100 < row[schema.SYSTEM_MEMORY] < 100_000, "megabytes"
        assert row[schema.SYSTEM_CPU] > 0
        assert schema.SYSTEM_GPU_MEMORY not in row


def test_the_gpu_memory_of_a_job_is_not_that_of_the_jobs_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SAMPLE_SECONDS", 0.0)
    with pretended_cuda() as gpu:
        gpu.peak_memory = 7_000_000
        sampler = Usage(torch.device("cuda"))
        assert sampler.sample()[schema.SYSTEM_GPU_MEMORY] == 0
        gpu.peak_memory = 2_000_000
        assert sampler.sample()[schema.SYSTEM_GPU_MEMORY] == 2.0


def test_samples_keep_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    sampler = Usage(CPU)
    assert sampler.sample() == {}
    monkeypatch.setattr(usage.time, "monotonic", lambda: now + usage.SAMPLE_SECONDS + 1)
    assert sampler.sample().keys() == {schema.SYSTEM_MEMORY, schema.SYSTEM_CPU}
    assert sampler.sample() == {}


def test_processor_time_is_a_share_of_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(usage.time, "process_time", lambda: 100.0)
    sampler = Usage(CPU)
    monkeypatch.setattr(usage.time, "monotonic", lambda: 40.0)
    monkeypatch.setattr(usage.time, "process_time", lambda: 160.0)
    assert sampler.sample()[schema.SYSTEM_CPU] == 150.0
