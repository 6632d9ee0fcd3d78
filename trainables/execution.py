"""Bring outputs of the graph into the store: compute them and whatever they need that nobody has computed yet.

In a planned study a job is released when its parents are published, so that only the job itself is left to do. On its
own - in a user's script, or after a parent was found damaged - the same code walks the ancestors first. A lease on
each key lets several processes, even several studies, share the work: one computes, the others wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from trainables.graph import Closure, Job, Ref, closure
from trainables.jobs import Context, Row, run_job
from trainables.store import DamagedArtifact, Lease, NotPublished

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
    graph = closure(Ref(job, epoch) for epoch in outputs)
    damages = 0
    while todo := graph.todo(context.store):
        try:
            ready, lease = _take(graph, todo, context)
            if lease is None:
                yield {"stage": ready.kind, "job_key": ready.key, "waiting": True}
                time.sleep(context.store.storage.poll_seconds)
                continue
            with lease:
                wanted = graph.todo(context.store).get(ready.key)
                if wanted is None:  # published between our look and our lease
                    continue
                for row in run_job(ready, wanted, context):
                    lease.note = {**lease.note, "step": row["step"]}
                    yield {"stage": ready.kind, "job_key": ready.key, **row}
        except (DamagedArtifact, NotPublished):
            damages += 1
            if damages > MAX_DAMAGES:
                raise


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
