"""MLflow as a projection of the store: one run per job, found again by its key, written by one thread of the driver.

Trials never talk to MLflow, so a slow or absent server cannot stall or fail them. What happens goes through an outbox
on disk; what is logged of a published job comes from its result, with the time stamps recorded there. Whatever was
missed - the server was away, the driver was killed - is made up for at the next start of the same command.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import re
import socket
import ssl
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from search_spaces import SearchSpace
from study.plan import Plan, Ways
from study.tracking.mlflow_runs import Row, Runs, RunSpec, Unattached
from study.tracking.outbox import Event, Outbox
from trainables.checks import known
from trainables.host.databases import DELETED, deleted, refusal, sqlite_file, sqlite_uri
from trainables.host.redaction import redact, redact_text
from trainables.knobs import SETTINGS
from trainables.storage import documents, patiently
from trainables.storage.documents import Malformed
from trainables.storage.store import DamagedArtifact, Result, StorageError, Store

FLUSH_SECONDS = 5.0
"""Epochs of a running job are sent when the oldest unsent one is so old; short jobs are sent once, at their end."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts while the server does not answer; the last one repeats."""
CLOSING_PAUSE, CLOSING_PATIENCE = 1.0, 20.0
"""At the end of a study: the longest pause, and how long a server that does not answer is waited for."""
AT_ONCE = 32
"""Results that are read side by side and logged in a row, while other drivers wait who make new runs."""
ERROR_LENGTH, LOG_LENGTH = 4000, 200_000
"""Characters of an error (MLflow takes 8,000 as a tag), and of a log, of which the end is kept."""
_JOB, _EPOCH, _DONE, _FAILED = "job", "epoch", "done", "failed"
"""Events. The first says what a run is called and where it lies: the driver that delivers may have another plan."""
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
"""Errors of MLflow that trying again seldom cures, such as those of a run that somebody has deleted meanwhile."""
REFUSALS = 3
"""How often in a row something is refused before it is passed over: another driver may have been in the way."""
_DATABASES = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
"""Scheme of a database -> the Python module that SQLAlchemy talks to it with, unless the URI names another."""
_MODULES = {"pysqlite": "sqlite3", "mysqldb": "MySQLdb", "mysqlconnector": "mysql"}
"""Drivers in URIs that are not called as their Python module."""

_log = logging.getLogger(__name__)


def default_tracking_uri(storage: Path) -> str:
    """Return the URI of the SQLite database in a storage directory."""
    return sqlite_uri(storage / "mlflow.db")


def check_tracking(uri: str, experiment: str = "", timeout: float = 10.0) -> None:
    """Raise ValueError unless the tracking store takes the runs of an experiment; nothing is imported or written.

    A server that does not answer is waited for as long as a storage is.

    Args:
        uri: an MLflow tracking URI.
        experiment: its name; if empty, only the store itself is looked at.
        timeout: seconds to wait for a server's answer.
    """
    scheme, _, driver = urllib.parse.urlsplit(uri).scheme.partition("+")
    if uri == "databricks":
        return
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise ValueError(f"tracking URI {uri!r} has no scheme; a server is http://{uri}")
    if scheme in ("", "file"):
        folder = redact(uri).removeprefix("file://")
        raise ValueError(f"tracking URI {redact(uri)!r} is a directory; use sqlite:///{folder}/mlflow.db")
    if scheme in ("http", "https"):
        _check_server(uri, experiment, timeout)
    elif scheme in _DATABASES:
        _check_database(uri, driver or _DATABASES[scheme], experiment)
    elif scheme != "databricks":
        plugins = {plugin.name for plugin in importlib.metadata.entry_points(group="mlflow.tracking_store")}
        known("tracking scheme", scheme, [*_DATABASES, "http", "https", "databricks", *sorted(plugins)])


def _check_server(uri: str, experiment: str, timeout: float) -> None:
    named = urllib.parse.urlencode({"experiment_name": experiment})
    try:
        patiently(partial(_ask_server, uri, "/health", timeout))
        if not experiment:
            return
        answer = patiently(partial(_ask_server, uri, f"/api/2.0/mlflow/experiments/get-by-name?{named}", timeout))
    except StorageError as error:
        raise ValueError(str(error)) from error
    try:
        found = json.loads(answer)["experiment"]
        stage, number = found["lifecycle_stage"], str(found["experiment_id"])
    except (ValueError, LookupError, TypeError):
        return  # there is none, or the login is up to MLflow's own client
    if stage == DELETED:
        raise ValueError(f"tracking server {redact(uri)}: {deleted(redact(uri), experiment, number)}")


def _ask_server(uri: str, path: str, timeout: float) -> bytes:
    """Return what a tracking server answers, empty if it has something against it.

    Raises:
        StorageError: it does not answer, or says that it cannot for now.
    """
    parts = urllib.parse.urlsplit(uri)  # urllib takes no user:password@
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"), query="", fragment="")
    request = urllib.request.Request(place.geturl() + path)
    if parts.username and parts.password:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password)}"
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return b""
        raise StorageError(f"tracking server {redact(uri)} cannot be reached: it answers {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        again = isinstance(reason, ValueError | ssl.SSLCertVerificationError) or not isinstance(reason, OSError)
        again |= isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
        words = redact_text(str(reason))
        raise StorageError(f"tracking server {redact(uri)} cannot be reached: {words}", passing=not again) from error


def _check_database(uri: str, driver: str, experiment: str) -> None:
    module = _MODULES.get(driver, driver)
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"tracking database {redact(uri)}: the Python package for it, {module!r}, is not installed")
    if not uri.startswith("sqlite"):
        return
    database = sqlite_file(uri)
    if database is None:
        raise ValueError(f"tracking database {redact(uri)} names no file; write sqlite:///DIRECTORY/mlflow.db")
    if problem := refusal(uri, experiment):
        raise ValueError(f"tracking database {redact(uri)}: {problem}")
    existing = next(path for path in (database.parent, *database.parents) if path.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        raise ValueError(f"tracking database {redact(uri)}: directory {str(existing)!r} is not writable")


def recipe_digest(space: SearchSpace, ways: Ways | None = None) -> str:
    """Return a short name of everything in a space that is not an axis of the grid.

    Cells of one recipe may be compared and pooled, however the grid grows; cells of two recipes may not. Settings that
    were chosen for each network by itself have no value in the recipe, only that they were.
    """
    recipe = {name: getattr(space, name) for name, knob in SETTINGS.items() if not knob.axis}
    recipe |= dict.fromkeys({name for way in (ways or {}).values() for name in way}, "fastest")
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


class Tracker:
    """Writes a study's runs, in a thread of its own, in the order in which things happened."""

    def __init__(self, plan: Plan, store: Store, uri: str, *, fresh: set[str], outbox: Path | None = None) -> None:
        """Prepare; nothing happens before :meth:`start`.

        Args:
            plan: the study.
            store: where results are read.
            uri: MLflow tracking URI.
            fresh: keys of the jobs that this study computes itself; the others are marked as reused.
            outbox: local directory in which events wait while they cannot be delivered; by default below a local
                storage, else below ``outputs``.
        """
        home = Path("outputs" if "://" in store.uri else store.uri)
        self.outbox = (outbox or home / "tracking" / plan.space.name).absolute()
        """Where events wait while they cannot be delivered."""
        self._plan, self._store = plan, store
        self._runs = Runs(plan, store, uri, recipe=recipe_digest(plan.space, plan.ways), fresh=fresh)
        self._address = f"{redact(uri)} {plan.space.name}"
        self._box = Outbox(self.outbox, self._address)
        self._expected = plan.jobs.keys() - fresh
        self._introduced: set[str] = set()
        self._introducing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._wanted, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._delay = 0.0
        self._failing_since: float | None = None
        self._problem: str | None = None
        self._refused: str | None = None

    @property
    def behind(self) -> str | None:
        """Why results have not been delivered, while they have not."""
        return self._problem or self._box.problem

    @property
    def undelivered(self) -> list[str]:
        """Keys of the jobs that have ended and whose runs do not say so yet, in the order of the plan."""
        expected = self._expected.copy()
        return [key for key in self._plan.jobs if key in expected and not self._runs.is_recorded(key)]

    # --- the driver's side: nothing here waits or raises ------------------------------------------------------------
    def start(self, delay: float = 0.0) -> None:
        """Connect, deliver what earlier drivers could not, and catch up with what the store already has.

        Args:
            delay: seconds to wait for the first event before; to import MLflow takes the processor time that trials
                need in order to start.
        """
        self._delay = delay
        self._thread.start()

    def epoch(self, key: str, row: Mapping[str, Any]) -> None:
        """Note an epoch of a running job."""
        self._put(_EPOCH, key, row=dict(row))

    def done(self, key: str) -> None:
        """Log a published job."""
        self._put(_DONE, key)

    def failed(self, key: str, error: str, log: str = "") -> None:
        """Log a job that failed for good.

        Args:
            key: the job.
            error: why.
            log: content of its log, which becomes an artifact of its run; if empty, that which it left in the store.
        """
        error, log = redact_text(error[: 2 * ERROR_LENGTH])[:ERROR_LENGTH], redact_text(log[-2 * LOG_LENGTH :])
        self._put(_FAILED, key, error=error, log=log[-LOG_LENGTH:], time=round(1000 * time.time()))

    def _put(self, event: str, key: str, **content: Any) -> None:
        """Add an event, and before the first one of a job what its run says."""
        if event in (_DONE, _FAILED):
            self._expected.add(key)
        with self._introducing:
            if key not in self._introduced:
                self._introduced.add(key)
                self._box.put({"event": _JOB, **dataclasses.asdict(self._runs.spec(key))})
        self._box.put({"event": event, "key": key, **content})
        self._wanted.set()

    def close(self, timeout: float = math.inf, show: Callable[[int], None] | None = None) -> bool:
        """Deliver what is left; return whether everything was delivered. What was not stays in the outbox.

        Args:
            timeout: seconds to wait at most; a server that does not answer is given up earlier.
            show: is called now and then with the number of runs that are still to be delivered.
        """
        self._closing.set()
        self._wanted.set()
        self._box.finish()
        began = time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() < began + timeout:
                self._thread.join(min(0.1, timeout))
                if show is not None:
                    show(len(self.undelivered))
                if self._failing_since and time.monotonic() - max(began, self._failing_since) > CLOSING_PATIENCE:
                    break
        finally:  # also if a person does not want to wait
            self._given_up.set()
        return not self._thread.is_alive() and self.behind is None

    # --- the thread's side ------------------------------------------------------------------------------------------
    def _work(self) -> None:
        self._wanted.wait(self._delay)
        try:
            if self._attempt(self._runs.connect) and self._refused is None:  # else there is nothing to add to
                self._deliver()
        except Exception as error:  # a fault of ours; the study goes on, and what happens is kept
            self._problem = redact_text(f"{type(error).__name__}: {error}")
            _log.warning("tracking has stopped: %s", redact_text(traceback.format_exc()))
        finally:
            self._closing.wait()
            self._box.close()

    def _deliver(self) -> None:
        published: set[str] = set()
        if not self._attempt(lambda: published.update(self._store.keys())):
            return
        for box in Outbox.abandoned(self.outbox, self._address):
            try:
                if not _Delivery(box, self._runs, self._attempt, published).run():
                    return
            finally:
                box.close()
        if self._catch_up([key for key in self._plan.jobs if key in published and not self._runs.is_finished(key)]):
            _Delivery(self._box, self._runs, self._attempt, set()).run()

    def _catch_up(self, keys: list[str]) -> bool:
        """Deliver published results whose runs lack them; return False if told to stop."""
        self._expected.update(keys)
        for start in range(0, len(keys), AT_ONCE):
            some, found = keys[start : start + AT_ONCE], dict[str, Result]()
            if not self._attempt(partial(self._read, some, found)):
                return False
            self._expected.difference_update(set(some) - found.keys())  # damaged, or gone since
            if not self._attempt(partial(self._runs.finish_all, found)):
                return False
            for key in found:  # what stands behind one that was refused
                if not self._attempt(partial(self._runs.finish, self._runs.spec(key), found[key])):
                    return False
        return True

    def _read(self, keys: list[str], found: dict[str, Result]) -> None:
        found.update(self._runs.read(keys))

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Do something, again and again while it fails in a way that may pass; return False if told to stop.

        What is refused is noted, and passed over.
        """
        refusals = 0
        for pause in _pauses():
            try:
                action()
                self._problem, self._failing_since = self._refused, None
                return True
            except DamagedArtifact as error:
                _log.warning("%s", error)  # it is computed again, by this run or the next, and then logged
                return True
            except Exception as error:  # whatever a tracking server can throw: no study ends because of it
                self._problem = redact_text(f"{type(error).__name__}: {error}").splitlines()[0]  # clients quote URIs
                _log.debug("tracking is behind: %s", redact_text(traceback.format_exc()))
                refusals += _is_refusal(error)
                if refusals == REFUSALS or isinstance(error, Unattached):
                    self._refused, self._failing_since = self._problem, None
                    return True
                self._failing_since = self._failing_since or time.monotonic()
                if self._waited(pause):
                    return False
        raise AssertionError("pauses do not end")

    def _waited(self, pause: float) -> bool:
        """Wait before the next attempt; return whether there is to be none."""
        if not self._closing.is_set():
            self._closing.wait(pause)
            return self._given_up.is_set()
        return self._given_up.wait(min(pause, CLOSING_PAUSE))


@dataclass
class _Live:
    """A running job's epochs that have not been sent.

    Attributes:
        rows: the epochs.
        since: when the first of them came, by the monotonic clock.
        position: where the first of them begins in the outbox.
    """

    rows: list[Row] = field(default_factory=list)
    since: float = 0.0
    position: int = 0


class _Delivery:
    """Carries the events of one outbox to the runs, in their order."""

    def __init__(
        self, box: Outbox, runs: Runs, attempt: Callable[[Callable[[], object]], bool], published: set[str]
    ) -> None:
        """Prepare.

        Args:
            box: where the events are.
            runs: where they go.
            attempt: does something until it succeeds or is refused; returns False if told to stop.
            published: keys of jobs whose epochs and failures are history.
        """
        self._box, self._runs, self._attempt, self._published = box, runs, attempt, published
        self._event: Event | None = None
        self._specs: dict[str, RunSpec] = {}
        self._live: dict[str, _Live] = {}

    def run(self) -> bool:
        """Deliver until the outbox is exhausted; return False if told to stop before."""
        while not self._box.exhausted:
            position = self._box.position
            if not self._attempt(self._read):
                return False
            if self._event is not None and not self._attempt(partial(self._handle, self._event, position)):
                return False
            if self._event is not None and self._event.get("event") in (_DONE, _FAILED):
                self._live.pop(self._event["key"], None)
            if not self._flush():
                return False
            waiting = (live.position for live in self._live.values() if live.rows)
            self._box.delivered(min(waiting, default=self._box.position))
        for key, live in self._live.items():
            if not self._attempt(partial(self._runs.interrupt, self._specs[key], live.rows)):
                return False
        self._box.delivered(self._box.position)
        return True

    def _read(self) -> None:
        self._event = None
        event = self._box.get(self._until_flush())
        if event is not None and (reason := self._flaw(event)):
            self._box.leave_out(reason)
        else:
            self._event = event

    def _flaw(self, event: Event) -> str | None:
        """Return why an event cannot be delivered; None if it can."""
        kind = event.get("event")
        if not isinstance(kind, str) or kind not in documents.EVENTS:
            return f"an event {ascii(kind)[:80]}, which this version of the study does not know"
        try:
            documents.EVENTS[kind](event)
        except Malformed as error:
            return str(error)
        return None if kind == _JOB or event["key"] in self._specs else f"nothing is known of {event['key'][:12]}"

    def _until_flush(self) -> float | None:
        """Return the seconds until epochs are to be sent; None if there are none."""
        since = min((live.since for live in self._live.values() if live.rows), default=None)
        return None if since is None else max(0.0, since + FLUSH_SECONDS - time.monotonic())

    def _flush(self) -> bool:
        for key, live in self._live.items():
            if live.rows and time.monotonic() - live.since >= FLUSH_SECONDS:
                if not self._attempt(partial(self._runs.add_epochs, self._specs[key], live.rows)):
                    return False
                live.rows = []
        return True

    def _handle(self, event: Event, position: int) -> None:
        kind, key = event["event"], event["key"]
        if kind == _JOB:
            named = {field.name: event[field.name] for field in dataclasses.fields(RunSpec)}
            self._specs[key] = RunSpec(**named)
            return
        spec = self._specs[key]
        if position < self._box.delivered_before:
            if kind == _EPOCH and key not in self._published:
                self._live.setdefault(key, _Live())  # its run says that it is running, unless more is to come
        elif kind == _DONE:
            self._runs.finish(spec)
        elif key in self._published:
            return
        elif kind == _FAILED:
            rows = self._live[key].rows if key in self._live else []
            self._runs.fail(spec, rows, event["error"], event["log"], event["time"])
        else:
            if key not in self._live and not self._runs.resume(spec):
                return
            live = self._live.setdefault(key, _Live())
            if not live.rows:
                live.since, live.position = time.monotonic(), position
            live.rows.append(event["row"])


def _is_refusal(error: Exception) -> bool:
    """Return whether trying again will hardly help: refused by the server, or an error of a program or installation."""
    if isinstance(error, StorageError):
        return not error.passing
    programs = (ImportError, LookupError, TypeError, AttributeError, AssertionError)
    return isinstance(error, programs) or getattr(error, "error_code", None) in _REFUSED


def _pauses() -> Iterator[float]:
    yield from RETRY_SECONDS
    while True:
        yield RETRY_SECONDS[-1]
