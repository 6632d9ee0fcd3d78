"""Jobs that are computed together: each has the result that it has alone, even if others fail."""

from __future__ import annotations

import logging
import shutil
import time
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from tiny_study import (
    assert_same_result,
    computed_epochs,
    damage_when_read,
    publish,
    tensors,
    tiny_cell,
    trained,
)

from trainables import schema
from trainables.config import Cell
from trainables.graph import Closure, Job, Ref, dense_job, match_job, target
from trainables.jobs import execution
from trainables.jobs.execution import News, compute, compute_together
from trainables.jobs.publishing import Context
from trainables.storage.artifacts import read_mask, read_metrics, read_weights
from trainables.storage.store import DamagedArtifact, Store
from trainables.training.loop import Diverged, Training


def stacked(method: str = "permuted", **changes: Any) -> Cell:
    """Return a cell of the tiny study whose networks may be trained as one."""
    return tiny_cell(method, stacked=True, **changes)


CELL = stacked()
DENSE_A, DENSE_B = dense_job(CELL, CELL.seed_a), dense_job(CELL, CELL.seed_b)
PERMUTED, NAIVE, SHUFFLED, LTH = (target(stacked(method)) for method in ("permuted", "naive", "shuffled", "lth"))
MATCH = match_job(CELL, CELL.matcher)
Rounds = list[dict[str, News]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The jobs, each computed alone; not to be changed."""
    store = Store(tmp_path_factory.mktemp("published"))
    publish([Ref(job) for job in (PERMUTED, NAIVE, SHUFFLED, LTH, MATCH)], Context(store=store))
    return store


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nets in each jointly trained epoch."""
    sizes: list[int] = []
    train = execution.train_epoch

    def noting(trainings: Sequence[Training]) -> Any:
        sizes.append(len(trainings))
        return train(trainings)

    monkeypatch.setattr(execution, "train_epoch", noting)
    return sizes


def wanted(*jobs: Job) -> list[tuple[Job, Collection[int | None]]]:
    return [(job, [None]) for job in jobs]


def without(store: Store, *jobs: Job) -> Context:
    """Return a context whose store lacks some results, with a checkpoint after every epoch."""
    for job in jobs:
        shutil.rmtree(store.directory(job.key))
    return Context(store=store, checkpoint_seconds=0.0)


def together(context: Context, *jobs: Job) -> Rounds:
    return list(compute_together(wanted(*jobs), context))


def of(job: Job, rounds: Rounds) -> list[News]:
    """Return the news of one target."""
    return [news[job.key] for news in rounds if job.key in news]


def rows(rounds: Rounds) -> list[dict[str, Any]]:
    return [each for news in rounds for each in news.values() if isinstance(each, dict)]


def assert_nearly_same(left: Store, right: Store, key: str) -> None:
    """Assert that two stores hold the same trained net under a key, up to rounding."""
    assert tensors(left, key).keys() == tensors(right, key).keys()
    if schema.MASK in tensors(left, key):
        ours, theirs = read_mask(left, key), read_mask(right, key)
        assert all(torch.equal(ours[name], keep) for name, keep in theirs.items())
    weights, reference = (
        torch.cat([each.double().flatten() for each in read_weights(store, key).values()]) for store in (left, right)
    )
    assert (weights - reference).norm() < 0.02 * reference.norm()
    if schema.METRICS in left.manifest(key)["files"]:
        ours, theirs = read_metrics(left, key), read_metrics(right, key)
        assert ours["final"].keys() == theirs["final"].keys()
        for name in (schema.TEST_LOSS, schema.FINAL_TRAIN_LOSS):
            assert ours["final"][name] == pytest.approx(theirs["final"][name], rel=0.05)
        assert [row["step"] for row in ours["history"]] == [row["step"] for row in theirs["history"]]
        for row, expected in zip(ours["history"], theirs["history"], strict=True):
            assert row[schema.LEARNING_RATE] == expected[schema.LEARNING_RATE]
            assert row[schema.TRAIN_LOSS] == pytest.approx(expected[schema.TRAIN_LOSS], rel=0.05)


def assert_nothing_is_left(store: Store) -> None:
    assert not list((store.root / "work").rglob("*.safetensors"))
    assert not store.leases()


# --- each net as if alone --------------------------------------------------------------------------------------------
def test_nets_trained_as_one_are_published_one_by_one_as_alone(
    published: Store, own_copy: Store, groups: list[int]
) -> None:
    jobs = (PERMUTED, NAIVE, SHUFFLED, LTH)
    context = without(own_copy, *jobs)
    rounds = together(context, *jobs)
    assert groups == [4, 4], "two epochs of four nets"
    for job in jobs:
        first, second, end = of(job, rounds)
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert {"stage": schema.SPARSE, "job_key": job.key, "step": 1}.items() <= first.items()
        assert {"stage": schema.SPARSE, "job_key": job.key, "step": 2}.items() <= second.items()
        assert set(schema.EPOCH_METRICS) <= first.keys()
        assert end is None
        assert_nearly_same(own_copy, published, job.key)
        assert own_copy.read(job.key, schema.LOG).decode().count(job.key) == 1
    assert_nothing_is_left(own_copy)


def test_a_net_that_has_more_epochs_goes_on_without_the_others(
    published: Store, own_copy: Store, groups: list[int]
) -> None:
    rounds = together(without(own_copy, DENSE_A, LTH, DENSE_B), LTH, DENSE_A, DENSE_B)
    assert groups == [3, 3, 2]
    assert [sorted(news) for news in rounds] == [
        sorted(job.key for job in jobs)
        for jobs in ([LTH, DENSE_A, DENSE_B],) * 2 + ([LTH], [DENSE_A, DENSE_B], [DENSE_A, DENSE_B])
    ], "its end is reported before the others continue training"
    assert rounds[2] == {LTH.key: None}
    for job in (LTH, DENSE_A, DENSE_B):
        assert_nearly_same(own_copy, published, job.key)


def test_nets_that_fit_nobody_have_the_bits_of_a_net_alone(
    context: Context, own_copy: Store, groups: list[int]
) -> None:
    mlp = dense_job(stacked("dense", model="mlp"), 0)
    other_batch = dense_job(stacked("dense", batch_size=100), 0)
    alone = without(own_copy, DENSE_A)
    publish([Ref(mlp), Ref(other_batch), Ref(DENSE_A)], alone)
    rounds = together(context, mlp, other_batch, DENSE_A)
    assert not groups
    assert [len(news) for news in rounds] == [3, 3, 3, 3], "an epoch of each in every round, and their ends"
    for job in (mlp, other_batch, DENSE_A):
        assert_same_result(context.store, own_copy, job.key)


def test_states_and_measurements_are_targets_as_well(published: Store, own_copy: Store) -> None:
    context = without(own_copy, MATCH)
    shutil.rmtree(own_copy.directory(Ref(DENSE_A, 1).key))
    rounds = list(compute_together([(DENSE_A, [1, 2]), (MATCH, [None])], context))
    assert of(MATCH, rounds) == [None]
    assert computed_epochs(rows(rounds), DENSE_A) == [1, 2]
    assert_same_result(own_copy, published, MATCH.key)
    assert Ref(DENSE_A, 2).key in own_copy


def test_what_is_published_is_complete_at_once(own_copy: Store) -> None:
    assert together(Context(store=own_copy), NAIVE, LTH) == [{NAIVE.key: None, LTH.key: None}]


def test_time_of_a_net_is_its_own_and_its_share(own_copy: Store) -> None:
    jobs = (PERMUTED, NAIVE, SHUFFLED)
    start = time.perf_counter()
    together(without(own_copy, *jobs), *jobs)
    passed = time.perf_counter() - start
    finals = [read_metrics(own_copy, job.key)["final"] for job in jobs]
    assert sum(final[schema.SECONDS] for final in finals) <= passed
    for final in finals:
        assert final[schema.SECONDS] > 2 * 7 * CELL.batch_size / final[schema.IMAGES_PER_SECOND], "of training"


def test_the_same_job_twice_is_refused(context: Context) -> None:
    with pytest.raises(ValueError, match=f"must all be different, got more than once: .*{LTH.key}"):
        together(context, LTH, NAIVE, LTH)


# --- ancestors -------------------------------------------------------------------------------------------------------
def test_targets_share_the_ancestors_that_are_missing(published: Store, context: Context, groups: list[int]) -> None:
    rounds = together(context, PERMUTED, NAIVE, LTH)
    graph = Closure(Ref(job) for job in (PERMUTED, NAIVE, LTH)).jobs
    for key, job in graph.items():
        # A state of a finished net may be requested later; the epochs up to it are then trained again.
        once = {1, 2} if job.kind == schema.DENSE else {1}
        assert all(trained(rows(rounds))[key, step + 1] in once for step in range(job.epochs))
    assert any("waiting" in row for row in rows(rounds)), "for a net that is another target's at the moment"
    assert max(groups) > 1, "A and B at the same time"
    for job in (PERMUTED, NAIVE, LTH):
        assert of(job, rounds)[-1] is None
        assert job.key in context.store
    assert_nearly_same(context.store, published, DENSE_A.key)
    assert_nothing_is_left(context.store)


def test_who_waits_for_somebody_else_holds_up_nobody(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    context = without(own_copy, NAIVE, LTH)
    lease = own_copy.lease(NAIVE.key)
    assert lease is not None
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(LTH.key in own_copy)
        lease.release()

    monkeypatch.setattr(execution.time, "sleep", sleep)
    rounds = together(context, NAIVE, LTH)
    assert slept == [True], "it sleeps only if there is nothing else to do"
    waiting = {"stage": schema.SPARSE, "job_key": NAIVE.key, "waiting": True}
    assert of(NAIVE, rounds)[:3] == [waiting] * 3
    assert computed_epochs(rows(rounds), NAIVE) == computed_epochs(rows(rounds), LTH) == [1, 2]
    assert of(NAIVE, rounds)[-1] is None


# --- failures --------------------------------------------------------------------------------------------------------
def test_a_net_that_diverges_fails_alone(context: Context, own_copy: Store) -> None:
    jobs = [dense_job(stacked("dense", model="mlp"), seed) for seed in (0, 1)]
    diverging = dense_job(tiny_cell("dense", model="mlp", lr=90.0), 0)
    rounds = together(context, jobs[0], diverging, jobs[1])
    (error,) = of(diverging, rounds)
    assert isinstance(error, Diverged)
    assert context.store.failures() == {diverging.key}
    note = context.store.failure(diverging.key)
    assert note is not None
    assert note["error"] == f"Diverged: {error}"
    assert "Traceback" in note["log"]
    publish([Ref(job) for job in jobs], Context(store=own_copy))
    for job in jobs:
        assert of(job, rounds)[-1] is None
        assert_nearly_same(context.store, own_copy, job.key)
    assert not context.store.leases()


def test_a_failure_that_may_not_recur_is_noted_as_that_of_an_attempt(
    own_copy: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the job would count as failed, and its descendants as blocked, while it waits for its next attempt."""
    context = without(own_copy, NAIVE)

    def breaks(training: Training) -> Any:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", breaks)
        (error,) = of(NAIVE, together(context, NAIVE))
    assert isinstance(error, RuntimeError)
    assert own_copy.failures() == set()
    note = own_copy.attempt(NAIVE.key)
    assert note is not None
    assert note["error"] == f"RuntimeError: {error}"
    assert "Traceback" in note["log"]
    assert of(NAIVE, together(context, NAIVE))[-1] is None
    assert own_copy.attempt(NAIVE.key) is None


def test_damage_without_end_is_the_end_of_whom_it_concerns(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    context = without(own_copy, PERMUTED, NAIVE)
    damage_when_read(monkeypatch, schema.PERMUTATION)
    rounds = together(context, PERMUTED, NAIVE)
    assert isinstance(of(PERMUTED, rounds)[-1], DamagedArtifact)
    assert of(NAIVE, rounds)[-1] is None
    assert not own_copy.failures(), "not caused by the job"
    assert not own_copy.leases()


def test_an_error_of_nobody_ends_all(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    context = without(own_copy, NAIVE, LTH)
    train, calls = execution.train_epoch, []

    def fails_later(trainings: Sequence[Training]) -> Any:
        calls.append(trainings)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("no memory for two")
        return train(trainings)

    monkeypatch.setattr(execution, "train_epoch", fails_later)
    seen = []
    with pytest.raises(torch.OutOfMemoryError, match="no memory for two"):
        seen.extend(compute_together(wanted(NAIVE, LTH), context))
    assert not own_copy.leases()
    assert not own_copy.failures()
    for job in (NAIVE, LTH):
        assert own_copy.read_checkpoint(job.key) is not None
        assert computed_epochs(list(compute(job, [None], context)), job) == [2], "one net alone has enough memory"


def test_what_a_failed_net_occupied_is_free_while_the_others_train(
    own_copy: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = without(own_copy, NAIVE, LTH)
    course, held = execution.course, []

    def failing(job: Job, outputs: Collection[int | None], context: Context) -> Any:
        if job is not NAIVE:
            yield from course(job, outputs, context)
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(f"no memory for more than {activations}")

    monkeypatch.setattr(execution, "course", failing)
    news = next(compute_together(wanted(NAIVE, LTH), context))
    assert isinstance(news[NAIVE.key], torch.OutOfMemoryError)
    assert held[0]() is None


# --- interruption ----------------------------------------------------------------------------------------------------
def test_interrupted_nets_go_on_from_their_own_checkpoints(
    published: Store, own_copy: Store, groups: list[int]
) -> None:
    jobs = (DENSE_A, DENSE_B, LTH)
    context = without(own_copy, *jobs)
    alone = compute(DENSE_A, [None], context)
    next(alone)
    next(alone)
    alone.close()
    rounds = compute_together(wanted(*jobs), context)
    assert [row["step"] for row in rows([next(rounds)])] == [3, 1, 1]
    assert own_copy.leases().keys() == {job.key for job in jobs}
    next(rounds)
    rounds.close()
    assert not own_copy.leases()
    assert DENSE_A.key in own_copy
    rest = together(context, *jobs)
    assert computed_epochs(rows(rest), DENSE_B) == [2, 3]
    assert computed_epochs(rows(rest), LTH) == [2]
    assert groups == [3, 2]
    for job in jobs:
        assert_nearly_same(own_copy, published, job.key)


def test_stacked_nets_do_not_go_on_from_the_checkpoints_of_others(published: Store, own_copy: Store) -> None:
    context = without(own_copy, DENSE_A, DENSE_B)
    rounds = compute_together(wanted(DENSE_A, DENSE_B), context)
    next(rounds)
    rounds.close()
    first, second = (own_copy.read_checkpoint(job.key) or b"" for job in (DENSE_A, DENSE_B))
    own_copy.write_checkpoint(DENSE_A.key, second)
    own_copy.write_checkpoint(DENSE_B.key, first)
    rest = rows(together(context, DENSE_A, DENSE_B))
    for job in (DENSE_A, DENSE_B):
        assert computed_epochs(rest, job) == [1, 2, 3]
        assert_nearly_same(own_copy, published, job.key)


# --- logs ------------------------------------------------------------------------------------------------------------
def test_warnings_reach_the_log_of_whom_they_concern(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    context = without(own_copy, NAIVE, LTH)
    train, write = execution.train_epoch, Store.write_checkpoint

    def warning_train(trainings: Sequence[Training]) -> Any:
        logging.getLogger("driver").warning("of all of them")
        return train(trainings)

    def warning_write(store: Store, key: str, content: bytes) -> None:
        logging.getLogger("disk").warning("slow: %s", key)
        write(store, key, content)

    monkeypatch.setattr(execution, "train_epoch", warning_train)
    monkeypatch.setattr(Store, "write_checkpoint", warning_write)
    for _ in compute_together(wanted(NAIVE, LTH), context):
        logging.getLogger("reader").warning("of none of them")
    for job, other in ((NAIVE, LTH), (LTH, NAIVE)):
        log = own_copy.read(job.key, schema.LOG).decode()
        assert log.count("warning: of all of them") == 2
        assert log.count(f"warning: slow: {job.key}") == 2
        assert other.key not in log
        assert "of none of them" not in log
