"""Figure: test accuracy against the rewind epoch, a panel per sparsity and width (the paper's figures 5, 6 and 8)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.load import runs
from analysis.memo import once
from trainables import schema

TITLE = "Accuracy against the rewind epoch"
CAPTION = (
    "Test accuracy after the last epoch against the rewind epoch: sparse training starts from the dense net's state "
    "after this many epochs, 0 being the untrained initialisation. Mean ± sample standard deviation over n pairs "
    "(A, B). Dashed: the dense nets, mean ± standard deviation. Each panel has its own vertical scale; markers at the "
    "same epoch are drawn side by side."
)
HIDDEN = (cells.DENSE, cells.IMP)
"""Rows without a rewind epoch: dense nets are drawn as a reference line, IMP is left to the table."""
MOST_TICKS = 6
ALONE = 4.0
"""Epochs that the axis spans around a single rewind epoch."""

load = runs


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
    numbers = numbers[(numbers["measure"] == measure) & ~cells.early(numbers[cells.ROW])]
    drawn, panels = grid.panels(
        numbers,
        cells.axes(frame),
        across=schema.PARAM_WIDTH,
        without=[schema.PARAM_REWIND_EPOCH],
        x=style.AXES[schema.PARAM_REWIND_EPOCH],
        y=style.AXES[measure],
        wrap=True,
    )
    for panel in itertools.chain(*panels):
        _panel(panel)
    present = cells.row_order(numbers[cells.ROW])
    style.methods_legend(drawn, [row for row in present if row != cells.IMP])
    return drawn


def _panel(panel: grid.Panel) -> None:
    axes, numbers = panel.axes, panel.lines
    sparse = numbers[~numbers[cells.ROW].isin(HIDDEN)]
    panel.title(sparse.loc[sparse["n"] > 0, "n"])
    if numbers.empty:
        return
    rows = cells.row_order(sparse[cells.ROW])
    epochs = sparse[schema.PARAM_REWIND_EPOCH].dropna().astype(float)
    span = float(np.ptp(epochs)) if epochs.nunique() > 1 else ALONE
    step = 0.012 * span
    for place, row in enumerate(rows):
        line = sparse[sparse[cells.ROW] == row].sort_values(schema.PARAM_REWIND_EPOCH)
        shifted = line[schema.PARAM_REWIND_EPOCH].astype(float) + step * (place - (len(rows) - 1) / 2)
        style.errorbars(axes, shifted, line, style.look(row))
    if epochs.nunique() <= MOST_TICKS:
        axes.set_xticks(sorted(set(epochs)))
    if epochs.nunique() == 1:
        axes.set_xlim(epochs.iloc[0] - ALONE / 2, epochs.iloc[0] + ALONE / 2)
    dense_line(axes, numbers)


def dense_line(axes: Axes, numbers: pd.DataFrame) -> None:
    """Draw the dense nets of a panel, if there are any, as a level line with a band."""
    dense = numbers[numbers[cells.ROW] == cells.DENSE]
    for mean, std in dense[["mean", "std"]].drop_duplicates().head(1).itertuples(index=False):
        style.level(axes, mean, std, style.look(cells.DENSE))


def matched_early(numbers: pd.DataFrame) -> list[str]:
    """Return a sentence if there are nets that have a figure of their own, because they were matched early."""
    if not cells.early(numbers[cells.ROW]).any():
        return []
    return ["Nets that were matched before the end of B's training are in the figure on early matching."]


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No sparse run has finished yet."]
    said = []
    single = numbers[(numbers["n"] == 1) & ~numbers[cells.ROW].isin(HIDDEN)]
    if len(single):
        said.append(f"{labels.plural(len(single), 'point')} of a single run, without an error bar.")
    if cells.DENSE not in set(numbers[cells.ROW]):
        said.append("No dense net has finished, so there is no dashed line.")
    cut = grid.cut_off(numbers, cells.axes(frame), schema.PARAM_WIDTH, [schema.PARAM_REWIND_EPOCH])
    return said + matched_early(numbers) + facets.left_out(frame) + cut
