"""What each kind of job publishes and starts from, and that interruptions do not change the result."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
import math
import re
import shutil
import time
import warnings
import weakref
from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from stored import file_of
from tiny_study import (
    METHODS,
    assert_same_result,
    computed_epochs,
    numbers,
    publish,
    same,
    tensors,
    tiny_cell,
    zeros,
)
from torch import Tensor, nn

from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.data import check_dataset, load_dataset
from trainables.data.batches import EvalBatches
from trainables.graph import (
    Closure,
    Job,
    Ref,
    dense_job,
    make_job,
    match_job,
    measurements,
    prune_job,
    pruning_rounds,
    target,
)
from trainables.host.toolchain import find_compiler
from trainables.jobs import publishing, task, train
from trainables.jobs.measure import measure
from trainables.jobs.publishing import Context, Row
from trainables.jobs.train import EpochWanted, course
from trainables.masks import apply_mask, magnitude_mask, mask_sparsity
from trainables.models import build_model
from trainables.seeding import derive_seed
from trainables.storage.artifacts import (
    pack_checkpoint,
    read_mask,
    read_metrics,
    read_permutation,
    read_weights,
    unpack,
    unpack_checkpoint,
)
from trainables.storage.store import Store
from trainables.symmetry.permutations import apply_permutation, permutation_spec
from trainables.training.engines.sparse_cpu import program
from trainables.training.evaluation import evaluate, predict_logits
from trainables.training.loop import Diverged, Training

CELL = tiny_cell()
DENSE_A, DENSE_B = dense_job(CELL, CELL.seed_a), dense_job(CELL, CELL.seed_b)
PRUNED = prune_job(CELL, CELL.seed_a)
ROUNDS = pruning_rounds(PRUNED)
MATCH = match_job(CELL, CELL.matcher)
SPARSE = [method for method in METHODS if target(tiny_cell(method)).kind == schema.SPARSE]


def model() -> nn.Module:
    return build_model("resnet8", width=0.25, in_channels=1)


def files(store: Store, key: str) -> set[str]:
    return set(store.manifest(key)["files"])


# --- what is published ----------------------------------------------------------------------------------------------
def test_each_kind_publishes_its_files(published: Store) -> None:
    trained = {schema.METRICS, schema.WEIGHTS, schema.LOGITS, schema.LOG}
    assert files(published, DENSE_A.key) == trained
    assert files(published, PRUNED.key) == trained | {schema.MASK}
    assert files(published, target(CELL).key) == trained | {schema.MASK}
    assert files(published, MATCH.key) == {schema.METRICS, schema.PERMUTATION, schema.LOG}
    assert files(published, measurements(CELL)[0].key) == {schema.METRICS, schema.LOG}
    assert files(published, Ref(DENSE_A, 1).key) == {schema.WEIGHTS}


@pytest.mark.parametrize("method", METHODS)
def test_final_numbers_of_a_training(published: Store, method: str) -> None:
    job = target(tiny_cell(method))
    document = read_metrics(published, job.key)
    final, history = document["final"], document["history"]
    assert final[schema.GENERALIZATION_GAP] == final[schema.FINAL_TRAIN_ACCURACY] - final[schema.TEST_ACCURACY]
    assert [row["step"] for row in history] == list(range(1, job.config.recipe.epochs + 1))
    assert all(set(schema.EPOCH_METRICS) <= row.keys() for row in history)
    assert [row["timestamp"] for row in history] == sorted(row["timestamp"] for row in history)
    assert final[schema.TEST_ACCURACY] == history[-1][schema.TEST_ACCURACY]
    assert final[schema.TEST_LOSS] == history[-1][schema.TEST_LOSS]
    assert final[schema.IMAGES_PER_SECOND] > 0
    assert final[schema.SECONDS] > 0


@pytest.mark.parametrize("method", METHODS)
def test_accuracies_follow_from_weights_and_from_logits(published: Store, method: str) -> None:
    key = target(tiny_cell(method)).key
    final = read_metrics(published, key)["final"]
    data = load_dataset("digits")
    logits = unpack(published.read(key, schema.LOGITS))["logits"]
    hits = logits.argmax(dim=1) == data.test.labels
    assert final[schema.TEST_ACCURACY] == pytest.approx(100 * float(hits.double().mean()), abs=1e-9)
    loss = nn.functional.cross_entropy(logits, data.test.labels)
    assert final[schema.TEST_LOSS] == pytest.approx(float(loss), rel=1e-5)
    net = model()
    net.load_state_dict(read_weights(published, key))
    train = evaluate(net, EvalBatches(data.train, mean=data.mean, std=data.std, batch_size=100))
    assert final[schema.FINAL_TRAIN_ACCURACY] == pytest.approx(train.accuracy, abs=0.15)  # an image may be on the edge
    assert final[schema.FINAL_TRAIN_LOSS] == pytest.approx(train.loss, rel=1e-3)


def test_a_job_passes_over_its_test_set_once_at_its_end(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, iterate = list[int](), EvalBatches.__iter__

    def counted(batches: EvalBatches) -> Any:
        passes.append(batches.num_images)
        return iterate(batches)

    monkeypatch.setattr(EvalBatches, "__iter__", counted)
    publish([Ref(DENSE_A)], context)
    test, train = 899, 898
    assert passes == [test] * DENSE_A.epochs + [test, train]
    data = task.TaskData(DENSE_A.config.task, context)
    anew = predict_logits(data.model(read_weights(context.store, DENSE_A.key)), data.test)
    assert torch.equal(unpack(context.store.read(DENSE_A.key, schema.LOGITS))["logits"], anew)


@pytest.mark.parametrize("classes", [19, 20])
def test_top5_where_there_are_classes_enough(tmp_path: Path, classes: int) -> None:
    for index in range(16 * classes):
        path = tmp_path / ("test" if index < classes else "train") / f"{index % classes:02}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).save(path)
    store = Store(tmp_path / "outputs")
    version = check_dataset("image_folder", tmp_path).fingerprint
    job = dense_job(tiny_cell("dense", dataset="image_folder", data_version=version, epochs=2), 0)
    publish([Ref(job)], Context(store=store, data_dir=str(tmp_path)))
    final = read_metrics(store, job.key)["final"]
    if classes < schema.TOP5_CLASSES:
        assert schema.TEST_TOP5_ACCURACY not in final
        return
    logits = unpack(store.read(job.key, schema.LOGITS))["logits"]
    labels = load_dataset("image_folder", tmp_path).test.labels
    better = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    assert final[schema.TEST_TOP5_ACCURACY] == pytest.approx(100 * float((better < 5).double().mean()))
    assert final[schema.TEST_TOP5_ACCURACY] >= final[schema.TEST_ACCURACY]


def test_manifest_says_where_a_result_comes_from(published: Store) -> None:
    job = target(CELL)
    manifest = published.manifest(job.key)
    assert manifest["kind"] == schema.SPARSE
    assert manifest["parents"] == {
        "init": Ref(DENSE_B, 1).key,
        "mask": PRUNED.key,
        "permutation": MATCH.key,
    }
    assert make_job(job.kind, job.config, **dict(job.parents)).key == job.key
    assert {schema.DEVICE, schema.CORES, *schema.SOFTWARE, "threads", "host"} <= manifest["environment"].keys()
    assert schema.MICRO_BATCHES not in manifest["environment"], "only of divided batches"


def test_tensors_come_in_the_same_order_each_time(published: Store) -> None:
    names = [list(read_mask(published, PRUNED.key)) for _ in range(5)]
    assert names == [sorted(names[0])] * 5


def test_nothing_is_left_beside_the_results(published: Store) -> None:
    assert not list((published.root / "work").rglob("*"))
    assert not list((published.root / "leases").iterdir())
    files = sum(1 + len(published.manifest(key)["files"]) for key in published.keys())  # noqa: SIM118 - a store is no dict
    assert len(list(published.storage.names("store"))) == files


# --- dense: states after k epochs -------------------------------------------------------------------------------------
def test_state_zero_is_the_untouched_initialisation(context: Context) -> None:
    rows = publish([Ref(DENSE_A, 0)], context)
    assert not rows, "the initial state needs no training"
    torch.manual_seed(derive_seed(DENSE_A.config.seed, "init"))
    assert same(read_weights(context.store, Ref(DENSE_A, 0).key), model().state_dict())
    assert DENSE_A.key not in context.store


def test_a_state_that_is_there_after_all_leaves_no_note_of_an_earlier_failure(context: Context) -> None:
    context.store.record_failure(DENSE_A.key, {"error": "no memory"})
    context.store.record_attempt(DENSE_A.key, {"error": "no memory"})
    publish([Ref(DENSE_A, 0)], context)
    assert context.store.failures() == set()
    assert context.store.attempt(DENSE_A.key) is None


def test_seeds_give_different_nets(published: Store) -> None:
    a, b = (read_weights(published, Ref(target(tiny_cell(m)).parent("init").job, 1).key) for m in ("lth", "naive"))
    assert not torch.equal(a["conv1.weight"], b["conv1.weight"])


def test_state_at_an_epoch_is_that_of_the_training_to_the_end(published: Store, context: Context) -> None:
    rows = publish([Ref(DENSE_A, 1), Ref(DENSE_A, 2)], context)
    assert computed_epochs(rows, DENSE_A) == [1, 1, 2]
    assert tensors(context.store, Ref(DENSE_A, 1).key) == tensors(published, Ref(DENSE_A, 1).key)
    assert DENSE_A.key not in context.store
    weights = read_weights(context.store, Ref(DENSE_A, 2).key)
    net = model()
    net.load_state_dict(weights)
    data = load_dataset("digits")
    test = evaluate(net, EvalBatches(data.test, mean=data.mean, std=data.std, batch_size=899))
    history = read_metrics(published, DENSE_A.key)["history"]
    assert test.accuracy == pytest.approx(history[1][schema.TEST_ACCURACY], abs=0.3)
    assert test.loss == pytest.approx(history[1][schema.TEST_LOSS], rel=1e-3)


def run_job(job: Job, wanted: Collection[int | None], context: Context) -> Generator[Row, None, None]:
    """Compute one job whose parents are published, and yield its rows."""
    with closing(course(job, wanted, context)) as steps:
        yield from (step for step in steps if not isinstance(step, EpochWanted))


def test_state_asked_for_later_leaves_the_result_alone(own_copy: Store) -> None:
    manifest = file_of(own_copy, DENSE_A.key, schema.MANIFEST)
    before = manifest.read_bytes()
    rows = publish([Ref(DENSE_A, 2)], Context(store=own_copy))
    assert computed_epochs(rows, DENSE_A) == [1, 2], "no further than what is asked for"
    assert manifest.read_bytes() == before
    assert Ref(DENSE_A, 2).key in own_copy


def test_all_outputs_at_once_equal_one_after_the_other(published: Store, context: Context) -> None:
    rows = list(run_job(DENSE_B, {None, 0, 1}, context))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert tensors(context.store, DENSE_B.key) == tensors(published, DENSE_B.key)
    assert tensors(context.store, Ref(DENSE_B, 1).key) == tensors(published, Ref(DENSE_B, 1).key)
    assert Ref(DENSE_B, 0).key in context.store


def test_divergence_publishes_nothing(context: Context) -> None:
    job = target(tiny_cell("dense", model="mlp", lr=90.0))
    with pytest.raises(Diverged):
        publish([Ref(job)], context)
    assert not context.store.keys()


def test_a_net_that_breaks_in_its_last_step_is_not_published(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = Training.run_epoch

    def breaks(training: Training) -> dict[str, float]:
        metrics = epoch(training)
        if training.epoch == training.recipe.epochs:
            next(training.model.parameters()).detach().view(-1)[0] = math.nan
        return metrics

    job = target(tiny_cell("dense", model="mlp"))
    monkeypatch.setattr(Training, "run_epoch", breaks)
    with pytest.raises(Diverged, match="not a number"):
        publish([Ref(job)], context)
    assert not context.store.keys()


# --- prune ------------------------------------------------------------------------------------------------------------
def test_pruning_is_nested_and_exact_in_every_round(published: Store) -> None:
    previous: dict[str, Tensor] | None = None
    reached = []
    for job in ROUNDS:
        mask = read_mask(published, job.key)
        total = sum(keep.numel() for keep in mask.values())
        assert zeros(mask) == round(job.config.sparsity * total)
        weights = read_weights(published, job.key)
        assert all(not weights[name][~keep].any() for name, keep in mask.items())
        if previous is not None:
            assert all(not (keep & ~previous[name]).any() for name, keep in mask.items()), "a pruned weight came back"
        previous = mask
        reached.append(job.config.sparsity)
    assert reached == [0.2, 0.36, 0.488, 0.5]


def test_first_round_prunes_the_smallest_weights_of_the_trained_net(published: Store) -> None:
    first, second = ROUNDS[:2]
    for job, before in ((first, DENSE_A), (second, first)):
        weights = read_weights(published, before.key)
        mask = read_mask(published, job.key)
        previous = read_mask(published, before.key) if before.kind == schema.PRUNE else None
        expected = magnitude_mask({name: weights[name] for name in mask}, job.config.sparsity, previous=previous)
        assert same(mask, expected)


def test_classifier_is_pruned_and_shortcuts_are_not(published: Store) -> None:
    mask = read_mask(published, PRUNED.key)
    assert "fc.weight" in mask
    assert not any("downsample" in name for name in mask)


def test_sparsities_over_prunable_and_over_all_weights(published: Store) -> None:
    for key in (PRUNED.key, target(CELL).key):
        final, mask = read_metrics(published, key)["final"], read_mask(published, key)
        parameters = sum(parameter.numel() for parameter in model().parameters())
        assert final[schema.SPARSITY_PRUNABLE] == mask_sparsity(mask)
        assert final[schema.SPARSITY_NETWORK] == pytest.approx(zeros(mask) / parameters)
        assert final[schema.SPARSITY_NETWORK] < final[schema.SPARSITY_PRUNABLE]


def test_layer_collapse_is_a_metric_and_a_warning_and_a_mask_of_nothing_is_refused(own_copy: Store) -> None:
    assert read_metrics(own_copy, PRUNED.key)["final"][schema.COLLAPSED_LAYERS] == 0
    collapsing = tiny_cell(sparsity=0.999, pruner="one_shot", imp_epochs=1)
    job = prune_job(collapsing, collapsing.seed_a)
    publish([Ref(job)], Context(store=own_copy))
    count = read_metrics(own_copy, job.key)["final"][schema.COLLAPSED_LAYERS]
    assert count == sum(not kept.any() for kept in read_mask(own_copy, job.key).values()) > 0
    log = own_copy.read(job.key, schema.LOG).decode()
    assert re.search(rf"warning: {count:.0f} of \d+ masked layers have no weight left: [\w.]+", log)
    nothing = tiny_cell(sparsity=0.99999, pruner="one_shot")
    with pytest.raises(ValueError, match=r"0\.99999 prunes all 4,804 prunable weights of resnet8 at"):
        publish([Ref(prune_job(nothing, nothing.seed_a))], Context(store=own_copy))


# --- sparse: the right mask on the right net --------------------------------------------------------------------------
class Start(Training):
    """Records the state that a training starts from."""

    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]]

    def __init__(self, net: nn.Module, recipe: Any, train: Any, test: Any, mask: Any, *others: Any) -> None:
        super().__init__(net, recipe, train, test, mask, *others)
        weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        self.seen.append((weights, dict(mask or {})))


def first_state(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the mask that a job's training starts from."""
    monkeypatch.setattr(Start, "seen", [], raising=False)
    monkeypatch.setattr(task, "Training", Start)
    next(run_job(job, [None], Context(store=store)))
    return Start.seen[0]


EXPECTED = {  # method -> seed of the net that it starts from, seed of the net that its mask comes from
    "lth": (CELL.seed_a, CELL.seed_a),
    "naive": (CELL.seed_b, CELL.seed_a),
    "permuted": (CELL.seed_b, CELL.seed_a),
    "shuffled": (CELL.seed_b, CELL.seed_a),
    "layerwise_random": (CELL.seed_b, CELL.seed_a),
    "own_mask": (CELL.seed_b, CELL.seed_b),
}


def test_every_sparse_method_is_looked_at_here() -> None:
    assert {*EXPECTED, "reinit"} == set(SPARSE)


@pytest.mark.parametrize("method", EXPECTED)
def test_sparse_training_starts_from_the_rewound_net_under_its_mask(
    own_copy: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    start_seed, mask_seed = EXPECTED[method]
    job = target(tiny_cell(method))
    weights, mask = first_state(job, own_copy, monkeypatch)
    source = read_mask(own_copy, prune_job(CELL, mask_seed).key)
    if method == "permuted":
        permutation = read_permutation(own_copy, MATCH.key)
        assert any(not torch.equal(index, torch.arange(len(index))) for index in permutation.values())
        assert same(mask, apply_permutation(permutation_spec(model()), permutation, source))
        assert not same(mask, source)
    elif method in ("shuffled", "layerwise_random"):
        assert not same(mask, source)
        assert {name: zeros({name: keep}) for name, keep in mask.items()} == {
            name: zeros({name: keep}) for name, keep in source.items()
        }
    else:
        assert same(mask, source)
    rewound = read_weights(own_copy, Ref(dense_job(CELL, start_seed), CELL.rewind_epoch).key)
    assert same(weights, apply_mask(mask, rewound)), "weights and BatchNorm statistics of the rewind epoch"
    assert same(read_mask(own_copy, job.key), mask), "recomputed, it trains under the published mask"


def test_reinit_starts_from_an_initialisation_of_its_own(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = target(tiny_cell("reinit"))
    weights, mask = first_state(job, own_copy, monkeypatch)
    torch.manual_seed(derive_seed(job.config.seed, "init"))
    fresh = model().state_dict()
    assert job.config.seed not in (CELL.seed_a, CELL.seed_b)
    assert same(weights, apply_mask(mask, fresh))
    assert same(mask, read_mask(own_copy, PRUNED.key))
    assert job.epochs == CELL.epochs, "it has no epochs behind it"


@pytest.mark.parametrize("method", SPARSE)
def test_sparse_net_is_zero_exactly_under_its_mask(published: Store, method: str) -> None:
    key = target(tiny_cell(method)).key
    weights, mask = read_weights(published, key), read_mask(published, key)
    assert zeros(mask) == zeros(read_mask(published, PRUNED.key))
    for name, keep in mask.items():
        assert not weights[name][~keep].any()
        assert not torch.signbit(weights[name][~keep]).any()
        assert float((weights[name][keep] != 0).double().mean()) > 0.99


def test_rewind_pruner_retrains_from_the_rewind_epoch(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = tiny_cell("imp", pruner="imp_rewind", sparsity=0.36)
    monkeypatch.setattr(Start, "seen", [], raising=False)
    monkeypatch.setattr(task, "Training", Start)
    publish([Ref(target(cell))], context)
    rewound = read_weights(context.store, Ref(dense_job(cell, cell.seed_a), 1).key)
    masked = [(weights, mask) for weights, mask in Start.seen if mask]
    assert len(masked) == 2
    for weights, mask in masked:
        assert same(weights, apply_mask(mask, rewound))


# --- match and connect ----------------------------------------------------------------------------------------------
def test_match_publishes_a_permutation_of_every_group(published: Store) -> None:
    permutation = read_permutation(published, MATCH.key)
    spec = permutation_spec(model())
    assert apply_permutation(spec, permutation, model().state_dict()).keys() == model().state_dict().keys()
    for index in permutation.values():
        assert torch.equal(index.sort().values, torch.arange(len(index)))
    final = read_metrics(published, MATCH.key)["final"]
    moved = [float((index != torch.arange(len(index))).sum()) for index in permutation.values()]
    assert final[schema.MOVED_UNITS] == pytest.approx(sum(moved) / sum(map(len, permutation.values())))
    assert final[schema.MEAN_CORRELATION] > final[schema.MEAN_CORRELATION_IDENTITY]


def test_connect_measures_a_curve_from_one_net_to_the_other(published: Store) -> None:
    identity, matched = (read_metrics(published, job.key) for job in measurements(CELL))
    for document in (identity, matched):
        curve, final = document["history"], document["final"]
        assert [row["step"] for row in curve] == [0, 50, 100]
        assert final[schema.MIDPOINT_ACCURACY] == curve[1][schema.INTERPOLATION_ACCURACY]
        losses = [row[schema.INTERPOLATION_LOSS] for row in curve]
        barrier = max(0.0, losses[1] - (losses[0] + losses[2]) / 2)
        assert final[schema.LOSS_BARRIER] == pytest.approx(barrier, abs=1e-9)
    assert identity["history"][2] | {"timestamp": 0} == matched["history"][2] | {"timestamp": 0}, "both end at B"


# --- interruption ---------------------------------------------------------------------------------------------------
def without(store: Store, *keys: str) -> Store:
    """Unpublish results."""
    for key in keys:
        shutil.rmtree(store.directory(key))
    return store


ALL_JOBS = {
    **{method: target(tiny_cell(method)) for method in METHODS},
    "first round": ROUNDS[0],
    "match": MATCH,
    "connect": measurements(CELL)[1],
}


@pytest.mark.parametrize("name", ALL_JOBS)
def test_computed_a_second_time_it_has_the_same_bits(published: Store, own_copy: Store, name: str) -> None:
    job = ALL_JOBS[name]
    torch.rand(3)  # earlier draws have no influence
    list(run_job(job, [None], Context(store=without(own_copy, job.key))))
    assert_same_result(published, own_copy, job.key)


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("method", ["dense", "reinit"])
def test_killed_job_goes_on_from_its_checkpoint(published: Store, own_copy: Store, method: str, done: int) -> None:
    job = target(tiny_cell(method))
    outputs = {None, 1} if method == "dense" else {None}
    context = Context(store=without(own_copy, *(Ref(job, output).key for output in outputs)), checkpoint_seconds=0.0)
    first = run_job(job, outputs, context)
    for _ in range(done):
        next(first)
    first.close()
    assert job.key not in own_copy
    assert own_copy.read_checkpoint(job.key) is not None
    rows = list(run_job(job, outputs, context))
    assert [row["step"] for row in rows] == list(range(done + 1, 4))
    assert_same_result(published, own_copy, job.key)
    if method == "dense":
        assert tensors(own_copy, Ref(job, 1).key) == tensors(published, Ref(job, 1).key)
    assert own_copy.read_checkpoint(job.key) is None


def test_seconds_add_up_over_attempts(own_copy: Store) -> None:
    context = Context(store=without(own_copy, DENSE_A.key), checkpoint_seconds=0.0)
    first = run_job(DENSE_A, {None}, context)
    next(first)
    next(first)
    first.close()
    tensors_, document = unpack_checkpoint(own_copy.read_checkpoint(DENSE_A.key) or b"", DENSE_A.key)
    own_copy.write_checkpoint(DENSE_A.key, pack_checkpoint(DENSE_A.key, tensors_, {**document, "seconds": 1000.0}))
    list(run_job(DENSE_A, {None}, context))
    assert 1000 < read_metrics(own_copy, DENSE_A.key)["final"][schema.SECONDS] < 1100


def test_seconds_are_the_jobs_own(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = itertools.count()
    monkeypatch.setattr(
        publishing, "time", SimpleNamespace(**{**vars(time), "perf_counter": lambda: 3600.0 * next(hours)})
    )
    for step in course(DENSE_A, {None}, Context(store=without(own_copy, DENSE_A.key))):
        if isinstance(step, EpochWanted) and step.training.epoch == 1:
            with step.log.capturing(share=0.25):
                pass
        next(hours)  # between two steps the clock goes on for others
    # Two steps for each of three epochs and one that publishes; of the shared hour, a quarter.
    assert read_metrics(own_copy, DENSE_A.key)["final"][schema.SECONDS] == 3600.0 * (2 * 3 + 1 + 0.25)


def test_between_its_epochs_a_job_leaves_the_process_as_it_was(own_copy: Store) -> None:
    def settings() -> tuple[object, ...]:
        return list(logging.getLogger().handlers), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()

    before = settings()
    rows = run_job(DENSE_A, {None}, Context(store=without(own_copy, DENSE_A.key)))
    assert [settings() for _ in rows] == [before] * 3
    assert settings() == before


def test_a_warning_is_in_the_log_of_every_job_that_has_it(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials reuse processes, and Python shows a warning once per process."""

    def warned(job: Job, context: Context) -> None:
        for _ in range(2):
            warnings.warn("of no effect", UserWarning, stacklevel=1)
        measure(job, context)

    monkeypatch.setattr(train, "measure", warned)
    jobs = [match_job(tiny_cell(match_images=images), CELL.matcher) for images in (100, 101)]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(False)  # of an earlier test, whose end has undone it
        publish([Ref(job) for job in jobs], Context(store=own_copy))
    logs = [own_copy.read(job.key, schema.LOG).decode() for job in jobs]
    assert [log.count("UserWarning: of no effect") for log in logs] == [1, 1]


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("ending", ["published", "diverged", "stopped"])
def test_a_job_leaves_no_activations_in_the_process(
    own_copy: Store, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until Python looks for reference cycles: the next trial of the process is placed by its own memory."""
    kept: list[weakref.ref[program._Prepared]] = []

    class Prepared(program._Prepared):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append(weakref.ref(self))

    monkeypatch.setattr(program, "_Prepared", Prepared)
    context = Context(store=own_copy)
    job = target(tiny_cell("lth", sparsity=0.8, prune_fraction=0.8, kernels="sparse"))
    publish([ref for _, ref in job.parents], context)
    kept.clear()
    if ending == "diverged":

        def finish_epoch(*_: object) -> None:
            raise Diverged

        monkeypatch.setattr(Training, "finish_epoch", finish_epoch)
    gc.collect()
    gc.disable()
    try:
        with closing(run_job(job, [None], context)) as rows, contextlib.suppress(Diverged):
            for _ in rows:
                if ending == "stopped":
                    break
        assert kept
        assert not any(prepared() for prepared in kept)
    finally:
        gc.enable()
    assert (job.key in own_copy) == (ending == "published")


def test_a_job_asks_for_its_epochs_and_is_told_their_metrics(own_copy: Store) -> None:
    steps = course(DENSE_A, {None}, Context(store=without(own_copy, DENSE_A.key)))
    history = []
    for epoch in range(3):
        wants = next(steps)
        assert isinstance(wants, EpochWanted)
        assert wants.training.epoch == epoch
        wants.end = lambda training=wants.training: {**training.run_epoch(), "note": 7.0}
        row = next(steps)
        assert isinstance(row, dict)
        assert row["note"] == 7.0
        history.append(row)
    assert next(steps, None) is None
    assert read_metrics(own_copy, DENSE_A.key)["history"] == history


def test_checkpoints_keep_their_distance_in_time(own_copy: Store) -> None:
    context = Context(store=without(own_copy, DENSE_A.key), checkpoint_seconds=3600.0)
    for _ in run_job(DENSE_A, {None}, context):
        assert own_copy.read_checkpoint(DENSE_A.key) is None


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty", "foreign"])
def test_damaged_checkpoint_costs_time_but_not_the_result(published: Store, own_copy: Store, damage: str) -> None:
    context = Context(store=without(own_copy, DENSE_A.key), checkpoint_seconds=0.0)
    first = run_job(DENSE_A, {None}, context)
    next(first)
    next(first)
    first.close()
    content = own_copy.read_checkpoint(DENSE_A.key) or b""
    flipped = content[:-9] + bytes([content[-9] ^ 0x40]) + content[-8:]
    damaged = {"flipped": flipped, "torn": content[: len(content) // 2], "empty": b"", "foreign": b"no checkpoint"}
    own_copy.write_checkpoint(DENSE_A.key, damaged[damage])
    rows = list(run_job(DENSE_A, {None}, context))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert_same_result(published, own_copy, DENSE_A.key)


def test_a_checkpoint_of_an_earlier_version_costs_time_and_the_log_says_so(published: Store, own_copy: Store) -> None:
    path = f"work/{DENSE_A.key}/checkpoint.safetensors"
    context = Context(store=without(own_copy, DENSE_A.key), checkpoint_seconds=0.0)
    metadata = {"format": "2", "job": DENSE_A.key}
    own_copy.storage.write(path, safetensors.torch.save({"weight": torch.ones(2)}, metadata))
    assert [row["step"] for row in run_job(DENSE_A, {None}, context)] == [1, 2, 3]
    assert_same_result(published, own_copy, DENSE_A.key)
    assert "starting from the first epoch: " in own_copy.read(DENSE_A.key, schema.LOG).decode()
    assert own_copy.storage.read(path) is None


TRAINED = {job.kind: job for job in (DENSE_A, PRUNED, target(CELL))}


def test_every_kind_that_is_saved_is_looked_at_here() -> None:
    every = Closure([Ref(target(CELL)), *(Ref(job) for job in measurements(CELL))]).jobs.values()
    assert TRAINED.keys() == {job.kind for job in every if isinstance(job.config, TRAINING_CONFIGS)}


@pytest.mark.parametrize("strange", ["another seed", "another width", "another layout", "of later epochs"])
@pytest.mark.parametrize("kind", TRAINED)
def test_checkpoint_that_does_not_fit_counts_as_none(
    published: Store, own_copy: Store, kind: str, strange: str
) -> None:
    job = TRAINED[kind]
    context = Context(store=without(own_copy, job.key), checkpoint_seconds=0.0)
    if strange == "of later epochs":
        wrong = saved_after(1, job, context)
        tensors_, document = unpack_checkpoint(wrong, job.key)
        wrong = pack_checkpoint(job.key, tensors_, {**document, "epoch": 2})
    elif strange == "another layout":
        tensors_, document = unpack_checkpoint(saved_after(1, job, context), job.key)
        wrong = pack_checkpoint(job.key, {name: tensor[None] for name, tensor in tensors_.items()}, document)
    else:
        other = dense_job(CELL if strange == "another seed" else tiny_cell(width=0.5), 7)
        wrong = saved_after(1, other, context)
    own_copy.write_checkpoint(job.key, wrong)
    rows = list(run_job(job, {None}, context))
    assert [row["step"] for row in rows] == list(range(1, job.epochs + 1))
    assert_same_result(published, own_copy, job.key)
    assert "starting from the first epoch: " in own_copy.read(job.key, schema.LOG).decode()


def saved_after(epochs: int, job: Job, context: Context) -> bytes:
    """Return the checkpoint of a job that is killed after `epochs` epochs."""
    rows = run_job(job, {None}, context)
    for _ in range(epochs):
        next(rows)
    rows.close()
    content = context.store.read_checkpoint(job.key)
    assert content is not None
    return content


def test_checkpoint_beyond_a_wanted_state_is_not_used(published: Store, own_copy: Store) -> None:
    state = Ref(DENSE_A, 1).key
    context = Context(store=without(own_copy, DENSE_A.key, state), checkpoint_seconds=0.0)
    first = run_job(DENSE_A, {None}, context)
    for _ in range(2):
        next(first)
    first.close()
    rows = list(run_job(DENSE_A, {None, 1}, context))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert tensors(own_copy, state) == tensors(published, state)
    assert_same_result(published, own_copy, DENSE_A.key)


def test_a_state_is_published_once_its_net_can_go_on_from_there(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, saved = Store.publish, []

    def noting(store: Store, key: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
        if manifest.get("epoch"):
            _, document = unpack_checkpoint(store.read_checkpoint(DENSE_B.key) or b"", DENSE_B.key)
            saved.append((manifest["epoch"], document["epoch"]))
        return published(store, key, files, manifest)

    monkeypatch.setattr(Store, "publish", noting)
    list(run_job(DENSE_B, {None, 0, 1, 2}, context))
    assert saved == [(1, 1), (2, 2)]


def test_published_result_stays_whoever_computes_it_again(own_copy: Store) -> None:
    before = own_copy.read(DENSE_A.key, schema.METRICS)
    list(run_job(target(tiny_cell("reinit")), [None], Context(store=own_copy)))
    assert own_copy.read(DENSE_A.key, schema.METRICS) == before
    assert numbers(own_copy, target(tiny_cell("reinit")).key)


def test_settings_of_the_surroundings_do_not_enter_the_key(tmp_path: Path) -> None:
    assert target(tiny_cell()).key == target(dataclasses.replace(tiny_cell(), sparse_lr=tiny_cell().sparse_lr)).key
    assert target(tiny_cell(interpolation_points=0)).key == target(tiny_cell(interpolation_points=5)).key
