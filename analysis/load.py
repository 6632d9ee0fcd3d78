"""A finished or unfinished study as tidy data frames, one row per job.

Nothing is computed here. A run becomes a row, and a param or metric becomes a column. A value that a run does not have
is missing (NaN, NA or an empty string), never zero.
"""

from __future__ import annotations

import functools
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.sources import AnalysisError, Experiment, NoRuns, Record, Source, source
from trainables import schema
from trainables.host import databases
from trainables.host.places import DEFAULT_STORAGE
from trainables.host.redaction import redact, redact_text
from trainables.schema import FINISHED
from trainables.storage import documents

__all__ = [
    "AnalysisError",
    "curves",
    "fixed_settings",
    "frame_of",
    "histories",
    "planes",
    "recipe_fields",
    "runs",
]

DEFAULT_TRACKING_URI = f"sqlite:///{DEFAULT_STORAGE}/{databases.DATABASE}"
NAN = float("nan")

_log = logging.getLogger(__name__)

METRICS = (
    *schema.EPOCH_METRICS,
    *(schema.FINAL_TRAIN_LOSS, schema.FINAL_TRAIN_ACCURACY, schema.TEST_TOP5_ACCURACY),
    *(schema.GENERALIZATION_GAP, schema.GAP_TO_DENSE, schema.GAP_TO_LTH),
    *(schema.SPARSITY_PRUNABLE, schema.SPARSITY_NETWORK, schema.COLLAPSED_LAYERS),
    *(schema.IMAGES_PER_SECOND, schema.SECONDS),
    *(schema.MEAN_CORRELATION, schema.MEAN_CORRELATION_IDENTITY, schema.MOVED_UNITS, schema.AGREEMENT_WITH_WEIGHT),
    *(schema.LOSS_BARRIER_BEFORE, schema.LOSS_BARRIER_AFTER),
    *(schema.MASK_OVERLAP, schema.MASK_OVERLAP_IDENTITY, schema.MASK_OVERLAP_RANDOM),
    *(schema.MIDPOINT_ACCURACY, schema.LOSS_BARRIER, schema.TRAIN_LOSS_BARRIER, schema.ERROR_BARRIER),
    *(schema.MEMBERS, schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.ENSEMBLE_ACCURACY),
    *(schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE),
)
"""Metrics that always have a (float64) column; ``trainables.schema`` gives their units. A grouped metric, such as
``plane_error/<net>``, has a column only if some run of the study has logged it."""

TEXTS, FRACTIONS, COUNTS = (*schema.PLACE_TEXTS, schema.ENGINE), schema.PLACE_FRACTIONS, schema.PLACE_COUNTS
IDENTITY = (*TEXTS, *FRACTIONS, *COUNTS)
"""A job's place in the grid; every other param is a recipe field."""
LARGEST = 1e30
"""A metric of a larger magnitude counts as missing: no figure could show it or the values beside it."""

TAGS = {
    "error": schema.TAG_ERROR,
    "parents": schema.TAG_PARENTS,
    "dense_key": schema.TAG_DENSE_KEY,
    "lth_key": schema.TAG_LTH_KEY,
    "commit": schema.TAG_COMMIT,
    **{name: name for name in schema.ENVIRONMENT},
}
BOOKKEEPING = (
    *("key", "run_id", "name", "status", "started", "ended", "reused", *TAGS),
    *(schema.TAG_ASKED, schema.MATCHING, schema.RECIPES),
)
POINTS = "interpolation_points"
HALF_A_STEP = 0.005 + 1e-9
"""How far the alpha of a run's step may be from the alpha at which it was measured."""
UNPRINTED = re.compile(r"[^\t\n -~\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control characters and others that are unsafe to print; anyone with access to an experiment can put them there."""


class Job(NamedTuple):
    """A run whose tags say which job it is: the run, the job's place in the grid, and its values of varied settings.

    There is at least one combination of values, and all have the same names.
    """

    record: Record
    place: dict[str, Any]
    recipes: list[dict[str, Any]]


def runs(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return one row per job of a study, in the order in which the runs started.

    Columns:

    - ``key``, ``run_id``, ``name``, ``status`` (FINISHED, FAILED, RUNNING, ...): str.
    - ``stage``, ``method``, ``model``, ``dataset``, ``matcher``, ``correction``, ``path`` (of `connect`: pair or imp),
      ``engine`` (precision, and what it was trained with): str, empty where a job has none.
    - ``width`` (multiplier), ``sparsity`` (fraction of the prunable weights), ``asked_sparsity`` (the target of a
      pruned net that stopped within a tolerance of it; else ``sparsity``): float64, NaN where a job has none.
    - ``matching``: dict, how the nets that the job depends on were matched: ``matcher``, ``match_epoch`` (-1: at the
      end) and the knobs of matching; empty if no nets were matched.
    - ``rewind_epoch`` (epochs), ``seed_a``, ``seed_b``, ``round`` (pruning rounds), ``match_epoch`` (epochs that B had
      trained when it was matched; -1: all), ``data_order`` (its index, for ensembles): Int64, NA where a job has none.
    - one float64 column per name in ``METRICS``, in the units of ``trainables.schema``: the latest value, NaN if not
      logged. Likewise for every metric with a slash in its name that some run has, such as ``plane_error/<net>``
      (percent) and ``correlation/<group>`` (in [-1, 1]), except MLflow's system metrics, ``system/...``.
    - ``reused``: bool; ``error``, ``parents`` (keys, comma-separated), ``dense_key``, ``lth_key``, ``commit`` (of this
      project), and those of ``schema.ENVIRONMENT`` (device, versions, ...): str, empty if a run has no such tag.
    - ``started``, ``ended``: UTC timestamps.
    - every recipe field under its own name, in the units of ``trainables.knobs``: str, empty where a job has none.
    - every setting that the study varies and that is not an axis of every grid, in its own type: the first value with
      which a cell needs the job, missing if the job does not depend on it; ``frame.attrs["varied"]`` lists them. The
      recipe field of the same name is then in column ``param.<name>``. ``recipes`` lists all combinations of values of
      these settings with which cells need the job, name -> value, None for any value.

    A run that is not FINISHED may carry the accuracy of an intermediate epoch: select by ``status`` before averaging.
    If the space was run with several recipes, the frame holds the runs of the latest one, and
    ``frame.attrs["set_aside"]`` counts the others. ``frame.attrs["left_out"]`` has one line for each run that was left
    out because its place in the grid cannot be read, and for each metric with unusable values. ``frame.attrs`` also has
    the study's ``question``, its last ``command``, its ``settings`` (JSON, see :func:`fixed_settings`) and
    the ID of its ``experiment``.

    Args:
        space: name of the search space, which is the name of the experiment.
        tracking_uri: where the study recorded its runs.

    Raises:
        AnalysisError: the file or experiment does not exist or cannot be read, or the experiment has no run that this
            version of the study can read.
    """
    reader = source(tracking_uri)
    experiment = reader.experiment(space)
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
    jobs, left_out = _checked(experiment, records, uri)
    no_numbers = Counter(name for job in jobs for name, value in job.record.metrics.items() if _finite(value) != value)
    ours = sum(schema.TAG_KEY in record.tags for record in records)
    of_study = [record.tags for record in records if record.tags.get(schema.TAG_STUDY) == "true"]
    frame = _frame(jobs)
    frame.attrs |= {
        "set_aside": ours - len(_latest(experiment, records)),
        "left_out": left_out + [f"metric {name} of {n} runs, not a number" for name, n in sorted(no_numbers.items())],
        "question": printed(experiment.tags.get(schema.NOTE, "")).partition("\n\n")[0],
        "settings": experiment.tags.get(schema.TAG_SETTINGS, "{}"),
        "command": _said(next((tags[schema.TAG_COMMAND] for tags in of_study if schema.TAG_COMMAND in tags), "")),
        "experiment": experiment.id,
    }
    return frame


def curves(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the interpolation curves from A to B of a study's finished `connect` runs, one row per run and alpha.

    Columns: those of :func:`runs`, repeated on each row of a run (``matcher`` is ``identity`` before matching);
    ``alpha`` (float64: 0 is pi(A), 1 is B), ``interpolation_accuracy`` (percent) and ``interpolation_loss`` (nats).
    Empty if nothing was measured.

    Arguments and errors are those of :func:`runs`.
    """
    _, found = _of_stage(space, tracking_uri, schema.CONNECT)
    frame = _frame([job for job in found if job.place.get(schema.PARAM_PATH, schema.PATH_PAIR) == schema.PATH_PAIR])
    metrics = (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
    measured = histories(frame["run_id"].tolist(), metrics, tracking_uri)
    found = frame.merge(measured, on="run_id")
    recorded = found.get(f"param.{POINTS}", found.get(POINTS, pd.Series(dtype=str)))
    found.insert(len(frame.columns), "alpha", _alphas(found.pop("step") / 100, recorded))
    return found


def _alphas(rounded: pd.Series, points: pd.Series) -> pd.Series:
    """Return the alphas of curves, whose runs record them in whole hundredths, because steps are whole numbers.

    Args:
        rounded: alphas as recorded.
        points: number of evenly spaced alphas of the run, as text that anyone can write.
    """
    intervals = pd.to_numeric(points, errors="coerce").reindex(rounded.index).astype(float) - 1
    exact = (rounded * intervals).round() / intervals
    return rounded.where(~((exact - rounded).abs() <= HALF_A_STEP), exact)


def histories(run_ids: Sequence[str], metrics: Sequence[str], tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return metrics step by step, one row per run and step: ``run_id``, ``step`` and the metrics (float64).

    Of a value that was logged twice, the last one counts. Raises AnalysisError if the runs cannot be read.
    """
    reader = source(tracking_uri)
    points = [
        (run_id, name, *point)
        for name in metrics
        for run_id, history in reader.histories(run_ids, name).items()
        for point in history
    ]
    long = pd.DataFrame(points, columns=["run_id", "metric", "step", "timestamp", "value"])
    long = long.sort_values("timestamp", kind="stable").drop_duplicates(["run_id", "metric", "step"], keep="last")
    wide = long.pivot(index=["run_id", "step"], columns="metric", values="value").reindex(columns=list(metrics))
    wide = wide.astype(float).where(lambda values: values.abs() <= LARGEST).rename_axis(columns=None)
    return wide.reset_index().astype({"run_id": str, "step": int})


def planes(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the planes of a study's finished `plane` runs: one row per point of a run's grid and per net in it.

    Columns: those of :func:`runs`, repeated on each row of a run; ``net`` (str: dense, lth or permuted; empty for a
    point of the grid), ``x``, ``y`` (float64: Euclidean distances of parameter vectors), ``error`` (percent of the test
    set, in place of a run's error), ``loss`` (nats). Empty if nothing was measured; ``frame.attrs["unreadable"]`` is
    the number of runs whose grid is missing or damaged.

    Arguments and errors are those of :func:`runs`.
    """
    reader, found = _of_stage(space, tracking_uri, schema.PLANE)
    parts, unreadable = [_points({})], 0
    for job in found:
        try:
            document = documents.parse(reader.text(job.record, schema.PLANE_GRID), documents.PLANE)
            parts.append(_points(document).assign(run_id=job.record.run_id))
        except AnalysisError:  # the figure reports the count
            unreadable += 1
        except ValueError as error:  # damaged, which includes lists of different lengths
            _log.warning("%s of run %s is damaged: %s", schema.PLANE_GRID, job.record.run_id, error)
            unreadable += 1
    frame = _frame(found).drop(columns="error").merge(pd.concat(parts, ignore_index=True), on="run_id")
    frame.attrs["unreadable"] = unreadable
    return frame


# --- the experiment ---------------------------------------------------------------------------------------------
def _of_stage(space: str, tracking_uri: str, stage: str) -> tuple[Source, list[Job]]:
    """Return a reader, and the study's finished jobs of one stage; raise AnalysisError if there is no study."""
    reader = source(tracking_uri)
    experiment = reader.experiment(space)
    found, _ = _jobs(experiment, reader.records(experiment, stage))
    if not found:  # does the study lack this stage, or is there no study? Its dense nets run first, and are few
        _checked(experiment, reader.records(experiment, schema.DENSE) or reader.records(experiment), tracking_uri)
    return reader, [job for job in found if job.record.status == FINISHED]


def _checked(experiment: Experiment, found: Sequence[Record], uri: str) -> tuple[list[Job], list[str]]:
    """Return what :func:`_jobs` returns; raise AnalysisError if there is no job."""
    named = f"experiment {experiment.name!r}"
    found = [record for record in found if not {schema.TAG_LEVEL, schema.TAG_STUDY} & record.tags.keys()]
    if not found:
        raise NoRuns(f"{named} has no runs yet ({redact(uri)})")
    ours = sum(schema.TAG_KEY in record.tags for record in found)
    if not ours:
        raise NoRuns(f"{named} has {len(found)} runs, but none is a study's job (no tag {schema.TAG_KEY!r})")
    jobs, left_out = _jobs(experiment, found)
    if not jobs and not left_out:
        tags = {name for record in found for name in record.tags}
        cure = f"running the study's command again (python -m study.run --space {shlex.quote(experiment.name)} ...)"
        if any(name.startswith(f"{schema.TAG_RECIPE}.") for name in tags):
            raise NoRuns(
                f"{named} has no runs yet of its latest recipe, and {ours} of earlier ones; {cure} records what is "
                "published and trains the rest"
            )
        raise NoRuns(
            f"{named} has {ours} runs of an earlier version; {cure} brings them up to date, and trains nothing"
        )
    if not jobs:
        raise AnalysisError(left_out[0])
    return jobs, left_out


def _jobs(experiment: Experiment, found: Iterable[Record]) -> tuple[list[Job], list[str]]:
    """Return the study's jobs in the order of their start, and a line on each run that cannot be read.

    Anyone can write to an experiment, so nothing in it is trusted. Of several runs of a job, the last finished one
    counts, or else the last: a driver that was killed may have left duplicates, which the tracker deletes later.
    """
    kept: dict[str, Job] = {}
    left_out = []
    for record in _latest(experiment, found):
        key = record.tags[schema.TAG_KEY]
        try:
            job = _job(record, experiment)
        except documents.Malformed as error:
            left_out.append(f"run {record.run_id}: {error}")
        else:
            if key not in kept or record.status == FINISHED or kept[key].record.status != FINISHED:
                kept[key] = job
    return list(kept.values()), left_out


def _job(record: Record, experiment: Experiment) -> Job:
    """Read the tags that say what a run's job is.

    Raises:
        Malformed: they are missing or invalid: an earlier version, or something else, wrote the run.
    """
    settings = record.tags.get(f"{schema.TAG_RECIPE}.{experiment.tags.get(schema.TAG_RECIPE)}", '{"varied": {}}')
    recipes = {} if settings == "true" else documents.parse(settings, documents.VARIED)[schema.VARIED]
    if schema.TAG_PLACE not in record.tags or settings == "true" or (isinstance(recipes, dict) and recipes):
        raise documents.Malformed(
            "recorded by an earlier version; running the study's command again brings it up to date, and trains nothing"
        )
    place = documents.parse(record.tags[schema.TAG_PLACE], documents.PLACE)
    return Job(record, _clean(place), [_clean(each) for each in recipes or [{}]])


def _latest(experiment: Experiment, found: Iterable[Record]) -> list[Record]:
    """Return the study's runs of its latest recipe."""
    recipe = experiment.tags.get(schema.TAG_RECIPE)
    ours = [record for record in found if schema.TAG_KEY in record.tags]
    return [record for record in ours if recipe is None or f"{schema.TAG_RECIPE}.{recipe}" in record.tags]


# --- from runs to columns ---------------------------------------------------------------------------------------
def _frame(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return the frame that :func:`runs` documents."""
    found = [job.record for job in jobs]
    varied = list(dict.fromkeys(name for job in jobs for name in job.recipes[0]))
    grouped = sorted({name for record in found for name in record.metrics if _is_grouped(name)})
    recipe = sorted({name for record in found for name in record.params} - {*IDENTITY, *METRICS})
    columns: dict[str, Any] = {
        "key": [record.tags[schema.TAG_KEY] for record in found],
        "run_id": [record.run_id for record in found],
        "name": [printed(record.name) for record in found],
        "status": [record.status for record in found],
    }
    columns |= {name: [job.place.get(name, "") for job in jobs] for name in TEXTS}
    columns |= {name: [job.place.get(name, NAN) for job in jobs] for name in FRACTIONS}
    columns |= {name: pd.array([job.place.get(name) for job in jobs], "Int64") for name in COUNTS}
    columns |= {name: [_finite(record.metrics.get(name, NAN)) for record in found] for name in (*METRICS, *grouped)}
    columns["reused"] = [record.tags.get(schema.TAG_REUSED) == "true" for record in found]
    columns |= {name: [_said(record.tags.get(tag, "")) for record in found] for name, tag in TAGS.items()}
    for name, stamps in {"started": [r.started for r in found], "ended": [r.ended for r in found]}.items():
        columns[name] = pd.to_datetime(stamps, unit="ms", utc=True)
    for name in recipe:
        texts = [printed(record.params.get(name, "")) for record in found]
        columns[f"param.{name}" if name in columns or name in varied else name] = texts
    types = dict.fromkeys((*FRACTIONS, *METRICS, *grouped), "float64") | dict.fromkeys(("reused",), "bool")
    texts = [name for name, column in columns.items() if name not in types and isinstance(column, list)]
    frame = pd.DataFrame(columns).astype(types | dict.fromkeys(texts, str))
    asked = pd.Series([record.tags.get(schema.TAG_ASKED) for record in found], dtype=object)
    asked = pd.to_numeric(asked, errors="coerce").astype("float64")
    frame[schema.TAG_ASKED] = asked.fillna(frame[schema.PARAM_SPARSITY])
    frame[schema.MATCHING] = [job.place.get(schema.MATCHING, {}) for job in jobs]
    for name in varied:
        frame[name] = column([job.recipes[0].get(name) for job in jobs])
    frame[schema.RECIPES] = [job.recipes for job in jobs]
    frame.attrs[schema.VARIED] = varied
    return frame


def column(values: list[Any]) -> Any:
    """Return values of one type, some of which may be None, as a column of that type."""
    if None not in values:
        return values
    found = pd.array(values)
    return found.astype("float64") if pd.api.types.is_float_dtype(found.dtype) else found


def _clean(values: dict[str, Any]) -> dict[str, Any]:
    """Return values of a document with names and texts that are safe to print."""
    return {
        printed(name): _clean(value) if isinstance(value, dict) else printed(value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _is_grouped(metric: str) -> bool:
    """Return whether a metric belongs to a group whose members depend on the network, as ``correlation/<group>``."""
    return "/" in metric and not metric.startswith("system/")


def printed(text: str) -> str:
    """Replace characters that control terminals, change the writing direction or are not allowed in SVG."""
    return UNPRINTED.sub("\N{REPLACEMENT CHARACTER}", text)


@functools.lru_cache(1024)
def _said(tag: str) -> str:
    """Return a tag in a form that is safe to print; many runs have the same ones."""
    return redact_text(printed(tag))


def _finite(value: float) -> float:
    """Return a metric; NaN if its magnitude exceeds ``LARGEST``."""
    return value if abs(value) <= LARGEST else NAN


def _points(document: dict[str, Any]) -> pd.DataFrame:
    """Return ``net``, ``x``, ``y``, ``error`` and ``loss`` of each net and each grid point in a plane's file."""
    nets = zip(
        *(document.get(name, ()) for name in ("networks", "coordinates", "network_errors", "network_losses")),
        strict=True,
    )
    points = [(name, x, y, error, loss) for name, (x, y), error, loss in nets]
    for y, errors, losses in zip(*(document.get(name, ()) for name in ("ys", "errors", "losses")), strict=True):
        points += [("", x, y, error, loss) for x, error, loss in zip(document["xs"], errors, losses, strict=True)]
    frame = pd.DataFrame(points, columns=["net", "x", "y", "error", "loss"])
    frame[["error", "loss"]] = frame[["error", "loss"]].astype(float).map(_finite)
    return frame.astype({"net": str, **dict.fromkeys(("x", "y", "error", "loss"), float)}).assign(run_id="")


def recipe_fields(frame: pd.DataFrame) -> list[str]:
    """Return the columns that hold recipe fields in a frame of :func:`runs`."""
    known = {*BOOKKEEPING, *IDENTITY, *METRICS}
    return [name for name in frame.columns if name not in known and not _is_grouped(name)]


def fixed_settings(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the study's settings that are the same in all of its cells; none if they cannot be read."""
    try:
        return documents.parse(frame.attrs.get("settings", "{}"), documents.SETTINGS)
    except documents.Malformed:  # anyone can write to an experiment
        return {}
