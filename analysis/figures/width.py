"""Figure: gap to dense, gap to LTH and generalization gap against width, a row of panels per sparsity."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.load import runs
from analysis.memo import once
from trainables import schema

TITLE = "Gaps against width"
CAPTION = (
    "Mean ± sample standard deviation over n pairs (A, B), in percentage points. Gap to dense: accuracy of the dense "
    "net minus that of the sparse net. Gap to LTH: accuracy of LTH with the same mask minus that of the sparse net. "
    "Generalization gap: training minus test accuracy of the final weights, both without augmentation. Each row of "
    "panels shows the largest rewind epoch that all its widths have in common; the table has the others."
)
MEASURES = (schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.GENERALIZATION_GAP)
WITHOUT = (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)
"""Axes that have no panels of their own: one is drawn along, of the other one value is chosen."""
APART = 1.03
"""Factor in width between the markers of neighbouring methods."""

load = runs


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of each gap (percentage points) of every row in every cell, one line each."""
    return facets.summaries(frame, MEASURES)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by gap."""
    numbers = table(frame)
    to_itself = (numbers["measure"] == schema.GAP_TO_LTH) & (numbers[cells.ROW] == cells.LTH)
    numbers = numbers[~cells.early(numbers[cells.ROW]) & (numbers[cells.ROW] != cells.IMP) & ~to_itself]
    drawn, panels = grid.panels(
        numbers,
        cells.axes(frame),
        across="measure",
        columns=MEASURES,
        without=WITHOUT,
        x=style.AXES[schema.PARAM_WIDTH],
        absent="not measured yet",
    )
    for line in panels:
        epoch = chosen_rewind(pd.concat([panel.lines for panel in line]))
        for panel in line:
            heading = f"{panel.heading}, rewind epoch {labels.value(schema.PARAM_REWIND_EPOCH, epoch)}"
            _panel(panel, epoch, heading if panel is line[0] else "")
    style.methods_legend(drawn, cells.row_order(numbers[cells.ROW]))
    return drawn


def chosen_rewind(numbers: pd.DataFrame) -> int | None:
    """Return the largest rewind epoch that the most widths have; None if there is none."""
    found = numbers.dropna(subset=[schema.PARAM_REWIND_EPOCH])
    if found.empty:
        return None
    widths = found.groupby(schema.PARAM_REWIND_EPOCH)[schema.PARAM_WIDTH].nunique()
    return int(widths[widths == widths.max()].index.max())


def _panel(panel: grid.Panel, epoch: int | None, heading: str) -> None:
    axes, measure = panel.axes, panel.place["measure"]
    numbers = facets.at(panel.lines, {schema.PARAM_REWIND_EPOCH: epoch})
    style.title(axes, heading, facets.count(numbers.loc[numbers[cells.ROW] != cells.DENSE, "n"]))
    axes.set_ylabel(style.AXES[measure])
    if numbers.empty:
        if len(panel.lines):
            style.empty(axes, "not measured yet")
        return
    rows = cells.row_order(numbers[cells.ROW])
    for place, row in enumerate(rows):
        line = numbers[numbers[cells.ROW] == row].sort_values(schema.PARAM_WIDTH)
        shifted = line[schema.PARAM_WIDTH] * APART ** (place - (len(rows) - 1) / 2)
        style.errorbars(axes, shifted, line, style.look(row))
    style.width_axis(axes, sorted(numbers[schema.PARAM_WIDTH].unique()))


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    missing = [style.AXES[name].removesuffix(" (pp)") for name in MEASURES if name not in set(numbers["measure"])]
    said = [f"Not recorded yet: {labels.listed(missing)}."] if missing else []
    if numbers[schema.PARAM_WIDTH].nunique() == 1:
        said.append("Only one width has results.")
    return said + grid.cut_off(numbers, cells.axes(frame), without=WITHOUT)
