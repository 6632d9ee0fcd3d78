"""Every search space: planned in full, and computed to its end in miniature."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces import RECIPES, SPACES, SearchSpace, resnet20
from study.plan import Plan, make_plan
from trainables import schema
from trainables.config import TRAINING_CONFIGS, Cell
from trainables.data import DatasetFacts, Reading, check_dataset
from trainables.graph import Closure, Job, Ref, measurements, target
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context, manifest
from trainables.storage.artifacts import read_mask, read_metrics, read_permutation, read_weights
from trainables.storage.store import Store

CLASSES = {"cifar10": 10, "svhn": 10, "image_folder": 10, "cifar100": 100}
IMAGES_PER_CLASS = 8
MEASURED_AFTER_TRAINING = {
    *(schema.TEST_LOSS, schema.TEST_ACCURACY, schema.FINAL_TRAIN_LOSS, schema.FINAL_TRAIN_ACCURACY),
    *(schema.GENERALIZATION_GAP, schema.IMAGES_PER_SECOND, schema.SECONDS),
}
SPARSITIES = {schema.SPARSITY_PRUNABLE, schema.SPARSITY_NETWORK, schema.COLLAPSED_LAYERS}
TRAINED = {schema.METRICS, schema.LOG, schema.WEIGHTS, schema.LOGITS}
EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    # kind: files, and metrics that every job of the kind has
    schema.DENSE: (TRAINED, MEASURED_AFTER_TRAINING),
    schema.PRUNE: (TRAINED | {schema.MASK}, MEASURED_AFTER_TRAINING | SPARSITIES),
    schema.SPARSE: (TRAINED | {schema.MASK}, MEASURED_AFTER_TRAINING | SPARSITIES),
    schema.MATCH: (
        {schema.METRICS, schema.LOG, schema.PERMUTATION},
        {schema.MEAN_CORRELATION, schema.MEAN_CORRELATION_IDENTITY, schema.MOVED_UNITS, schema.SECONDS},
    ),
    schema.CONNECT: (
        {schema.METRICS, schema.LOG},
        {
            schema.MIDPOINT_ACCURACY,
            schema.LOSS_BARRIER,
            schema.TRAIN_LOSS_BARRIER,
            schema.ERROR_BARRIER,
            schema.SECONDS,
        },
    ),
    schema.PLANE: (
        {schema.METRICS, schema.LOG, schema.PLANE_GRID},
        {*(f"{schema.PLANE_ERROR}/{net}" for net in ("dense", "lth", "permuted")), schema.SECONDS},
    ),
    schema.ENSEMBLE: (
        {schema.METRICS, schema.LOG},
        {
            *(schema.MEMBERS, schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.ENSEMBLE_ACCURACY),
            *(schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE, schema.SECONDS),
        },
    ),
    schema.OVERLAP: (
        {schema.METRICS, schema.LOG},
        {schema.MASK_OVERLAP, schema.MASK_OVERLAP_IDENTITY, schema.MASK_OVERLAP_RANDOM, schema.SECONDS},
    ),
}
QUICK = {"resnet20_width_sweep", "mode_connectivity"}
"""Run by default; the others are slow tests."""


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stand-in for every dataset that needs files: noise, in folders of classes."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for number in range(2 * IMAGES_PER_CLASS):
        pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    for name, classes in CLASSES.items():
        for label in range(classes):
            _fill(root, root / name, f"class{label:02}", IMAGES_PER_CLASS if classes == 10 else 1)
    return str(root)


def _fill(root: Path, dataset: Path, class_name: str, images: int) -> None:
    for split, first in (("train", 0), ("test", IMAGES_PER_CLASS)):
        folder = dataset / split / class_name
        folder.mkdir(parents=True)
        for number in range(images):
            os.link(root / f"{first + number}.png", folder / f"{dataset.name}{number}.png")


# --- in full --------------------------------------------------------------------------------------------------------
def anew(cell: Cell) -> dict[str, Job]:
    """Return the jobs behind a cell as a worker derives them from its JSON."""
    sent = Cell.from_mapping(json.loads(json.dumps(dataclasses.asdict(cell))))
    return Closure(Ref(job) for job in (target(sent), *measurements(sent))).jobs


def assert_derivable(plan: Plan) -> None:
    derived: dict[Cell, dict[str, Job]] = {}
    for key, job in plan.jobs.items():
        cell = plan.cells[key]
        if cell not in derived:
            derived[cell] = anew(cell)
        assert key in derived[cell], f"{job.kind} {key[:12]} does not belong to its cell {cell}"
        assert derived[cell][key].config == job.config
        if job.kind == schema.SPARSE:
            assert target(cell).key == key, "a sparse net is known by the cell whose number it is"


@functools.cache
def in_full(name: str, data_dir: str) -> Plan:
    """Return the plan of a whole space, as if the stand-ins had images enough for its batches."""

    def many(dataset: str, directory: str | None, reading: Reading) -> DatasetFacts:
        return dataclasses.replace(check_dataset(dataset, directory, reading), train_images=50_000)

    with mock.patch("study.plan.check_dataset", many):
        return make_plan(SPACES[name], data_dir)


@pytest.mark.parametrize("name", SPACES)
def test_every_job_of_a_space_can_be_derived_from_its_cell(name: str, data_dir: str) -> None:
    plan = in_full(name, data_dir)
    assert plan.cells.keys() == plan.jobs.keys()
    assert_derivable(plan)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_asks_for_each_of_its_cells(name: str, data_dir: str) -> None:
    space = SPACES[name]
    plan = in_full(name, data_dir)
    per_cell = space.members or 1
    assert plan.requests == per_cell * sum(1 for _ in space.cells())
    versions = {job.config.task.dataset: job.config.task.data_version for job in plan.jobs.values()}
    assert versions == {dataset: plan.facts[dataset].fingerprint for dataset in versions}


WANTED: dict[str, set[str]] = {
    # Beyond dense nets, pruning rounds and sparse nets: what the question cannot be answered without.
    "digits_quickstart": {schema.MATCH, schema.CONNECT},
    "cifar10_two_cores": {schema.MATCH, schema.CONNECT},
    "image_folder_study": {schema.MATCH, schema.CONNECT},
    "resnet20_width_sweep": {schema.MATCH, schema.CONNECT},
    "resnet20_cifar100_width_sweep": {schema.MATCH, schema.CONNECT},
    "vgg11_rewind_sweep": {schema.MATCH, schema.CONNECT},
    "resnet50_imagenet_sweep": {schema.MATCH, schema.CONNECT},
    "early_matching": {schema.MATCH},
    "matcher_ablation": {schema.MATCH, schema.CONNECT},
    "match_images": {schema.MATCH},
    "mask_controls": {schema.MATCH, schema.OVERLAP},
    "mask_transfer": {schema.MATCH},
    "mode_connectivity": {schema.MATCH, schema.CONNECT, schema.PLANE},
    "ensemble_diversity": {schema.MATCH, schema.ENSEMBLE},
    "ensemble_diversity_cifar100": {schema.MATCH, schema.ENSEMBLE},
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_has_the_jobs_that_answer_its_question(name: str, data_dir: str) -> None:
    kinds = {job.kind for job in in_full(name, data_dir).jobs.values()}
    assert kinds == {schema.DENSE, schema.PRUNE, schema.SPARSE} | WANTED[name], "say in WANTED of this file what it has"


@pytest.mark.parametrize("name", ["resnet20_width_sweep", "resnet20_cifar100_width_sweep"])
def test_the_width_sweeps_have_as_many_jobs_as_their_file_says(name: str, data_dir: str) -> None:
    plan = in_full(name, data_dir)
    said = Path(resnet20.__file__).read_text()
    assert f"{len(plan.jobs):,} jobs, {plan.epochs:,} epochs, instead of {plan.separate_epochs:,}" in said


# --- in miniature ---------------------------------------------------------------------------------------------------
def miniature(space: SearchSpace, **changes: Any) -> SearchSpace:
    """Return the same question on the digits, or the given data, with next to nothing of everything."""
    tiny: dict[str, Any] = {
        "dataset": ("digits",),
        "image_size": 0,
        "mask_dataset": "digits" if space.mask_dataset else "",
        "width": (0.25,),
        "sparsity": (0.36,),
        "rewind_epoch": (1,),
        "rewind_epochs_of_width": (),
        "match_epoch": tuple(dict.fromkeys(min(epoch, 1) for epoch in space.match_epoch)),
        "seeds": (0,),
        "epochs": 2,
        "batch_size": 128,
        "warmup_epochs": min(space.warmup_epochs, 0.5),
        "imp_epochs": 1,
        "match_images": 200,
        "interpolation_points": min(space.interpolation_points, 3),
        "plane_resolution": min(space.plane_resolution, 3),
        "members": min(space.members, 2),
    }
    return dataclasses.replace(space, **{**tiny, **changes})


def run(space: SearchSpace, root: Path, data_dir: str | None = None) -> tuple[Plan, Store]:
    """Compute all that a space asks for, job by job, as its plan has them."""
    plan, store = make_plan(space, data_dir), Store(root / "store")
    context = Context(store=store, data_dir=data_dir)
    for key, outputs in plan.closure.todo(store).items():
        for row in compute(plan.jobs[key], outputs, context):
            assert row["job_key"] == key, "its parents are published by now"
    assert not plan.closure.todo(store)
    return plan, store


def assert_complete(plan: Plan, store: Store) -> None:
    wanted = {key for key, outputs in plan.closure.todo(set()).items() if None in outputs}
    for key in wanted:
        job = plan.jobs[key]
        files, metrics = EXPECTED[job.kind]
        published = store.manifest(key)
        assert set(published["files"]) == files
        assert published["config"] == manifest(job, Context(store=store))["config"]
        document = read_metrics(store, key)
        assert document["final"].keys() >= metrics
        if job.kind == schema.MATCH:  # a net of another dataset has no loss on these labels
            barriers = {schema.LOSS_BARRIER_BEFORE, schema.LOSS_BARRIER_AFTER}
            alike = job.parent("a").job.config.task.dataset == job.config.task.dataset
            assert document["final"].keys() & barriers == (barriers if alike else set())
        rows = [document["final"], *document["history"]]
        numbers = {name: value for row in rows for name, value in row.items()}
        assert all(math.isfinite(value) for value in numbers.values()), f"{job.kind}: {numbers}"
        if isinstance(job.config, TRAINING_CONFIGS):
            assert [row["step"] for row in document["history"]] == list(range(1, job.epochs + 1))
        if job.kind in (schema.PRUNE, schema.SPARSE):
            weights = read_weights(store, key)
            assert all(not weights[name][~keep].any() for name, keep in read_mask(store, key).items())


def kinds(plan: Plan) -> Counter[str]:
    return Counter(job.kind for job in plan.jobs.values())


QUICK_AND_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SPACES]


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
@pytest.mark.filterwarnings("error::trainables.symmetry.repair.NoEffectWarning")
def test_a_space_runs_to_its_end(name: str, tmp_path: Path) -> None:
    plan, store = run(miniature(SPACES[name]), tmp_path)
    assert_complete(plan, store)
    assert_derivable(plan)
    assert kinds(plan).keys() == {schema.DENSE, schema.PRUNE, schema.SPARSE} | WANTED[name]


TINY = SearchSpace(name="tiny", question="Does it work?", model="resnet20", interpolation_points=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_its_end(name: str, tmp_path: Path) -> None:
    space = dataclasses.replace(TINY, rewind_epoch=1, **RECIPES[name])
    plan, store = run(miniature(space, method=("lth", "permuted")), tmp_path)
    assert_complete(plan, store)


# --- what only a run shows ------------------------------------------------------------------------------------------
def test_a_mask_serves_another_dataset(tmp_path: Path, data_dir: str) -> None:
    own = {"dataset": ("svhn",), "mask_dataset": "cifar10", "batch_size": 32, "match_images": 0, "sparsity": (0.2,)}
    space = miniature(SPACES["mask_transfer"], **own)
    plan, store = run(space, tmp_path, data_dir)
    assert_complete(plan, store)
    seen = {(job.kind, job.config.task.dataset) for job in plan.jobs.values()}
    assert seen == {
        *((schema.DENSE, "svhn"), (schema.DENSE, "cifar10"), (schema.PRUNE, "cifar10")),
        *((schema.MATCH, "svhn"), (schema.SPARSE, "svhn")),
    }


def test_nets_of_both_datasets_are_measured_where_they_were_trained(tmp_path: Path, data_dir: str) -> None:
    own = {"dataset": ("svhn",), "mask_dataset": "cifar10", "batch_size": 32, "match_images": 0, "sparsity": (0.2,)}
    asked = {"members": 2, "imp_path": True, "interpolation_points": 3, "plane_resolution": 2}
    space = miniature(SPACES["mask_transfer"], model="resnet8", method=("imp", "permuted"), **own, **asked)
    plan, store = run(space, tmp_path, data_dir)
    assert_complete(plan, store)
    for key, job in plan.jobs.items():
        if job.kind == schema.ENSEMBLE:
            single = [read_metrics(store, ref.key)["final"][schema.TEST_ACCURACY] for _, ref in job.parents]
            mean = read_metrics(store, key)["final"][schema.MEMBER_ACCURACY_MEAN]
            assert mean == pytest.approx(sum(single) / 2)


def test_early_matching_trains_b_no_longer_than_needed(tmp_path: Path) -> None:
    space = miniature(SPACES["early_matching"], method="permuted", match_epoch=(1,), sparsity=(0.2,))
    plan, store = run(space, tmp_path)
    (match,) = (job for job in plan.jobs.values() if job.kind == schema.MATCH)
    young = match.parent("b")
    assert young.epoch == 1
    assert young.key in store
    assert young.job.key not in store
    assert read_permutation(store, match.key)


def test_an_offset_starts_one_epoch_later(tmp_path: Path) -> None:
    space = miniature(TINY, method="lth", rewind_offset=1, sparsity=(0.2,), interpolation_points=0)
    plan, store = run(space, tmp_path)
    (sparse,) = (job for job in plan.jobs.values() if job.kind == schema.SPARSE)
    state = sparse.parent("init")
    final = read_weights(store, state.job.key)
    assert state.epoch == 2  # of two: the trained net itself
    assert all(torch.equal(tensor, final[name]) for name, tensor in read_weights(store, state.key).items())
    assert [row["step"] for row in read_metrics(store, sparse.key)["history"]] == [1]


def test_a_resumed_schedule_has_the_dense_one_s_rates(tmp_path: Path) -> None:
    space = miniature(TINY, method="lth", sparse_schedule="resume", epochs=3, sparsity=(0.2,), interpolation_points=0)
    plan, store = run(space, tmp_path)
    rates = {
        job.kind: [row[schema.LEARNING_RATE] for row in read_metrics(store, key)["history"]]
        for key, job in plan.jobs.items()
    }
    assert rates[schema.SPARSE] == rates[schema.DENSE][1:]
