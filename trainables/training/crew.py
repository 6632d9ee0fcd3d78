"""The workers of a job: processes that train one network together, led by the process that runs the job.

The leader is rank 0. It alone runs the job, evaluates, and writes. The others wait for its orders: each either assigns
them a network or tells them to train the next epoch of the last one. Whoever starts them, as processes of this machine
or as actors on a cluster, they all run :func:`serve`.

A worker that dies closes its connections, and one that hangs exceeds the time limit of the group; either way the leader
gets an error, ends the others and raises :class:`WorkerLost`. Workers end themselves when the leader has gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Final, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from trainables.errors import Verdict, first_line, verdict
from trainables.training import SILENCE
from trainables.training.determinism import deterministic
from trainables.training.engines import CPU, GPU
from trainables.training.loop import Training

LAST_WORDS_SECONDS: Final = 5.0
"""Seconds that the leader waits, after the connection to a worker has been lost, for the reason."""
WATCH_SECONDS: Final = 0.5
"""Seconds between two looks at whether workers are still there."""
JOIN_SECONDS: Final = 120.0
"""Seconds that the leader waits for the connections of workers that are all ready."""

# PyTorch 2.11 has the function under its former name only.
_set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout


class WorkerLost(RuntimeError):
    """A worker of the job has died, hung or failed; its own error, if it had one, is the cause."""


@dataclass(frozen=True)
class Post:
    """A worker's place, and where it meets the others.

    Attributes:
        host: address of the leader.
        port: of the leader.
        rank: number of the worker, from 0, the leader.
        workers: number of workers.
        backend: of ``torch.distributed``.
        silence: seconds for which a worker may be silent; 0: any time.
    """

    host: str
    port: int
    rank: int
    workers: int
    backend: str
    silence: float

    def join(self, store: Store, within: float | None = None) -> None:
        """Join the group; returns once all workers have.

        Args:
            store: where the workers meet.
            within: seconds that this may take; as long as a worker may be silent if None.

        Raises:
            RuntimeError: it took longer.
        """
        limit = timedelta(seconds=self.silence) if self.silence else timedelta(days=365)
        joining = limit if within is None else min(limit, timedelta(seconds=within))
        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.workers, timeout=joining)
        _set_timeout(limit)


class Worker(Protocol):
    """A worker as its leader sees it."""

    def has_ended(self) -> bool:
        """Return whether the process has ended."""

    def end(self) -> None:
        """End the process, whatever it is doing."""


class Assignment(Protocol):
    """The network that the workers train next, with all that the training depends on; it can be pickled."""

    @property
    def deterministic(self) -> bool:
        """Whether the workers use only deterministic algorithms."""

    def training(self, rank: int, workers: int) -> Training:
        """Return the worker's part of the training, in its process; the trainer is its engine's for workers."""


class LocalWorker:
    """A worker on this machine."""

    def __init__(self, post: Post) -> None:
        """Start the process."""
        words = [str(value) for value in astuple(post)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # It reads its input until this process ends, however it ends.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *words], stdin=subprocess.PIPE, env=environment
        )

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Crew:
    """The workers of one job after another, started when the first network is trained."""

    def __init__(
        self,
        workers: int = 1,
        hire: Callable[[Post], Worker] = LocalWorker,
        *,
        host: str = "127.0.0.1",
        silence: float = SILENCE,
        own_gpus: bool = False,
    ) -> None:
        """Start nothing.

        Args:
            workers: number of workers, the leader included.
            hire: starts a worker.
            host: address of this process for the other workers.
            silence: as in :class:`Post`.
            own_gpus: whether each worker sees no GPU but its own; otherwise all see those of this machine.
        """
        self.workers = workers
        self.assigned: object = None
        """The training, in this process, whose other parts the workers have been assigned."""
        self._hire, self._host, self._silence, self._own_gpus = hire, host, silence, own_gpus
        self._others: list[Worker] = []
        self._closing = threading.Event()
        self._store: TCPStore | None = None

    @contextlib.contextmanager
    def leading(self, assignment: Callable[[Training], Assignment], training: Training) -> Iterator[bool]:
        """Have the others train an epoch with this process, which trains its part in the block; an error ends them.

        Args:
            assignment: returns what the others have to know of the training.
            training: the leader's part.

        Yields:
            Whether all begin with the state that the training has now, instead of continuing their own.

        Raises:
            WorkerLost: a worker has died, hung or failed.
        """
        try:
            if self._store is None:
                self._start(training.device)
            begins = self.assigned is not training
            self.tell(assignment(training) if begins else None)
            self.assigned = training
            yield begins
        except BaseException as error:
            # A lost connection or the end of the limit; other errors are the leader's own.
            lost = isinstance(error, WorkerLost | RuntimeError) and verdict(error) is Verdict.PASSING
            reason = self._last_words() if lost else None
            self.close()
            if reason is not None:
                rank, cause = reason
                raise WorkerLost(f"worker {rank} has failed: {type(cause).__name__}: {first_line(cause)}") from cause
            if lost:
                raise WorkerLost(f"a worker was lost: {first_line(error)}") from error
            raise

    def tell(self, assignment: Assignment | None) -> None:
        """Order the others to train an epoch of a network: of one that is assigned, or of the last one if None."""
        dist.broadcast_object_list([assignment], src=0, device=torch.device(CPU))

    def close(self) -> None:
        """End the other workers; later orders start new ones."""
        self._closing.set()
        for worker in self._others:
            worker.end()
        self._others, self._store, self.assigned = [], None, None
        if dist.is_initialized():
            dist.group.WORLD.abort()  # type: ignore[union-attr] # without it, NCCL waits for the others
            dist.destroy_process_group()

    def _start(self, device: torch.device) -> None:
        backend = "gloo"
        if device.type == GPU and (self._own_gpus or torch.cuda.device_count() >= self.workers):
            backend = "cpu:gloo,cuda:nccl"  # NCCL refuses workers that share a GPU
        self._closing = threading.Event()
        self._store = store = TCPStore(self._host, 0, is_master=True, wait_for_workers=False)
        own, *others = (
            Post(self._host, store.port, rank, self.workers, backend, self._silence) for rank in range(self.workers)
        )
        self._others = [self._hire(post) for post in others]
        while not all(store.check([_ready(post.rank)]) for post in others):
            if any(worker.has_ended() for worker in self._others):
                raise WorkerLost("it has ended at its start")
            time.sleep(WATCH_SECONDS / 10)
        try:
            own.join(store, JOIN_SECONDS)  # only the limit tells of a worker that dies before it is connected
        except BaseException:
            if not dist.is_initialized():
                # PyTorch numbers the groups of a process, and new workers start at 0. Leaving one resets the number.
                dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
                dist.destroy_process_group()
            raise
        if device.type == GPU:
            threading.Thread(target=self._watch, args=(self._closing, self._others), daemon=True).start()

    def _watch(self, closing: threading.Event, others: Sequence[Worker]) -> None:
        """Wake a leader that waits on its GPU for a worker that has died; on a CPU, the connection itself tells it."""
        while not closing.wait(WATCH_SECONDS):
            if any(worker.has_ended() for worker in others) and not closing.is_set():
                dist.group.WORLD.abort()  # type: ignore[union-attr]
                return

    def _last_words(self) -> tuple[int, Exception] | None:
        """Return the rank and the error of a worker that has failed; None if none has said so in time."""
        end, ended = time.monotonic() + LAST_WORDS_SECONDS, False
        while self._store is not None and time.monotonic() < end:
            for rank in range(1, self.workers):
                if self._store.check([_failed(rank)]):
                    return rank, pickle.loads(bytes.fromhex(self._store.get(_failed(rank)).decode()))
            if ended:
                return None
            ended = any(worker.has_ended() for worker in self._others)  # what it had to say, it has said by now
            time.sleep(WATCH_SECONDS / 10)
        return None


def own_gpu(rank: int) -> torch.device:
    """Return the GPU of a worker among those that its process sees."""
    return torch.device(GPU, rank % torch.cuda.device_count())


def serve(post: Post) -> None:
    """Work as a worker other than the leader, until the process is ended.

    Raises:
        Exception: the leader has gone, or whatever ended the work; the leader is told.
    """
    store = TCPStore(post.host, post.port, is_master=False)
    try:
        store.set(_ready(post.rank), "")
        post.join(store)
        assignment, training = None, None
        while True:
            orders: list[Assignment | None] = [None]
            dist.broadcast_object_list(orders, src=0, device=torch.device(CPU))
            if orders[0] is not None:
                assignment = orders[0]
                training = assignment.training(post.rank, post.workers)
            assert assignment is not None, "the first order is an assignment"
            assert training is not None
            with deterministic(assignment.deterministic):
                training.train_with_others()
    except Exception as error:
        with contextlib.suppress(Exception):  # the leader has gone
            store.set(_failed(post.rank), _pickled(error).hex())
        raise


def _ready(rank: int) -> str:
    return f"ready/{rank}"


def _failed(rank: int) -> str:
    return f"failed/{rank}"


def _pickled(error: Exception) -> bytes:
    """Return an error for the leader, which judges by its type and its causes how to go on."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # the types of some libraries cannot be unpickled
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content


def _until_the_leader_ends() -> None:
    # Not through `sys.stdin`: a process that decodes images, forked while this thread held its lock, would wait for it.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_until_the_leader_ends, daemon=True).start()
    host, port, rank, workers, backend, silence = sys.argv[1:]
    serve(Post(host, int(port), int(rank), int(workers), backend, float(silence)))
