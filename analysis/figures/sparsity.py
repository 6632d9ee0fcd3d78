"""Figure: test accuracy against sparsity, a row of panels per rewind epoch, a column per width (figures 9 and 10)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.figures import rewind
from trainables import schema

TITLE = "Accuracy against sparsity"
CAPTION = (
    "Test accuracy after the last epoch against the share of prunable weights that are pruned, mean ± sample standard "
    "deviation over n pairs (A, B). Equal steps on the horizontal axis prune equal shares of the remaining weights. "
    "Dashed: the dense nets, mean ± standard deviation. Dotted: the pruned net itself (IMP), which is the same at "
    "every rewind epoch unless pruning rounds rewind to it. Each panel has its own vertical scale; markers at the "
    "same sparsity are drawn side by side."
)
MOST_REWINDS = 4
"""Rewind epochs that are drawn at most, as in the paper's figures."""

table = rewind.table


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by rewind epoch (and task, and varied recipe), columns by width."""
    by, numbers = cells.axes(frame), table(frame)
    epochs = numbers[schema.PARAM_REWIND_EPOCH]
    shown = epochs.isin(chosen_rewinds(_rewound(numbers))) | epochs.isna()
    numbers = numbers[shown & ~cells.early(numbers[cells.ROW])]
    always = (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)
    drawn, _ = grid.means(
        numbers,
        by,
        across=schema.PARAM_WIDTH,
        along=schema.PARAM_SPARSITY,
        scale=style.sparsity_axis,
        level=[cells.DENSE],
        names=facets.told_apart(numbers, by, hide=[schema.PARAM_SPARSITY], always=always),
        y=style.AXES[schema.TEST_ACCURACY],
        wrap=True,
    )
    return drawn


def _rewound(numbers: pd.DataFrame) -> pd.Series:
    """Return the rewind epochs of the sparse nets that have results; of all nets if none has.

    Dense nets stand at every rewind epoch of the grid, finished or not, and would make a row of panels of their own.
    """
    sparse = numbers[~numbers[cells.ROW].isin(rewind.HIDDEN)]
    return (numbers if sparse.empty else sparse)[schema.PARAM_REWIND_EPOCH]


def chosen_rewinds(epochs: pd.Series) -> list[int]:
    """Return the rewind epochs to draw: all if they are few, else evenly spaced ones from 1 to the last."""
    every = sorted(map(int, epochs.dropna().unique()))
    if len(every) <= MOST_REWINDS:
        return every
    trained = [epoch for epoch in every if epoch > 0]
    last, steps = len(trained) - 1, MOST_REWINDS - 1
    return [trained[round(last * step / steps)] for step in range(MOST_REWINDS)]


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No sparse run has finished yet."]
    epochs = _rewound(numbers)
    left = sorted(set(map(int, epochs.dropna())) - set(chosen_rewinds(epochs)))
    said = {
        f"Left to the table: rewind {'epochs' if len(left) > 1 else 'epoch'} {labels.listed(map(str, left))}.": left,
        "Only one sparsity has results.": numbers[schema.PARAM_SPARSITY].nunique() == 1,
        rewind.MATCHED_EARLY: cells.early(numbers[cells.ROW]).any(),
    }
    return labels.said(said) + facets.left_out(frame)
