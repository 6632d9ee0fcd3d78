"""Jobs compute on a GPU, here a pretended one, what they compute on a CPU, to the bit: the same kernels do it below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_cuda import pretended_cuda
from tiny_images import write_folders
from tiny_study import assert_same_store, computed_epochs, publish, tiny_cell

from trainables import schema
from trainables.config import Cell
from trainables.data import check_dataset
from trainables.graph import Closure, Ref, dense_job, ensemble_job, measurements, target
from trainables.jobs import task
from trainables.jobs.execution import compute, compute_together
from trainables.jobs.publishing import Context
from trainables.models import MODELS
from trainables.storage.store import Store

MARKS = {"resnet8": [], "resnet50": pytest.mark.exhaustive}
"""The models whose jobs are not among the slow tests: the quickest and the slowest."""
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU use the memory layout that single precision has on a GPU, to round alike."""
    monkeypatch.setattr(task, "fits_channels_last", lambda network: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 images of 8x8 pixels."""
    return write_folders(tmp_path_factory.mktemp("images"), per_class=8)


def small_cell(folder: Path, method: str = "permuted", **changes: Any) -> Cell:
    """Return a cell whose networks are trained for two epochs of one step."""
    settings = {"dataset": "image_folder", "epochs": 2, "batch_size": 24, "pruner": "one_shot", "match_images": 16}
    version = check_dataset("image_folder", folder).fingerprint
    return tiny_cell(method, **{"data_version": version, **settings, **changes})


def contexts(folder: Path, tmp_path: Path) -> tuple[Context, Context]:
    """Return empty stores for the CPU and for the GPU, with a checkpoint after every epoch."""
    there: dict[str, Any] = {"data_dir": str(folder), "checkpoint_seconds": 0.0}
    return Context(store=Store(tmp_path / "cpu"), **there), Context(store=Store(tmp_path / "gpu"), device=GPU, **there)


@pytest.mark.parametrize("model", [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in MODELS])
def test_every_kind_of_job(folder: Path, tmp_path: Path, model: str) -> None:
    cell = small_cell(folder, model=model, plane_resolution=2, mask_overlap=True, correction="repair")
    ensemble = ensemble_job(small_cell(folder, "lth", model=model, members=2))
    roots = [Ref(job) for job in (target(cell), *measurements(cell), ensemble)]
    assert {job.kind for job in Closure(roots).jobs.values()} == set(schema.STAGES)
    on_cpu, on_gpu = contexts(folder, tmp_path)
    publish(roots, on_cpu)
    with pretended_cuda():
        publish(roots, on_gpu)
    assert_same_store(on_cpu.store, on_gpu.store)


def test_a_job_goes_on_from_a_checkpoint_of_another_device(folder: Path, tmp_path: Path) -> None:
    job = dense_job(small_cell(folder, model="mlp", epochs=4), 0)
    on_cpu, on_gpu = contexts(folder, tmp_path)
    begun = compute(job, [None], on_cpu)
    next(begun)
    begun.close()
    saved = on_cpu.store.read_checkpoint(job.key)
    assert saved is not None
    on_gpu.store.write_checkpoint(job.key, saved)
    with pretended_cuda():
        resumed = compute(job, [None], on_gpu)
        assert next(resumed)["step"] == 2
        next(resumed)
        resumed.close()
        assert computed_epochs(publish([Ref(job)], on_gpu), job) == [4]
    publish([Ref(job)], on_cpu)
    assert_same_store(on_cpu.store, on_gpu.store)


def test_stacked_networks(folder: Path, tmp_path: Path) -> None:
    jobs = [dense_job(small_cell(folder, model="mlp", stacked=True), seed) for seed in (0, 1)]
    on_cpu, on_gpu = contexts(folder, tmp_path)
    wanted = [(job, [None, 1]) for job in jobs]
    list(compute_together(wanted, on_cpu))
    with pretended_cuda():
        rounds = list(compute_together(wanted, on_gpu))
    assert [len(news) for news in rounds] == [2, 2, 2]
    assert_same_store(on_cpu.store, on_gpu.store)
