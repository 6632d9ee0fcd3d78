"""A finished or half-finished study as data frames: the only module that reads MLflow.

Nothing is computed here. A run becomes a row, a param or metric becomes a column, and what a run does not have is
missing (NaN, NA or an empty string), never zero.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import pandas as pd

from trainables import schema

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

T = TypeVar("T")
DEFAULT_TRACKING_URI = "sqlite:///outputs/mlflow.db"
FINISHED = "FINISHED"
PAGE = 1000
"""Runs per request: what the tracking server hands out at once is faster than a request per run."""

METRICS = (
    *schema.EPOCH_METRICS,
    schema.FINAL_TRAIN_LOSS,
    schema.FINAL_TRAIN_ACCURACY,
    schema.GENERALIZATION_GAP,
    schema.GAP_TO_DENSE,
    schema.GAP_TO_LTH,
    schema.SPARSITY_PRUNABLE,
    schema.SPARSITY_NETWORK,
    schema.IMAGES_PER_SECOND,
    schema.SECONDS,
    schema.MEAN_CORRELATION,
    schema.MEAN_CORRELATION_IDENTITY,
    schema.MOVED_UNITS,
    schema.MIDPOINT_ACCURACY,
    schema.LOSS_BARRIER,
    schema.ERROR_BARRIER,
)
"""Metrics that become a column, float64, in the units that ``trainables.schema`` gives."""

TEXTS = (
    schema.PARAM_STAGE,
    schema.PARAM_METHOD,
    schema.PARAM_MODEL,
    schema.PARAM_DATASET,
    schema.PARAM_MATCHER,
    schema.PARAM_CORRECTION,
)
FRACTIONS = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
COUNTS = (schema.PARAM_REWIND_EPOCH, schema.PARAM_SEED_A, schema.PARAM_SEED_B)
IDENTITY = (*TEXTS, *FRACTIONS, *COUNTS)
"""Params that say which job a run is; every other param is a recipe field."""

TAGS = {
    "error": schema.TAG_ERROR,
    "dense_key": schema.TAG_DENSE_KEY,
    "lth_key": schema.TAG_LTH_KEY,
}
BOOKKEEPING = ("key", "run_id", "name", "status", "started", "ended", "reused", "environment", *TAGS)
CURVE_IDENTITY = (
    "key",
    "run_id",
    schema.PARAM_MODEL,
    schema.PARAM_DATASET,
    schema.PARAM_WIDTH,
    schema.PARAM_SEED_A,
    schema.PARAM_SEED_B,
    schema.PARAM_MATCHER,
    schema.PARAM_CORRECTION,
    schema.LOSS_BARRIER,
    schema.ERROR_BARRIER,
)
ENVIRONMENT_TAG = re.compile(r"version|(^|[._])(commit|git_sha|device|gpu|python|torch|ray)$", re.IGNORECASE)
INFINITE = sys.float_info.max
"""How SQL tracking stores write an infinite metric down."""


class AnalysisError(ValueError):
    """A request that cannot be answered, with the reason in one line."""


def runs(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return one row per job of a study, in the order in which the runs started.

    Columns:

    - ``key``, ``run_id``, ``name``, ``status`` (FINISHED, FAILED, RUNNING, ...): str.
    - ``stage``, ``method``, ``model``, ``dataset``, ``matcher``, ``correction``: str, empty where a job has none.
    - ``width`` (multiplier), ``sparsity`` (fraction of the prunable weights): float64, NaN where a job has none.
    - ``rewind_epoch`` (epochs), ``seed_a``, ``seed_b``: Int64, NA where a job has none.
    - one float64 column per name in ``METRICS``: the latest value, in the units that ``trainables.schema`` gives;
      NaN where it was not logged.
    - ``reused``: bool; ``error``, ``dense_key``, ``lth_key``: str, empty where a run has no such tag.
    - ``started``, ``ended``: UTC time stamps.
    - ``environment``: str, ``name=value`` of the run's tags on versions and hardware, separated by ``; ``.
    - every recipe field under its own name: str, empty where a job has none.

    A run that is not FINISHED may carry the accuracy of the epoch that it got to: select by ``status`` before
    averaging. If the space was run with several recipes, the rows are those of the latest, and
    ``frame.attrs["set_aside"]`` is the number of the others.

    Args:
        space: name of the search space, which is the name of the experiment.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: no such file or experiment, an experiment without runs, or with other people's runs only.
    """
    found, set_aside = _ours(_client(tracking_uri), space, tracking_uri)
    frame = _frame(found)
    frame.attrs["set_aside"] = set_aside
    return frame


def question(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> str:
    """Return the question that a study asks, as its experiment's description has it; empty if it has none.

    Raises:
        AnalysisError: no such file or experiment.
    """
    return str(_experiment(_client(tracking_uri), space, tracking_uri).tags.get("mlflow.note.content", ""))


def curves(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the interpolation curves from A to B of a study's finished `connect` runs, one row per run and alpha.

    Columns: ``key``, ``run_id``, ``model``, ``dataset``, ``matcher`` (``identity``: before matching), ``correction``
    (str), ``width`` (float64), ``seed_a``, ``seed_b`` (Int64), ``alpha`` (float64: 0 is pi(A), 1 is B),
    ``interpolation_accuracy`` (percent), ``interpolation_loss`` (nats), and the run's ``loss_barrier`` (nats) and
    ``error_barrier`` (percentage points), repeated on each of its rows. Empty if nothing was measured.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: as :func:`runs`.
    """
    client = _client(tracking_uri)
    frame = _frame(_ours(client, space, tracking_uri)[0])
    measured = frame[(frame["stage"] == schema.CONNECT) & (frame["status"] == FINISHED)]
    if schema.PARAM_PATH in measured:  # absent where no run names its path: then all lead from A to B
        measured = measured[measured[schema.PARAM_PATH].isin(["", "pair"])]
    columns = [*CURVE_IDENTITY, "alpha", schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS]
    parts = [_curve(client, row, tracking_uri) for _, row in measured.iterrows()]
    if not parts:
        return pd.DataFrame(columns=columns).astype({"width": float, "alpha": float})
    return pd.concat(parts, ignore_index=True)[columns]


def sqlite_uri(storage: str) -> str:
    """Return the tracking URI of a study whose `--storage` is the given local folder.

    Raises:
        AnalysisError: the storage is not local, so its name does not tell where the tracking server is.
    """
    folder = local_folder(storage)
    if folder is None:
        raise AnalysisError(
            f"storage {redact(storage)} is not a local folder: name the tracking server (--tracking-uri)"
        )
    return f"sqlite:///{folder / 'mlflow.db'}"


def local_folder(storage: str) -> Path | None:
    """Return a path or ``file://`` URI as a path, None if it is somewhere else."""
    if "://" not in storage:
        return Path(storage).expanduser()
    parts = urlsplit(storage)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def redact(text: str) -> str:
    """Return a text without the ``user:password@`` of the URIs in it.

    >>> redact("postgresql://me:secret@db.example/mlflow")
    'postgresql://***@db.example/mlflow'
    """
    text = re.sub(r"(?<=://)[^\s/?#]*@", "***@", text)
    return re.sub(r"(?i)(?<=[?&])((?:password|token|secret|key)[^=&\s]*)=[^&\s]*", r"\1=***", text)


# --- the experiment ---------------------------------------------------------------------------------------------
def _client(tracking_uri: str) -> MlflowClient:
    """Return a client, after making sure that opening the store does not create it."""
    if tracking_uri.startswith("sqlite:") and ":memory:" not in tracking_uri:
        _check_sqlite(tracking_uri)
    from mlflow import MlflowClient  # here, because importing it takes seconds that a wrong path need not cost

    return _asked(lambda: MlflowClient(tracking_uri=tracking_uri), tracking_uri)


def _check_sqlite(tracking_uri: str) -> None:
    """Raise AnalysisError unless the file behind a sqlite URI has something in it."""
    file = Path(unquote(tracking_uri.split(":///", 1)[-1].split("?", 1)[0]))
    if not file.is_file():
        raise AnalysisError(
            f"no MLflow database at {file}: run the study first, or point --storage or --tracking-uri at it"
        )
    # MLflow would make its tables in whatever database it is given.
    with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        except sqlite3.DatabaseError as error:
            raise AnalysisError(f"{file} cannot be read as an sqlite database: {error}") from error
    if not found:
        raise AnalysisError(f"{file} is not an MLflow database")


def _asked(question: Callable[[], T], tracking_uri: str) -> T:
    """Return the answer of the tracking server, or raise AnalysisError with its first line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return question()
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: the database's driver
        reason = redact(str(error).strip().splitlines()[0])
        raise AnalysisError(f"cannot read {redact(tracking_uri)}: {reason}") from error


def _experiment(client: MlflowClient, space: str, tracking_uri: str) -> Experiment:
    """Return the study's experiment."""
    experiment = _asked(lambda: client.get_experiment_by_name(space), tracking_uri)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise AnalysisError(_unknown(client, space, tracking_uri, deleted=experiment is not None))
    return experiment


def _ours(client: MlflowClient, space: str, tracking_uri: str) -> tuple[list[Run], int]:
    """Return the study's runs in the order of their start, one per job, and how many are of an earlier recipe."""
    experiment = _experiment(client, space, tracking_uri)
    found = list(_pages(client, experiment.experiment_id, tracking_uri))
    if not found:
        raise AnalysisError(f"experiment {space!r} has no runs yet ({redact(tracking_uri)})")
    ours = [run for run in found if schema.TAG_KEY in run.data.tags]
    if not ours:
        raise AnalysisError(
            f"experiment {space!r} has {len(found)} runs, but none is a study's job (no tag {schema.TAG_KEY!r})"
        )
    recipe = experiment.tags.get(schema.TAG_RECIPE)
    latest = [run for run in ours if recipe is None or f"{schema.TAG_RECIPE}.{recipe}" in run.data.tags]
    if not latest:
        raise AnalysisError(
            f"experiment {space!r} has no runs yet of its latest recipe, and {len(ours)} of earlier ones"
        )
    return _one_per_job(latest), len(ours) - len(latest)


def _unknown(client: MlflowClient, space: str, tracking_uri: str, *, deleted: bool) -> str:
    """Return what to say about an experiment that is not there."""
    names = sorted(e.name for e in _asked(lambda: client.search_experiments(), tracking_uri))
    near = difflib.get_close_matches(space, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    what = "deleted experiment" if deleted else "no experiment"
    return f"{what} {space!r} in {redact(tracking_uri)}{hint}; known: {', '.join(names) or 'none'}"


def _pages(client: MlflowClient, experiment_id: str, tracking_uri: str) -> Iterator[Run]:
    """Yield all runs of an experiment, page by page."""
    token: str | None = None
    while True:
        page = _asked(
            lambda token=token: client.search_runs(  # type: ignore[misc]
                [experiment_id], max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
            ),
            tracking_uri,
        )
        yield from page
        token = page.token
        if not token:
            return


def _one_per_job(found: Iterable[Run]) -> list[Run]:
    """Keep one run per key: the last finished one, else the last.

    The study never records a job twice; two machines that started the same study at once may have.
    """
    kept: dict[str, Run] = {}
    for run in found:
        key = run.data.tags[schema.TAG_KEY]
        if key not in kept or run.info.status == FINISHED or kept[key].info.status != FINISHED:
            kept[key] = run
    return list(kept.values())


# --- from runs to columns ---------------------------------------------------------------------------------------
def _frame(found: list[Run]) -> pd.DataFrame:
    """Return the tidy frame that :func:`runs` documents."""
    recipe = sorted({name for run in found for name in run.data.params} - set(IDENTITY))
    frame = pd.DataFrame([_row(run, recipe) for run in found])
    types = dict.fromkeys(COUNTS, "Int64") | dict.fromkeys((*FRACTIONS, *METRICS), "float64")
    return frame.astype(types)


def _row(run: Run, recipe: list[str]) -> dict[str, Any]:
    """Return one run as a flat mapping."""
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    row: dict[str, Any] = {"key": tags[schema.TAG_KEY], "run_id": run.info.run_id}
    row |= {"name": run.info.run_name or "", "status": run.info.status}
    row |= {name: _text(params.get(name)) for name in TEXTS}
    row |= {name: _number(run, name, float) for name in FRACTIONS}
    row |= {name: _number(run, name, int) for name in COUNTS}
    row |= {name: _finite_or_inf(metrics.get(name, float("nan"))) for name in METRICS}
    row["reused"] = tags.get(schema.TAG_REUSED) == "true"
    row |= {column: tags.get(tag, "") for column, tag in TAGS.items()}
    row["started"] = pd.Timestamp(run.info.start_time, unit="ms", tz="UTC") if run.info.start_time else pd.NaT
    row["ended"] = pd.Timestamp(run.info.end_time, unit="ms", tz="UTC") if run.info.end_time else pd.NaT
    row["environment"] = "; ".join(f"{name}={tags[name]}" for name in sorted(tags) if ENVIRONMENT_TAG.search(name))
    for name in recipe:
        row[f"param.{name}" if name in row else name] = _text(params.get(name))
    return row


def _text(value: str | None) -> str:
    """Return a param as text, empty for what MLflow keeps as the word None."""
    return "" if value in (None, "None") else str(value)


def _number(run: Run, name: str, kind: type[int] | type[float]) -> int | float | None:
    """Return a param as a number, None where the run has none."""
    text = _text(run.data.params.get(name))
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise AnalysisError(f"run {run.info.run_id}: param {name} is {text!r}, not a number") from error
    return int(value) if kind is int else value


def _finite_or_inf(value: float) -> float:
    """Return a metric as it was logged: SQL stores write the largest float for infinity."""
    return float("inf") * (1 if value > 0 else -1) if abs(value) >= INFINITE else value


def _curve(client: MlflowClient, row: pd.Series, tracking_uri: str) -> pd.DataFrame:
    """Return both curves of one `connect` run, a row per alpha."""
    curve = pd.DataFrame(
        {
            name: _history(client, row["run_id"], name, tracking_uri)
            for name in (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
        }
    ).sort_index()
    identity = pd.DataFrame({name: pd.Series([row[name]] * len(curve), index=curve.index) for name in CURVE_IDENTITY})
    identity = identity.astype({name: "Int64" for name in COUNTS if name in identity})
    return pd.concat([identity, curve.rename_axis("alpha").reset_index().set_index(curve.index)], axis=1)


def _history(client: MlflowClient, run_id: str, name: str, tracking_uri: str) -> pd.Series:
    """Return a curve, indexed by alpha; a point that was logged twice counts as it was logged last."""
    points = _asked(lambda: client.get_metric_history(run_id, name), tracking_uri)
    latest = {point.step: _finite_or_inf(point.value) for point in sorted(points, key=lambda p: p.timestamp)}
    return pd.Series({step / 100: value for step, value in latest.items()}, dtype=float, name=name)


def recipe_fields(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a frame of :func:`runs` that hold recipe fields."""
    known = {*BOOKKEEPING, *IDENTITY, *METRICS}
    return [name for name in frame.columns if name not in known]


def working_tracking_uri(storage: str, tracking_uri: str | None) -> str:
    """Return the tracking URI to read: the one that was given, else the one inside the storage."""
    return tracking_uri if tracking_uri else sqlite_uri(storage)


def quiet_retries() -> None:
    """Let an unreachable tracking server fail in seconds, as a reader at a terminal expects, instead of minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
