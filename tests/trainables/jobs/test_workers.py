"""Several workers train a network as one does: in double precision, they agree up to the order of sums."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from doubles import DoubleCrew, assert_agree, use_doubles
from tiny_study import publish, python, tiny_cell
from torch import nn
from torch._C._distributed_c10d import TCPStore
from waiting import wait_until

from trainables import schema
from trainables.config import DenseConfig
from trainables.data.batches import parts
from trainables.errors import HostFault, Verdict, verdict
from trainables.graph import Ref, dense_job, prune_job, target
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.storage.artifacts import read_mask, read_weights
from trainables.storage.store import Store
from trainables.training.crew import Assignment, Crew, LocalWorker, Post, Worker, WorkerLost, _ready
from trainables.training.engines import ENGINES
from trainables.training.loop import Training

CELL = tiny_cell("naive", batch_size=299, sparsity=0.2)
"""Three batches an epoch, which two workers cannot split evenly; one pruning round."""
JOBS = (dense_job(CELL, CELL.seed_a), prune_job(CELL, CELL.seed_a), target(CELL))


@dataclass
class _Hired:
    """Starts workers of this machine, and remembers them."""

    workers: list[LocalWorker]

    def __call__(self, post: Post) -> LocalWorker:
        self.workers.append(LocalWorker(post))
        return self.workers[-1]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.workers[-1]._process.pid, number)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    use_doubles(monkeypatch)


@pytest.fixture
def hired() -> _Hired:
    return _Hired([])


@pytest.fixture
def crew(hired: _Hired) -> Iterator[Crew]:
    with closing(DoubleCrew(2, hired)) as crew:
        yield crew


@pytest.mark.usefixtures("doubles")
def test_two_workers_agree_with_one_also_after_an_interruption_and_the_death_of_one(
    tmp_path: Path, crew: Crew, hired: _Hired
) -> None:
    one = Context(store=Store(tmp_path / "1"))
    two = Context(store=Store(tmp_path / "2"), crew=crew, checkpoint_seconds=0.0)
    publish([Ref(JOBS[-1])], one)
    interrupted, killed = compute(JOBS[0], [1, None], two), compute(JOBS[-1], [None], two)
    assert next(interrupted)["step"] == 1
    interrupted.close()
    rows = compute(JOBS[0], [1, None], two)
    assert next(rows)["step"] == 2, "it goes on from its checkpoint"
    assert len(list(rows)) == 1
    while (row := next(killed))["job_key"] != JOBS[-1].key:
        pass
    assert row["step"] == 1
    hired.signal(signal.SIGKILL)
    with pytest.raises(WorkerLost) as lost:
        next(killed)
    assert verdict(lost.value) is Verdict.PASSING
    assert [row["step"] for row in compute(JOBS[-1], [None], two)] == [2], "only the epoch that the death interrupted"
    assert len(hired.workers) == 2, "one worker for all jobs, and one after its death"
    for job in JOBS:
        assert_agree(one.store, two.store, job.key)
        assert schema.WORKERS not in one.store.manifest(job.key)["environment"]
        assert two.store.manifest(job.key)["environment"][schema.WORKERS] == 2
    mask = read_mask(two.store, JOBS[-1].key)
    weights = read_weights(two.store, JOBS[-1].key)
    assert all((weights[name][~keep] == 0).all() for name, keep in mask.items())
    assert "2 workers" in two.store.read(JOBS[-1].key, schema.LOG).decode()


@dataclass(frozen=True)
class _Unable:
    """An assignment that a worker cannot take."""

    deterministic: bool = False

    def training(self, rank: int, workers: int) -> Training:
        raise HostFault("the data are missing here")


@pytest.mark.slow
def test_the_error_of_a_worker_says_what_its_leader_should_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Crew.tell

    def unable(self: Crew, assignment: Assignment | None) -> None:
        tell(self, assignment and _Unable())

    monkeypatch.setattr(Crew, "tell", unable)
    with closing(Crew(2)) as crew, pytest.raises(WorkerLost, match=r"worker 1.*the data are missing here") as lost:
        list(compute(JOBS[0], [None], Context(store=Store(tmp_path), crew=crew)))
    assert verdict(lost.value) is Verdict.OF_HOST


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed(tmp_path: Path, hired: _Hired) -> None:
    context = Context(store=Store(tmp_path), crew=Crew(2, hired, silence=20.0), checkpoint_seconds=0.0)
    with closing(context.crew):
        rows = compute(JOBS[0], [None], context)
        next(rows)
        hired.signal(signal.SIGSTOP)
        with pytest.raises(WorkerLost):
            next(rows)
        assert hired.workers[0].has_ended()
        assert len(list(compute(JOBS[0], [None], context))) == CELL.epochs - 1


@pytest.mark.parametrize(("size", "workers"), [(5, 2), (4, 4), (128, 3), (7, 1)])
def test_the_parts_of_a_batch_are_even_and_complete(size: int, workers: int) -> None:
    found = parts(size, workers)
    assert [position for part in found for position in part] == list(range(size))
    lengths = [len(part) for part in found]
    assert min(lengths) >= max(1, max(lengths) - 1)


def test_the_parts_of_a_batch_have_the_images_and_changes_of_the_whole(tmp_path: Path) -> None:
    config = JOBS[0].config
    assert isinstance(config, DenseConfig)
    data = TaskData(config.task, Context(store=Store(tmp_path)))
    whole = data.training(data.model(), config.recipe, seed=3).batches
    two = [replace(whole, part=part) for part in parts(whole.batch_size, 2)]
    for batch, *split in zip(*(batches.epoch(1) for batches in (whole, *two)), strict=True):
        for together, *apart in zip(batch, *split, strict=True):
            assert torch.equal(together, torch.cat(apart))


def test_more_workers_than_images_in_a_batch_are_refused(tmp_path: Path) -> None:
    context = Context(store=Store(tmp_path), crew=Crew(300))
    with pytest.raises(ValueError, match=r"workers must be at most 299.*got 300"):
        list(compute(JOBS[0], [None], context))


def test_a_batchnorm_whose_statistics_cannot_be_shared_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input

    with pytest.raises(ValueError, match="0 is a Own"):
        ENGINES["plain"].worker_trainer()(nn.Sequential(Own(3), nn.Linear(2, 2)), {}, 0, 2, 8)


class _Ready:
    """A worker that dies between saying that it is ready and joining the others."""

    def __init__(self, post: Post) -> None:
        TCPStore(post.host, post.port, is_master=False).set(_ready(post.rank), "")

    def has_ended(self) -> bool:
        return True

    def end(self) -> None:
        pass


@pytest.mark.slow
def test_a_worker_that_dies_before_it_joins_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.training.crew.JOIN_SECONDS", 1.0)
    hires: Iterator[Callable[[Post], Worker]] = iter((_Ready, LocalWorker))
    context = Context(store=Store(tmp_path), crew=Crew(2, lambda post: next(hires)(post), silence=0.0))
    with closing(context.crew):
        with pytest.raises(WorkerLost) as lost:
            list(compute(JOBS[0], [None], context))
        assert verdict(lost.value) is Verdict.PASSING
        monkeypatch.undo()
        assert len(list(compute(JOBS[0], [None], context))) == CELL.epochs


def is_running(pid: int) -> bool:
    """Say whether a process is more than a zombie, which stays where process 1 does not collect orphans."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


@pytest.mark.slow
def test_workers_end_with_their_leader(tmp_path: Path) -> None:
    source = (
        "import sys; from tiny_study import *; from trainables.graph import dense_job; "
        "from trainables.training.crew import Crew; crew = Crew(2); "
        "context = Context(store=Store(sys.argv[1]), crew=crew); "
        "next(compute(dense_job(tiny_cell(), 0), [None], context)); print(crew._others[0]._process.pid, flush=True); "
        "sys.stdin.read()"
    )
    with python("-c", source, str(tmp_path), stdin=PIPE) as leader:
        assert leader.stdout is not None
        worker = int(leader.stdout.readline())
        os.kill(worker, 0)
        leader.kill()
        wait_until(lambda: not is_running(worker), "it lives on")
