"""Figure: the barrier between dense net A and A after each pruning round, as it is and corrected (figure 4a).

Run it alone with ``python -m analysis.figures.imp_path --space NAME``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, style
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema
from trainables.schema import FINISHED

__all__ = ["CAPTION", "TITLE", "figure", "load", "notes", "table"]

TITLE = "From dense net A to A after each pruning round"
CAPTION = (
    "Error barrier on the straight line between the weights of dense A and of A pruned and fine-tuned, by the sparsity "
    "that the pruning round reached: the largest excess of the test error over the straight line between the end "
    "points' errors. As it is: the interpolated weights with the interpolated BatchNorm statistics; corrected: with "
    "statistics measured anew at each point. A barrier near 0 means the same basin. Mean ± sample standard deviation "
    "over n nets; the panels of a row share their scale. Below the sparsities: number of the round."
)
IMP_PATH = "imp"
"""What ``path`` says of a `connect` run that leads from dense A to a pruned A."""
BARRIERS = (schema.ERROR_BARRIER, schema.LOSS_BARRIER)
CORRECTIONS = {
    "none": ("As it is", style.Look(colour=style.VERMILLION, marker="s")),
    "bn_reset": ("BatchNorm statistics reset", style.Look(colour=style.GREEN, marker="D")),
    "repair": ("REPAIR", style.Look(colour=style.BLUE, marker="o")),
}
"""Correction -> what it is called, and how it is drawn."""
PLACE = (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_CORRECTION, schema.PARAM_SPARSITY, schema.PARAM_ROUND)


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return both barriers by task, width, correction and pruning round, one line each.

    Columns: those, ``sparsity`` (that the round reached); ``measure``: ``error_barrier`` (percentage points) or
    ``loss_barrier`` (nats); ``n``, ``mean``, ``std``, ``sem`` over nets.
    """
    measured = _paths(frame)
    finite = measured[list(BARRIERS)].where(np.isfinite(measured[list(BARRIERS)]))
    return facets.spread(measured.assign(**{name: finite[name] for name in BARRIERS}), PLACE, BARRIERS)


def _paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the finished measurements of paths from dense to pruned nets."""
    on_path = (frame[schema.PARAM_STAGE] == schema.CONNECT) & (frame[schema.PARAM_PATH] == IMP_PATH)
    return frame[on_path & (frame["status"] == FINISHED)]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task, a column per width."""
    numbers = table(frame)
    numbers = numbers[numbers["measure"] == schema.ERROR_BARRIER]
    tasks = numbers[list(cells.TASK)].drop_duplicates().to_dict("records")
    widths = sorted(numbers[schema.PARAM_WIDTH].unique())
    names = [*(cells.TASK if len(tasks) > 1 else ()), schema.PARAM_WIDTH]
    drawn, panels = style.panels(max(len(tasks), 1), max(len(widths), 1))
    for task, line in zip(tasks, panels, strict=False):
        here = facets.at(numbers, task)
        top = float((here["mean"] + here["std"].fillna(0)).max())
        for width, axes in zip(widths, line, strict=True):
            _panel(axes, facets.at(here, {schema.PARAM_WIDTH: width}), names)
            axes.set_ylim(-0.04 * max(top, 1.0), 1.06 * max(top, 1.0))
        line[0].set_ylabel(style.AXES[schema.ERROR_BARRIER])
    if not tasks:
        style.empty(panels[0][0], "not measured")
    for axes in panels[-1]:
        axes.set_xlabel(f"{style.AXES[schema.PARAM_SPARSITY]}, pruning round")
    present = set(numbers[schema.PARAM_CORRECTION])
    style.legend(drawn, [drawn_as for name, drawn_as in CORRECTIONS.items() if name in present])
    return drawn


def _panel(axes: Axes, numbers: pd.DataFrame, names: list[str]) -> None:
    if numbers.empty:
        style.empty(axes, "not measured")
        return
    style.title(axes, labels.cell(numbers.iloc[0].to_dict(), names), facets.count(numbers["n"]))
    for correction, (_, look) in CORRECTIONS.items():
        line = numbers[numbers[schema.PARAM_CORRECTION] == correction].sort_values(schema.PARAM_SPARSITY)
        x = [style.sparsity_position(sparsity) for sparsity in line[schema.PARAM_SPARSITY]]
        style.errorbars(axes, x, line["mean"].tolist(), line["std"].tolist(), look)
    rounds = numbers.drop_duplicates(schema.PARAM_SPARSITY).set_index(schema.PARAM_SPARSITY)[schema.PARAM_ROUND]
    style.sparsity_axis(
        axes, numbers[schema.PARAM_SPARSITY], most=5, decimals=0, below={s: str(r) for s, r in rounds.items()}
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if _paths(frame).empty:
        return ["No path from a dense net to a pruned one was measured; a space asks for them by imp_path=true."]
    said = []
    measured = _paths(frame)
    infinite = int((~np.isfinite(measured[list(BARRIERS)])).any(axis="columns").sum())
    if infinite:
        said.append(f"{labels.plural(infinite, 'path')} with a missing or infinite barrier, left out.")
    missing = {"none"} - set(measured[schema.PARAM_CORRECTION])
    if missing:
        said.append("Nothing was measured without a correction yet.")
    elif set(measured[schema.PARAM_CORRECTION]) == {"none"}:
        said.append("Nothing was measured with a correction yet.")
    counts = measured.groupby([*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_CORRECTION])[schema.PARAM_ROUND].nunique()
    if counts.nunique() > 1:
        said.append(f"Not all lines have all rounds yet: {counts.min()} to {counts.max()} of them.")
    return said


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import imp_path

    command.run_module(imp_path)
