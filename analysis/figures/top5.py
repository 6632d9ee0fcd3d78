"""Figure: top-5 accuracy against the rewind epoch (the paper's figure 7); its table has top-1, too (table 10)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.figures import rewind
from analysis.memo import once
from trainables import schema

TITLE = "Top-5 accuracy against the rewind epoch"
CAPTION = (
    "Percentage of test images whose label is among the five largest logits: mean ± sample standard deviation over n "
    "pairs (A, B); dashed: the dense nets. The figure before shows top-1 accuracy against the rewind epoch."
)
TABLE_CAPTION = (
    "Top-1 and top-5 test accuracy in percent after the last epoch, of each sparse method: mean ± sample standard "
    "deviation (number of pairs A, B)."
)
MEASURES = {schema.TEST_ACCURACY: "top-1", schema.TEST_TOP5_ACCURACY: "top-5"}


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of both accuracies (percent) of every row in every cell; empty without any top-5."""
    numbers = facets.summaries(frame, list(MEASURES))
    return numbers if (numbers["measure"] == schema.TEST_TOP5_ACCURACY).any() else numbers.iloc[:0]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    return rewind.draw(frame, table(frame), schema.TEST_TOP5_ACCURACY)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: a line per cell, two columns per sparse method."""
    numbers, by = table(frame), cells.axes(frame)
    numbers = numbers[~numbers[cells.ROW].isin(rewind.HIDDEN)]
    return facets.crossed(
        numbers,
        by,
        facets.told_apart(numbers, by),
        heads=map(_head, numbers[cells.ROW], numbers["measure"]),
        texts=[stats.format_mean(one.mean, one.std, one.n, decimals=2) for one in numbers.itertuples()],
        order=[_head(row, measure) for row in cells.row_order(numbers[cells.ROW]) for measure in MEASURES],
    )


def _head(row: str, measure: str) -> str:
    return f"{labels.method(row)}, {MEASURES[measure]} (%)"


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if table(frame).empty:
        return [f"Top-5 accuracy is only recorded for datasets of {schema.TOP5_CLASSES} classes or more."]
    return rewind.notes(frame)
