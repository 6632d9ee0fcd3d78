"""Figure: test accuracy of the permuted net against the epoch of B's training at which B was matched (table 15)."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.memo import once
from trainables import schema

TITLE = "Matching net B early in its training"
SHARED = (
    "Test accuracy in percent of the permuted net by t, the number of epochs that net B had been trained for when "
    "the fully trained net A was matched to it; and of LTH and naive, which need no match. Mask and starting point "
    "of sparse training do not depend on t. Mean ± sample standard deviation over n pairs (A, B)."
)
CAPTION = (
    f"{SHARED} Horizontal lines with bands: LTH and naive. Each panel has its own vertical scale; the epochs are "
    "evenly spaced."
)
TABLE_CAPTION = f"{SHARED} After the comma: mean paired difference permuted {MINUS} naive in percentage points."
LEVEL = (cells.LTH, cells.NAIVE)
"""Rows that do not depend on the match."""
T = schema.PARAM_MATCH_EPOCH
PERMUTED_AT = rf"{cells.PERMUTED}(:t=\d+)?"
"""Rows of permuted nets whose matches differ in their epoch only."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and match epoch, and one for each of LTH and naive; empty if nothing was matched early.

    Columns: the cell's axes; ``row`` (permuted, lth, naive); ``match_epoch`` (epochs of B's training; missing for the
    others); ``n``, ``mean``, ``std`` (test accuracy, percent); ``minus_naive`` with ``ci_low``, ``ci_high`` (percentage
    points, paired, 95 % t interval) and ``pairs``. If the study has several ways to match, only its main one counts.
    """
    by, end = cells.axes(frame), _last_epoch(frame)
    found = facets.summaries(frame, [schema.TEST_ACCURACY]).merge(facets.leads(frame), how="left", on=[*by, cells.ROW])
    permuted = found[cells.ROW].astype(str).str.fullmatch(PERMUTED_AT).astype(bool)
    epochs = pd.to_numeric(found[cells.ROW].astype(str).str.extract(r"t=(\d+)$")[0]).astype("Int64")
    epochs = epochs.fillna(cells.main_matching(frame)[T]).replace(cells.END, end).where(permuted, pd.NA)
    found = found.assign(**{T: epochs, cells.ROW: found[cells.ROW].where(~permuted, cells.PERMUTED)})
    leads = {"lead": "minus_naive", "ci_low": "ci_low", "ci_high": "ci_high", "pairs": "pairs"}
    found[list(leads)] = found[list(leads)].where(permuted)
    found = found[(permuted | found[cells.ROW].isin(LEVEL)) & (epochs != end).any()].rename(columns=leads)
    counts = dict.fromkeys((schema.PARAM_REWIND_EPOCH, T, "n", "pairs"), "Int64")
    columns = [*by, cells.ROW, T, "n", "mean", "std", *leads.values()]
    return found[columns].astype(counts).sort_values([*by, cells.ROW, T], ignore_index=True)


def _last_epoch(frame: pd.DataFrame) -> int:
    """Return for how many epochs the dense nets are trained."""
    dense = facets.finished(frame, schema.DENSE)
    known = pd.concat([frame.get("dense_epochs", pd.Series(dtype=str)), dense.get("epochs", pd.Series(dtype=str))])
    numbers = pd.to_numeric(known, errors="coerce").dropna()
    return int(numbers.max()) if len(numbers) else cells.END


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by width, rewind epoch (task, varied recipe), columns by sparsity."""
    drawn, _ = grid.means(
        table(frame),
        cells.axes(frame),
        across=schema.PARAM_SPARSITY,
        along=T,
        scale=style.category_axis,
        level=LEVEL,
        y=style.AXES[schema.TEST_ACCURACY],
    )
    return drawn


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: a line per cell, a column per match epoch."""
    numbers, by = table(frame), cells.axes(frame)
    epochs = sorted(numbers[T].dropna().unique())
    return facets.crossed(
        numbers,
        by,
        facets.told_apart(numbers, by),
        heads=[_head(row, epoch) for row, epoch in numbers[[cells.ROW, T]].itertuples(index=False)],
        texts=[
            ", ".join(filter(None, [stats.format_mean(mean, std, n, decimals=2), stats.format_difference(lead)]))
            for mean, std, n, lead in numbers[["mean", "std", "n", "minus_naive"]].itertuples(index=False)
        ],
        order=[*map(labels.method, LEVEL), *(_head(cells.PERMUTED, epoch) for epoch in epochs)],
    )


def _head(row: str, epoch: int) -> str:
    return labels.method(row) if pd.isna(epoch) else f"t = {epoch}"


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["All nets were matched at the end of B's training; match_epoch in a space sets other epochs."]
    others = [row for row in cells.row_order(cells.rows(frame)) if row.startswith(f"{cells.PERMUTED}:")]
    others = [labels.method(row) for row in others if not re.fullmatch(PERMUTED_AT, row)]
    said = {
        "No naive net has finished, so there is nothing to compare with.": cells.NAIVE not in set(numbers[cells.ROW]),
        f"Left to the table of accuracies: {labels.listed(others)}.": others,
    }
    return labels.said(said) + facets.left_out(frame)
