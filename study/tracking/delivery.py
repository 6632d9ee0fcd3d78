"""MLflow as a projection of the store: one run per job, identified by its key, written by one thread of the driver.

Trials never talk to MLflow, so a slow or absent server cannot stall or fail them. The store is the authoritative
record: when it starts and when it ends, the tracker compares the runs in MLflow with the published results and the
noted failures, and delivers what is missing. In between, epochs and ends of jobs wait in memory until they are sent.

While the server is away, at most ``WAITING_EPOCHS`` epochs of running jobs wait. Later epochs are not shown live, and
a killed driver loses the waiting ones. A published job loses nothing: its result holds all its epochs, which are
delivered when the job ends or when the same command starts again. Only a job that fails, or never ends, can lack
epochs in MLflow after an outage.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from study.plan import Plan
from study.tracking.contents import Row
from study.tracking.experiment import Busy, DatabaseGone, Experiment
from study.tracking.mlflow_runs import Runs, Unattached
from study.tracking.views import address
from trainables.host.clock import now
from trainables.host.processes import me
from trainables.host.redaction import redact_text
from trainables.storage.store import DamagedArtifact, Result, StorageError, Store

FLUSH_SECONDS = 5.0
"""A running job's epochs are sent once the oldest unsent one is this old; a shorter job is sent once, at its end."""
WAITING_EPOCHS = 20_000
"""Maximum number of epochs that wait in memory, over all jobs: about 20 MB."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between attempts while the server does not answer; the last value repeats."""
CLOSING_PAUSE, CLOSING_PATIENCE = 1.0, 20.0
"""At the end of a study: the longest pause, and the longest wait for a server that does not answer, in seconds."""
AT_ONCE = 32
"""Results that are read in parallel and then logged in one go, during which no other driver can create runs."""
AVERAGE_SECONDS, AVERAGE_REST = 120.0, 20.0
"""Pause between two updates of the averages: at least ``AVERAGE_SECONDS``, and at least ``AVERAGE_REST`` times the
duration of the last update."""
AVERAGE_RESULTS, AVERAGE_GROWTH = 8, 0.25
"""The averages are updated after this many more results, and after this share of the results before."""
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
"""MLflow's error codes that a retry rarely cures, such as that for a run deleted by someone else."""
REFUSALS = 3
"""Refusals of an action after which it is skipped; the first ones may be due to another driver's interference."""

_log = logging.getLogger(__name__)


@dataclass
class _Live:
    """A job that has not ended.

    Attributes:
        rows: the job's unsent epochs.
        since: arrival of the first unsent epoch, in seconds of the monotonic clock.
    """

    rows: list[Row] = field(default_factory=list)
    since: float = 0.0


class Tracker:
    """Writes a study's runs from a thread of its own; jobs are logged in the order in which they ended."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        uri: str,
        *,
        fresh: set[str],
        average: Callable[[Experiment], None] = lambda _: None,
    ) -> None:
        """Prepare; :meth:`start` starts the thread.

        Args:
            plan: the study's plan.
            store: holds the results and the leases.
            uri: MLflow tracking URI.
            fresh: keys of the jobs that this study computes itself; the runs of the others are tagged as reused.
            average: brings the runs that show averages up to date; called after batches of results, and at the end.
        """
        self._plan, self._store, self._average = plan, store, average
        self._experiment = Experiment(plan.space, store, uri)
        self._runs = Runs(plan, store, self._experiment, fresh=fresh)
        self._results = {key for key, outputs in plan.closure.outputs.items() if None in outputs}
        """Keys of the jobs of which the plan needs the result.

        The others are nets that train to an early state only. Without a result their runs would never end, so they have
        one only if they fail.
        """
        self._expected = self._results - fresh
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._changed = threading.Condition()
        self._ended: deque[Callable[[], None]] = deque()
        self._live: dict[str, _Live] = {}
        self._dropped = 0
        self._wanted, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._delay = 0.0
        self._failing_since: float | None = None
        self._problem: str | None = None
        self._refused: str | None = None
        self._unattached: str | None = None
        self._logged, self._averaged, self._rested = 0, 0, 0.0

    @property
    def behind(self) -> str | None:
        """The latest error while delivery is failing, or after something was refused; None if all is well."""
        return self._problem

    @property
    def undelivered(self) -> list[str]:
        """Keys of the jobs that have ended although their runs do not say so yet, in the order of the plan."""
        expected = self._expected.copy()
        return [key for key in self._plan.jobs if key in expected and not self._runs.is_recorded(key)]

    @property
    def page(self) -> str | None:
        """Address of the study's view within MLflow's pages; None if the experiment has not been opened."""
        return address(self._experiment.id) if self._experiment.is_open else None

    # --- the driver's side: nothing here waits or raises ------------------------------------------------------------
    def start(self, delay: float = 0.0) -> None:
        """Start the thread, which connects and delivers what the store holds and MLflow lacks.

        Args:
            delay: seconds to wait first, cut short by the first epoch or end of a job. Importing MLflow takes CPU time
                that starting trials need.
        """
        self._delay, self._rested = delay, time.monotonic() + AVERAGE_SECONDS
        self._thread.start()

    def epoch(self, key: str, row: Mapping[str, Any]) -> None:
        """Note an epoch of a running job."""
        if key not in self._results:
            return
        with self._changed:
            live = self._live.setdefault(key, _Live())
            if sum(len(each.rows) for each in self._live.values()) >= WAITING_EPOCHS:
                if not self._dropped:
                    _log.warning("%d epochs wait for MLflow; later ones come with the results", WAITING_EPOCHS)
                self._dropped += 1
                return
            if not live.rows:
                live.since = time.monotonic()
            live.rows.append(dict(row))
            self._notify()

    def done(self, key: str) -> None:
        """Log a published job."""
        if key not in self._results:
            return
        with self._changed:
            self._live.pop(key, None)  # the result has all epochs
            self._end(key, partial(self._runs.finish, key))

    def failed(self, key: str, error: str) -> None:
        """Log a job that failed for good, with its log from the store.

        Args:
            key: the job's key.
            error: why it failed.
        """
        when = now()
        with self._changed:
            rows = self._live.pop(key, _Live()).rows
            self._end(key, partial(self._runs.fail, key, rows, error, when))

    def _end(self, key: str, action: Callable[[], None]) -> None:
        self._expected.add(key)
        self._ended.append(action)
        self._notify()

    def _notify(self) -> None:
        self._wanted.set()
        self._changed.notify()

    def last(self) -> None:
        """Note that no job runs any more: the averages follow the deliveries that are left, without waiting."""
        with self._changed:
            self._closing.set()
            self._notify()

    def close(self, timeout: float = math.inf, show: Callable[[int], None] | None = None) -> bool:
        """Deliver the rest; return whether everything was delivered. The next start delivers what is missing.

        Args:
            timeout: maximum wait in seconds; the wait also ends after ``CLOSING_PATIENCE`` without an answer.
            show: called about every 0.1 s with the number of runs that are still to be delivered.
        """
        self.last()
        began = time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() < began + timeout:
                self._thread.join(min(0.1, timeout))
                if show is not None:
                    show(len(self.undelivered))
                if self._failing_since and time.monotonic() - max(began, self._failing_since) > CLOSING_PATIENCE:
                    break
        finally:  # also if the user interrupts the wait
            self._given_up.set()
        return not self._thread.is_alive() and self.behind is None

    # --- the thread's side ------------------------------------------------------------------------------------------
    def _work(self) -> None:
        self._wanted.wait(self._delay)
        try:
            if not self._attempt(self._connect) or self._refused is not None:
                return  # without an experiment there is nowhere to log to
            if self._catch_up() and self._follow() and self._deliver_again():
                self._attempt(self._update_averages)
        except Exception as error:  # a bug of ours: the study goes on, and the next start delivers
            self._problem = redact_text(f"{type(error).__name__}: {error}")
            _log.warning("tracking has stopped: %s", redact_text(traceback.format_exc()))

    def _connect(self) -> None:
        self._experiment.open()
        self._runs.connect()

    def _update_averages(self) -> None:
        began, logged = time.monotonic(), self._logged
        try:
            self._average(self._experiment)
            self._averaged = logged
        finally:
            ended = time.monotonic()
            self._rested = ended + max(AVERAGE_SECONDS, AVERAGE_REST * (ended - began))

    def _try_averages(self) -> None:
        """Update the averages; a failure holds up no job, because a later update can do without this one."""
        try:
            self._update_averages()
        except Exception:
            _log.debug("averages are behind: %s", redact_text(traceback.format_exc()))

    def _averages_are_due(self) -> bool:
        """Return whether enough results have come, and enough time has passed, since the last update."""
        few = max(AVERAGE_RESULTS, AVERAGE_GROWTH * self._averaged)
        return self._logged - self._averaged >= few and time.monotonic() >= self._rested

    def _catch_up(self) -> bool:
        """Deliver what the store holds and MLflow lacks; return False if told to stop."""
        published, failures, computed, drivers = set[str](), set[str](), set[str](), set[str]()

        def look() -> None:
            drivers.update(study["owner"] for study in self._store.studies())
            computed.update(self._store.leases())  # before keys(): a job releases its lease only after it is published
            published.update(self._store.keys())
            failures.update(self._store.failures())

        if not self._attempt(look):
            return False
        for key in self._runs.outdated():
            if not self._attempt(partial(self._runs.describe, key)):
                return False
        with self._changed:
            computed |= self._live.keys()
        # A driver holds no lease on a job between two attempts, so runs are ended only when no other driver is left.
        if drivers <= {me()} and not self._attempt(partial(self._runs.interrupt_abandoned, published | computed)):
            return False
        done = self._plan.jobs.keys() - self._plan.closure.todo(published).keys()
        if not self._attempt(partial(self._runs.drop_unended, done - self._results - published - computed)):
            return False
        if not self._finish([key for key in self._plan.jobs if key in published and not self._runs.is_finished(key)]):
            return False
        # A failed job that is being computed again may still succeed.
        failed = [key for key in self._plan.jobs if key in failures - published - computed]
        return all(self._attempt(partial(self._runs.fail_as_noted, key)) for key in failed)

    def _deliver_again(self) -> bool:
        """Deliver what is still missing at the end; return False if told to stop.

        What was refused before and is recorded now is no longer a problem, except for files that a run lacks.
        """
        refused, self._refused = self._refused, self._unattached
        done = self._catch_up()
        if self._refused is None and (not done or self.undelivered):
            self._refused = refused
        self._problem = self._problem if self._failing_since else self._refused
        return done

    def _finish(self, keys: list[str]) -> bool:
        """Deliver published results; return False if told to stop."""
        self._expected.update(keys)
        for start in range(0, len(keys), AT_ONCE):
            some, found = keys[start : start + AT_ONCE], dict[str, Result]()
            if not self._attempt(partial(self._read, some, found)):
                return False
            self._expected.difference_update(set(some) - found.keys())  # damaged or removed
            if not self._attempt(partial(self._runs.finish_all, found)):
                return False
            for key in found:  # if one was refused, those after it are still to be logged
                if not self._attempt(partial(self._runs.finish, key, found[key])):
                    return False
        return True

    def _read(self, keys: list[str], found: dict[str, Result]) -> None:
        found.update(self._runs.read(keys))

    def _follow(self) -> bool:
        """Deliver epochs and ends of jobs until the study ends; return False if told to stop before."""
        while (action := self._next()) is not None:
            if not self._attempt(action):
                return False
        return all(self._attempt(partial(self._runs.interrupt, key, live.rows)) for key, live in self._live.items())

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next action and return it; None at the end of the study."""
        with self._changed:
            while not self._ended:
                if self._closing.is_set():
                    return None
                if self._averages_are_due():
                    return self._try_averages
                waiting = {key: live.since for key, live in self._live.items() if live.rows}
                if not waiting:
                    self._changed.wait()
                    continue
                oldest = min(waiting, key=waiting.__getitem__)
                pause = waiting[oldest] + FLUSH_SECONDS - time.monotonic()
                if pause <= 0:
                    rows, self._live[oldest].rows = self._live[oldest].rows, []
                    return partial(self._runs.add_epochs, oldest, rows)
                self._changed.wait(pause)
            self._logged += 1
            return self._ended.popleft()

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Do an action, and retry it while it fails in a way that may pass; return False if told to stop.

        An action that the server keeps refusing is noted and skipped.
        """
        refusals = 0
        for pause in _pauses():
            try:
                self._check()
                action()
                self._problem, self._failing_since = self._refused, None
                return True
            except DamagedArtifact as error:
                _log.warning("%s", error)  # this start or the next one computes the job again and logs it
                return True
            except Exception as error:  # no error of a tracking server may end a study
                kind = "" if isinstance(error, DatabaseGone) else f"{type(error).__name__}: "
                self._problem = redact_text(f"{kind}{error}").splitlines()[0]  # clients quote URIs
                _log.debug("tracking is behind: %s", redact_text(traceback.format_exc()))
                refusals += _is_refusal(error)
                if refusals == REFUSALS or isinstance(error, Unattached):
                    self._refused, self._failing_since = self._problem, None
                    if isinstance(error, Unattached):  # its run is complete without them, and not logged again
                        self._unattached = self._problem
                    return True
                if not isinstance(error, Busy):  # another driver ends, or its lease does
                    self._failing_since = self._failing_since or time.monotonic()
                if self._waited(pause):
                    return False
        raise AssertionError("pauses do not end")

    def _check(self) -> None:
        """Raise DatabaseGone if the database is gone, and forget what it held."""
        try:
            self._experiment.check()
        except DatabaseGone:
            self._runs.forget()
            raise

    def _waited(self, pause: float) -> bool:
        """Wait before the next attempt; return whether to give up."""
        if not self._closing.is_set():
            self._closing.wait(pause)
            return self._given_up.is_set()
        return self._given_up.wait(min(pause, CLOSING_PAUSE))


def _is_refusal(error: Exception) -> bool:
    """Return whether a retry is unlikely to help: the server refuses, or the error is one of code or installation."""
    if isinstance(error, StorageError):
        return not error.passing
    programs = (ImportError, LookupError, TypeError, AttributeError, AssertionError)
    return isinstance(error, programs) or getattr(error, "error_code", None) in _REFUSED


def _pauses() -> Iterator[float]:
    yield from RETRY_SECONDS
    while True:
        yield RETRY_SECONDS[-1]
