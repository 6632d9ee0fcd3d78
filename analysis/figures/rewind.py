"""Figure: test accuracy against the rewind epoch, a panel per sparsity and width (the paper's figures 5, 6 and 8)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.memo import once
from trainables import schema

TITLE = "Accuracy against the rewind epoch"
CAPTION = (
    "Test accuracy after the last epoch against the rewind epoch: sparse training starts from the dense net's state "
    "after this many epochs, 0 being the initialisation. Mean ± sample standard deviation over n pairs "
    "(A, B). Dashed: the dense nets, mean ± standard deviation. Each panel has its own vertical scale; markers at the "
    "same epoch are drawn side by side."
)
HIDDEN = (cells.DENSE, cells.IMP)
"""Rows without a curve: dense nets, which have no rewind epoch, are drawn as a reference line, and IMP is left to the
table, because only pruning rounds that rewind depend on the rewind epoch."""
MATCHED_EARLY = "Nets that were matched before the end of B's training are in the figure on early matching."


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of the test accuracy (percent) of every row in every cell, one line each."""
    return facets.summaries(frame, [schema.TEST_ACCURACY])


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    return draw(frame, table(frame), schema.TEST_ACCURACY)


def draw(frame: pd.DataFrame, numbers: pd.DataFrame, measure: str) -> Figure:
    """Return the figure of any measure.

    Args:
        frame: the runs.
        numbers: their means, as :func:`analysis.drawing.facets.summaries` returns them.
        measure: which of the numbers, a key of ``style.AXES``.
    """
    shown = (numbers["measure"] == measure) & (numbers[cells.ROW] != cells.IMP) & ~cells.early(numbers[cells.ROW])
    drawn, _ = grid.means(
        numbers[shown],
        cells.axes(frame),
        across=schema.PARAM_WIDTH,
        along=schema.PARAM_REWIND_EPOCH,
        scale=style.epoch_axis,
        level=[cells.DENSE],
        y=style.AXES[measure],
        wrap=True,
    )
    return drawn


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No sparse run has finished yet."]
    single = int(((numbers["n"] == 1) & ~numbers[cells.ROW].isin(HIDDEN)).sum())
    undrawn = cells.DENSE not in set(numbers[cells.ROW])
    said = {
        f"{labels.plural(single, 'point')} of a single run, without an error bar.": single,
        "No dense net has finished, so there is no dashed line.": undrawn,
        MATCHED_EARLY: cells.early(numbers[cells.ROW]).any(),
    }
    return labels.said(said) + facets.left_out(frame)
