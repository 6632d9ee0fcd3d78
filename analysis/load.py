"""A finished or unfinished study as tidy data frames, one row per job.

Nothing is computed here. A run becomes a row, and a param or metric becomes a column. A value that a run does not have
is missing (NaN, NA or an empty string), never zero.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd

from analysis.records import AnalysisError, Experiment, Point, Record, Source, quiet_retries, source
from trainables import schema
from trainables.checks import suggestion
from trainables.host import databases
from trainables.host.places import expanded
from trainables.host.redaction import redact, redact_text
from trainables.schema import FINISHED
from trainables.storage import documents

__all__ = [
    "AnalysisError",
    "curves",
    "frame_of",
    "local_folder",
    "planes",
    "question",
    "quiet_retries",
    "recipe_fields",
    "runs",
    "sqlite_uri",
    "working_tracking_uri",
]

DEFAULT_TRACKING_URI = f"sqlite:///outputs/{databases.DATABASE}"
NAN = float("nan")

_log = logging.getLogger(__name__)

METRICS = {
    schema.TRAIN_LOSS: "nats, over the augmented batches of the last epoch",
    schema.TRAIN_ACCURACY: "percent, likewise",
    schema.TEST_LOSS: "nats",
    schema.TEST_ACCURACY: "percent of the test set",
    schema.LEARNING_RATE: "of the last step",
    schema.FINAL_TRAIN_LOSS: "nats, training set without augmentation",
    schema.FINAL_TRAIN_ACCURACY: "percent, likewise",
    schema.TEST_TOP5_ACCURACY: "percent of the test set",
    schema.GENERALIZATION_GAP: "percentage points, final training accuracy minus test accuracy",
    schema.GAP_TO_DENSE: "percentage points that the dense net is ahead",
    schema.GAP_TO_LTH: "percentage points that the LTH net is ahead",
    schema.SPARSITY_PRUNABLE: "share of the prunable weights, in [0, 1]",
    schema.SPARSITY_NETWORK: "share of all parameters of the network, in [0, 1]",
    schema.COLLAPSED_LAYERS: "masked layers without a weight left",
    schema.IMAGES_PER_SECOND: "training images per second",
    schema.SECONDS: "wall-clock seconds of the job's own work",
    schema.MEAN_CORRELATION: "in [-1, 1], of matched units",
    schema.MEAN_CORRELATION_IDENTITY: "in [-1, 1], of units that were not matched",
    schema.MOVED_UNITS: "share of the units that matching moves, in [0, 1]",
    schema.LOSS_BARRIER_BEFORE: "nats, not matched",
    schema.LOSS_BARRIER_AFTER: "nats, matched",
    schema.AGREEMENT_WITH_WEIGHT: "share of the units that weight matching sends to the same place, in [0, 1]",
    schema.MASK_OVERLAP: "intersection over union, in [0, 1], of the permuted mask and B's own",
    schema.MASK_OVERLAP_IDENTITY: "the same of A's mask as it is",
    schema.MASK_OVERLAP_RANDOM: "the same of random masks",
    schema.MIDPOINT_ACCURACY: "percent of the test set",
    schema.LOSS_BARRIER: "nats, of the test loss",
    schema.TRAIN_LOSS_BARRIER: "nats, of the training loss",
    schema.ERROR_BARRIER: "percentage points",
    schema.MEMBERS: "number of nets",
    schema.MEMBER_ACCURACY_MEAN: "percent of the test set",
    schema.MEMBER_ACCURACY_STD: "percentage points",
    schema.ENSEMBLE_ACCURACY: "percent of the test set",
    schema.DISAGREEMENT: "share of the test images, in [0, 1]",
    schema.KL_DIVERGENCE: "nats",
    schema.JS_DIVERGENCE: "nats",
}
"""Metrics that always have a (float64) column -> their units; ``trainables.schema`` defines them. A grouped metric,
such as ``plane_error/<net>``, has a column only if some run of the study has logged it."""

TEXTS = (
    schema.PARAM_STAGE,
    schema.PARAM_METHOD,
    schema.PARAM_MODEL,
    schema.PARAM_DATASET,
    schema.PARAM_MATCHER,
    schema.PARAM_CORRECTION,
    schema.PARAM_PATH,
)
FRACTIONS = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
COUNTS = (
    schema.PARAM_REWIND_EPOCH,
    schema.PARAM_SEED_A,
    schema.PARAM_SEED_B,
    schema.PARAM_ROUND,
    schema.PARAM_MATCH_EPOCH,
    schema.PARAM_DATA_ORDER,
)
NUMBERS = dict.fromkeys(COUNTS, (0.0, 2.0**53)) | {
    schema.PARAM_WIDTH: (2.0**-10, 2.0**10),
    schema.PARAM_SPARSITY: (0.0, 1.0 - 2.0**-30),
    schema.PARAM_MATCH_EPOCH: (-1.0, 2.0**53),
}
"""Numeric params -> the bounds that they must lie between, so that the axes of figures can show them."""
LARGEST = 1e30
"""A metric of a larger magnitude counts as missing: no figure could show it or the values beside it."""
SHOWN = 60
"""Number of characters of a wrong value that messages quote."""
IDENTITY = (*TEXTS, *FRACTIONS, *COUNTS)
"""Params that identify a run's job; every other param is a recipe field."""

TAGS = {
    "error": schema.TAG_ERROR,
    "parents": schema.TAG_PARENTS,
    "dense_key": schema.TAG_DENSE_KEY,
    "lth_key": schema.TAG_LTH_KEY,
}
BOOKKEEPING = (
    *("key", "run_id", "name", "status", "started", "ended", "reused", "environment", *TAGS),
    *(schema.TAG_ASKED, schema.MATCHING),
)
CURVE_IDENTITY = (
    "key",
    "run_id",
    schema.PARAM_MODEL,
    schema.PARAM_DATASET,
    schema.PARAM_WIDTH,
    schema.PARAM_SEED_A,
    schema.PARAM_SEED_B,
    schema.PARAM_MATCHER,
    schema.PARAM_MATCH_EPOCH,
    schema.PARAM_CORRECTION,
    schema.LOSS_BARRIER,
    schema.ERROR_BARRIER,
)
PAIR_PATH = "pair"
"""Value of ``path`` for a `connect` run that leads from net A to net B."""
PLANE_IDENTITY = (
    "key",
    "run_id",
    schema.PARAM_MODEL,
    schema.PARAM_DATASET,
    schema.PARAM_WIDTH,
    schema.PARAM_SPARSITY,
    schema.PARAM_REWIND_EPOCH,
    schema.PARAM_SEED_A,
    schema.PARAM_SEED_B,
    schema.PARAM_MATCHER,
    schema.PARAM_MATCH_EPOCH,
    schema.PARAM_CORRECTION,
)
UNPRINTED = re.compile(r"[^\t\n -~\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control characters and others that are unsafe to print; anyone with access to an experiment can put them there."""
ENVIRONMENT_TAG = re.compile(r"version|(^|[._])(commit|git_sha|device|gpu|python|torch|ray)$", re.IGNORECASE)


def runs(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return one row per job of a study, in the order in which the runs started.

    Columns:

    - ``key``, ``run_id``, ``name``, ``status`` (FINISHED, FAILED, RUNNING, ...): str.
    - ``stage``, ``method``, ``model``, ``dataset``, ``matcher``, ``correction``, ``path`` (of `connect`: pair or imp):
      str, empty where a job has none.
    - ``width`` (multiplier), ``sparsity`` (fraction of the prunable weights), ``asked_sparsity`` (the target of a
      pruned net that stopped within a tolerance of it; else ``sparsity``): float64, NaN where a job has none.
    - ``matching``: dict, how the nets that the job depends on were matched: ``matcher``, ``match_epoch`` (-1: at the
      end) and the knobs of matching; empty if no nets were matched.
    - ``rewind_epoch`` (epochs), ``seed_a``, ``seed_b``, ``round`` (pruning rounds), ``match_epoch`` (epochs that B had
      trained when it was matched; -1: all), ``data_order`` (its index, for ensembles): Int64, NA where a job has none.
    - one float64 column per name in ``METRICS``, which lists the units: the latest value, NaN if not logged. Likewise
      for every metric with a slash in its name that some run has, such as ``plane_error/<net>`` (percent) and
      ``correlation/<group>`` (in [-1, 1]), except MLflow's system metrics, ``system/...``.
    - ``reused``: bool; ``error``, ``parents`` (keys, comma-separated), ``dense_key``, ``lth_key``: str, empty where a
      run has no such tag.
    - ``started``, ``ended``: UTC timestamps.
    - ``environment``: str, ``name=value`` of the run's tags on versions and hardware, separated by ``; ``.
    - every recipe field under its own name, in the units of ``trainables.knobs``: str, empty where a job has none.
    - every setting that the study varies and that is not an axis of every grid, in its own type;
      ``frame.attrs["varied"]`` lists them. The recipe field of the same name is then in column ``param.<name>``.

    A run that is not FINISHED may carry the accuracy of an intermediate epoch: select by ``status`` before averaging.
    If the space was run with several recipes, the frame holds the runs of the latest one, and
    ``frame.attrs["set_aside"]`` counts the others. ``frame.attrs["left_out"]`` has one line for each run that was left
    out because its numbers or its place in the grid cannot be read, and for each metric with unusable values.

    Args:
        space: name of the search space, which is the name of the experiment.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: the file or experiment does not exist or cannot be read, or the experiment has no run that this
            version of the study can read.
    """
    reader = source(tracking_uri)
    experiment = _experiment(reader, space, tracking_uri)
    return frame_of(experiment, reader.records(experiment), tracking_uri)


def frame_of(experiment: Experiment, records: Sequence[Record], uri: str) -> pd.DataFrame:
    """Return the frame that :func:`runs` documents.

    Args:
        experiment: the study's experiment.
        records: its runs, in the order of their start, whether or not they can be read.
        uri: where they were found, for messages.

    Raises:
        AnalysisError: none of the runs can be read.
    """
    found, set_aside, left_out = _checked(experiment, records, uri)
    frame = _frame(found, experiment)
    frame.attrs |= {"set_aside": set_aside, "left_out": left_out + _no_numbers(found)}
    return frame


def question(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> str:
    """Return the study's question: the first paragraph of its experiment's description, empty if there is none.

    Raises:
        AnalysisError: no such file or experiment.
    """
    note = _experiment(source(tracking_uri), space, tracking_uri).tags.get("mlflow.note.content", "")
    return printed(note).partition("\n\n")[0]


def curves(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the interpolation curves from A to B of a study's finished `connect` runs, one row per run and alpha.

    Columns: ``key``, ``run_id``, ``model``, ``dataset``, ``matcher`` (``identity``: before matching), ``correction``
    (str), ``width`` (float64), ``seed_a``, ``seed_b``, ``match_epoch`` (Int64), ``alpha`` (float64: 0 is pi(A), 1 is
    B), ``interpolation_accuracy`` (percent), ``interpolation_loss`` (nats), and the run's ``loss_barrier`` (nats) and
    ``error_barrier`` (percentage points), repeated on each of its rows. Empty if nothing was measured.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: as :func:`runs`.
    """
    reader = source(tracking_uri)
    found = [
        record
        for record in _of_stage(reader, space, tracking_uri, schema.CONNECT)
        if record.params.get(schema.PARAM_PATH, PAIR_PATH) == PAIR_PATH
    ]
    points = {
        name: _by_alpha(name, reader.histories(found, name))
        for name in (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
    }
    measured = pd.concat(points.values(), axis="columns").rename_axis(["run_id", "alpha"]).reset_index()
    return _frame(found)[list(CURVE_IDENTITY)].merge(measured, on="run_id")


def planes(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the planes of a study's finished `plane` runs: one row per point of a run's grid and per net in it.

    Columns: ``key``, ``run_id``, ``model``, ``dataset``, ``matcher``, ``correction`` (str), ``width``, ``sparsity``
    (float64), ``rewind_epoch``, ``seed_a``, ``seed_b``, ``match_epoch`` (Int64); ``net`` (str: dense, lth or permuted;
    empty for a point of the grid), ``x``, ``y`` (float64: Euclidean distances of parameter vectors), ``error``
    (percent of the test set), ``loss`` (nats). Empty if nothing was measured; ``frame.attrs["unreadable"]`` is the
    number of runs whose grid is missing or damaged.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: as :func:`runs`.
    """
    reader = source(tracking_uri)
    found = _of_stage(reader, space, tracking_uri, schema.PLANE)
    parts, unreadable = [_points([])], 0
    for record in found:
        try:
            document = documents.parse(reader.text(record, schema.PLANE_GRID), documents.PLANE)
            points = _plane_points(document)
        except AnalysisError:  # the figure reports the count
            unreadable += 1
            continue
        except ValueError as error:  # damaged, which includes lists of different lengths
            _log.warning("%s of run %s is damaged: %s", schema.PLANE_GRID, record.run_id, error)
            unreadable += 1
            continue
        parts.append(_points(points).assign(run_id=record.run_id))
    frame = _frame(found)[list(PLANE_IDENTITY)].merge(pd.concat(parts, ignore_index=True), on="run_id")
    frame.attrs["unreadable"] = unreadable
    return frame


def sqlite_uri(storage: str) -> str:
    """Return the tracking URI of a study whose `--storage` is the given local folder.

    Raises:
        AnalysisError: the storage is not local, so its name does not reveal the tracking server.
    """
    folder = local_folder(storage)
    if folder is None:
        raise AnalysisError(
            f"storage {redact(storage)} is not a local folder: name the tracking server (--tracking-uri)"
        )
    return databases.default_tracking_uri(folder)


def local_folder(storage: str) -> Path | None:
    """Return a path or ``file://`` URI as a path; None for any other URI."""
    if "://" not in storage:
        return expanded(storage)
    parts = urlsplit(storage)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


# --- the experiment ---------------------------------------------------------------------------------------------
def _experiment(reader: Source, space: str, tracking_uri: str) -> Experiment:
    """Return the study's experiment; raise AnalysisError if there is none or it has been deleted."""
    experiment = reader.experiment(space)
    if experiment is None or not experiment.active:
        raise AnalysisError(_unknown(reader, space, tracking_uri, deleted=experiment is not None))
    return experiment


def _of_stage(reader: Source, space: str, tracking_uri: str, stage: str) -> list[Record]:
    """Return the study's finished runs of one stage, possibly none; raise AnalysisError if there is no study."""
    experiment = _experiment(reader, space, tracking_uri)
    found = _legible(experiment, _latest(experiment, reader.records(experiment, stage)))[0]
    if not found:  # does the study lack this stage, or is there no study? Its dense nets run first, and are few
        any_runs = reader.records(experiment, schema.DENSE) or reader.records(experiment)
        _checked(experiment, any_runs, tracking_uri)
    return [record for record in _one_per_job(found) if record.status == FINISHED]


def _checked(experiment: Experiment, found: Sequence[Record], tracking_uri: str) -> tuple[list[Record], int, list[str]]:
    """Return the study's runs, one per job, in the order of their start; raise AnalysisError if there are none.

    Also returns the number of runs of earlier recipes, and a line on each run that cannot be read.
    """
    if not found:
        raise AnalysisError(f"experiment {experiment.name!r} has no runs yet ({redact(tracking_uri)})")
    ours = [record for record in found if schema.TAG_KEY in record.tags]
    if not ours:
        raise AnalysisError(
            f"experiment {experiment.name!r} has {len(found)} runs, but none is a study's job "
            f"(no tag {schema.TAG_KEY!r})"
        )
    latest = _latest(experiment, ours)
    if not latest:
        raise AnalysisError(
            f"experiment {experiment.name!r} has no runs yet of its latest recipe, and {len(ours)} of earlier ones"
        )
    legible, left_out = _legible(experiment, latest)
    if not legible:
        raise AnalysisError(left_out[0])
    finished = [record for record in legible if record.status == FINISHED]
    if finished and not any(record.params.get(schema.PARAM_STAGE) in schema.STAGES for record in finished):
        raise AnalysisError(
            f"experiment {experiment.name!r} has {len(finished)} finished jobs, but none of a kind that is known here "
            f"(param {schema.PARAM_STAGE!r}: {', '.join(schema.STAGES)}); another version of the study wrote them"
        )
    return _one_per_job(legible), len(ours) - len(latest), left_out


def _legible(experiment: Experiment, found: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """Return the runs whose place in the grid can be read, and a line on each other run.

    Anyone can write to an experiment, so nothing in it is trusted.
    """
    legible, left_out = [], []
    for record in found:
        wrong = [name for name in NUMBERS if not _is_number(name, _text(record.params.get(name)))]
        if wrong:
            what = ", ".join(f"param {name} is {_text(record.params[name])[:SHOWN]!r}" for name in wrong)
            left_out.append(f"run {record.run_id}: {what}, not a number that it can be")
            continue
        try:
            _place(record), _varied(record, experiment)
        except documents.Malformed as error:
            left_out.append(f"run {record.run_id}: {error}")
        else:
            legible.append(record)
    return legible, left_out


def _place(record: Record) -> dict[str, Any]:
    """Return a run's place in the grid.

    Raises:
        Malformed: the tag is missing or invalid: an earlier version, or something else, wrote the run.
    """
    if schema.TAG_CELL not in record.tags:
        raise documents.Malformed(_OUTDATED)
    return documents.parse(record.tags[schema.TAG_CELL], documents.PLACE)


def _varied(record: Record, experiment: Experiment) -> dict[str, Any]:
    """Return a run's values of the settings that the study varies; raise Malformed as :func:`_place` does."""
    text = record.tags.get(f"{schema.TAG_RECIPE}.{experiment.tags.get(schema.TAG_RECIPE)}", '{"varied": {}}')
    if text == "true":
        raise documents.Malformed(_OUTDATED)
    varied: dict[str, Any] = documents.parse(text, documents.VARIED)[schema.VARIED]
    return varied


_OUTDATED = "recorded by an earlier version; running the study's command again brings it up to date, and trains nothing"


def _is_number(name: str, text: str) -> bool:
    """Return whether a param is missing or a number within its bounds."""
    low, high = NUMBERS[name]
    try:
        return not text or (low <= float(text) <= high and (name in FRACTIONS or float(text).is_integer()))
    except ValueError:
        return False


def _no_numbers(found: Iterable[Record]) -> list[str]:
    """Return a line on each metric for which some runs logged a value that is not a usable number."""
    runs = Counter(name for record in found for name in record.metrics if math.isnan(_metric(record, name)))
    return [f"metric {name} of {count} runs, not a number" for name, count in sorted(runs.items())]


def _latest(experiment: Experiment, found: Iterable[Record]) -> list[Record]:
    """Return the study's runs of its latest recipe."""
    recipe = experiment.tags.get(schema.TAG_RECIPE)
    ours = [record for record in found if schema.TAG_KEY in record.tags]
    return [record for record in ours if recipe is None or f"{schema.TAG_RECIPE}.{recipe}" in record.tags]


def _unknown(reader: Source, space: str, tracking_uri: str, *, deleted: bool) -> str:
    """Return the error message for an experiment that does not exist or has been deleted."""
    names = reader.names()
    what = "deleted experiment" if deleted else "no experiment"
    return f"{what} {space!r} in {redact(tracking_uri)}{suggestion(space, names)}"


def _one_per_job(found: Iterable[Record]) -> list[Record]:
    """Keep one run per key: the last finished one, else the last.

    The tracker deletes duplicates when it finds them, but a driver that was killed may have left one.
    """
    kept: dict[str, Record] = {}
    for record in found:
        key = record.tags[schema.TAG_KEY]
        if key not in kept or record.status == FINISHED or kept[key].status != FINISHED:
            kept[key] = record
    return list(kept.values())


# --- from runs to columns ---------------------------------------------------------------------------------------
def _frame(found: Sequence[Record], experiment: Experiment | None = None) -> pd.DataFrame:
    """Return the frame that :func:`runs` documents; settings that vary are included if the experiment is given."""
    places = [_place(record) for record in found]
    varied = [_varied(record, experiment) if experiment else {} for record in found]
    names = list(dict.fromkeys(name for values in varied for name in values))
    grouped = sorted({name for record in found for name in record.metrics if _is_grouped(name)})
    recipe = sorted({name for record in found for name in record.params} - {*IDENTITY, *METRICS})
    columns: dict[str, Any] = {
        "key": [record.tags[schema.TAG_KEY] for record in found],
        "run_id": [record.run_id for record in found],
        "name": [printed(record.name) for record in found],
        "status": [record.status for record in found],
    }
    columns |= {name: [_text(record.params.get(name)) for record in found] for name in TEXTS}
    columns |= {name: [place.get(name, NAN) for place in places] for name in FRACTIONS}
    columns |= {name: pd.array([_number(record, name) for record in found], "Int64") for name in COUNTS}
    columns |= {name: [_metric(record, name) for record in found] for name in (*METRICS, *grouped)}
    columns["reused"] = [record.tags.get(schema.TAG_REUSED) == "true" for record in found]
    columns |= {
        column: [redact_text(printed(record.tags.get(tag, ""))) for record in found] for column, tag in TAGS.items()
    }
    for name, stamps in {"started": [r.started for r in found], "ended": [r.ended for r in found]}.items():
        columns[name] = pd.to_datetime(stamps, unit="ms", utc=True)
    columns["environment"] = [_environment(record) for record in found]
    for name in recipe:
        text = [_text(record.params.get(name)) for record in found]
        columns[f"param.{name}" if name in columns or name in names else name] = text
    types = dict.fromkeys((*FRACTIONS, *METRICS, *grouped), "float64") | dict.fromkeys(("reused",), "bool")
    texts = [name for name, column in columns.items() if name not in types and isinstance(column, list)]
    frame = pd.DataFrame(columns).astype(types | dict.fromkeys(texts, str))
    asked = pd.Series([record.tags.get(schema.TAG_ASKED) for record in found], dtype=object)
    frame[schema.TAG_ASKED] = (
        pd.to_numeric(asked, errors="coerce").astype("float64").fillna(frame[schema.PARAM_SPARSITY])
    )
    frame[schema.MATCHING] = [_clean(place.get(schema.MATCHING, {})) for place in places]
    for name in names:
        frame[name] = [_clean(values).get(name) for values in varied]
    frame.attrs[schema.VARIED] = names
    return frame


def _clean(values: dict[str, Any]) -> dict[str, Any]:
    return {printed(name): printed(value) if isinstance(value, str) else value for name, value in values.items()}


def _is_grouped(metric: str) -> bool:
    """Return whether a metric belongs to a group whose members depend on the network, as ``correlation/<group>``."""
    return "/" in metric and not metric.startswith("system/")


def _environment(record: Record) -> str:
    tags = (f"{name}={record.tags[name]}" for name in sorted(record.tags) if ENVIRONMENT_TAG.search(name))
    return redact_text(printed("; ".join(tags)))


def _text(value: str | None) -> str:
    """Return a param as text; empty if missing, or None, which MLflow keeps as the word ``None``."""
    return "" if value in (None, "None") else printed(str(value))


def printed(text: str) -> str:
    """Replace characters that control terminals, change the writing direction or are not allowed in SVG."""
    return UNPRINTED.sub("\N{REPLACEMENT CHARACTER}", text)


def _number(record: Record, name: str) -> float:
    """Return a param as a number; NaN if the run has none."""
    return float(_text(record.params.get(name)) or NAN)


def _metric(record: Record, name: str) -> float:
    """Return a metric; NaN if the run has none, or if its magnitude exceeds ``LARGEST``."""
    return _finite(record.metrics.get(name, NAN))


def _finite(value: float) -> float:
    return value if abs(value) <= LARGEST else NAN


def _by_alpha(name: str, histories: dict[str, list[Point]]) -> pd.Series:
    """Return curves as a series indexed by run and alpha; of a point that was logged twice, the last value counts."""
    points = {
        (run_id, step / 100): _finite(value)
        for run_id, history in histories.items()
        for step, _stamp, value in sorted(history, key=lambda point: point[:2])
    }
    index = pd.MultiIndex.from_tuples(points, names=["run_id", "alpha"]) if points else _NO_POINTS
    return pd.Series(list(points.values()), index=index, dtype=float, name=name)


_NO_POINTS = pd.MultiIndex.from_arrays([pd.Series(dtype=object), pd.Series(dtype=float)], names=["run_id", "alpha"])


def _plane_points(document: dict[str, Any]) -> list[tuple[str, float, float, float, float]]:
    """Return (net, x, y, error, loss) of each net and each grid point in a plane's file."""
    nets = zip(
        document["networks"],
        document["coordinates"],
        document["network_errors"],
        document["network_losses"],
        strict=True,
    )
    points = [(name, x, y, error, loss) for name, (x, y), error, loss in nets]
    lines = zip(document["ys"], document["errors"], document["losses"], strict=True)
    for y, errors, losses in lines:
        points += [("", x, y, error, loss) for x, error, loss in zip(document["xs"], errors, losses, strict=True)]
    return points


def _points(points: Sequence[tuple[str, float, float, float, float]]) -> pd.DataFrame:
    """Return points of a plane as a frame whose ``run_id`` is still empty."""
    frame = pd.DataFrame(points, columns=["net", "x", "y", "error", "loss"])
    frame[["error", "loss"]] = frame[["error", "loss"]].astype(float).map(_finite)
    return frame.astype({"net": str, **dict.fromkeys(("x", "y", "error", "loss"), float)}).assign(run_id="")


def recipe_fields(frame: pd.DataFrame) -> list[str]:
    """Return the columns that hold recipe fields in a frame of :func:`runs`."""
    known = {*BOOKKEEPING, *IDENTITY, *METRICS}
    return [name for name in frame.columns if name not in known and not _is_grouped(name)]


def working_tracking_uri(storage: str, tracking_uri: str | None) -> str:
    """Return the given tracking URI, or else that of the database in the storage; errors as in :func:`sqlite_uri`."""
    return tracking_uri if tracking_uri else sqlite_uri(storage)
