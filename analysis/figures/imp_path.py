"""Figure: the barrier between dense net A and A after each pruning round, with and without correction (figure 4a)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.load import runs
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
IMP_PATH = "imp"
"""``path`` of a `connect` run that leads from dense A to a pruned A."""
BARRIERS = (schema.ERROR_BARRIER, schema.LOSS_BARRIER)
CORRECTIONS = {
    "none": ("As it is", style.Look(colour=style.VERMILLION, marker="s")),
    "bn_reset": ("BatchNorm statistics reset", style.Look(colour=style.GREEN, marker="D")),
    "repair": ("REPAIR", style.Look(colour=style.BLUE, marker="o")),
}
"""Correction -> its name, and how it is drawn."""
ALONG = (schema.PARAM_CORRECTION, schema.PARAM_SPARSITY, schema.PARAM_ROUND)
PLACE = (*cells.TASK, schema.PARAM_WIDTH, *ALONG)

load = runs


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return both barriers by task, width, correction and pruning round, one line each.

    Columns: those, ``sparsity`` (reached by the round); ``measure``: ``error_barrier`` (percentage points) or
    ``loss_barrier`` (nats); ``n``, ``mean``, ``std``, ``sem`` over nets.
    """
    return facets.spread(facets.finite(_paths(frame), BARRIERS), PLACE, BARRIERS)


def _paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the finished measurements of paths from dense to pruned nets."""
    return facets.finished(frame[frame[schema.PARAM_PATH] == IMP_PATH], schema.CONNECT)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task, a column per width."""
    numbers = table(frame)
    numbers = numbers[numbers["measure"] == schema.ERROR_BARRIER]
    drawn, panels = grid.panels(
        numbers,
        PLACE,
        across=schema.PARAM_WIDTH,
        without=ALONG,
        names=[*facets.several_tasks(numbers), schema.PARAM_WIDTH],
        x=f"{style.AXES[schema.PARAM_SPARSITY]}, pruning round",
        y=style.AXES[schema.ERROR_BARRIER],
        absent="not measured",
    )
    for line in panels:
        here = pd.concat([panel.lines for panel in line])
        top = max(float((here["mean"] + here["std"].fillna(0)).max()), 1.0)
        for panel in line:
            _panel(panel)
            panel.axes.set_ylim(-0.04 * top, 1.06 * top)
    present = set(numbers[schema.PARAM_CORRECTION])
    style.legend(drawn, [drawn_as for name, drawn_as in CORRECTIONS.items() if name in present])
    return drawn


def _panel(panel: grid.Panel) -> None:
    axes, numbers = panel.axes, panel.lines
    if numbers.empty:
        return
    panel.title(numbers["n"])
    for correction, (_, look) in CORRECTIONS.items():
        line = numbers[numbers[schema.PARAM_CORRECTION] == correction].sort_values(schema.PARAM_SPARSITY)
        style.errorbars(axes, map(style.sparsity_position, line[schema.PARAM_SPARSITY]), line, look)
    rounds = numbers.drop_duplicates(schema.PARAM_SPARSITY).set_index(schema.PARAM_SPARSITY)[schema.PARAM_ROUND]
    style.sparsity_axis(
        axes, numbers[schema.PARAM_SPARSITY], most=5, decimals=0, below={s: str(r) for s, r in rounds.items()}
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    measured = _paths(frame)
    if measured.empty:
        return ["No path from a dense net to a pruned one was measured; set imp_path=true in a space to measure them."]
    said = []
    infinite = int((~np.isfinite(measured[list(BARRIERS)])).any(axis="columns").sum())
    if infinite:
        said.append(f"{labels.plural(infinite, 'path')} with a missing or infinite barrier, left out.")
    corrections = set(measured[schema.PARAM_CORRECTION])
    if "none" not in corrections:
        said.append("Nothing was measured without a correction yet.")
    elif corrections == {"none"}:
        said.append("Nothing was measured with a correction yet.")
    counts = measured.groupby([*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_CORRECTION])[schema.PARAM_ROUND].nunique()
    if counts.nunique() > 1:
        said.append(f"Some lines do not have all rounds yet: the lines have {counts.min()} to {counts.max()}.")
    return said
