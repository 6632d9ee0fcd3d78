"""Figure: test accuracy against the rewind epoch, a panel per sparsity and width (the paper's figures 5, 6 and 8).

Run it alone with ``python -m analysis.figures.rewind --space NAME``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, style
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "dense_line", "draw", "figure", "load", "notes", "table"]

TITLE = "Accuracy against the rewind epoch"
CAPTION = (
    "Test accuracy after the last epoch, mean ± sample standard deviation over n pairs (A, B), for sparse nets trained "
    "from the state of the dense net after as many epochs as the horizontal axis says; 0 is the untouched "
    "initialisation. Dashed: the dense nets, mean ± standard deviation. Each panel has its own vertical scale; marks "
    "at one epoch are set side by side."
)
HIDDEN = (cells.DENSE, cells.IMP)
"""Rows that have no rewind epoch: one is drawn as a reference, the other is left to the table. Nets that were matched
early have a figure of their own."""

MOST_TICKS = 6
ALONE = 4.0
"""Epochs that the axis spans around a single rewind epoch."""


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
        numbers: of them, as :func:`analysis.drawing.facets.summaries` returns them.
        measure: which of the numbers, a key of ``style.AXES``.
    """
    by = cells.axes(frame)
    numbers = numbers[(numbers["measure"] == measure) & ~cells.early(numbers[cells.ROW])]
    rows, columns = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_REWIND_EPOCH)
    drawn, panels = style.panels(max(len(rows), 1), max(len(columns), 1), wrap=True)
    names = facets.told_apart(numbers, by, hide=schema.PARAM_REWIND_EPOCH)
    for place, line in zip(rows, panels, strict=False):
        for width, axes in zip(columns, line, strict=True):
            panel = {**place, schema.PARAM_WIDTH: width}
            _panel(axes, panel, facets.at(numbers, panel), names)
    if not rows:
        style.empty(panels[0][0])
    style.axis_labels(panels, style.AXES[schema.PARAM_REWIND_EPOCH], style.AXES[measure])
    present = cells.row_order(numbers[cells.ROW])
    style.methods_legend(drawn, [row for row in present if row != cells.IMP])
    return drawn


def _panel(axes: Axes, panel: dict[str, Any], numbers: pd.DataFrame, names: list[str]) -> None:
    sparse = numbers[~numbers[cells.ROW].isin(HIDDEN)]
    counts = sparse.loc[sparse["n"] > 0, "n"]
    style.title(axes, labels.cell(panel, names), facets.count(counts))
    if numbers.empty:
        style.empty(axes)
        return
    rows = cells.row_order(sparse[cells.ROW])
    epochs = sparse[schema.PARAM_REWIND_EPOCH].dropna().astype(float)
    span = float(np.ptp(epochs)) if epochs.nunique() > 1 else ALONE
    step = 0.012 * span
    for place, row in enumerate(rows):
        line = sparse[sparse[cells.ROW] == row].sort_values(schema.PARAM_REWIND_EPOCH)
        shifted = line[schema.PARAM_REWIND_EPOCH].astype(float) + step * (place - (len(rows) - 1) / 2)
        style.errorbars(axes, shifted.tolist(), line["mean"].tolist(), line["std"].tolist(), style.look(row))
    if epochs.nunique() <= MOST_TICKS:
        axes.set_xticks(sorted(set(epochs)))
    if epochs.nunique() == 1:
        axes.set_xlim(epochs.iloc[0] - ALONE / 2, epochs.iloc[0] + ALONE / 2)
    dense_line(axes, numbers[numbers[cells.ROW] == cells.DENSE])


def dense_line(axes: Axes, numbers: pd.DataFrame) -> None:
    """Draw the dense nets of a panel, if there are any, as a level line with a band."""
    for mean, std in numbers[["mean", "std"]].drop_duplicates().head(1).itertuples(index=False):
        style.level(axes, mean, std, style.look(cells.DENSE))


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No sparse run has finished yet."]
    said = []
    single = numbers[(numbers["n"] == 1) & ~numbers[cells.ROW].isin(HIDDEN)]
    if len(single):
        said.append(f"{labels.plural(len(single), 'point')} of one run each without an error bar.")
    if cells.DENSE not in set(numbers[cells.ROW]):
        said.append("No dense net has finished, so there is no dashed line.")
    if cells.early(numbers[cells.ROW]).any():
        said.append("Nets that were matched before the end of B's training are in the figure on early matching.")
    return (
        said
        + facets.left_out(frame)
        + facets.cut_off(numbers, cells.axes(frame), schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)
    )


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import rewind

    command.run_module(rewind)
