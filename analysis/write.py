"""The report of a study: one page, and its tables and figures as separate files in the same folder.

The page is self-contained (its figures are inline SVG), so it can be mailed or archived as it is. All files become
artifacts of the run ``report`` in the study's MLflow experiment.
"""

from __future__ import annotations

import datetime
import functools
import html
import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from analysis import coverage, headline, labels, load, memo
from analysis.drawing import files, style
from analysis.drawing.parallel import write_figures
from analysis.figures import accuracy_table
from analysis.figures.table import FIGURES, FigureModule
from analysis.mlflow_report import NotLogged, log_report
from analysis.page import document
from trainables import schema
from trainables.host.redaction import redact
from trainables.training.way import SETTINGS, Way

PAGE, RUNS, ACCURACY = "index.html", "runs.csv", "accuracy"
MOST_FAILURES = 25
"""Maximum number of failed jobs that the page lists; ``runs.csv`` has them all."""
UNMEASURED = '<section class="unmeasured"'
"""Start of the section of a figure that has no data."""
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
        tracking_uri: where to read the curves, the planes and the study's question.
        out: folder to write to; created if missing.
        refresh: seconds after which a browser reloads the page; None: never.

    Raises:
        AnalysisError: as :func:`write_report`.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = [out / RUNS]
    files.write_csv(frame, written[0])
    written += files.write_tables(accuracy_table, ACCURACY, frame, out)
    shown, drawings = {}, {}
    for name, module in FIGURES.items():
        shown[name] = frame if module.load is load.runs else module.load(space, tracking_uri)
        written += files.write_tables(module, name, shown[name], out)
        if not module.table(shown[name]).empty:
            drawings[name] = functools.partial(module.figure, shown[name])
    written += write_figures(drawings, out)
    sections = [_accuracy(frame), *(_figure(name, FIGURES[name], each) for name, each in shown.items())]
    sections = [_drawn(section, out) for section in sections]
    sections.sort(key=lambda section: section.startswith(UNMEASURED))  # a stable sort
    if sections[-1].startswith(UNMEASURED):
        first = next(place for place, section in enumerate(sections) if section.startswith(UNMEASURED))
        sections.insert(first, "<h2>Not in this study</h2>")
    for name, suffix in itertools.product((ACCURACY, *FIGURES), files.SUFFIXES):
        if (path := out / f"{name}{suffix}") not in written:
            path.unlink(missing_ok=True)
    sections += [_coverage(frame), _provenance(frame, space, tracking_uri), _downloads(written)]
    head = _head(space, load.question(space, tracking_uri), frame)
    page = out / PAGE
    replace_text(page, document(space, head, sections, refresh))
    return [page, *written]


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
    asked = _sentence(question or QUESTION)
    parts = [
        f"<h1>{html.escape(space)}</h1>",
        f'<p class="question">{html.escape(asked)} Measured with {html.escape(labels.task(frame))}.</p>',
        f'<p class="headline">{html.escape(headline.headline(frame))}</p>',
        *(f"<p>{html.escape(text)}</p>" for text in headline.details(frame)),
    ]
    if not coverage.is_complete(frame):
        done = f"{(frame['status'] == 'FINISHED').sum()} of {labels.plural(len(frame), 'job')} on record have finished"
        parts.append(f'<p class="partial">Not complete: {done}; <a href="#coverage">what is missing</a>.</p>')
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _accuracy(frame: pd.DataFrame) -> str:
    table = accuracy_table.formatted(frame)
    texts = [name for name in table.columns if name in (labels.axis("model"), labels.axis("dataset"))]
    body = files.html_table(table, texts=texts) if len(table) else ""
    others = accuracy_table.controls(frame)
    if len(others):
        body += "<h3>References and controls</h3>" + files.html_table(others, texts=texts)
    return _section("accuracy", accuracy_table.TITLE, body, accuracy_table.CAPTION, accuracy_table.notes(frame))


def _figure(name: str, module: FigureModule, frame: pd.DataFrame) -> str:
    """Return a figure's section with a placeholder for the drawing; without data, a section that says why."""
    if module.table(frame).empty:
        said = html.escape(" ".join(module.notes(frame)))
        title = html.escape(module.TITLE)
        return f'{UNMEASURED} id="{name}"><p class="note"><strong>{title}</strong> {said}</p></section>'
    body = f'<div class="scroll" role="img" aria-label="{html.escape(module.TITLE)}"><!-- {name}.svg --></div>'
    if hasattr(module, "formatted"):
        body += files.html_table(module.formatted(frame), texts=files.TEXTS)
    return _section(name, module.TITLE, body, module.CAPTION, module.notes(frame))


def _drawn(section: str, out: Path) -> str:
    """Return a section with the placeholder replaced by the drawing from the figure's file."""
    head, mark, tail = section.partition("<!-- ")
    if not mark:
        return section
    name, _, tail = tail.partition(" -->")
    return head + style.on_page((out / name).read_text(encoding="utf-8")) + tail


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


def _provenance(frame: pd.DataFrame, space: str, tracking_uri: str) -> str:
    started, ended = frame["started"].min(), frame["ended"].max()
    set_aside = frame.attrs.get("set_aside", 0)
    reused = int(frame["reused"].sum())
    tags = sorted({tag for text in frame["environment"] for tag in text.split("; ") if tag})
    facts = {
        "Experiment": space,
        "Tracking": redact(tracking_uri),
        "Runs": f"{len(frame)}, of which {reused} reused from the store" if reused else str(len(frame)),
        "Set aside": f"{labels.plural(set_aside, 'run')} of earlier recipes" if set_aside else "",
        "Left out": labels.listed(frame.attrs.get("left_out", ())),
        "Recipe": labels.recipe(frame) or "defaults",
        "Trained in": _trained_in(frame),
        "First started": f"{started:%Y-%m-%d %H:%M} UTC" if started == started else "not recorded",
        "Last ended": f"{ended:%Y-%m-%d %H:%M} UTC" if ended == ended else "not yet",
        "Software": labels.listed(tags, most=20) or "not recorded by the runs",
        "Page written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }
    lines = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items() if text)
    return f'<section id="provenance"><h2>Provenance</h2><dl>{lines}</dl></section>'


def _trained_in(frame: pd.DataFrame) -> str:
    """Return how each network's training was computed, which may affect results; empty if always in the default way."""
    trained = frame[frame["stage"].isin([schema.DENSE, schema.PRUNE, schema.SPARSE])]
    settings = trained[[name for name in SETTINGS if name in trained]]
    found: dict[str, list[str]] = {}
    for (model, width), texts in settings.groupby([trained[schema.PARAM_MODEL], trained[schema.PARAM_WIDTH]]):
        ways = {_way_in_words(each) for each in texts.to_dict("records")}
        found.setdefault(labels.listed(sorted(ways)), []).append(f"{model} {labels.value(schema.PARAM_WIDTH, width)}")
    if found.keys() <= {str(Way())}:
        return ""
    return "; ".join(f"{labels.listed(networks)}: {how}" for how, networks in found.items())


def _way_in_words(texts: Mapping[str, str]) -> str:
    try:
        return str(Way.read(texts))
    except ValueError:  # another version, or something else, recorded it
        return " ".join(f"{name}={labels.short(str(text))}" for name, text in texts.items() if text)


def _downloads(written: Iterable[Path]) -> str:
    items = " · ".join(f'<a href="{name}">{name}</a>' for name in sorted(path.name for path in written))
    return f'<section id="files"><h2>Files</h2><p>Beside this page: {items}</p></section>'


def description(frame: pd.DataFrame) -> str:
    """Return the description of the report's MLflow run, in Markdown."""
    done = (frame["status"] == "FINISHED").sum()
    said = files.markdown_text(headline.headline(frame))
    return f"{said}\n\n{done} of {len(frame)} jobs on record finished. Open `{PAGE}` below Artifacts."


def log(frame: pd.DataFrame, space: str, tracking_uri: str, written: list[Path]) -> None:
    """Log a report to MLflow; on failure, print a warning of one line."""
    try:
        log_report(space, tracking_uri, written, description(frame))
    except NotLogged as error:
        print(f"warning: the report is not logged to MLflow: {error}", file=sys.stderr)
