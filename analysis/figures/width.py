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
    "panels shows the rewind epoch at which the most widths have sparse nets, the largest of several such epochs; the "
    "table has the others."
)
MEASURES = (*schema.GAPS, schema.GENERALIZATION_GAP)


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of each gap (percentage points) of every row in every cell, one line each."""
    return facets.summaries(frame, MEASURES)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by gap."""
    by, numbers = cells.axes(frame), _drawable(frame)
    parts = [
        facets.at(group, {schema.PARAM_REWIND_EPOCH: chosen_rewind(group)})
        for _, group in facets.places(numbers, _down(by))
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


def _drawable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers that the figure can show, at every rewind epoch."""
    numbers = table(frame)
    to_itself = (numbers["measure"] == schema.GAP_TO_LTH) & (numbers[cells.ROW] == cells.LTH)
    return numbers[~cells.early(numbers[cells.ROW]) & (numbers[cells.ROW] != cells.IMP) & ~to_itself]


def _down(by: list[str]) -> list[str]:
    """Return the axes that make up the rows of panels."""
    return [name for name in by if name not in (schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)]


def chosen_rewind(numbers: pd.DataFrame) -> int | None:
    """Return the largest of the rewind epochs at which the most widths have sparse nets; None if there is none.

    Dense nets, which stand at every rewind epoch of the grid, finished or not, count only where no sparse net has a
    result.
    """
    known = numbers.dropna(subset=[schema.PARAM_REWIND_EPOCH])
    sparse = known[known[cells.ROW] != cells.DENSE]
    found = known if sparse.empty else sparse
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
    return labels.said(said) + _absent_widths(frame)


def _absent_widths(frame: pd.DataFrame) -> list[str]:
    """Return a sentence on the widths whose sparse nets have results, but not at the rewind epoch that is drawn."""
    by, numbers = cells.axes(frame), _drawable(frame)
    named = facets.told_apart(numbers, _down(by), always=())
    absent: dict[str, list[str]] = {}
    for place, group in facets.places(numbers[numbers[cells.ROW] != cells.DENSE], _down(by)):
        epoch = chosen_rewind(group)
        drawn = set(facets.at(group, {schema.PARAM_REWIND_EPOCH: epoch})[schema.PARAM_WIDTH])
        widths = [labels.value(schema.PARAM_WIDTH, width) for width in sorted(set(group[schema.PARAM_WIDTH]) - drawn)]
        if widths:
            which = f"width {labels.listed(widths)}, without sparse nets at rewind epoch {epoch}"
            absent.setdefault(which, []).append(labels.cell(place, named))
    places = {which: labels.listed(filter(None, where)) for which, where in absent.items()}
    return [f"Left to the table: {which}{f' ({where})' if where else ''}." for which, where in places.items()]
