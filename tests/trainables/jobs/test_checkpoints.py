"""Checkpoints are written beside the training: one at a time, complete or not at all; their errors are the job's."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tiny_study import publish, same, tiny_cell
from waiting import HANG_SECONDS

from trainables.graph import Ref, dense_job
from trainables.jobs import checkpoints
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.jobs.train import Course, EpochWanted, course
from trainables.storage.artifacts import pack_checkpoint, unpack_checkpoint
from trainables.storage.store import Lease, StorageError, Store
from trainables.training.loop import Training

JOB = dense_job(tiny_cell(model="mlp"), 0)


class Disk:
    """A store's checkpoints, each of which is written once the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Semaphore(0)
        self.writing = 0
        self.error: Exception | None = None
        write = Store.write_checkpoint

        def slow(store: Store, key: str, content: bytes) -> None:
            self.writing += 1
            assert self.writing == 1, "two checkpoints are being written at a time"
            assert self.free.acquire(timeout=HANG_SECONDS)
            self.writing -= 1
            if self.error is not None:
                raise self.error
            write(store, key, content)

        monkeypatch.setattr(Store, "write_checkpoint", slow)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def epoch_saved(context: Context) -> int | None:
    content = context.store.read_checkpoint(JOB.key)
    return None if content is None else unpack_checkpoint(content, JOB.key)[1]["epoch"]


def test_the_job_trains_on_while_a_checkpoint_is_written(context: Context, disk: Disk) -> None:
    rows = compute(JOB, [None], context)
    assert next(rows)["step"] == 1
    assert epoch_saved(context) is None, "the checkpoint of epoch 1 is being written"
    disk.free.release()
    assert next(rows)["step"] == 2
    assert epoch_saved(context) == 1, "it was complete before the next one was begun"
    disk.free.release()
    rows.close()
    assert epoch_saved(context) == 2, "a job that is stopped leaves no checkpoint half-written"


def test_a_resumed_job_says_from_the_start_how_far_it_is(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    held, lease = list[Lease](), Store.lease

    def taken(*arguments: Any) -> Lease | None:
        held.extend(filter(None, [lease(*arguments)]))
        return held[-1]

    monkeypatch.setattr(Store, "lease", taken)
    rows = compute(JOB, [None], context)
    assert next(rows)["step"] == 1
    rows.close()
    monkeypatch.setattr(Training, "run_epoch", lambda training: pytest.fail(f"epoch {held[-1].note['step']} is said"))
    with pytest.raises(pytest.fail.Exception, match="epoch 1 is said"):
        next(compute(JOB, [None], context))


def test_a_checkpoint_has_the_state_of_its_own_epoch(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = threading.Semaphore(0)

    def late(*arguments: Any) -> bytes:
        assert trained.acquire(timeout=HANG_SECONDS)
        return pack_checkpoint(*arguments)

    monkeypatch.setattr(checkpoints, "pack_checkpoint", late)
    steps = course(JOB, {None}, context)
    training = wanted(steps).training
    next(steps)
    expected, _ = training.state()

    def epoch() -> dict[str, float]:
        metrics = training.run_epoch()
        trained.release()
        return metrics

    wanted(steps).end = epoch
    next(steps)
    state, document = unpack_checkpoint(context.store.read_checkpoint(JOB.key) or b"", JOB.key)
    assert same(state, expected)
    assert document["epoch"] == 1
    assert [row["step"] for row in document["history"]] == [1]
    trained.release()
    steps.close()


def wanted(steps: Course) -> EpochWanted:
    step = next(steps)
    assert isinstance(step, EpochWanted)
    return step


def test_what_cannot_be_written_ends_the_job(context: Context, disk: Disk) -> None:
    disk.error = StorageError("the disk is full")
    rows = compute(JOB, [None], context)
    next(rows)
    disk.free.release()
    with pytest.raises(StorageError, match="the disk is full"):
        next(rows)
    assert not context.store.leases()


def test_what_cannot_be_written_is_said_when_the_job_ends_for_another_reason(
    context: Context, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.error = StorageError("the disk is full")
    rows = compute(JOB, [None], context)
    next(rows)
    disk.free.release()
    rows.close()
    assert "the last checkpoint was not written: the disk is full" in caplog.text


def test_the_last_checkpoint_is_written_before_the_result_replaces_it(context: Context, disk: Disk) -> None:
    for _ in range(JOB.epochs):
        disk.free.release()
    publish([Ref(JOB)], context)
    assert disk.writing == 0
    assert JOB.key in context.store
    assert epoch_saved(context) is None
