"""Figure: gap to dense, gap to LTH and generalization gap against width, a row of panels per sparsity."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
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


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of each gap (percentage points) of every row in every cell, one line each."""
    return facets.summaries(frame, MEASURES)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by gap."""
    numbers = table(frame)
    to_itself = (numbers["measure"] == schema.GAP_TO_LTH) & (numbers[cells.ROW] == cells.LTH)
    numbers = numbers[~cells.early(numbers[cells.ROW]) & (numbers[cells.ROW] != cells.IMP) & ~to_itself]
    by = cells.axes(frame)
    rows = [name for name in by if name not in (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)]
    parts = [
        facets.at(group, {schema.PARAM_REWIND_EPOCH: chosen_rewind(group)}) for _, group in facets.places(numbers, rows)
    ]
    numbers = pd.concat(parts or [numbers])
    always = (schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
    drawn, _ = grid.means(
        numbers,
        by,
        across="measure",
        along=schema.PARAM_WIDTH,
        scale=style.width_axis,
        names=facets.told_apart(numbers, by, hide=[schema.PARAM_WIDTH], always=always),
        y={name: style.AXES[name] for name in MEASURES},
        absent="not measured yet",
    )
    return drawn


def chosen_rewind(numbers: pd.DataFrame) -> int | None:
    """Return the largest rewind epoch that the most widths have; None if there is none."""
    found = numbers.dropna(subset=[schema.PARAM_REWIND_EPOCH])
    if found.empty:
        return None
    widths = found.groupby(schema.PARAM_REWIND_EPOCH)[schema.PARAM_WIDTH].nunique()
    return int(widths[widths == widths.max()].index.max())


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    missing = [style.AXES[name].removesuffix(" (pp)") for name in MEASURES if name not in set(numbers["measure"])]
    said = {
        f"Not recorded yet: {labels.listed(missing)}.": missing,
        "Only one width has results.": numbers[schema.PARAM_WIDTH].nunique() == 1,
    }
    return labels.said(said)
