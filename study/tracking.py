"""MLflow as a projection of the store: one run per job, found again by its key, written by one thread of the driver.

Trials never talk to MLflow, so a slow or absent server cannot stall or fail them. What is logged comes from published
results with the time stamps recorded there; writing it a second time adds nothing, and whatever was missed - the
server was away, the driver was killed - is made up for at the next start of the same command.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import SearchSpace
from search_spaces.space import AXES
from study.labels import run_name, run_params
from study.plan import Plan
from trainables import schema
from trainables.store import DamagedArtifact, Store

FLUSH_SECONDS = 5.0
"""Epochs of a running job are sent when the oldest unsent one is so old; short jobs are sent once, at their end."""
CHUNK = 900
"""Metrics per request; MLflow takes at most 1,000."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
"""Errors of MLflow that trying again does not cure, such as those of a run that somebody has deleted meanwhile."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts while the server does not answer; the last one repeats."""

_log = logging.getLogger(__name__)


def default_tracking_uri(storage: Path) -> str:
    """Return the URI of the SQLite database in a storage directory."""
    return f"sqlite:///{storage}/mlflow.db"


def redact(uri: str) -> str:
    """Return a URI without user name, password and query, fit for logs."""
    parts = urllib.parse.urlsplit(uri)
    if "@" in parts.netloc:
        parts = parts._replace(netloc="***@" + parts.netloc.rsplit("@", 1)[1])
    return urllib.parse.urlunsplit(parts._replace(query="")) if parts.netloc else uri


def check_tracking(uri: str, timeout: float = 10.0) -> None:
    """Raise ValueError unless the tracking store can be reached or created; nothing is imported or written.

    Args:
        uri: an MLflow tracking URI.
        timeout: seconds to wait for a server's answer.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme in ("http", "https"):
        server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # urllib takes no user:password@
        try:
            with urllib.request.urlopen(server.rstrip("/") + "/health", timeout=timeout):
                return
        except urllib.error.HTTPError:
            return  # it answers; whether it lets us in is for MLflow's own client to find out
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"tracking server {redact(uri)} cannot be reached: {reason}") from error
    if parts.scheme == "sqlite":
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        if database.is_dir():
            raise ValueError(f"tracking database {uri} is a directory")
        folder = database.parent
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK) or not existing.is_dir():
            raise ValueError(f"tracking database {uri}: directory {str(existing)!r} is not writable")
        return
    if parts.scheme in ("", "file"):
        raise ValueError(f"tracking URI {uri!r} is a directory; use sqlite:///{uri.removeprefix('file://')}/mlflow.db")


def recipe_digest(space: SearchSpace) -> str:
    """Return a short name of everything in a space that is not an axis of the grid.

    Cells of one recipe may be compared and pooled, however the grid grows; cells of two recipes may not.
    """
    recipe = {field.name: getattr(space, field.name) for field in SearchSpace.settings() if field.name not in AXES}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


_Point = tuple[str, int, float]
"""Name, step and value."""


@dataclass
class _Live:
    """A running job's epochs that have not been sent."""

    rows: list[dict[str, Any]]
    since: float


class Tracker:
    """Writes a study's runs, in a thread of its own, in the order in which things happened."""

    def __init__(self, plan: Plan, store: Store, uri: str, *, fresh: set[str]) -> None:
        """Prepare; nothing happens before :meth:`start`.

        Args:
            plan: the study.
            store: where results are read.
            uri: MLflow tracking URI.
            fresh: keys of the jobs that this study computes itself; the others are marked as reused.
        """
        self._plan, self._store, self._uri, self._fresh = plan, store, uri, fresh
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._runs: dict[str, str] = {}
        self._finished: set[str] = set()
        self._live: dict[str, _Live] = {}
        self._attempted: set[str] = set()
        self._cut_off: set[str] = set()
        self._with_error: set[str] = set()
        self._params: dict[str, dict[str, str]] = {}
        self._refused: str | None = None
        self._sent: dict[str, set[_Point]] = {}
        self._compared_with: dict[str, list[str]] = defaultdict(list)
        for key in plan.jobs:
            for reference in self._references(key).values():
                self._compared_with[reference].append(key)
        self._recipe = recipe_digest(plan.space)
        self.behind: str | None = None
        """Why results have not been delivered, while they have not."""

    # --- the driver's side ------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Connect, and catch up with what the store already has."""
        self._thread.start()
        self._queue.put(self._connect)
        for key in self._plan.jobs:
            if key in self._store:
                self.done(key)

    def epoch(self, key: str, row: Mapping[str, Any]) -> None:
        """Note an epoch of a running job."""
        copied = dict(row)
        self._queue.put(lambda: self._add_epoch(key, copied))

    def done(self, key: str) -> None:
        """Log a published job."""
        self._queue.put(lambda: self._log_done(key))

    def failed(self, key: str, error: str) -> None:
        """Log a job that failed for good."""
        self._queue.put(lambda: self._log_failed(key, error))

    def close(self, timeout: float) -> bool:
        """Deliver what is left, waiting `timeout` seconds at most; return whether everything was delivered."""
        if not self._thread.is_alive():
            return self.behind is None
        self._queue.put(self._close_live)
        self._queue.put(None)
        self._thread.join(timeout)
        self._closing.set()
        return not self._thread.is_alive() and self.behind is None

    # --- the thread's side ------------------------------------------------------------------------------------------
    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            for pause in _pauses():
                try:
                    action()
                    self.behind = self._refused
                    break
                except DamagedArtifact as error:
                    _log.warning("%s", error)  # it is computed again, by this run or the next, and then logged
                    break
                except Exception as error:  # whatever a tracking server can throw: no study ends because of it
                    reason = re.sub(r"//[^/\s]*@", "//***@", str(error))  # clients quote the URI, password and all
                    self.behind = f"{type(error).__name__}: {reason}".splitlines()[0]
                    _log.debug("tracking is behind", exc_info=True)
                    if getattr(error, "error_code", None) in _REFUSALS:
                        if action == self._connect:
                            return  # no experiment, nothing to add to
                        self._refused = self.behind
                        break
                    if self._closing.wait(pause):
                        return

    def _connect(self) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        name = self._plan.space.name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = None
            if self._uri.startswith("sqlite:"):
                folder = Path(self._uri.removeprefix("sqlite:///")).absolute().parent
                location = (folder / "mlartifacts" / name).as_uri()
            self._experiment = self._client.create_experiment(name, artifact_location=location)
            self._client.set_experiment_tag(self._experiment, "mlflow.note.content", self._plan.space.question)
            # Opens on the page for trained models, with its charts, not on the one for language models.
            self._client.set_experiment_tag(self._experiment, "mlflow.experimentKind", "custom_model_development")
        else:
            self._experiment = experiment.experiment_id
        self._client.set_experiment_tag(self._experiment, schema.TAG_RECIPE, self._recipe)
        for run in self._existing_runs():
            key = run.data.tags.get(schema.TAG_KEY)
            if key is None:
                continue
            self._runs[key], self._params[key] = run.info.run_id, run.data.params
            if schema.TAG_ERROR in run.data.tags:
                self._with_error.add(key)
            up_to_date = self._recipe_tag() in run.data.tags and self._has_gaps(key, run.data.metrics)
            if run.info.status == "FINISHED" and up_to_date:
                self._finished.add(key)
            else:
                self._cut_off.add(key)

    def _existing_runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _has_gaps(self, key: str, metrics: Mapping[str, float]) -> bool:
        """Return whether a run has the gaps that are due: it may have ended before what it is compared with."""
        return all(name in metrics or other not in self._store for name, other in self._references(key).items())

    def _references(self, key: str) -> dict[str, str]:
        """Return what a job's accuracy is compared with: name of the gap -> key of the other job."""
        job, lth = self._plan.jobs.get(key), self._plan.lth_keys.get(key)
        if job is None or job.kind != schema.SPARSE:
            return {}
        dense = {schema.GAP_TO_DENSE: job.parent("init").job.key}
        return dense if lth in (None, key) else {**dense, schema.GAP_TO_LTH: lth}

    def _recipe_tag(self) -> str:
        return f"{schema.TAG_RECIPE}.{self._recipe}"

    def _run(self, key: str, started: int) -> str:
        """Return the id of a job's run, creating the run if need be.

        Args:
            key: the job.
            started: when the job began, ms since 1970; for a new run.
        """
        if key not in self._runs:
            job, cell = self._plan.jobs[key], self._plan.cells[key]
            tags = {
                schema.TAG_KEY: key,
                schema.TAG_REUSED: "false" if key in self._fresh else "true",
                schema.TAG_PARENTS: ",".join(ref.key for _, ref in job.parents),
                self._recipe_tag(): "true",
                "mlflow.source.name": "study.run",
            }
            if job.kind == schema.SPARSE:
                tags[schema.TAG_DENSE_KEY] = job.parent("init").job.key
            if key in self._plan.lth_keys:
                tags[schema.TAG_LTH_KEY] = self._plan.lth_keys[key]
            run = self._lost_run(key) or self._client.create_run(self._experiment, started, tags, run_name(job, cell))
            self._runs[key] = run.info.run_id
        return self._runs[key]

    def _lost_run(self, key: str) -> Any:
        """Return the run that an earlier attempt has made although its answer was lost, or None."""
        if key not in self._attempted:
            self._attempted.add(key)
            return None
        found = self._client.search_runs([self._experiment], f"tags.{schema.TAG_KEY} = '{key}'", max_results=1)
        return found[0] if found else None

    def _add_epoch(self, key: str, row: dict[str, Any]) -> None:
        live = self._live.setdefault(key, _Live([], time.monotonic()))
        if row not in live.rows:  # a second attempt at this very action
            live.rows.append(row)
        if time.monotonic() - live.since >= FLUSH_SECONDS:
            run = self._run(key, int(live.rows[0]["timestamp"]))
            self._log_metrics(key, run, [metric for each in live.rows for metric in _metrics(each)])
            self._live[key] = _Live([], time.monotonic())

    def _log_done(self, key: str) -> None:
        self._live.pop(key, None)
        if key in self._finished:
            return
        try:
            document = self._store.read_json(key, schema.METRICS)
            manifest = self._store.manifest(key)
        except KeyError:
            return  # removed since: there is nothing to log
        from mlflow.entities import Param, RunTag

        job, cell = self._plan.jobs[key], self._plan.cells[key]
        finished = int(manifest["finished"])
        run = self._run(key, finished - round(1000 * document["final"][schema.SECONDS]))
        metrics = [metric for row in document["history"] for metric in _metrics(row)]
        by_epoch = {name for name, *_ in metrics}
        final = {name: value for name, value in document["final"].items() if name not in by_epoch}
        metrics += [(name, value, finished, job.epochs) for name, value in final.items()]
        # Params cannot be changed. They may differ from an earlier study's in what has no influence on this job.
        known = self._params.get(key, {})
        params = [Param(name, str(value)) for name, value in run_params(job, cell).items() if name not in known]
        tags = {self._recipe_tag(): "true", "device": manifest["environment"]["device"]}
        tags |= {"torch": manifest["environment"]["torch"]}
        self._client.log_batch(run, params=params, tags=[RunTag(name, value) for name, value in tags.items()])
        self._log_metrics(key, run, metrics)
        if schema.PLANE_GRID in manifest["files"]:
            self._client.log_text(run, self._store.read(key, schema.PLANE_GRID).decode(), schema.PLANE_GRID)
        self._log_gaps(key)
        for other in self._compared_with.get(key, ()):
            if other in self._finished:
                self._log_gaps(other)
        if key in self._with_error:
            self._client.delete_tag(run, schema.TAG_ERROR)
            self._with_error.discard(key)
        self._client.set_terminated(run, "FINISHED", end_time=finished)
        self._finished.add(key)
        self._sent.pop(key, None)

    def _log_gaps(self, key: str) -> None:
        for name, other in self._references(key).items():
            if other not in self._store:
                continue
            own, reference = (self._store.read_json(each, schema.METRICS)["final"] for each in (key, other))
            gap = reference[schema.TEST_ACCURACY] - own[schema.TEST_ACCURACY]
            stamp = int(self._store.manifest(key)["finished"])
            self._log_metrics(key, self._runs[key], [(name, gap, stamp, self._plan.jobs[key].epochs)])

    def _log_failed(self, key: str, error: str) -> None:
        run = self._run(key, round(1000 * time.time()))
        self._client.set_tag(run, schema.TAG_ERROR, error[:4000])
        self._with_error.add(key)
        self._client.set_terminated(run, "FAILED")
        self._finished.discard(key)
        self._live.pop(key, None)

    def _close_live(self) -> None:
        """End the runs of jobs that were interrupted; the next start takes them up again."""
        for key in list(self._live):
            if key in self._runs:
                self._client.set_terminated(self._runs[key], "KILLED")
            del self._live[key]

    def _log_metrics(self, key: str, run: str, metrics: list[tuple[str, float, int, int]]) -> None:
        """Send the points that the run does not have: epochs of an attempt that was cut off are computed again."""
        from mlflow.entities import Metric

        sent = self._sent_points(key, run)
        new: dict[_Point, Metric] = {}
        for name, value, stamp, step in metrics:
            if (name, step, value) not in sent:
                new.setdefault((name, step, value), Metric(name, value, stamp, step))
        points = list(new.values())
        for start in range(0, len(points), CHUNK):
            self._client.log_batch(run, metrics=points[start : start + CHUNK])
        sent.update(new)

    def _sent_points(self, key: str, run: str) -> set[_Point]:
        """Return the points by epoch that a run has from an earlier study or from this one."""
        if key not in self._sent:
            names = schema.EPOCH_METRICS if key in self._cut_off else ()
            history = [point for name in names for point in self._client.get_metric_history(run, name)]
            self._sent[key] = {(point.key, point.step, point.value) for point in history}
        return self._sent[key]


def _metrics(row: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """Return (name, value, time stamp in ms, step) of each number in a row of a job's history."""
    return [
        (name, value, int(row["timestamp"]), int(row["step"]))
        for name, value in row.items()
        if name not in ("step", "timestamp")
    ]


def _pauses() -> Iterator[float]:
    yield from RETRY_SECONDS
    while True:
        yield RETRY_SECONDS[-1]
