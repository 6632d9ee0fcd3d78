"""The files of a record: ``runs.csv``, ``curves.csv`` and ``record.json``. Needs no library.

They are kept in a repository, so the same content is always written in the same way: lines are sorted, numbers are the
shortest that read back as the same number, times are in UTC.
"""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainables import schema
from trainables.storage import documents

RECORDS = "records"
"""Folder in which a record is kept by default, in a folder named after its study."""
RUNS, CURVES, STUDY = "runs.csv", "curves.csv", "record.json"
RUN_COLUMNS = ("key", "name", "status", "started", "ended")
GROUPS = ("params", "metrics", "tags")
"""Columns of ``runs.csv``: these, then ``params.width``, ``metrics.test_accuracy``, ... as MLflow's ``search_runs``."""
CURVE_COLUMNS = ("key", "metric", "steps", "values")
ESTIMATE = "estimated_seconds"
"""Tag of a run: seconds that its job was expected to take when a driver first had it to run."""
GUARD = "'"
"""Stands before texts that a spreadsheet would take for a formula, and before those that start with it."""
FORMULA = ("=", "+", "-", "@", GUARD)

Run = dict[str, Any]
"""A run as the fields of ``analysis.sources.Record`` but ``artifacts``; its ID is its job's key."""
Curves = dict[tuple[str, str], dict[int, float]]
"""Key and metric -> step -> value."""


def is_record(path: str) -> bool:
    """Return whether a path leads to a record's folder."""
    return "://" not in path and (Path(path) / STUDY).is_file()


def write_runs(folder: Path, runs: Iterable[Run]) -> None:
    """Write ``runs.csv``, a line per run, sorted by name."""
    found = sorted(runs, key=lambda run: (run["name"], run["run_id"]))
    names = [(group, name) for group in GROUPS for name in sorted({name for run in found for name in run[group]})]
    names.remove(("tags", schema.TAG_KEY))
    lines = [[*RUN_COLUMNS, *(f"{group}.{name}" for group, name in names)]]
    for run in found:
        times = [time_text(run[name]) for name in ("started", "ended")]
        values = [run[group].get(name) for group, name in names]
        lines.append([run["run_id"], _guarded(run["name"]), run["status"], *times, *map(_text, values)])
    _write(folder / RUNS, lines)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs in ``runs.csv`` in the order of their start.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    runs = []
    for line in _read(folder / RUNS, RUN_COLUMNS):
        run: Run = {group: {} for group in GROUPS}
        for column, text in line.items():
            group, dot, name = column.partition(".")
            if dot and text:
                run[group][name] = float(text) if group == "metrics" else _unguarded(text)
        run["tags"][schema.TAG_KEY] = line["key"]
        times = {name: milliseconds(line[name]) if line[name] else None for name in ("started", "ended")}
        runs.append({**run, **times, "run_id": line["key"], "name": _unguarded(line["name"]), "status": line["status"]})
    return sorted(runs, key=lambda run: (run["started"] is None, run["started"] or 0, run["run_id"]))


def write_curves(folder: Path, curves: Curves) -> None:
    """Write ``curves.csv``, a line per run and metric with the steps and their values."""
    lines = [list(CURVE_COLUMNS)]
    for (key, metric), points in sorted(curves.items()):
        lines.append([key, metric, " ".join(map(str, points)), " ".join(map(repr, points.values()))])
    _write(folder / CURVES, lines)


def read_curves(folder: Path) -> Curves:
    """Return the curves in ``curves.csv``; errors as in :func:`read_runs`."""
    found: Curves = {}
    for line in _read(folder / CURVES, CURVE_COLUMNS):
        points = zip(map(int, line["steps"].split()), map(float, line["values"].split()), strict=True)
        found[line["key"], line["metric"]] = dict(points)
    return found


def write_study(folder: Path, study: Mapping[str, Any]) -> None:
    """Write ``record.json``, a document of the kind ``documents.RECORD``."""
    (folder / STUDY).write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")


def read_study(folder: Path) -> documents.Document:
    """Return the content of ``record.json``; errors as in :func:`read_runs`."""
    return documents.parse((folder / STUDY).read_bytes(), documents.RECORD)


def _write(path: Path, lines: Iterable[Iterable[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _read(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path.name}: {error}") from error
    if missing := set(columns) - set(lines[0] if lines else ()):
        raise ValueError(f"{path.name} has no column {', '.join(sorted(missing))}")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _text(value: str | float | None) -> str:
    if isinstance(value, float):
        return repr(value)
    return "" if value is None else _guarded(value)


def _guarded(text: str) -> str:
    return f"{GUARD}{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _unguarded(text: str) -> str:
    return text.removeprefix(GUARD)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def time_text(milliseconds: int | None) -> str:
    """Return a time in ms since 1970 as ISO 8601 in UTC; empty if there is none."""
    if milliseconds is None:
        return ""
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def milliseconds(text: str) -> int:
    """Return the time that :func:`time_text` was given."""
    return round(1000 * datetime.datetime.fromisoformat(text).timestamp())
