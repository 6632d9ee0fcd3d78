"""Figure: test accuracy against sparsity, a row of panels per rewind epoch, a column per width (figures 9 and 10).

Run it alone with ``python -m analysis.figures.sparsity --space NAME``.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, style
from analysis.figures import rewind
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "chosen_rewinds", "figure", "load", "notes", "table"]

TITLE = "Accuracy against sparsity"
CAPTION = (
    "Test accuracy after the last epoch, mean ± sample standard deviation over n pairs (A, B), by the share of "
    "prunable weights that are pruned; on the horizontal axis equal steps prune equal shares of what is left. Dashed: "
    "the dense nets, mean ± standard deviation; dotted: the net that was pruned itself (IMP), whatever the rewind "
    "epoch. Each panel has its own vertical scale; marks at one sparsity are set side by side."
)
MOST_REWINDS = 4
"""Rewind epochs that are drawn, as many as in the paper's figures."""
APART = 0.035
"""Distance of the marks of neighbouring methods, as a share of the axis."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of the test accuracy (percent) of every row in every cell, one line each."""
    return facets.summaries(frame, [schema.TEST_ACCURACY])


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by rewind epoch (and task, and varied recipe), columns by width."""
    by = cells.axes(frame)
    numbers = table(frame)
    epochs = numbers[schema.PARAM_REWIND_EPOCH]
    shown = epochs.isin(chosen_rewinds(epochs)) | epochs.isna()
    numbers = numbers[shown & ~cells.early(numbers[cells.ROW])]
    rows, columns = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_SPARSITY)
    drawn, panels = style.panels(max(len(rows), 1), max(len(columns), 1), wrap=True)
    names = [
        name
        for name in by
        if name in (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)
        or (name != schema.PARAM_SPARSITY and numbers[name].nunique(dropna=False) > 1)
    ]
    for place, line in zip(rows, panels, strict=False):
        for width, axes in zip(columns, line, strict=True):
            panel = {**place, schema.PARAM_WIDTH: width}
            here = facets.at(numbers, panel)
            style.title(axes, labels.cell(panel, names), facets.count(here.loc[_is_sparse(here), "n"]))
            _panel(axes, here)
    if not rows:
        style.empty(panels[0][0])
    style.axis_labels(panels, style.AXES[schema.PARAM_SPARSITY], style.AXES[schema.TEST_ACCURACY])
    style.methods_legend(drawn, cells.row_order(numbers[cells.ROW]))
    return drawn


def chosen_rewinds(epochs: pd.Series) -> list[int]:
    """Return the rewind epochs to draw: all if they are few, else some from 1 on, evenly chosen, the last included."""
    every = sorted(map(int, epochs.dropna().unique()))
    if len(every) <= MOST_REWINDS:
        return every
    trained = [epoch for epoch in every if epoch > 0]
    last, steps = len(trained) - 1, MOST_REWINDS - 1
    return [trained[round(last * step / steps)] for step in range(MOST_REWINDS)]


def _is_sparse(numbers: pd.DataFrame) -> pd.Series:
    return ~numbers[cells.ROW].isin([cells.DENSE, cells.IMP])


def _panel(axes: Axes, numbers: pd.DataFrame) -> None:
    sparse = numbers[numbers[cells.ROW] != cells.DENSE]
    if sparse.empty:
        style.empty(axes)
        return
    style.sparsity_axis(axes, sparse[schema.PARAM_SPARSITY])
    low, high = axes.get_xlim()
    rows = cells.row_order(sparse[cells.ROW])
    for place, row in enumerate(rows):
        line = sparse[sparse[cells.ROW] == row].sort_values(schema.PARAM_SPARSITY)
        shift = APART * (high - low) * (place - (len(rows) - 1) / 2) / max(len(rows) - 1, 1)
        x = [style.sparsity_position(sparsity) + shift for sparsity in line[schema.PARAM_SPARSITY]]
        style.errorbars(axes, x, line["mean"].tolist(), line["std"].tolist(), style.look(row))
    rewind.dense_line(axes, numbers[numbers[cells.ROW] == cells.DENSE])


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers, by = table(frame), cells.axes(frame)
    if numbers.empty:
        return ["No sparse run has finished yet."]
    said = []
    epochs = numbers[schema.PARAM_REWIND_EPOCH]
    left = sorted(set(map(int, epochs.dropna())) - set(chosen_rewinds(epochs)))
    if left:
        said.append(
            f"Left to the table: rewind {'epochs' if len(left) > 1 else 'epoch'} {labels.listed(map(str, left))}."
        )
    if numbers[schema.PARAM_SPARSITY].nunique() == 1:
        said.append("Only one sparsity has results.")
    if cells.early(numbers[cells.ROW]).any():
        said.append("Nets that were matched before the end of B's training are in the figure on early matching.")
    shown = numbers[epochs.isin(chosen_rewinds(epochs)) | epochs.isna()]
    return said + facets.left_out(frame) + facets.cut_off(shown, by, schema.PARAM_WIDTH, schema.PARAM_SPARSITY)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import sparsity

    command.run_module(sparsity)
