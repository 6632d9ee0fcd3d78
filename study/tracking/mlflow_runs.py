"""The runs of a study in MLflow: one per job, identified by its key, and updated by idempotent steps.

To create a run, a driver takes a lease in the store and first searches for an existing run, so two drivers never create
two runs for one job. The driver sends only what the run lacks: repeating a step adds nothing, and a metric has one
value per step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from study.plan import Plan
from study.tracking.contents import (
    GAPS,
    TRIAL_NAME,
    Contents,
    Metric,
    Row,
    RunSpec,
    epoch_metrics,
    gaps,
    outcome_of,
)
from study.tracking.experiment import Experiment
from study.tracking.labels import settings_tag
from trainables import schema
from trainables.host.clock import now
from trainables.host.redaction import redact_text
from trainables.schema import FAILED, FINISHED, KILLED, RUNNING
from trainables.storage.store import DamagedArtifact, Result, Store

STANDARD = "standard"
"""Version of every dataset that its name alone identifies."""
DIGEST_LENGTH = 36
"""Maximum length of a dataset's version in MLflow, in characters."""
ATTACH_ATTEMPTS = 3
"""After this many failures, a run does without an artifact, provided that the tracking server itself answers."""
ERROR_LENGTH, LOG_LENGTH = 4000, 200_000
"""Maximum length in characters of an error (an MLflow tag holds 8,000) and of a failed job's log (its end is kept)."""

_TAG_STORAGE = "storage"
"""Tag of an earlier version's runs: a digest of the storage's URI, where runs now have ``TAG_STORE``."""

_log = logging.getLogger(__name__)

_Point = tuple[str, int]
"""Name and step of a metric; a run has at most one value for each point."""


class Unattached(RuntimeError):
    """A run lacks an artifact that could not be attached; everything else is complete. The next start tries again."""


@dataclass
class _Run:
    """The driver's knowledge of a run.

    Attributes:
        id: MLflow's run ID.
        status: MLflow's run status.
        params: names of the run's params; their values cannot be changed.
        tags: all tags.
        unseen: names of metrics for which the run may have points that are not in `sent`.
        sent: points that the run has, with their values as tracking stores keep them.
        gaps: names of the gap metrics that the run has.
        ended: end time, ms since 1970; 0 if the run has not ended.
        dataset: whether the run names its dataset.
        complete: whether every result, gap and file has been logged.
        doubted: whether the last batch has not been acknowledged, so that the run may differ from what is known here.
    """

    id: str
    status: str = RUNNING
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    sent: dict[_Point, float | None] = field(default_factory=dict)
    gaps: set[str] = field(default_factory=set)
    ended: int = 0
    dataset: bool = False
    complete: bool = False
    doubted: bool = False


class Runs:
    """The runs of a study. Methods that change a run raise whatever MLflow's client raises."""

    def __init__(self, plan: Plan, store: Store, experiment: Experiment, *, fresh: set[str]) -> None:
        """Prepare; :meth:`connect` sends the first request.

        Args:
            plan: the study's plan.
            store: holds the results.
            experiment: the study's experiment; open by the time of :meth:`connect`.
            fresh: keys of the jobs that this study computes itself; the runs of the others are tagged as reused.
        """
        self._plan, self._store, self._experiment, self._fresh = plan, store, experiment, fresh
        self._contents = Contents(plan, store, fresh)
        self._digest = hashlib.sha256(store.uri.encode()).hexdigest()[:12]
        self._runs: dict[str, _Run] = {}
        self._doubtful: set[str] = set()
        self._failed: set[str] = set()
        """Keys of the jobs whose failure this driver has logged."""
        self._accuracies: dict[str, tuple[float | None, int]] = {}
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._compared_with: dict[str, list[str]] = defaultdict(list)
        for key in plan.jobs:
            for other in self._contents.references(key).values():
                self._compared_with[other].append(key)

    @property
    def _client(self) -> Any:
        return self._experiment.client

    # --- finding runs -----------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """List the runs of the open experiment."""
        settings = settings_tag(self._plan.space)
        self._experiment.set_tags({schema.TAG_RECIPE: self._contents.recipe, schema.TAG_SETTINGS: settings})
        found = defaultdict(list)
        for run in self._experiment.runs():
            if key := run.data.tags.get(schema.TAG_KEY):
                found[key].append(run)
        self._runs = {key: self._known(key, self._only_one(key, runs)) for key, runs in found.items()}

    def forget(self) -> None:
        """Forget the known runs: the database is gone, and none of them has been delivered any more."""
        self._runs = {}

    def _known(self, key: str, run: Any) -> _Run:
        """Convert an MLflow run."""
        tags, metrics = dict(run.data.tags), set(run.data.metrics)
        # The job may have ended before the jobs that it is compared with; its gaps are then still due.
        due = self._contents.references(key) if key in self._plan.jobs else {}
        complete = (
            run.info.status == FINISHED
            and key not in self._fresh  # a fresh job's earlier result was removed; the new one may differ
            and schema.TAG_UNATTACHED not in tags
            and all(name in metrics or other not in self._store for name, other in due.items())
        )
        return _Run(
            run.info.run_id,
            run.info.status,
            set(run.data.params),
            tags,
            metrics,
            gaps=metrics & GAPS.keys(),
            ended=run.info.end_time or 0,
            dataset=bool(run.inputs and run.inputs.dataset_inputs),
            complete=complete,
        )

    def _only_one(self, key: str, runs: list[Any]) -> Any:
        """Return the run of a job; delete the duplicates that a server created when its answer came too late."""
        ours = self._runs[key].id if key in self._runs else None

        def worse(run: Any) -> tuple[Any, ...]:
            info = run.info
            return info.run_id != ours, info.status != FINISHED, -len(run.data.metrics), info.start_time, info.run_id

        first, *others = sorted(runs, key=worse)
        for run in others:
            _log.warning("job %s has two runs in MLflow: %s is deleted", key[:12], run.info.run_id)
            self._client.delete_run(run.info.run_id)
        return first

    def _find(self, key: str) -> _Run | None:
        found = self._client.search_runs([self._experiment.id], f"tags.{schema.TAG_KEY} = '{key}'", max_results=10)
        return self._known(key, self._only_one(key, list(found))) if found else None

    @contextlib.contextmanager
    def _opened(self, spec: RunSpec, started: int, tags: Mapping[str, str] | None = None) -> Iterator[_Run]:
        """Yield a job's run; if the run is unknown or in doubt, keep other drivers from creating runs meanwhile.

        Args:
            spec: data of a new run.
            started: start of the job, ms since 1970; for a new run.
            tags: tags of a new run in addition to those of `spec`.
        """
        run = self._runs.get(spec.key)
        if run is not None and not run.doubted:
            yield run
            return
        with self._experiment.sole_creator():
            run = self._find(spec.key) or run or self._created(spec, started, tags)
            self._runs[spec.key] = run
            yield run

    def _created(self, spec: RunSpec, started: int, tags: Mapping[str, str] | None) -> _Run:
        all_tags = {**spec.tags, **(tags or {})}
        try:
            created = self._client.create_run(self._experiment.id, started, all_tags, spec.name)
        except Exception:
            self._doubtful.add(spec.key)  # the server may still create it
            raise
        return _Run(created.info.run_id, tags=all_tags)

    # --- what happens to jobs ---------------------------------------------------------------------------------------
    def outdated(self) -> list[str]:
        """Return the keys of the jobs whose runs lack tags because an earlier version or another study made them."""
        return [key for key in self._plan.jobs if key in self._runs and not self._added(key).items() <= self._tags(key)]

    def _tags(self, key: str) -> Set[tuple[str, str]]:
        return self._runs[key].tags.items()

    def _added(self, key: str) -> dict[str, str]:
        """Return the tags that a study adds to another study's run, and those that an earlier version's run lacks."""
        tags = self._contents.shared_tags(key)
        if self._runs[key].tags.get(_TAG_STORAGE) == self._digest:
            spec = self._contents.spec(key)
            tags |= {name: spec.tags[name] for name in (schema.TAG_STORE, TRIAL_NAME)}
        return tags

    def _is_ours(self, run: _Run) -> bool:
        """Return whether a run's job belongs to this storage."""
        if schema.TAG_STORE in run.tags:
            return run.tags[schema.TAG_STORE] == self._contents.storage
        return run.tags.get(_TAG_STORAGE) == self._digest

    def describe(self, key: str) -> None:
        """Bring the tags of a job's run up to date."""
        self._send(self._runs[key], (), tags=self._added(key))

    def interrupt_abandoned(self, known: Collection[str]) -> None:
        """Mark as KILLED the runs of this storage that are still RUNNING although their driver is gone.

        Args:
            known: keys of the jobs that are published or being computed; their runs stay as they are.
        """
        for key, run in self._runs.items():
            if run.status == RUNNING and key not in known and self._is_ours(run):
                info = self._client.get_run(run.id).info  # another driver may have ended the run since we listed it
                run.status, run.ended = info.status, info.end_time or 0
                if run.status == RUNNING:
                    self._end(key, run, KILLED)

    def drop_unended(self, keys: Set[str]) -> None:
        """Delete the runs of this storage that say that a job was interrupted or has failed.

        Args:
            keys: keys of the jobs that have succeeded and have no result that would end their run.
        """
        for key in keys & self._runs.keys():
            if self._runs[key].status in (KILLED, FAILED) and self._is_ours(self._runs[key]):
                self._client.delete_run(self._runs[key].id)
                del self._runs[key]

    def add_epochs(self, key: str, rows: list[Row]) -> None:
        """Send epochs of a running job."""
        run = self._runs.get(key)
        if run is not None and run.complete and key in self._store:
            return  # another driver has published the job
        spec = self._contents.spec(key)
        with self._opened(spec, int(rows[0]["timestamp"])) as run:
            if run.status != RUNNING:
                self._client.update_run(run.id, status=RUNNING)
                run.status, run.complete = RUNNING, False
            self._send(run, epoch_metrics(rows), spec.params)

    def interrupt(self, key: str, rows: list[Row]) -> None:
        """Send the last epochs of a job that the driver leaves unfinished, and mark its run as KILLED.

        The next start resumes the job.
        """
        if rows:
            self.add_epochs(key, rows)
        run = self._runs.get(key)
        if run is not None and run.status == RUNNING:
            self._end(key, run, KILLED)

    def fail(self, key: str, rows: list[Row], error: str, when: int) -> None:
        """Log a job that failed for good: its epochs so far, its error and its log from the store.

        Args:
            key: the job's key.
            rows: epochs that have not been sent.
            error: why it failed.
            when: time of the failure, ms since 1970.

        Raises:
            Unattached: the log could not be attached; everything else is logged.
        """
        if key in self._store:
            return  # the job has succeeded since, here or elsewhere
        spec, error = self._contents.spec(key), redact_text(error[: 2 * ERROR_LENGTH])[:ERROR_LENGTH]
        with self._opened(spec, int(rows[0]["timestamp"]) if rows else when) as run:
            self._send(run, epoch_metrics(rows), spec.params, {schema.TAG_ERROR: error})
            self._name_dataset(run, spec)
        note = self._store.failure(key) or self._store.attempt(key) or {}
        log = str(note.get("log", ""))[-LOG_LENGTH:]
        missing = self._attach(key, run, {schema.LOG: log} if log else {})
        self._end(key, run, FAILED, when)
        if missing:
            raise Unattached(missing)

    def fail_as_noted(self, key: str) -> None:
        """Log the failure that is noted in the store, unless the job's run ended at that time or later."""
        if self.is_recorded(key) or (note := self._store.failure(key)) is None:
            return
        when = int(note.get("at", 0)) or now()
        if key not in self._runs or when > self._runs[key].ended:
            self.fail(key, [], note["error"], when)

    def is_finished(self, key: str) -> bool:
        """Return whether a published job has been logged completely."""
        return key in self._runs and self._runs[key].complete

    def is_recorded(self, key: str) -> bool:
        """Return whether the job's run is complete, or says that the job has failed in this study.

        A run that an earlier study has left as FAILED lacks the result of a job that has succeeded since.
        """
        run = self._runs.get(key)
        return run is not None and (run.complete or (run.status == FAILED and key in self._failed))

    def read(self, keys: Collection[str]) -> dict[str, Result]:
        """Return the results of published jobs with the files to log; damaged or removed results are left out."""
        found, damaged = self._store.results(keys, _LOGGED)
        for line in damaged:  # this start or the next one computes the job again and logs it
            _log.warning("%s", line)
        return found

    def finish_all(self, results: Mapping[str, Result]) -> None:
        """Log published jobs of the plan one by one; errors as in :meth:`finish`."""
        if all(map(self.is_finished, results)):
            return
        with self._experiment.sole_creator():
            for key, result in results.items():
                self.finish(key, result)

    def finish(self, key: str, result: Result | None = None) -> None:
        """Log a published job; do nothing if its result has been removed since.

        A run that contradicts the result is replaced, because MLflow cannot overwrite a logged value.

        Args:
            key: the job's key.
            result: the job's entry in the answer of :meth:`read`; None reads it now.

        Raises:
            DamagedArtifact: the result is damaged and has been set aside.
            Unattached: a file could not be attached; everything else is logged.
        """
        if self.is_finished(key):
            return
        spec = self._contents.spec(key)
        try:
            result = result or self._store.result(key, _LOGGED)
        except KeyError:
            return
        outcome = outcome_of(result, spec.epochs)
        files = {name: content for name, content in result.files.items() if name != schema.METRICS}
        metrics, tags, started, finished = outcome.metrics, outcome.tags, outcome.started, outcome.finished
        self._accuracies[key] = outcome.accuracy, finished
        with self._opened(spec, started, tags) as run:
            if run.complete:
                return  # another driver was first
            if self._contradicts(run, metrics):
                run = self._replaced(spec, started, tags)
            # An earlier study may have made the run: add this study's tags, but keep that study's `reused`.
            tags = {name: value for name, value in spec.tags.items() if name != schema.TAG_REUSED} | tags
            self._send(run, metrics + self._due_gaps(spec, run), spec.params, tags)
            self._name_dataset(run, spec)
        missing = self._attach(key, run, {name: content.decode(errors="replace") for name, content in files.items()})
        for other in self._compared_with.get(key, ()):
            if other in self._runs and self._runs[other].complete:
                self._send_gaps(other, finished)
        for outdated in {schema.TAG_ERROR} | ({schema.TAG_UNATTACHED} if not missing else set()):
            if outdated in run.tags:
                self._delete_tag(run, outdated)
        self._end(key, run, FINISHED, finished)
        run.unseen |= {name for name, _ in run.sent}  # frees memory: the run is complete
        run.sent.clear()
        if missing:
            raise Unattached(missing)

    def _contradicts(self, run: _Run, metrics: Iterable[Metric]) -> bool:
        """Return whether a run's values differ from a result: another attempt, perhaps on a GPU, logged them.

        Metrics of the machine (speed, memory, time) differ between any two attempts and are not compared.
        """
        self._look(run, {name for name, *_ in metrics})
        return any(
            run.sent.get((name, step), _stored(value)) != _stored(value)
            for name, value, _, step in metrics
            if name not in schema.OF_THE_MACHINE
        )

    def _replaced(self, spec: RunSpec, started: int, tags: Mapping[str, str]) -> _Run:
        """Delete a job's run and return a new one, or the one that another driver has put in its place."""
        with self._experiment.sole_creator():
            old, run = self._runs.pop(spec.key), self._find(spec.key)
            if run is not None and run.id == old.id:
                self._client.delete_run(run.id)
                run = None
            self._runs[spec.key] = run = run or self._created(spec, started, tags)
            return run

    def _delete_tag(self, run: _Run, name: str) -> None:
        """Delete a tag, which another driver may have deleted before."""
        try:
            self._client.delete_tag(run.id, name)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
        del run.tags[name]

    # --- what is sent -----------------------------------------------------------------------------------------------
    def _due_gaps(self, spec: RunSpec, run: _Run) -> list[Metric]:
        """Return the gaps that a finished run lacks and whose reference job is published."""
        references = {gap: other for gap, other in self._contents.references(spec.key).items() if gap not in run.gaps}
        found = gaps(spec.key, references, lambda key: self._accuracy(key)[0])
        return [(gap, value, self._accuracy(spec.key)[1], spec.epochs) for gap, value in found.items()]

    def _send_gaps(self, key: str, started: int) -> None:
        """Send the gaps of a finished run that have become due; forget a run that somebody has deleted."""
        spec = self._contents.spec(key)
        try:
            with self._opened(spec, started) as run:
                self._send(run, self._due_gaps(spec, run))
        except Exception:
            if self._find(key) is not None:
                raise
            del self._runs[key]  # the next start creates it again

    def _accuracy(self, key: str) -> tuple[float | None, int]:
        """Return a published job's test accuracy (percent) and end (ms since 1970); (None, 0) if unreadable."""
        if key not in self._accuracies:
            try:
                outcome = outcome_of(self._store.result(key, [schema.METRICS]), 0)
                self._accuracies[key] = outcome.accuracy, outcome.finished
            except KeyError:
                return None, 0
            except DamagedArtifact as error:  # the job is computed again; the gaps follow then
                _log.warning("%s", error)
                return None, 0
        return self._accuracies[key]

    def _send(
        self,
        run: _Run,
        metrics: Iterable[Metric],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send the metrics, params and tags that a run lacks, in as few requests as MLflow allows."""
        wanted = {(name, step): (name, value, stamp, step) for name, value, stamp, step in metrics}
        self._look(run, {name for name, _ in wanted})
        new = {point: metric for point, metric in wanted.items() if point not in run.sent}
        # MLflow cannot change a param. An earlier study's may differ from ours, but only where this job ignores it.
        new_params = {name: value for name, value in (params or {}).items() if name not in run.params}
        new_tags = {name: value for name, value in (tags or {}).items() if run.tags.get(name) != value}
        if new or new_params or new_tags:
            run.doubted = True  # until the server answers
            self._experiment.log(run.id, list(new.values()), new_params, new_tags)
            run.doubted = False
        run.sent |= {point: _stored(value) for point, (_, value, *_) in new.items()}
        run.params |= new_params.keys()
        run.tags |= new_tags
        run.gaps |= GAPS.keys() & {name for name, _ in new}

    def _look(self, run: _Run, names: Set[str]) -> None:
        """Fetch the points that a run has of the named metrics, unless they are known."""
        for name in names & run.unseen:
            history = self._client.get_metric_history(run.id, name)
            run.sent |= {(name, metric.step): _stored(metric.value) for metric in history}
            run.unseen.discard(name)

    def _name_dataset(self, run: _Run, spec: RunSpec) -> None:
        """Log the job's dataset as a run input, which MLflow shows and can filter by; calling it twice adds nothing."""
        if run.dataset:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        version = spec.tags.get(schema.TAG_DATA_VERSION, STANDARD)[:DIGEST_LENGTH]
        # The source is the module that finds the data on this machine.
        source = json.dumps({"tags": {schema.TAG_SOURCE: "trainables.data"}})
        dataset = Dataset(spec.params[schema.PARAM_DATASET], version, source_type="code", source=source)
        self._client.log_inputs(run.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        run.dataset = True

    def _attach(self, key: str, run: _Run, texts: Mapping[str, str]) -> str:
        """Attach files to a run; return which ones could not be attached, and why ("" if all were).

        The artifact store may be unreachable while the tracking server answers. If the server does not answer either,
        or fewer than ``ATTACH_ATTEMPTS`` attempts at the file have failed, the error is raised.
        """
        missing: dict[str, Exception] = {}
        for name, text in texts.items():
            try:
                self._client.log_text(run.id, redact_text(text) if name == schema.LOG else text, name)
            except Exception as error:
                self._client.get_run(run.id)  # raises if the tracking server is away, too
                self._attempts[key, name] += 1
                if self._attempts[key, name] < ATTACH_ATTEMPTS:
                    raise
                missing[name] = error
        if missing:
            self._send(run, (), tags={schema.TAG_UNATTACHED: ",".join(missing)})
        return "; ".join(f"{name} of job {key[:12]}: {error}" for name, error in missing.items())

    def _end(self, key: str, run: _Run, status: str, when: int | None = None) -> None:
        self._client.set_terminated(run.id, status, end_time=when)
        run.status, run.complete = status, status == FINISHED
        run.ended = when or now()
        if status == FAILED:
            self._failed.add(key)
        if key in self._doubtful:  # its creation failed once, perhaps only for us: there may be two runs
            self._find(key)
            self._doubtful.discard(key)


_ATTACHED = (schema.PLANE_GRID, schema.LOG)
"""Files of a result that become artifacts of its run."""
_LOGGED = (schema.METRICS, *_ATTACHED)
"""Files of a result to read before logging it."""


def _stored(value: float) -> float | None:
    """Return a value as tracking stores keep it: infinities clipped to the largest float, and None for NaN.

    With None in place of NaN, equal values compare equal.
    """
    largest = sys.float_info.max
    return None if math.isnan(value) else max(-largest, min(largest, value))
