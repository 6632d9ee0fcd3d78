"""Figure: test accuracy against sparsity, a row of panels per rewind epoch, a column per width (figures 9 and 10)."""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.figures import rewind
from analysis.load import runs
from trainables import schema

TITLE = "Accuracy against sparsity"
CAPTION = (
    "Test accuracy after the last epoch against the share of prunable weights that are pruned, mean ± sample standard "
    "deviation over n pairs (A, B). Equal steps on the horizontal axis prune equal shares of the remaining weights. "
    "Dashed: the dense nets, mean ± standard deviation. Dotted: the pruned net itself (IMP), which has no rewind "
    "epoch. Each panel has its own vertical scale; markers at the same sparsity are drawn side by side."
)
MOST_REWINDS = 4
"""Rewind epochs that are drawn at most, as in the paper's figures."""
APART = 0.035
"""Distance between the markers of neighbouring methods, as a share of the axis."""

load = runs
table = rewind.table


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by rewind epoch (and task, and varied recipe), columns by width."""
    by, numbers = cells.axes(frame), _shown(table(frame))
    numbers = numbers[~cells.early(numbers[cells.ROW])]
    always = (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)
    drawn, panels = grid.panels(
        numbers,
        by,
        across=schema.PARAM_WIDTH,
        without=[schema.PARAM_SPARSITY],
        names=facets.told_apart(numbers, by, hide=[schema.PARAM_SPARSITY], always=always),
        x=style.AXES[schema.PARAM_SPARSITY],
        y=style.AXES[schema.TEST_ACCURACY],
        wrap=True,
    )
    for panel in itertools.chain(*panels):
        panel.title(panel.lines.loc[~panel.lines[cells.ROW].isin(rewind.HIDDEN), "n"])
        _panel(panel)
    style.methods_legend(drawn, cells.row_order(numbers[cells.ROW]))
    return drawn


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the lines at the rewind epochs that are drawn."""
    epochs = numbers[schema.PARAM_REWIND_EPOCH]
    return numbers[epochs.isin(chosen_rewinds(epochs)) | epochs.isna()]


def chosen_rewinds(epochs: pd.Series) -> list[int]:
    """Return the rewind epochs to draw: all if they are few, else evenly spaced ones from 1 to the last."""
    every = sorted(map(int, epochs.dropna().unique()))
    if len(every) <= MOST_REWINDS:
        return every
    trained = [epoch for epoch in every if epoch > 0]
    last, steps = len(trained) - 1, MOST_REWINDS - 1
    return [trained[round(last * step / steps)] for step in range(MOST_REWINDS)]


def _panel(panel: grid.Panel) -> None:
    axes, sparse = panel.axes, panel.lines[panel.lines[cells.ROW] != cells.DENSE]
    if sparse.empty:
        if len(panel.lines):
            style.empty(axes)
        return
    style.sparsity_axis(axes, sparse[schema.PARAM_SPARSITY])
    low, high = axes.get_xlim()
    rows = cells.row_order(sparse[cells.ROW])
    for place, row in enumerate(rows):
        line = sparse[sparse[cells.ROW] == row].sort_values(schema.PARAM_SPARSITY)
        shift = APART * (high - low) * (place - (len(rows) - 1) / 2) / max(len(rows) - 1, 1)
        x = [style.sparsity_position(sparsity) + shift for sparsity in line[schema.PARAM_SPARSITY]]
        style.errorbars(axes, x, line, style.look(row))
    rewind.dense_line(axes, panel.lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
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
    cut = grid.cut_off(_shown(numbers), cells.axes(frame), schema.PARAM_WIDTH, [schema.PARAM_SPARSITY])
    return said + rewind.matched_early(numbers) + facets.left_out(frame) + cut
