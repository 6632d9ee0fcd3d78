"""Figure: the barrier between dense net A and A after each pruning round, with and without correction (figure 4a)."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.memo import once
from trainables import schema

TITLE = "From dense net A to A after each pruning round"
CAPTION = (
    "Error barrier on the line between the weights of dense A and those of A after a pruning round with its "
    "fine-tuning, against the sparsity of that round: the largest excess of the test error over the straight line "
    "between the end points' errors. As it is: interpolated weights with interpolated BatchNorm statistics. Corrected: "
    "statistics recomputed at each point. A barrier near 0 means the same basin. Mean ± sample standard deviation over "
    "n nets; the panels of a row share their scale. Below the sparsities: number of the round."
)
BARRIERS = (schema.ERROR_BARRIER, schema.LOSS_BARRIER)
CORRECTIONS = {
    "none": ("As it is", style.Look(colour=style.VERMILLION, marker="s")),
    "bn_reset": ("BatchNorm statistics reset", style.Look(colour=style.GREEN, marker="D")),
    "repair": ("REPAIR", style.Look(colour=style.BLUE, marker="o")),
}
"""Correction -> its name, and how it is drawn."""
PLACE = (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_CORRECTION, schema.PARAM_SPARSITY, schema.PARAM_ROUND)


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return both barriers by task, width, correction, pruning round and varied setting, one line each.

    Columns: those, ``sparsity`` (reached by the round); ``measure``: ``error_barrier`` (percentage points) or
    ``loss_barrier`` (nats); ``n``, ``mean``, ``std``, ``sem`` over nets.
    """
    paths = _paths(frame)
    return facets.spread(facets.finite(paths, BARRIERS), facets.axes(paths, PLACE), BARRIERS)


def _paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the finished measurements of paths from dense to pruned nets."""
    return cells.repeated(facets.finished(frame[frame[schema.PARAM_PATH] == schema.PATH_IMP], schema.CONNECT))


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task (and value of a varied setting), a column per width."""
    numbers = table(frame)
    varied = facets.axes(numbers, PLACE)[len(PLACE) :]
    numbers = numbers[numbers["measure"] == schema.ERROR_BARRIER]
    rounds = numbers.set_index(schema.PARAM_SPARSITY)[schema.PARAM_ROUND].astype(int).to_dict()
    drawn, panels = grid.means(
        numbers,
        (*cells.TASK, *varied, schema.PARAM_WIDTH),
        across=schema.PARAM_WIDTH,
        along=schema.PARAM_SPARSITY,
        scale=functools.partial(style.sparsity_axis, rounds=rounds),
        line=schema.PARAM_CORRECTION,
        looks=CORRECTIONS,
        names=[*facets.several_tasks(numbers), *varied, schema.PARAM_WIDTH],
        x=f"{style.AXES[schema.PARAM_SPARSITY]}, pruning round",
        y=style.AXES[schema.ERROR_BARRIER],
        absent="not measured",
    )
    for line in panels:
        here = pd.concat([panel.lines for panel in line])
        top = max(float((here["mean"] + here["std"].fillna(0)).max()), 1.0)
        for panel in line:
            panel.axes.set_ylim(-0.04 * top, 1.06 * top)
    return drawn


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    measured = _paths(frame)
    if measured.empty:
        return ["No path from a dense net to a pruned one was measured; set imp_path=true in a space to measure them."]
    infinite = int((~np.isfinite(measured[list(BARRIERS)])).any(axis="columns").sum())
    corrections = set(measured[schema.PARAM_CORRECTION])
    line = [name for name in facets.axes(measured, PLACE) if name not in (schema.PARAM_SPARSITY, schema.PARAM_ROUND)]
    rounds = measured.groupby(line, dropna=False)[schema.PARAM_ROUND].nunique()
    partial = f"Some lines do not have all rounds yet: the lines have {rounds.min()} to {rounds.max()}."
    return labels.said(
        {
            f"{labels.plural(infinite, 'path')} with a missing or infinite barrier, left out.": infinite,
            "Nothing was measured without a correction yet.": "none" not in corrections,
            "Nothing was measured with a correction yet.": corrections == {"none"},
            partial: rounds.nunique() > 1,
        }
    )
