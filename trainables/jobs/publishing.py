"""The context in which a job runs, its log, and the form in which its result is published."""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from trainables import schema
from trainables.config import workers_of
from trainables.data import BY_DEFAULT, Reading
from trainables.graph import Job, canonical
from trainables.host import cpu
from trainables.host.clock import now
from trainables.host.processes import cores
from trainables.host.redaction import redact_text
from trainables.host.version import library_version, project_commit
from trainables.storage.artifacts import pack_json
from trainables.storage.store import Store
from trainables.training import CHECKPOINT_SECONDS
from trainables.training.crew import Crew

Metrics = dict[str, float]
Row = dict[str, Any]
Files = dict[str, bytes]

MAX_LINES = 2000
"""A log keeps this many of its latest lines, more than any recipe has epochs."""


class JobLog:
    """The log of one job over all its attempts, with times in UTC, and the seconds that they took."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._seconds = 0.0
        self._since: float | None = None
        """When the block of :meth:`capturing` that is now running began; None outside such blocks."""

    @property
    def seconds(self) -> float:
        """The job's own seconds so far, without those that other jobs of the process used."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def lines(self) -> list[str]:
        """The lines so far, oldest first."""
        return list(self._lines)

    def text(self) -> str:
        """Return the log as the content of a text file."""
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, message: str) -> None:
        """Add a message with its credentials redacted; each line starts with the time."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._lines.extend(f"{stamp}  {line}" for line in redact_text(message).splitlines())

    def precede(self, lines: Iterable[str], seconds: float) -> None:
        """Insert the lines of the attempt that this one continues before this one's own, and add its seconds."""
        own = self.lines
        self._lines.clear()
        self._lines.extend([*lines, *own])
        self._seconds += seconds

    @contextlib.contextmanager
    def capturing(self, share: float = 1.0) -> Iterator[None]:
        """Record log messages of level WARNING and above, Python warnings, the traceback of an exception, and time.

        Args:
            share: the job's share of the block's time, in (0, 1]; the rest belongs to other jobs.
        """
        handler = _Handler(self)
        logging.captureWarnings(True)
        logging.getLogger().addHandler(handler)
        self._since = start = time.perf_counter()
        try:
            yield
        except Exception:
            self.write(traceback.format_exc())
            raise
        finally:
            self._since = None
            self._seconds += share * (time.perf_counter() - start)
            logging.getLogger().removeHandler(handler)

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Record what this thread logs (WARNING and above); no job's :meth:`capturing` block records it as well."""
        thread = threading.get_ident()
        handler = _Handler(self, thread)
        _Handler.taken.add(thread)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            _Handler.taken.remove(thread)


class _Handler(logging.Handler):
    """Records what one thread logs; without a thread, what every thread logs that has no handler of its own."""

    taken: ClassVar[set[int]] = set()
    """The threads that have handlers of their own."""

    def __init__(self, log: JobLog, thread: int | None = None) -> None:
        super().__init__(logging.WARNING)
        self._log, self._thread = log, thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread or (self._thread is None and record.thread not in self.taken):
            self._log.write(f"{record.levelname.lower()}: {record.getMessage()}".rstrip())


@dataclass(frozen=True, kw_only=True)
class Context:
    """Surroundings of a job that do not change its result.

    Attributes:
        store: where parents are read and results are published.
        data_dir: directory of the datasets that do not come with a library.
        reading: how folders of images are read, except for their size, which is the task's.
        device: where to compute.
        micro_batches: number of parts that a job divides its batches into, because the device has too little memory for
            whole ones. With BatchNorm, results depend on it; they say so in their ``environment``.
        checkpoint_seconds: the job saves a checkpoint at the first end of an epoch after this time; a killed job loses
            at most this time, one epoch, and the time in which the checkpoint is written while the job trains on.
        crew: the processes that train a network together.
        log: the job's log and time.
    """

    store: Store
    data_dir: str | None = None
    reading: Reading = BY_DEFAULT
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batches: int = 1
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    crew: Crew = field(default_factory=Crew)
    log: JobLog = field(default_factory=JobLog)


def publish(job: Job, context: Context, files: Files, metrics: Metrics, history: list[Row]) -> None:
    """Publish the final result of a job.

    `files` are the artifacts other than metrics and log, name -> content. `history` has rows with ``step``,
    ``timestamp`` (ms since 1970) and the metrics at that step.
    """
    seconds = context.log.seconds
    document = {"history": history, "final": {**metrics, schema.SECONDS: seconds}}
    context.log.write(f"done after {seconds:.1f} s: {in_words(metrics)}")
    files = {**files, schema.METRICS: pack_json(document), schema.LOG: context.log.text().encode()}
    context.store.publish(job.key, files, {**manifest(job, context), schema.SECONDS: seconds})


def manifest(job: Job, context: Context) -> dict[str, Any]:
    """Return the record that is published with a job's files: configuration, parents and environment."""
    counts = {schema.MICRO_BATCHES: context.micro_batches, schema.WORKERS: workers_of(job.config, context.crew.workers)}
    found: dict[str, Any] = {name: count for name, count in counts.items() if count > 1}
    if commit := project_commit():
        found["commit"] = commit
    return {
        "kind": job.kind,
        "config": canonical(job.config),
        "parents": {role: ref.key for role, ref in job.parents},
        "finished": now(),
        "environment": environment(context.device) | found,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return the host, device and software versions of this process; libraries that are not installed are left out."""
    versions = {name: library_version(name) for name in schema.SOFTWARE}
    versions |= {"python": platform.python_version(), "torch": torch.__version__}
    cuda = device.type == "cuda"
    return {
        **{name: version for name, version in versions.items() if version},
        schema.DEVICE: torch.cuda.get_device_name(device) if cuda else cpu.name(),
        **({} if cuda else {schema.CORES: cores()}),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
    }


def in_words(metrics: Metrics) -> str:
    """Return metrics as text, each with its name."""
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items())


def failure_note(error: Exception, context: Context) -> dict[str, Any]:
    """Return the note on a failed attempt: error, time, environment, and the log with the traceback."""
    return {
        "error": redact_text(f"{type(error).__name__}: {error}"),
        "at": now(),
        "environment": environment(context.device),
        "log": context.log.text(),
    }
