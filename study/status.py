"""The progress of a study: ``python -m study.run --space NAME --status``, on any machine that reaches the storage.

Everything is read from the store: published results, leases on jobs, notes on failures. The computing processes are not
contacted, so the command works while a study runs and afterwards.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study import fastest
from study.estimate import Estimates, estimate
from study.plan import Network, Plan
from study.scheduling.states import BLOCKED, FAILED, RUNNING, WAITING
from study.tracking.labels import name_in
from trainables import schema
from trainables.host.clock import duration
from trainables.host.processes import host_of
from trainables.host.redaction import redact_text
from trainables.storage.lease import LEASE_SECONDS
from trainables.storage.store import DAMAGED, Store

PUBLISHED = "published"
STATES = (PUBLISHED, RUNNING, FAILED, BLOCKED, WAITING)
RATE_SECONDS = 3600.0
"""Length of the time before now over which the rate is taken."""
LONGEST = 5
"""Number of slowest jobs that are listed."""
SHOWN = 20
"""Maximum number of running jobs, and of failed jobs, that are listed."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment.

    Attributes:
        plan: the study.
        states: key of a job -> one of ``STATES``.
        todo: key of a job that is not published -> its missing outputs; None is the final result.
        leases: key of a running job -> its lease.
        failures: key of a failed job -> the note on its failure.
        manifests: key of a published job -> its manifest.
        damaged: a line on each result that turned out to be damaged and was set aside.
        studies: all studies that run on the store.
        bytes: ``store``, ``work`` or ``damaged`` -> bytes of results, of checkpoints or of damaged files set aside.
        own_bytes: bytes of this study's results, according to their manifests.
        estimates: estimated seconds of each job.
        now: seconds since 1970.
    """

    plan: Plan
    states: Mapping[str, str]
    todo: Mapping[str, Collection[int | None]]
    leases: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, Mapping[str, Any]]
    manifests: Mapping[str, Mapping[str, Any]]
    damaged: Collection[str]
    studies: Collection[Mapping[str, Any]]
    bytes: Mapping[str, int]
    own_bytes: int
    estimates: Estimates
    now: float

    @property
    def recent(self) -> list[str]:
        """Keys of the jobs that were published within ``RATE_SECONDS``."""
        since = 1000 * (self.now - RATE_SECONDS)
        return [key for key, manifest in self.manifests.items() if manifest.get("finished", 0) >= since]

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end with as many jobs at a time as now, at least one."""
        left = {key for key, state in self.states.items() if state in (RUNNING, WAITING)}
        return self.estimates.makespan(self.plan, left, max(1, len(self.leases)), self.done)

    @property
    def done(self) -> dict[str, float]:
        """Key of a running job -> the fraction, in [0, 1], of the epochs to its missing outputs that is done."""
        epochs = {key: self.plan.jobs[key].epochs_to(self.todo[key]) for key in self.leases}
        steps = {key: lease["note"].get("step", 0) for key, lease in self.leases.items()}
        # Another study may train the network further than this one needs.
        return {key: min(1.0, steps[key] / epochs[key]) for key in self.leases if epochs[key]}


def print_status(plan: Plan, store: Store, unmeasured: Sequence[Network]) -> None:
    """Print a study's status and the networks without a choice of ``--fastest``; raises the errors of `status`."""
    print(*lines(status(plan, store)), *plan.notes, *fastest.lines({}, unmeasured), sep="\n")


def status(plan: Plan, store: Store) -> Status:
    """Return the status of a study.

    Raises:
        ValueError: the storage does not exist, or is an object store without any object.
        StorageError: the storage cannot be read.
    """
    running = store.leases()  # first: a job that ends before the results are read is among these
    published = store.keys()
    store.check_exists()
    todo = plan.closure.todo(published)
    found, damaged = store.results([key for key in plan.jobs if key not in todo and key in published])
    if damaged:  # these results have been set aside
        published = store.keys()
        todo = plan.closure.todo(published)
    leases = {key: lease for key, lease in running.items() if key in todo}
    failures = {key: note for key in store.failures() & todo.keys() - leases.keys() if (note := store.failure(key))}
    manifests = {key: result.manifest for key, result in found.items() if key not in todo}
    states: dict[str, str] = {}
    for key, job in plan.jobs.items():  # parents come first
        parents = {states[ref.job.key] for _, ref in job.parents if ref.job.key in todo}
        if key not in todo:
            states[key] = PUBLISHED
        elif key in leases:
            states[key] = RUNNING
        elif key in failures:
            states[key] = FAILED
        else:
            states[key] = BLOCKED if parents & {FAILED, BLOCKED} else WAITING
    sizes: Counter[str] = Counter()
    for directory in ("store", "work"):
        for path, size in store.storage.sizes(directory).items():
            sizes["damaged" if path.startswith(f"{DAMAGED}/") else directory] += size
    return Status(
        plan=plan,
        states=states,
        todo=todo,
        leases=leases,
        failures=failures,
        manifests=manifests,
        damaged=damaged,
        studies=store.studies(),
        bytes=sizes,
        own_bytes=sum(file["bytes"] for manifest in manifests.values() for file in manifest["files"].values()),
        estimates=estimate(plan, store, published),
        now=time.time(),
    )


def lines(status: Status) -> list[str]:
    """Return a status as lines of text."""
    plan, counts = status.plan, Counter((status.plan.jobs[key].kind, state) for key, state in status.states.items())
    text = [f"{plan.space.name}: {plan.space.question}", f"  {'job':<8}{'total':>8}"]
    text[-1] += "".join(f"{state:>11}" for state in STATES)
    for kind in (*schema.STAGES, "all"):
        row = [sum(n for (each, state), n in counts.items() if kind in (each, "all") and state == s) for s in STATES]
        if sum(row):
            text.append(f"  {kind:<8}{sum(row):>8}" + "".join(f"{number:>11}" for number in row))
    text += [*fastest.lines(plan.ways), _running_studies(status), *_pace(status)]
    text += _running(status) + _failed(status) + _slowest(status)
    text += [f"damaged: {redact_text(line)}" for line in status.damaged]
    sizes = ", ".join(f"{size_in_words(status.bytes.get(name, 0))} {words}" for name, words in _DIRECTORIES.items())
    return [*text, f"disk: {sizes}; {size_in_words(status.own_bytes)} of the results belong to this study"]


_DIRECTORIES = {"store": "results", "work": "checkpoints", "damaged": "set aside as damaged"}


def _running_studies(status: Status) -> str:
    if not status.studies:
        return "no study runs on this storage"
    each = []
    for study in status.studies:
        host, since = host_of(study["owner"]), duration(status.now - study["since"])
        silent = status.now - study["renewed"]
        sign = f" (last sign of life {duration(silent)} ago)" if silent > LEASE_SECONDS else ""
        each.append(f"{study['note'].get('space', '?')} on {host} for {since}{sign}")
        each += [f"no more jobs for {out}" for out in study["note"].get("out", [])]
    return f"running: {'; '.join(each)}"


def _pace(status: Status) -> list[str]:
    counts = Counter(status.states.values())
    if not counts[RUNNING] + counts[WAITING]:
        return []
    recent = status.recent
    epochs = sum(status.plan.jobs[key].epochs for key in recent)
    pace = f"last {duration(RATE_SECONDS)}: {len(recent)} jobs, {epochs:,} epochs"
    number = max(1, len(status.leases))
    at_a_time = f"{number} job{'s' * (number > 1)} at a time"
    return [f"{pace}; about {duration(status.seconds_left)} left with {at_a_time}"]


def _running(status: Status) -> list[str]:
    text = []
    for key, lease in list(status.leases.items())[:SHOWN]:
        note, name = lease["note"], name_in(status.plan, key)
        epoch = f"epoch {note.get('step', 0)}/{note['epochs']}, " if note.get("epochs") else ""
        host = host_of(lease["owner"])
        seen = duration(status.now - lease["renewed"])
        text.append(
            f"  running: {name}  {epoch}on {host} for "
            f"{duration(status.now - lease['since'])}, last sign of life {seen} ago"
        )
    return text + _more(len(status.leases))


def _failed(status: Status) -> list[str]:
    text = []
    for key, note in list(status.failures.items())[:SHOWN]:
        name = name_in(status.plan, key)
        ago = f" {duration(status.now - note['at'] / 1000)} ago" if "at" in note else ""
        text.append(f"  failed: {name} ({key[:12]}){ago}: {redact_text(note['error'])}")
    return text + _more(len(status.failures))


def _slowest(status: Status) -> list[str]:
    timed = {key: each[schema.SECONDS] for key, each in status.manifests.items() if schema.SECONDS in each}
    longest = sorted(timed, key=lambda key: timed[key], reverse=True)[:LONGEST]
    names = [
        f"{name_in(status.plan, key)} {duration(timed[key])} "
        f"({status.manifests[key].get('environment', {}).get('host', '?')})"
        for key in longest
    ]
    return [f"slowest: {'; '.join(names)}"] if names else []


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more"] if count > SHOWN else []


def size_in_words(number: float) -> str:
    """Return a number of bytes in its largest fitting unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit in ("bytes", "kB") else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
