"""Figure: is it the alignment, the layer densities or the mask? Every way to mask net B, compared with the naive one.

Run it alone with ``python -m analysis.figures.controls --space NAME``.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, headline, labels, stats
from analysis.drawing import facets, intervals, style
from analysis.drawing.signs import MINUS
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "figure", "formatted", "load", "notes", "table"]

TITLE = "Is it the alignment, the layer densities or the mask?"
CAPTION = (
    f"Test accuracy {MINUS} that of the naive net of the same pair (A, B), in percentage points: mean and 95 % t "
    "interval over n pairs, by rewind epoch; the line at 0 is naive. Shuffled: A's mask, permuted at random. Layerwise "
    "random: a random mask with A's layer densities. Own mask: the mask of B itself. Reinit: A's mask on a third net "
    "from its initialisation, whatever the rewind epoch. Arrows: the interval goes on. Table: means over all cells "
    "that all pairs have, intervals over pairs."
)
CONTROLS = ("shuffled", "layerwise_random", "own_mask", "reinit")
APART = (cells.DENSE, cells.IMP, cells.NAIVE)
"""Rows that are not compared: they are trained otherwise, or are what the others are compared with."""
QUESTIONS = (
    ("Is it the alignment, or any permutation?", cells.PERMUTED, "shuffled"),
    ("Does it say more than its layer densities?", cells.PERMUTED, "layerwise_random"),
    ("Is an unaligned mask worth more than its layer densities?", cells.NAIVE, "layerwise_random"),
    ("What would pruning the other net itself add?", "own_mask", cells.PERMUTED),
    ("Does it matter that B is trained up to the rewind epoch?", cells.NAIVE, "reinit"),
)
"""What is asked -> the row that should be ahead if so, and of which one."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and row that has pairs in common with naive; empty if no control was measured.

    Columns: the cell's axes, ``row``, ``pairs``, ``minus_naive``, ``ci_low``, ``ci_high`` (percentage points, 95 %),
    ``p`` and ``p_holm``, adjusted for the number of lines.
    """
    by = cells.axes(frame)
    pairs = cells.paired(cells.scores(frame), by).reset_index()
    rows = [name for name in cells.row_order(pairs.columns.drop([*by, cells.PAIR])) if name not in APART]
    lines = []
    if cells.NAIVE in pairs and set(rows) & set(CONTROLS):
        for cell, group in pairs.groupby(by, dropna=False):
            naive = group[cells.NAIVE].tolist()
            for row in rows:
                one = stats.paired_difference(group[row].tolist(), naive)
                if one.n:
                    place = dict(zip(by, cell, strict=True))
                    lines.append({**place, cells.ROW: row, "pairs": one.n, "minus_naive": one.mean, **_limits(one)})
    result = pd.DataFrame(lines, columns=[*by, cells.ROW, "pairs", "minus_naive", "ci_low", "ci_high", "p"])
    result["p_holm"] = stats.holm(result["p"].tolist())
    return result.astype({schema.PARAM_REWIND_EPOCH: "Int64"})


def _limits(one: stats.Difference) -> dict[str, float]:
    return {"ci_low": one.low, "ci_high": one.high, "p": one.p}


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    by = cells.axes(frame)
    numbers = table(frame)
    rows, columns = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_REWIND_EPOCH)
    drawn, panels = style.panels(max(len(rows), 1), max(len(columns), 1), wrap=True)
    names = facets.told_apart(numbers, by, hide=schema.PARAM_REWIND_EPOCH)
    present = cells.row_order(numbers[cells.ROW])
    for place, line in zip(rows, panels, strict=False):
        for width, axes in zip(columns, line, strict=True):
            panel = {**place, schema.PARAM_WIDTH: width}
            here = facets.at(numbers, panel)
            style.title(axes, labels.cell(panel, names), facets.count(here["pairs"]))
            _panel(axes, here, present)
    if not rows:
        style.empty(panels[0][0], "no control measured")
    style.axis_labels(panels, style.AXES[schema.PARAM_REWIND_EPOCH], f"Accuracy {MINUS} naive (pp)")
    style.methods_legend(drawn, [*present, cells.NAIVE] if present else [])
    return drawn


def _panel(axes: Axes, numbers: pd.DataFrame, rows: list[str]) -> None:
    if numbers.empty:
        style.empty(axes)
        return
    naive = style.look(cells.NAIVE)
    axes.axhline(0, color=naive.colour, linewidth=1.1)
    axes.set_ylim(*intervals.limits(*_values(numbers)))
    epochs = sorted(numbers[schema.PARAM_REWIND_EPOCH].unique())
    for place, row in enumerate(rows):
        line = numbers[numbers[cells.ROW] == row].sort_values(schema.PARAM_REWIND_EPOCH)
        shift = 0.72 * ((place + 0.5) / len(rows) - 0.5)
        x = [epochs.index(epoch) + shift for epoch in line[schema.PARAM_REWIND_EPOCH]]
        intervals.draw(axes, x, *_values(line), style.look(row), along="y")
    axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.set_xlim(-0.5, len(epochs) - 0.5)
    axes.grid(False, axis="x")


def _values(numbers: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    return numbers["minus_naive"], numbers["ci_low"], numbers["ci_high"]


def answers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what the controls say, averaged over the cells that all pairs have, one line per task and question.

    Columns: ``model``, ``dataset``, ``question``, ``row``, ``over``, ``cells``, ``pairs``, ``difference``, ``ci_low``,
    ``ci_high`` (percentage points, 95 % over pairs). Only questions whose two rows were measured.
    """
    by, lines = cells.axes(frame), []
    for task, scored in cells.scores(frame).groupby(list(cells.TASK)):
        for question, row, over in QUESTIONS:
            gained = headline.gains(scored, by, row, over)
            one = headline.pooled(gained)
            if one.n:
                place = {**dict(zip(cells.TASK, task, strict=True)), "question": question, "row": row, "over": over}
                limits = {"difference": one.mean, "ci_low": one.low, "ci_high": one.high}
                lines.append({**place, "cells": gained.shape[1], "pairs": one.n, **limits})
    columns = [*cells.TASK, "question", "row", "over", "cells", "pairs", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(lines, columns=columns)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the questions with their answers as people read them."""
    answered = answers(frame)
    several = len(answered[list(cells.TASK)].drop_duplicates()) > 1
    lines = []
    for line in answered.to_dict("records"):
        difference = stats.format_difference(line["difference"], line["ci_low"], line["ci_high"])
        shown = {name: line[name] for name in cells.TASK} if several else {}
        shown |= {
            "question": line["question"],
            "compared": f"{labels.method(line['row'])} {MINUS} {labels.method(line['over']).lower()}",
        }
        lines.append({**shown, "points [95 % CI] (n)": f"{difference} ({line['pairs']})", "cells": str(line["cells"])})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [
            f"No control was measured beside naive; a space asks for them by method={','.join(CONTROLS)}, as "
            "mask_controls does."
        ]
    missing = [labels.method(name) for name in CONTROLS if name not in set(numbers[cells.ROW])]
    said = [f"Not measured: {labels.listed(missing)}."] if missing else []
    by = cells.axes(frame)
    return said + facets.left_out(frame) + facets.cut_off(numbers, by, schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import controls

    command.run_module(controls)
