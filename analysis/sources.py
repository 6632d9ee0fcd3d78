"""Readers of runs: an SQLite file is read directly, any other tracking store through MLflow's client.

Both give the same answers. Reading a study of twenty thousand runs from its file takes seconds; the client creates an
object for every param and metric and takes ten times as long. The file is only opened for reading.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.record import folder
from trainables import schema
from trainables.checks import suggestion
from trainables.host.databases import ARTIFACTS, artifact_folder, deleted, opened, sqlite_file, without_collector
from trainables.host.redaction import redact, redact_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")
PAGE = 1000
"""Runs per request to the tracking server; one request per run would be slower."""
ACTIVE = "active"
INFINITE = sys.float_info.max
"""SQL tracking stores keep an infinite metric as this value, or its negative."""
VALUE = "CASE WHEN is_nan THEN NULL ELSE value END"
"""A metric in SQL; tables keep NaN as the value 0 with a mark."""
LAYOUT = {
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
    "experiment_tags": {"experiment_id", "key", "value"},
    "runs": {
        *("run_uuid", "name", "status", "start_time", "end_time"),
        *("lifecycle_stage", "artifact_uri", "experiment_id"),
    },
    "params": {"run_uuid", "key", "value"},
    "tags": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
    "metrics": {"run_uuid", "key", "value", "is_nan", "step", "timestamp"},
}
"""Table of MLflow's database -> the columns that this module reads."""


class AnalysisError(ValueError):
    """A request cannot be answered; the message gives the reason in one line."""


class NoRuns(AnalysisError):
    """The experiment has no run of a job yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment.

    Attributes:
        id: MLflow's experiment ID.
        name: name of the search space.
        active: False if the experiment has been deleted.
        tags: name -> value.
    """

    id: str
    name: str
    active: bool
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A run as it was recorded.

    Attributes:
        run_id: MLflow's run ID.
        name: name for people, may be empty.
        status: FINISHED, FAILED, RUNNING, ...
        started: ms since 1970; None if unknown.
        ended: ms since 1970; None if unknown or not ended.
        params: name -> text.
        metrics: name -> latest value; infinities and NaN as they were logged.
        tags: name -> text.
        artifacts: URI of the run's artifact folder.
    """

    run_id: str
    name: str
    status: str
    started: int | None
    ended: int | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    artifacts: str


Point = tuple[int, int, float]
"""Step, timestamp (ms since 1970), value."""


def source(tracking_uri: str) -> Source:
    """Return a reader of a tracking store, or of a record's folder; a missing database is not created.

    Raises:
        AnalysisError: the file does not exist or is not an MLflow database, or the store cannot be reached.
    """
    if folder.is_record(tracking_uri):
        return _Folder(tracking_uri)
    file = sqlite_file(tracking_uri)
    if file is not None and _has_layout(file):
        return _Database(file, tracking_uri)
    return Source(tracking_uri)


def _value(value: float | None) -> float:
    """Return a metric as it was logged; see ``INFINITE`` and ``VALUE``."""
    if value is None:
        return float("nan")
    return float("inf") * (1 if value > 0 else -1) if abs(value) >= INFINITE else value


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"artifact {file.name} of a run cannot be read: {error}") from error


# --- any tracking store ----------------------------------------------------------------------------------------
class Source:
    """A tracking store, read through MLflow's client."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri

    @functools.cached_property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient  # here: the import takes seconds, which a wrong path need not cost

        return self._asked(partial(MlflowClient, tracking_uri=self._uri))

    def experiment(self, name: str) -> Experiment:
        """Return the experiment of this name.

        Raises:
            AnalysisError: there is none, or it has been deleted.
        """
        found = self._found(name)
        if found is not None and found.active:
            return found
        if found is not None:
            raise AnalysisError(f"{redact(self._uri)}: {deleted(redact(self._uri), name, found.id)}")
        raise AnalysisError(f"no experiment {name!r} in {redact(self._uri)}{suggestion(name, self.names())}")

    def _found(self, name: str) -> Experiment | None:
        """Return the experiment of this name, even if it has been deleted."""
        found = self._asked(lambda: self._client.get_experiment_by_name(name))
        if found is None:
            return None
        active = found.lifecycle_stage == ACTIVE
        return Experiment(id=found.experiment_id, name=name, active=active, tags=dict(found.tags))

    def names(self) -> list[str]:
        """Return the names of the experiments that have not been deleted, sorted."""
        return sorted(found.name for found in self._asked(lambda: self._client.search_experiments()))

    def records(self, experiment: Experiment, stage: str | None = None) -> list[Record]:
        """Return the runs of an experiment, or only those of one stage, in the order of their start."""
        chosen = f"params.{schema.PARAM_STAGE} = '{stage}'" if stage is not None else ""
        order = ["attributes.start_time ASC"]
        search = partial(self._client.search_runs, [experiment.id], chosen, max_results=PAGE, order_by=order)
        found: list[Record] = []
        token: str | None = None
        with without_collector():
            while True:
                page = self._asked(partial(search, page_token=token))
                found += map(_record, page)
                token = page.token
                if not token:
                    return found

    def histories(self, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
        """Return all points of a metric of some runs: run ID -> points."""
        history = self._client.get_metric_history
        found = {run_id: self._asked(partial(history, run_id, metric)) for run_id in run_ids}
        return {
            run_id: [(each.step, each.timestamp, _value(each.value)) for each in of_run]
            for run_id, of_run in found.items()
        }

    def text(self, record: Record, artifact: str) -> str:
        """Return the text of a run's artifact.

        Raises:
            AnalysisError: the artifact cannot be read.
        """
        with tempfile.TemporaryDirectory() as place:
            try:
                path = self._asked(lambda: self._client.download_artifacts(record.run_id, artifact, place))
            except OSError as error:
                raise AnalysisError(f"artifact {artifact} of run {record.run_id} cannot be read: {error}") from error
            return _read(Path(path))

    def _asked(self, question: Callable[[], T]) -> T:
        """Return the tracking server's answer, or raise AnalysisError with the first line of its error."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return question()
        except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: no driver for the database
            reason = redact_text(str(error)).strip().splitlines()[0]
            raise AnalysisError(f"cannot read {redact(self._uri)}: {reason}") from error


def _record(run: Run) -> Record:
    return Record(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=run.info.start_time,
        ended=run.info.end_time,
        params=dict(run.data.params),
        metrics={name: _value(value) for name, value in run.data.metrics.items()},
        tags=dict(run.data.tags),
        artifacts=run.info.artifact_uri or "",
    )


# --- a file -----------------------------------------------------------------------------------------------------
def _has_layout(file: Path) -> bool:
    """Return whether an SQLite file has the tables and columns that :class:`_Database` reads.

    Raises:
        AnalysisError: the file does not exist, or is not an MLflow database.
    """
    if not file.is_file():
        raise AnalysisError(
            f"no MLflow database at {file}: run the study first, or point --storage or --tracking-uri at it"
        )
    with contextlib.closing(opened(file)) as connection:
        try:
            found = {table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} for table in LAYOUT}
        except sqlite3.DatabaseError as error:
            raise AnalysisError(f"{file} cannot be read as an sqlite database: {error}") from error
    complete = all(columns <= found[table] for table, columns in LAYOUT.items())
    if not found["experiments"]:  # MLflow's client would create its tables in any database
        raise AnalysisError(f"{file} is not an MLflow database")
    return complete


class _Database(Source):
    """Reads the SQLite file that is a study's default tracking store."""

    def __init__(self, file: Path, tracking_uri: str) -> None:
        super().__init__(tracking_uri)
        self._file = file

    def _found(self, name: str) -> Experiment | None:
        found = self._rows("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?", name)
        if not found:
            return None
        number, stage = found[0]
        tags = dict(self._rows("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", number))
        return Experiment(id=str(number), name=name, active=stage == ACTIVE, tags=tags)

    def names(self) -> list[str]:
        return sorted(name for (name,) in self._rows("SELECT name FROM experiments WHERE lifecycle_stage = ?", ACTIVE))

    def records(self, experiment: Experiment, stage: str | None = None) -> list[Record]:
        runs = "SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = ?"
        chosen: tuple[Any, ...] = (int(experiment.id), ACTIVE)
        if stage is not None:
            runs += " AND run_uuid IN (SELECT run_uuid FROM params WHERE key = ? AND value = ?)"
            chosen += (schema.PARAM_STAGE, stage)
        # Runs are read before metrics: a run that ends in between then counts as running, not as ended without results.
        found = self._rows(
            "SELECT run_uuid, name, status, start_time, end_time, artifact_uri FROM runs "
            f"WHERE run_uuid IN ({runs}) ORDER BY start_time IS NULL, start_time, run_uuid",
            *chosen,
        )
        params, tags, metrics = (defaultdict[str, dict[str, Any]](dict) for _ in range(3))
        for table, value, of_run in (
            ("params", "value", params),
            ("tags", "value", tags),
            ("latest_metrics", VALUE, metrics),
        ):
            lines = self._rows(f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN ({runs})", *chosen)
            for run_id, key, text in lines:
                of_run[run_id][sys.intern(key)] = text
        return [
            Record(
                run_id=run_id,
                name=name or "",
                status=status,
                started=started,
                ended=ended,
                params=params[run_id],
                metrics={key: _value(value) for key, value in metrics[run_id].items()},
                tags=tags[run_id],
                artifacts=artifacts or "",
            )
            for run_id, name, status, started, ended, artifacts in found
        ]

    def histories(self, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
        query = f"SELECT step, timestamp, {VALUE} FROM metrics WHERE run_uuid = ? AND key = ?"
        with self._connected() as connection:
            found = {run_id: connection.execute(query, (run_id, metric)).fetchall() for run_id in run_ids}
        return {
            run_id: [(step, stamp, _value(value)) for step, stamp, value in points] for run_id, points in found.items()
        }

    def text(self, record: Record, artifact: str) -> str:
        if (folder := artifact_folder(record.artifacts)) is None:
            return super().text(record, artifact)
        if not folder.exists() and ARTIFACTS in folder.parts:  # in a copied storage they lie beside the database
            folder = self._file.parent.joinpath(*folder.parts[folder.parts.index(ARTIFACTS) :])
        return _read(folder / artifact)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(opened(self._file)) as connection:
                yield connection
        except sqlite3.Error as error:  # the file is gone, damaged, or locked for too long
            raise AnalysisError(f"{self._file} cannot be read: {error}") from error


# --- a record ---------------------------------------------------------------------------------------------------
class _Folder(Source):
    """Reads a study's record (``analysis.record``), which needs neither MLflow nor the storage."""

    def _found(self, name: str) -> Experiment | None:
        study = self._file(folder.read_study)
        if study["space"] != name:
            return None
        tags = {schema.TAG_SETTINGS: json.dumps(study["settings"]), schema.NOTE: study["question"]}
        tags |= {schema.TAG_RECIPE: study["recipe"]} if study["recipe"] else {}
        return Experiment(id="", name=name, active=True, tags=tags)

    def names(self) -> list[str]:
        return [str(self._file(folder.read_study)["space"])]

    def records(self, experiment: Experiment, stage: str | None = None) -> list[Record]:
        found = [Record(**run, artifacts="") for run in self._file(folder.read_runs)]
        return [run for run in found if stage in (None, run.params.get(schema.PARAM_STAGE))]

    def histories(self, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
        curves = self._file(folder.read_curves)
        found = {run_id: curves.get((run_id, metric), {}) for run_id in run_ids}
        return {run_id: [(step, 0, value) for step, value in points.items()] for run_id, points in found.items()}

    def text(self, record: Record, artifact: str) -> str:
        raise AnalysisError(f"a record does not keep {artifact}")

    def _file(self, read: Callable[[Path], T]) -> T:
        try:
            return read(Path(self._uri))
        except (OSError, ValueError) as error:
            raise AnalysisError(f"the record {self._uri} cannot be read: {error}") from error
