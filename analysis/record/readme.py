"""The texts of a record: its README.md, and the table of results that the project's README shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from analysis import cells, labels, load, stats
from analysis.drawing import facets, files
from analysis.drawing.signs import MINUS
from analysis.figures import accuracy_table, versus_paper
from analysis.figures.table import FIGURES
from analysis.page import coverage, headline, how
from analysis.paper import numbers as published
from analysis.record import folder
from analysis.sources import AnalysisError
from trainables import schema
from trainables.host.clock import duration
from trainables.knobs import KNOBS
from trainables.schema import FAILED, FINISHED

PAGE = "README.md"
SECTION = re.compile(r"(?<=<!-- results: )(?P<record>\S+) -->\n.*?(?=<!-- results end -->)", re.DOTALL)
"""What a page shows of a record, between two marks of which the first names the record's folder."""
CAPTION = (
    "Test accuracy in percent: mean ± half the width of its 95 % t interval (number of nets; those under one mask "
    "count once). "
    f"Permuted {MINUS} naive: mean of the paired differences in percentage points with its 95 % t interval (number of "
    "pairs A, B)."
)
PAPER = (
    " Paper: its mean in the same cell, or its difference of means; where it lacks the width, its difference at the "
    "nearest width."
)
FACTS = ("Precision and engine", "Hardware", "Software", "Commit", "Started", "Ended")
T = TypeVar("T")
Place = tuple[Any, ...]
"""Values of the axes of a place in the grid, and a row, to look numbers up by."""


def page(frame: pd.DataFrame, record: Path, written: Iterable[Path]) -> str:
    """Return the README.md of a record.

    Args:
        frame: its runs.
        record: its folder.
        written: the files of its tables and figures.

    Raises:
        AnalysisError: a file of the record cannot be read.
    """
    study, runs = _read(record, folder.read_study), _read(record, folder.read_runs)
    space, names = study["space"], {path.name for path in written}
    facts = _facts(frame, space) | _times(study["starts"], runs)
    parts = [f"# {space}", study["question"], headline.headline(frame), *headline.details(frame), _missing(frame)]
    parts = [files.markdown_text(text) for text in parts if text]
    parts += ["\n".join(results(frame)), "## How it was computed"]
    parts += ["\n".join(f"- {name}: {files.markdown_text(text)}" for name, text in facts.items())]
    if study["starts"]:
        parts += ["Commands, with the number of jobs that each start had to run:"]
        parts += ["```sh\n" + "".join(f"{each['command']}  # {each['jobs']}\n" for each in study["starts"]) + "```"]
    parts += ["## Figures"]
    for name, module in FIGURES.items():
        if f"{name}.svg" in names:
            parts += [f"### {module.TITLE}", f"![{module.TITLE}]({name}.svg)", files.markdown_text(module.CAPTION)]
    parts += [f"`{_drawn_by(space, record)}` writes this folder again."]
    return "\n\n".join(parts) + "\n"


def _read(record: Path, part: Callable[[Path], T]) -> T:
    try:
        return part(record)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"the record {record} cannot be read: {error}") from error


def _drawn_by(space: str, record: Path) -> str:
    """Return the command that draws a record again, where it can without the path of anybody's machine."""
    here = Path.cwd()
    path = record.relative_to(here) if record.is_relative_to(here) else record
    options = ["--space", space, "--tracking-uri", str(path)]
    if path != Path(folder.RECORDS, space):
        options += ["--out", str(path)]
    return shlex.join(["python", "-m", "analysis.record", *options])


def refreshed(text: str, root: Path) -> str:
    """Return a page with the table of results of each record that it has marks for.

    Args:
        text: the page.
        root: the folder that the names of the records in the marks start from.

    Raises:
        AnalysisError: a record cannot be read.
    """

    def section(found: re.Match[str]) -> str:
        record = root / found["record"]
        table = "\n".join(results(load.runs(_read(record, folder.read_study)["space"], str(record))))
        return f"{found['record']} -->\n{table}\n"

    return SECTION.sub(section, text)


def results(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table in Markdown: every method in every cell, with the paper's numbers, and a caption."""
    scored, by, numbers = cells.scores(frame), cells.axes(frame), accuracy_table.table(frame)
    others = [row for row in cells.row_order(scored[cells.ROW]) if row not in (*cells.MAIN, cells.IMP)]
    rows = [row for row in (*cells.MAIN, *others) if row in set(scored[cells.ROW])]
    sizes = frame[[*cells.TASK, schema.PARAM_WIDTH]].to_dict("records")
    resized = frame.assign(**{schema.PARAM_WIDTH: [_nearest_width(size) for size in sizes]})
    theirs = versus_paper.table(resized)
    paper = _paper_accuracies(theirs, by)
    accuracies = {_values(place): nets for place, nets in facets.places(cells.by_seed(scored, by), [*by, cells.ROW])}
    shown = facets.told_apart(numbers, by, always=cells.GRID)
    lines = [[*map(labels.axis, shown), *map(labels.method, rows), accuracy_table.GAIN]]
    for place, cell in facets.places(numbers, by):
        texts = [labels.value(name, place[name]) for name in shown]
        width = _nearest_width(place)
        for row in rows:
            found = accuracies.get((*_values(place), row), scored.iloc[:0])
            mean = stats.interval(found[schema.TEST_ACCURACY])
            text = stats.format_mean(mean.value, mean.high - mean.value, mean.n, decimals=2)
            reached = paper.get(_where(place, row, by)) if width == place[schema.PARAM_WIDTH] else None
            texts.append(text if reached is None else f"{text}<br>paper {reached:.2f}")
        gain = cell.iloc[0]
        limits = (gain["permuted_minus_naive"], gain["ci_low"], gain["ci_high"])
        lines.append([*texts, str(stats.Estimate(int(gain["pairs"]), *limits)) + _paper_gain(paper, place, width, by)])
    notes = [*accuracy_table.notes(frame), *(versus_paper.recipes(resized, theirs) if paper else ())]
    said = [files.markdown_text(text) for text in notes]
    rule = [":--" if name in map(labels.axis, cells.TASK) else "--:" for name in lines[0]]
    table = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
    return [*table, "", " ".join([CAPTION + (PAPER if paper else ""), *said])]


def _nearest_width(place: Mapping[Any, Any]) -> float:
    """Return the width, nearest to that of a run or cell, for which the paper has a gain; NaN if it has none."""
    return published.nearest_width(place[schema.PARAM_MODEL], place[schema.PARAM_DATASET], place[schema.PARAM_WIDTH])


def _paper_accuracies(paper: pd.DataFrame, by: Sequence[str]) -> dict[Place, float]:
    """Return the paper's mean accuracies (percent) by :func:`_where`, from :func:`versus_paper.table`."""
    found = paper[(paper["measure"] == schema.TEST_ACCURACY) & paper[schema.PARAM_MATCH_EPOCH].isna()]
    return {_where(line, line["method"], by): line["paper_mean"] for line in found.to_dict("records")}


def _where(place: Mapping[Any, Any], row: str, by: Sequence[str]) -> Place:
    """Return a place in the grid, with every setting that the study varies, and a row: not all masks are the paper's.

    The paper's dense nets depend neither on masks nor on how nets are trained under them.
    """
    names = (*cells.TASK, schema.PARAM_WIDTH) if row == cells.DENSE else by
    return (*_values({name: place[name] for name in names}), row)


def _values(place: Mapping[Any, Any]) -> Place:
    """Return the values of a place so that they can be looked up: a missing value is equal to another one."""
    return tuple(None if pd.isna(value) else value for value in place.values())


def _paper_gain(paper: Mapping[Place, float], place: Mapping[str, Any], width: float, by: Sequence[str]) -> str:
    """Return the paper's permuted - naive (points) at its width nearest to a cell's, as text; empty if it has none."""
    at = {**place, schema.PARAM_WIDTH: width}
    permuted, naive = (paper.get(_where(at, row, by)) for row in (cells.PERMUTED, cells.NAIVE))
    if permuted is None or naive is None:
        return ""
    where = "" if width == place[schema.PARAM_WIDTH] else f" at {labels.value(schema.PARAM_WIDTH, width)}:"
    return f"<br>paper{where} {stats.format_difference(permuted - naive)}"


def _facts(frame: pd.DataFrame, space: str) -> dict[str, str]:
    """Return how a study was computed: name -> fact."""
    known, settings = how.facts(frame, space, ""), how.settings(frame)
    own = [f"{name} {text}" for name, text in settings.items() if name in KNOBS and text != str(KNOBS[name].default)]
    counts = {name: int((frame["status"] == name).sum()) for name in (FINISHED, FAILED)}
    widths = frame[schema.PARAM_WIDTH].value_counts().sort_index()
    of_widths = (f"{count} at width {labels.value(schema.PARAM_WIDTH, width)}" for width, count in widths.items())
    return {
        "Jobs": ", ".join(f"{count} {name.lower()}" for name, count in counts.items() if count)
        + f" ({labels.listed(of_widths, most=len(widths))})",
        "Settings that are not the default": labels.listed(own, most=len(own)),
        **{name: known[name] for name in FACTS},
    }


def _missing(frame: pd.DataFrame) -> str:
    """Return which rows lack results in cells that other rows have."""
    lacking = coverage.missing(frame)
    each = [
        f"{line['method']} ({line['missing']} of {labels.plural(line['expected'], 'net')})"
        for line in lacking[lacking["missing"] > 0].to_dict("records")
    ]
    return f"Still missing: {labels.listed(each, most=len(each))}." if each else ""


def _times(starts: list[dict[str, Any]], runs: Iterable[folder.Run]) -> dict[str, str]:
    """Return how long a study took, beside its estimates: name -> fact."""
    timed = [run for run in runs if run["status"] == FINISHED and schema.SECONDS in run["metrics"]]
    kinds = {kind: [run for run in timed if run["params"][schema.PARAM_STAGE] == kind] for kind in schema.STAGES}
    each = "; ".join(f"{kind} {_taken(found)}" for kind, found in kinds.items() if found)
    facts = {"Time of the finished jobs": _taken(timed), **({"By kind of job": each} if each else {})}
    if starts:
        taken = sum(folder.milliseconds(each["ended"]) - folder.milliseconds(each["started"]) for each in starts) / 1000
        whole = _with_estimate(taken, sum(each["estimated_seconds"] for each in starts))
        killed = sum(not each["end_noted"] for each in starts)
        last = f", {killed} of which counts up to its last result" if killed else ""
        facts["Wall-clock time"] = f"{whole}, in {labels.plural(len(starts), 'start')}{last}"
    return facts


def _taken(timed: Iterable[folder.Run]) -> str:
    """Return the time that jobs took, beside its estimate."""
    seconds, estimates = 0.0, 0.0
    for run in timed:
        seconds += run["metrics"][schema.SECONDS]
        estimates += float(run["tags"].get(folder.ESTIMATE, "nan"))
    return _with_estimate(seconds, estimates)


def _with_estimate(taken: float, estimated: float) -> str:
    """Return a time beside its estimate, which is NaN if there is none."""
    if not estimated > 0:
        return duration(taken)
    return f"{duration(taken)} ({taken / estimated:.2f} times the estimate of {duration(estimated)})"
