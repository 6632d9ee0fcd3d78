"""The report of a study: one page, and its tables and figures as separate files in the same folder.

The page is self-contained (its figures are inline SVG), so it can be mailed or archived as it is. It has each figure
twice: on a phone, a figure for a wide screen would have letters of 4 to 6 pixels. All files become artifacts of the run
``study`` in the study's MLflow experiment.
"""

from __future__ import annotations

import functools
import html
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from analysis import labels, load, memo
from analysis.drawing import files, media, style
from analysis.drawing.parallel import write_figures
from analysis.drawing.signs import MINUS
from analysis.figures import accuracy_table
from analysis.figures.table import FIGURES, loader
from analysis.mlflow_report import NotLogged, log_report
from analysis.page import coverage, document, headline, how
from analysis.record.folder import is_record
from trainables.schema import FINISHED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, RUNS, ACCURACY = "index.html", "runs.csv", "accuracy"
MOST_FAILURES = 25
"""Maximum number of failed jobs that the page lists; ``runs.csv`` has them all."""
QUESTION = "Does a lottery-ticket mask help a new random initialisation once its units are permuted to match?"


def write_report(space: str, tracking_uri: str, out: Path) -> Path:
    """Write the report on a study, with its tables and figures as separate files, and return the page's path.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs.
        out: folder to write to; created if missing.

    Raises:
        AnalysisError: the runs cannot be read; see :func:`analysis.load.runs`.
    """
    return write_files(load.runs(space, tracking_uri), space, tracking_uri, out)[0]


@memo.remembered()
def write_files(
    frame: pd.DataFrame, space: str, tracking_uri: str, out: Path, *, refresh: int | None = None
) -> list[Path]:
    """Write the report on runs that have been loaded, and return its files, the page first.

    The page is replaced last and in one step, so readers see either the old page or the new one. Tables and figures of
    an earlier report that this one lacks are deleted.

    Args:
        frame: the study's runs, as :func:`analysis.load.runs` returns them.
        space: name of the search space.
        tracking_uri: where to read curves and planes.
        out: folder to write to; created if missing.
        refresh: seconds after which a browser reloads the page; None: never.

    Raises:
        AnalysisError: as :func:`write_report`.
    """
    parts = write_parts(frame, space, tracking_uri, out)
    runs = out / RUNS
    files.write_csv(frame, runs)
    answer = headline.figure_of(frame)
    drawn = sorted(parts.drawn, key=lambda name: name != answer)
    with tempfile.TemporaryDirectory() as folder, media.drawing_for(media.PHONE):
        write_figures(parts.drawn, narrow := Path(folder))
        figures = [_figure(name, FIGURES[name], parts.shown[name], out, narrow) for name in drawn]
    absent = [_absent(name, FIGURES[name], parts.shown[name]) for name in FIGURES if name not in parts.drawn]
    sections = [
        *figures[:1],  # the answer at a glance
        _accuracy(frame),
        how.section(frame, space, tracking_uri),
        *figures[1:],
        *(["<h2>Not in this study</h2>", *absent] if absent else []),
        _coverage(frame),
        _downloads([runs, *parts.written]),
    ]
    page, question = out / PAGE, frame.attrs.get("question") or QUESTION
    replace_text(page, document(question, _head(space, question, frame), sections, refresh))
    return [page, runs, *parts.written]


class Parts(NamedTuple):
    """Tables and figures of a study.

    Attributes:
        shown: name of a figure -> the frame that it shows.
        drawn: name of a figure that has data -> function that draws it.
        written: the files.
    """

    shown: dict[str, pd.DataFrame]
    drawn: Mapping[str, Callable[[], Figure]]
    written: list[Path]


def write_parts(
    frame: pd.DataFrame, space: str, tracking_uri: str, out: Path, suffixes: Collection[str] = files.SUFFIXES
) -> Parts:
    """Write the tables and figures of a study; delete those of an earlier report that this one lacks.

    Args:
        frame: the study's runs.
        space: name of the search space.
        tracking_uri: where to read curves and planes.
        out: folder to write to; created if missing.
        suffixes: the kinds of files to write.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = files.write_tables(accuracy_table, ACCURACY, frame, out)
    shown, drawings = {}, {}
    for name, module in FIGURES.items():
        shown[name] = frame if loader(module) is load.runs else loader(module)(space, tracking_uri)
        written += files.write_tables(module, name, shown[name], out)
        if not module.table(shown[name]).empty:
            drawings[name] = functools.partial(module.figure, shown[name])
    written += write_figures(drawings, out)
    written = [path for path in _without_copies(written) if path.suffix in suffixes]
    for name, suffix in itertools.product((ACCURACY, *FIGURES), files.SUFFIXES):
        if (path := out / f"{name}{suffix}") not in written:
            path.unlink(missing_ok=True)
    return Parts(shown, drawings, written)


def _without_copies(written: list[Path]) -> list[Path]:
    """Delete tables that equal one before, such as that of accuracy against sparsity, and return the other files."""
    first: dict[bytes, Path] = {}
    for path in written:
        if path.suffix == ".csv" and first.setdefault(path.read_bytes(), path) != path:
            path.unlink()
    return [path for path in written if path.exists()]


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader sees a partial file."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _head(space: str, question: str, frame: pd.DataFrame) -> str:
    """Return the top of the page: the question and the answer so far."""
    basis = f"{space}: {labels.task(frame)}, {labels.plural(len(frame), 'job')}."
    parts = [
        f"<h1>{html.escape(question)}</h1>",
        f'<p class="headline">{html.escape(headline.headline(frame))}</p>',
        *(f"<p>{html.escape(text)}</p>" for text in headline.details(frame)),
        f'<p class="basis">{html.escape(basis)} <a href="#how">How it was computed</a></p>',
    ]
    if not coverage.is_complete(frame):
        done = f"{(frame['status'] == FINISHED).sum()} of {labels.plural(len(frame), 'job')} on record have finished"
        parts.append(f'<p class="partial">Not complete: {done}; <a href="#coverage">what is missing</a>.</p>')
    return "\n".join(parts)


def _accuracy(frame: pd.DataFrame) -> str:
    """Return the section of the tables of accuracies."""
    table = accuracy_table.formatted(frame)
    body = _table(table) if len(table) else ""
    for title, others in (("IMP", accuracy_table.imp(frame)), ("Controls", accuracy_table.controls(frame))):
        if len(others):
            body += f"<h3>{title}</h3>" + _table(others)
    return _section(ACCURACY, accuracy_table.TITLE, body, accuracy_table.CAPTION, accuracy_table.notes(frame))


def _table(table: pd.DataFrame) -> str:
    """Return a table as HTML, whose gains follow what a line is about, so that a phone shows them without scrolling."""
    places = [name for name in table.columns if name in files.PLACES]
    gains = [name for name in table.columns if MINUS in name and name not in places]
    return files.html_table(table[[*places, *gains, *table.columns.drop([*places, *gains])]])


def _figure(name: str, module: Any, frame: pd.DataFrame, wide: Path, narrow: Path) -> str:
    """Return a figure's section, with the drawing in the folder `wide`, and for phones that in the folder `narrow`."""
    body = ""
    for kind, path in (("wide", wide / f"{name}.svg"), ("phone", narrow / f"{name}{media.PHONE.suffix}.svg")):
        svg = style.on_page(path.read_text(encoding="utf-8"))
        body += f'<div class="scroll {kind}" role="img" aria-label="{html.escape(module.TITLE)}">{svg}</div>'
    if hasattr(module, "formatted"):
        body += _table(module.formatted(frame))
    return _section(name, module.TITLE, body, caption(module), module.notes(frame))


def caption(module: Any) -> str:
    """Return the caption of a figure and its table, in which what both share is said once."""
    if not hasattr(module, "TABLE_CAPTION"):
        return str(module.CAPTION)
    return f"{module.CAPTION} Table: {module.TABLE_CAPTION.removeprefix(getattr(module, 'SHARED', '')).strip()}"


def _absent(name: str, module: Any, frame: pd.DataFrame) -> str:
    """Return the section of a figure that has no data, which says why."""
    title, said = html.escape(module.TITLE), html.escape(" ".join(module.notes(frame)))
    return f'<section class="unmeasured" id="{name}"><p class="note"><strong>{title}</strong> {said}</p></section>'


def _section(name: str, title: str, body: str, caption: str, notes: list[str]) -> str:
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    shown = f"<figure>{body}<figcaption>{html.escape(caption)}</figcaption></figure>" if body else ""
    return f'<section id="{name}"><h2>{html.escape(title)}</h2>{shown}{said}</section>'


def _coverage(frame: pd.DataFrame) -> str:
    parts = ['<section id="coverage"><h2>What is missing</h2>']
    if coverage.is_complete(frame):
        parts.append("<p>Nothing: all jobs on record have finished, and every comparison has all its results.</p>")
    parts.append(files.html_table(coverage.counts(frame), texts=["job"]))
    missing = coverage.missing(frame)
    if missing["missing"].any():
        parts.append("<h3>Results by method</h3>" + files.html_table(missing, texts=["method"]))
        parts.append(
            '<p class="note">Expected: every combination of cell and pair that any method has on record. '
            "Jobs that have not started may be unknown yet.</p>"
        )
    failed = coverage.failures(frame)
    if len(failed):
        parts.append(
            "<h3>Failed jobs</h3>" + files.html_table(failed.head(MOST_FAILURES), texts=["job", "key"], wide=["error"])
        )
        if len(failed) > MOST_FAILURES:
            parts.append(
                f'<p class="note">{labels.plural(len(failed) - MOST_FAILURES, "more failed job")} in runs.csv.</p>'
            )
    return "".join(parts) + "</section>"


def _downloads(written: Iterable[Path]) -> str:
    items = " · ".join(f'<a href="{name}">{name}</a>' for name in sorted(path.name for path in written))
    return f'<section id="files"><h2>Files</h2><p>Beside this page: {items}</p></section>'


def description(frame: pd.DataFrame) -> str:
    """Return the description of the report's MLflow run, in Markdown."""
    done = (frame["status"] == FINISHED).sum()
    said = files.markdown_text(headline.headline(frame))
    return f"{said}\n\n{done} of {len(frame)} jobs on record finished. Open `{PAGE}` below Artifacts."


def log(frame: pd.DataFrame, space: str, tracking_uri: str, written: list[Path]) -> None:
    """Log a report to MLflow, unless it is of a record; on failure, print a warning of one line."""
    if is_record(tracking_uri):
        return
    try:
        log_report(space, tracking_uri, written, description(frame))
    except NotLogged as error:
        print(f"warning: the report is not logged to MLflow: {error}", file=sys.stderr)
