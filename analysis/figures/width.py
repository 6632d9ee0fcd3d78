"""Figure: gap to dense, gap to LTH and generalization gap against width, a row of panels per sparsity.

Run it alone with ``python -m analysis.figures.width --space NAME``.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, style
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "chosen_rewind", "figure", "load", "notes", "table"]

TITLE = "Gaps against width"
CAPTION = (
    "Mean ± sample standard deviation over n pairs (A, B), in percentage points. Gap to dense: accuracy of the dense "
    "net that was rewound minus the sparse net's own. Gap to LTH: accuracy of LTH with the same mask minus the net's "
    "own. Generalization gap: training minus test accuracy of the final weights, both without augmentation. Each row "
    "of panels shows the largest rewind epoch that all its widths have; the table has the others."
)
MEASURES = (schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.GENERALIZATION_GAP)
APART = 1.03
"""Factor in width by which the marks of neighbouring methods are set apart."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of each gap (percentage points) of every row in every cell, one line each."""
    return facets.summaries(frame, MEASURES)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by gap."""
    by = cells.axes(frame)
    numbers = table(frame)
    numbers = numbers[~cells.early(numbers[cells.ROW])]
    rows, _ = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_REWIND_EPOCH)
    drawn, panels = style.panels(max(len(rows), 1), len(MEASURES))
    names = [
        name for name in facets.told_apart(numbers, by, hide=schema.PARAM_WIDTH) if name != schema.PARAM_REWIND_EPOCH
    ]
    for place, line in zip(rows, panels, strict=False):
        here = facets.at(numbers, place)
        epoch = chosen_rewind(here)
        here = facets.at(here, {schema.PARAM_REWIND_EPOCH: epoch})
        heading = f"{labels.cell(place, names)}, rewind epoch {labels.value(schema.PARAM_REWIND_EPOCH, epoch)}"
        for measure, axes in zip(MEASURES, line, strict=True):
            _panel(axes, measure, here[here["measure"] == measure], heading)
    if not rows:
        for axes in panels[0]:
            style.empty(axes)
    for axes in panels[-1]:
        axes.set_xlabel(style.AXES[schema.PARAM_WIDTH])
    style.methods_legend(drawn, [row for row in cells.row_order(numbers[cells.ROW]) if row != cells.IMP])
    return drawn


def chosen_rewind(numbers: pd.DataFrame) -> int | None:
    """Return the largest rewind epoch that every width has, else the largest; None if there is none."""
    found = numbers.dropna(subset=[schema.PARAM_REWIND_EPOCH])
    if found.empty:
        return None
    widths = found.groupby(schema.PARAM_REWIND_EPOCH)[schema.PARAM_WIDTH].nunique()
    return int(widths[widths == widths.max()].index.max())


def _panel(axes: Axes, measure: str, numbers: pd.DataFrame, heading: str) -> None:
    hidden = (cells.IMP, cells.LTH) if measure == schema.GAP_TO_LTH else (cells.IMP,)
    numbers = numbers[~numbers[cells.ROW].isin(hidden)]
    sparse = numbers[numbers[cells.ROW] != cells.DENSE]
    style.title(axes, heading if measure == MEASURES[0] else "", facets.count(sparse["n"]))
    axes.set_ylabel(style.AXES[measure])
    if numbers.empty:
        style.empty(axes, "not measured yet")
        return
    rows = cells.row_order(numbers[cells.ROW])
    for place, row in enumerate(rows):
        line = numbers[numbers[cells.ROW] == row].sort_values(schema.PARAM_WIDTH)
        shifted = line[schema.PARAM_WIDTH] * APART ** (place - (len(rows) - 1) / 2)
        style.errorbars(axes, shifted.tolist(), line["mean"].tolist(), line["std"].tolist(), style.look(row))
    style.width_axis(axes, sorted(numbers[schema.PARAM_WIDTH].unique()))


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    missing = [style.AXES[name].removesuffix(" (pp)") for name in MEASURES if name not in set(numbers["measure"])]
    said = [f"Not recorded yet: {labels.listed(missing)}."] if missing else []
    if numbers[schema.PARAM_WIDTH].nunique() == 1:
        said.append("Only one width has results.")
    return said + facets.cut_off(numbers, cells.axes(frame), schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import width

    command.run_module(width)
