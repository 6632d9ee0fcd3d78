"""Figure: test accuracy of the permuted net against the epoch of B's training at which B was matched (table 15)."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.load import runs
from analysis.memo import once
from trainables import schema

TITLE = "Matching net B early in its training"
CAPTION = (
    "Test accuracy of the permuted net against t, the number of epochs that net B had been trained for when the fully "
    "trained net A was matched to it. Mask and starting point of sparse training do not depend on t. Mean ± sample "
    "standard deviation over n pairs (A, B). Horizontal lines with bands: LTH and naive, which need no match. Each "
    "panel has its own vertical scale; the epochs are evenly spaced. In the table: mean ± standard deviation (n), and "
    f"the mean paired difference permuted {MINUS} naive in percentage points."
)
LEVEL = (cells.LTH, cells.NAIVE)
"""Rows that do not depend on the match."""
T = schema.PARAM_MATCH_EPOCH
CELL = "cell"
"""Column: number of a cell, in the order of the grid."""
PERMUTED_AT = rf"{cells.PERMUTED}(:t=\d+)?"
"""Rows of permuted nets whose matches differ in their epoch only."""

load = runs


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and match epoch, and one for each of LTH and naive; empty if nothing was matched early.

    Columns: the cell's axes; ``row`` (permuted, lth, naive); ``match_epoch`` (epochs of B's training; missing for the
    others); ``n``, ``mean``, ``std`` (test accuracy, percent); ``minus_naive`` with ``ci_low``, ``ci_high`` (percentage
    points, paired, 95 % t interval) and ``pairs``.
    """
    by = cells.axes(frame)
    scored = _matched(frame)
    scored = scored.assign(**{CELL: scored.groupby(by, dropna=False).ngroup()})
    leads = _leads(scored)
    lines = []
    for (cell, row, epoch), nets in scored.groupby([CELL, cells.ROW, T], dropna=False):
        one = stats.summarize(nets[schema.TEST_ACCURACY])
        line = {**nets[by].iloc[0].to_dict(), cells.ROW: row, T: epoch, "n": one.n, "mean": one.mean, "std": one.std}
        if row == cells.PERMUTED:
            lead = leads[cell, epoch]
            line |= {"minus_naive": lead.value, "ci_low": lead.low, "ci_high": lead.high, "pairs": lead.n}
        lines.append(line)
    columns = [*by, cells.ROW, T, "n", "mean", "std", "minus_naive", "ci_low", "ci_high", "pairs"]
    counts = dict.fromkeys((schema.PARAM_REWIND_EPOCH, T, "n", "pairs"), "Int64")
    return pd.DataFrame(lines, columns=columns).astype(counts)


def _leads(scored: pd.DataFrame) -> dict[tuple[int, int], stats.Estimate]:
    """Return permuted - naive, paired, by cell and match epoch."""
    naive = scored[scored[cells.ROW] == cells.NAIVE]
    permuted = scored[scored[cells.ROW] == cells.PERMUTED]
    leads = {}
    for epoch, nets in permuted.groupby(T):
        pairs = cells.paired(pd.concat([nets, naive]), [CELL]).reindex(columns=[cells.PERMUTED, cells.NAIVE])
        for cell, here in pairs.groupby(level=CELL):
            leads[cell, epoch] = stats.paired_difference(here[cells.PERMUTED].tolist(), here[cells.NAIVE].tolist())
    return leads


def _matched(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of LTH, naive and permuted, the last with the epoch at which it was matched.

    If the study has several ways to match, only its main one counts. Empty if no match was early.
    """
    scored = cells.scores(frame)
    permuted = scored[cells.ROW].str.fullmatch(PERMUTED_AT).astype(bool)
    end = _last_epoch(frame)
    epochs = scored["run_id"].map(frame.set_index("run_id")[T]).astype("Int64").fillna(cells.END)
    epochs = epochs.replace(cells.END, end).where(permuted, pd.NA)
    chosen = (permuted | scored[cells.ROW].isin(LEVEL)) & (epochs != end).any()
    rows = scored[cells.ROW].where(~permuted, cells.PERMUTED)
    return scored.assign(**{T: epochs, cells.ROW: rows})[chosen]


def _last_epoch(frame: pd.DataFrame) -> int:
    """Return for how many epochs the dense nets are trained."""
    dense = facets.finished(frame, schema.DENSE)
    known = pd.concat([frame.get("dense_epochs", pd.Series(dtype=str)), dense.get("epochs", pd.Series(dtype=str))])
    numbers = pd.to_numeric(known, errors="coerce").dropna()
    return int(numbers.max()) if len(numbers) else cells.END


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by width, rewind epoch (task, varied recipe), columns by sparsity."""
    numbers = table(frame)
    drawn, panels = grid.panels(
        numbers,
        cells.axes(frame),
        across=schema.PARAM_SPARSITY,
        x=style.AXES[T],
        y=style.AXES[schema.TEST_ACCURACY],
    )
    for panel in itertools.chain(*panels):
        panel.title(panel.lines["n"])
        _panel(panel)
    looks = {row: style.look(row) for row in cells.row_order(numbers[cells.ROW])}
    level = {row: dataclasses.replace(look, marker="None") for row, look in looks.items() if row in LEVEL}
    style.legend(drawn, [(labels.method(row), look) for row, look in (looks | level).items()])
    return drawn


def _panel(panel: grid.Panel) -> None:
    axes, numbers = panel.axes, panel.lines
    permuted = numbers[numbers[cells.ROW] == cells.PERMUTED].sort_values(T)
    if permuted.empty:
        if len(numbers):
            style.empty(axes)
        return
    for row in LEVEL:
        for one in numbers[numbers[cells.ROW] == row].itertuples():
            style.level(axes, float(one.mean), float(one.std), style.look(row))
    places = range(len(permuted))
    style.errorbars(axes, places, permuted, style.look(cells.PERMUTED))
    axes.set_xticks(places, [str(epoch) for epoch in permuted[T]])
    axes.set_xlim(-0.5, len(permuted) - 0.5)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: a line per cell, a column per match epoch."""
    numbers, by = table(frame), cells.axes(frame)
    shown = facets.told_apart(numbers, by)
    level = [row for row in LEVEL if row in set(numbers[cells.ROW])]
    epochs = sorted(numbers[T].dropna().unique())
    lines = []
    for place, group in facets.places(numbers, by):
        line = labels.place(place, shown)
        line |= {labels.method(row): _text(group[group[cells.ROW] == row]) for row in level}
        lines.append(line | {f"t = {epoch}": _text(group[group[T] == epoch]) for epoch in epochs})
    return pd.DataFrame(lines)


def _text(numbers: pd.DataFrame) -> str:
    """Return ``mean ± std (n)`` of the only line, if there is one, and its difference from naive."""
    for line in numbers.to_dict("records"):
        mean = stats.format_mean(line["mean"], line["std"], line["n"], decimals=2)
        lead = stats.format_difference(line["minus_naive"])
        return f"{mean}, {lead}" if lead else mean
    return ""


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["All nets were matched at the end of B's training; match_epoch in a space sets other epochs."]
    said = []
    if cells.NAIVE not in set(numbers[cells.ROW]):
        said.append("No naive net has finished, so there is nothing to compare with.")
    others = [row for row in cells.row_order(cells.rows(frame)) if row.startswith(f"{cells.PERMUTED}:")]
    others = [row for row in others if not re.fullmatch(PERMUTED_AT, row)]
    if others:
        said.append(f"Left to the table of accuracies: {labels.listed(map(labels.method, others))}.")
    cut = grid.cut_off(numbers, cells.axes(frame), schema.PARAM_SPARSITY)
    return said + facets.left_out(frame) + cut
