"""Figure: top-5 accuracy against the rewind epoch (the paper's figure 7), with top-1 beside it in the table (table 10).

Run it alone with ``python -m analysis.figures.top5 --space NAME``.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.figures import rewind
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "figure", "formatted", "load", "notes", "table"]

TITLE = "Top-5 accuracy against the rewind epoch"
CAPTION = (
    "Share of test images whose label is among the five largest logits, in percent: mean ± sample standard deviation "
    "over n pairs (A, B); dashed: the dense nets. Top-1 accuracy against the rewind epoch is the figure before."
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
    if numbers.empty:
        return pd.DataFrame()
    numbers = numbers[~numbers[cells.ROW].isin([cells.DENSE, cells.IMP])]
    shown = facets.told_apart(numbers, by, hide="")
    rows = cells.row_order(numbers[cells.ROW])
    lines = []
    for place, group in numbers.groupby(by, dropna=False):
        at = dict(zip(by, place, strict=True))
        line = {labels.axis(name): labels.value(name, at[name]) for name in shown}
        found = {
            (one.row, one.measure): stats.format_mean(one.mean, one.std, one.n, decimals=2)
            for one in group.itertuples()
        }
        line |= {
            f"{labels.method(row)}, {name} (%)": found.get((row, measure), "")
            for row in rows
            for measure, name in MEASURES.items()
        }
        lines.append(line)
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if table(frame).empty:
        return [f"Top-5 accuracy is recorded for data of {schema.TOP5_CLASSES} classes or more only."]
    return rewind.notes(frame)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import top5

    command.run_module(top5)
