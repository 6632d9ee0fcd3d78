"""Publish outputs of the job graph, computing missing ancestors first.

A planned study releases a job after its parents are published, so only the job itself remains. In a user's script, or
after a parent has turned out to be damaged, the same code computes the ancestors first. A lease on each key lets
several processes, and even several studies, share the work: one process computes, the others wait for it.

A process can also compute several jobs at a time and train compatible nets at once, if their engine can
(see ``trainables.training.engines``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing

from trainables.errors import release
from trainables.graph import Closure, Job, Ref
from trainables.jobs.publishing import Context, Row
from trainables.jobs.train import Course, EpochWanted, course
from trainables.storage.store import DamagedArtifact, Lease, NotPublished
from trainables.training.determinism import deterministic
from trainables.training.loop import train_epoch

News = Row | Exception | None
"""News of a target: a row as ``compute`` yields it, the error that ended it, or None once the outputs are published."""

MAX_DAMAGES = 5
"""How often a job recovers from a damaged or missing artifact; more often means that the storage itself is broken."""


def compute(job: Job, outputs: Collection[int | None], context: Context) -> Generator[Row, None, None]:
    """Publish outputs of `job`, computing missing ancestors first.

    Args:
        job: the job.
        outputs: the outputs to publish: None for the final result, a number for a dense net's state after that number
            of epochs.
        context: store, device and data.

    Yields:
        A row per epoch with the ``stage`` and ``job_key`` of the job it belongs to; while another process computes a
        needed job, rows with only these two and ``waiting``.

    Raises:
        Diverged: a loss was not finite.
        DamagedArtifact, NotPublished: artifacts were damaged or missing more than ``MAX_DAMAGES`` times.
        StorageError: the storage was unavailable for too long.
    """
    with closing(_course(job, outputs, context)) as steps:
        for step in steps:
            if isinstance(step, EpochWanted):
                continue
            yield step
            if "waiting" in step:
                time.sleep(context.store.storage.poll_seconds)


def compute_together(
    wanted: Sequence[tuple[Job, Collection[int | None]]], context: Context
) -> Generator[dict[str, News], None, None]:
    """Publish outputs of several jobs (the targets) in one process, training compatible nets as one.

    The targets are independent, as in :func:`compute`: one may fail, wait for another process or compute ancestors
    while the others train.

    Args:
        wanted: the targets, all different, each with the outputs to publish as in :func:`compute`.
        context: as in :func:`compute`.

    Yields:
        After each round, the news: target key -> a row, the error that ended the target, or None once it is complete.
        A target that has ended has no further news. A round trains one epoch of every net that is ready; if a target
        ends first, the round yields its news without training.

    Raises:
        ValueError: a job appears twice.
        RuntimeError: nets could not be trained as one, for example for lack of memory; no single target is at fault.
    """
    keys = [job.key for job, _ in wanted]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"jobs computed together must all be different, got more than once: {sorted(twice)}")
    news: dict[str, News] = {}
    wants: dict[str, EpochWanted] = {}
    with ExitStack() as stack:
        live = {job.key: stack.enter_context(closing(_course(job, outputs, context))) for job, outputs in wanted}

        def advance(key: str) -> None:
            """Advance a target until it has news or announces an epoch."""
            try:
                step = next(live[key])
            except StopIteration:
                news[key] = None
                del live[key]
            except Exception as error:
                release(error)  # the others train on, and may need the memory
                news[key] = error
                del live[key]
            else:
                if isinstance(step, EpochWanted):
                    wants[key] = step
                else:
                    news[key] = step

        while live:
            number = len(live)
            for key in [key for key in live if key not in wants]:
                advance(key)
            ended = len(live) < number
            training = {} if ended else dict(wants)
            _train(training.values())
            for key in training:
                del wants[key]
                advance(key)
            yield dict(news)
            news.clear()
            if not training and not ended:
                time.sleep(context.store.storage.poll_seconds)


def _train(wants: Iterable[EpochWanted]) -> None:
    """Train the epochs of nets that fit each other as one; the others are left to their jobs."""
    groups: dict[Hashable, list[EpochWanted]] = {}
    for each in wants:
        groups.setdefault((each.training.profile or id(each), each.deterministic), []).append(each)
    for group in groups.values():
        if len(group) == 1:
            continue
        with ExitStack() as logs, deterministic(group[0].deterministic):
            for each in group:  # a warning cannot be attributed to one net, so it goes to all their logs
                logs.enter_context(each.log.capturing(share=1 / len(group)))
            ends = train_epoch([each.training for each in group])
        for each, end in zip(group, ends, strict=True):
            each.end = end


def _course(job: Job, outputs: Collection[int | None], context: Context) -> Course:
    """Compute missing ancestors and then the outputs of `job`; see :func:`compute`."""
    graph = Closure(Ref(job, epoch) for epoch in outputs)
    damages = 0
    while todo := graph.todo(context.store):
        try:
            ready, lease = _take(graph, todo, context)
            if lease is None:
                yield {"stage": ready.kind, "job_key": ready.key, "waiting": True}
                continue
            with lease:
                wanted = graph.todo(context.store).get(ready.key)
                if wanted is None:  # another process published it before we had the lease
                    continue
                with closing(course(ready, wanted, context)) as steps:
                    for step in steps:
                        if isinstance(step, EpochWanted):
                            lease.note = {**lease.note, "step": step.training.epoch}  # those of earlier attempts
                            yield step
                        else:
                            lease.note = {**lease.note, "step": step["step"]}
                            yield {"stage": ready.kind, "job_key": ready.key, **step}
        except (DamagedArtifact, NotPublished):
            damages += 1
            if damages > MAX_DAMAGES:
                raise


def _take(graph: Closure, todo: Mapping[str, Collection[int | None]], context: Context) -> tuple[Job, Lease | None]:
    """Return a job that can run now and its lease; if other processes hold all such jobs, one of them and None."""
    held = None
    for key in todo:
        job = graph.jobs[key]
        if any(ref.job.key in todo for _, ref in job.parents):
            continue
        lease = context.store.lease(key, {"kind": job.kind, "epochs": job.epochs_to(todo[key])})
        if lease is not None:
            return job, lease
        held = held or job
    assert held is not None, "an acyclic graph has a job without missing parents"
    return held, None
