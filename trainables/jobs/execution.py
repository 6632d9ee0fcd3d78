"""Bring outputs of the graph into the store: compute them and whatever they need that nobody has computed yet.

In a planned study a job is released when its parents are published, so that only the job itself is left to do. On its
own - in a user's script, or after a parent was found damaged - the same code walks the ancestors first. A lease on
each key lets several processes, even several studies, share the work: one computes, the others wait for it.

A process can also compute several jobs at a time, the nets that fit each other as one (see
``trainables.training.engines.stacked``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from trainables.graph import Closure, Job, Ref, closure
from trainables.jobs.train import Context, Course, EpochEnd, EpochWanted, Row, alone, course
from trainables.storage.store import DamagedArtifact, Lease, NotPublished
from trainables.training.engines.stacked import profile, train_as_one

News = Row | Exception | None
"""Of a target: a row as ``compute`` yields it, what ended it, or None when all that was wanted of it is published."""

MAX_DAMAGES = 5
"""Damaged artifacts that a job puts up with; more mean that the storage itself is broken."""


def compute(job: Job, outputs: Collection[int | None], context: Context) -> Iterator[Row]:
    """Publish outputs of `job`, computing missing ancestors first.

    Args:
        job: the job.
        outputs: which of its outputs: None for the final result, numbers for a dense net's states after so many epochs.
        context: where.

    Yields:
        A row per epoch with ``stage`` and ``job_key`` of the job it belongs to; while somebody else computes what is
        needed, rows that have only these two and ``waiting``.

    Raises:
        Diverged: a training ended in a loss that is not a number.
        DamagedArtifact: artifacts were damaged again and again.
        StorageError: the storage was away for too long.
    """
    with closing(alone(_course(job, outputs, context))) as rows:
        for row in rows:
            yield row
            if "waiting" in row:
                time.sleep(context.store.storage.poll_seconds)


def compute_together(
    wanted: Sequence[tuple[Job, Collection[int | None]]], context: Context
) -> Generator[dict[str, News], None, None]:
    """Publish outputs of several jobs, the targets, in one process; nets that fit each other are trained as one.

    Each target goes its own way, as in :func:`compute`: it may fail, wait for somebody else or compute ancestors while
    the others train.

    Args:
        wanted: the jobs, all different, each with the outputs that are wanted of it.
        context: where.

    Yields:
        After each round, in which every net that could be trained was trained for an epoch, what is new: key of a
        target -> a row, the error that ended it, or None when it is complete. After an error or None it is not heard
        of again. A round in which targets end is over before anything is trained, so that they are known at once.

    Raises:
        ValueError: the same job twice.
        RuntimeError: nets could not be trained as one, for want of memory, say, which is no single target's fault.
    """
    keys = [job.key for job, _ in wanted]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"jobs to be computed together are all different, got several times {sorted(twice)}")
    with ExitStack() as stack:
        targets = [stack.enter_context(closing(_Target(job, outputs, context))) for job, outputs in wanted]
        while live := [target for target in targets if not target.ended]:
            news: dict[str, News] = {}
            for target in live:
                if target.wants is None:
                    news |= target.go_on()
            training = [target for target in live if target.wants is not None]
            if any(target.ended for target in live):
                yield news
                continue
            for group in _fitting(training):
                news |= _train(group)
            yield news
            if not training:
                time.sleep(context.store.storage.poll_seconds)


class _Target:
    """A job of several that are computed together."""

    def __init__(self, job: Job, outputs: Collection[int | None], context: Context) -> None:
        self.wants: EpochWanted | None = None
        """The epoch that has to be trained before it can go on."""
        self.ended = False
        self._key = job.key
        self._clock = _OwnTime()
        self._course = _course(job, outputs, dataclasses.replace(context, clock=self._clock))

    def go_on(self, epoch_end: EpochEnd | None = None, share: float = 0.0) -> dict[str, News]:
        """Let the job go on until there is something new, or it wants an epoch trained.

        Args:
            epoch_end: of the epoch that it wanted.
            share: seconds that have passed for it meanwhile.
        """
        self.wants = None
        try:
            with self._clock.going(share):
                request = self._course.send(epoch_end)
        except StopIteration:
            self.ended = True
            return {self._key: None}
        except Exception as error:
            self.ended = True
            return {self._key: error}
        if isinstance(request, EpochWanted):
            self.wants = request
            return {}
        return {self._key: request}

    def close(self) -> None:
        """Give back the lease on what is half done."""
        self._course.close()


class _OwnTime:
    """A clock that stands still while it is other targets' turn."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def going(self, share: float) -> Iterator[None]:
        """Let `share` seconds pass at once, and then the time until the block ends."""
        self._seconds, self._since = self._seconds + share, time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._since = self(), None


def _fitting(targets: Sequence[_Target]) -> list[list[_Target]]:
    """Return the targets that want an epoch, in groups whose nets can be trained as one."""
    groups: dict[Hashable, list[_Target]] = {}
    for target in targets:
        assert target.wants is not None
        groups.setdefault(profile(target.wants.training) or target, []).append(target)
    return list(groups.values())


def _train(group: Sequence[_Target]) -> dict[str, News]:
    """Train an epoch of a group's nets, as one if they are several."""
    wants = [target.wants for target in group if target.wants is not None]
    if len(wants) == 1:
        return group[0].go_on(wants[0].training.run_epoch)
    start = time.perf_counter()
    with ExitStack() as logs:
        for each in wants:  # nobody could say whose net it is that a warning is about
            logs.enter_context(each.log.capturing())
        epoch_ends = train_as_one([each.training for each in wants])
    share = (time.perf_counter() - start) / len(group)
    news: dict[str, News] = {}
    for target, epoch_end in zip(group, epoch_ends, strict=True):
        news |= target.go_on(epoch_end, share)
    return news


def _course(job: Job, outputs: Collection[int | None], context: Context) -> Course:
    """Compute outputs of a job after their missing ancestors; see :func:`compute`."""
    graph = closure(Ref(job, epoch) for epoch in outputs)
    damages = 0
    while todo := graph.todo(context.store):
        try:
            ready, lease = _take(graph, todo, context)
            if lease is None:
                yield {"stage": ready.kind, "job_key": ready.key, "waiting": True}
                continue
            with lease:
                wanted = graph.todo(context.store).get(ready.key)
                if wanted is not None:  # else published between our look and our lease
                    yield from _under(lease, ready, wanted, context)
        except (DamagedArtifact, NotPublished):
            damages += 1
            if damages > MAX_DAMAGES:
                raise


def _under(lease: Lease, job: Job, wanted: Collection[int | None], context: Context) -> Course:
    """Compute a job, with its name in the rows and its progress in the lease."""
    epoch_end: EpochEnd | None = None
    with closing(course(job, wanted, context)) as steps:
        while True:
            try:
                request = steps.send(epoch_end)
            except StopIteration:
                return
            if not isinstance(request, EpochWanted):
                lease.note = {**lease.note, "step": request["step"]}
                request = {"stage": job.kind, "job_key": job.key, **request}
            epoch_end = yield request


def _take(graph: Closure, todo: Collection[str], context: Context) -> tuple[Job, Lease | None]:
    """Return a job that can run now with the lease on it, or one that others hold, with None."""
    held = None
    for key in todo:
        job = graph.jobs[key]
        if any(ref.job.key in todo for _, ref in job.parents):
            continue
        lease = context.store.lease(key, {"kind": job.kind, "epochs": job.epochs})
        if lease is not None:
            return job, lease
        held = held or job
    assert held is not None, "an acyclic graph has a job without missing parents"
    return held, None
