"""Figure: is it the alignment, the layer densities or the mask? Every way to mask net B, compared with naive."""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, headline, labels, stats
from analysis.drawing import facets, grid, intervals, style
from analysis.drawing.signs import MINUS
from analysis.load import runs
from analysis.memo import once
from trainables import schema

TITLE = "Is it the alignment, the layer densities or the mask?"
CAPTION = (
    f"Test accuracy {MINUS} that of the naive net of the same pair (A, B), in percentage points: mean and 95 % t "
    "interval over n pairs, by rewind epoch; the line at 0 is naive. Shuffled: A's mask, permuted at random. Layerwise "
    "random: a random mask with A's layer densities. Own mask: the mask found by pruning B. Reinit: A's mask on a "
    "third net, which starts from its initialisation at every rewind epoch. An arrow means that the interval extends "
    "beyond the panel. Table: means over the cells that all pairs have in common, intervals over pairs."
)
CONTROLS = ("shuffled", "layerwise_random", "own_mask", "reinit")
APART = (cells.DENSE, cells.IMP, cells.NAIVE)
"""Rows that are not compared: they are trained differently, or are the reference."""
QUESTIONS = (
    ("Is it the alignment, or any permutation?", cells.PERMUTED, "shuffled"),
    ("Does it say more than its layer densities?", cells.PERMUTED, "layerwise_random"),
    ("Is an unaligned mask worth more than its layer densities?", cells.NAIVE, "layerwise_random"),
    ("What would pruning the other net itself add?", "own_mask", cells.PERMUTED),
    ("Does it matter that B is trained up to the rewind epoch?", cells.NAIVE, "reinit"),
)
"""Question, the row that is ahead if the answer is yes, and the row it is compared with."""

load = runs


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
        for place, group in facets.places(pairs, by):
            naive = group[cells.NAIVE].tolist()
            for row in rows:
                one = stats.paired_difference(group[row].tolist(), naive)
                if one.n:
                    found = {
                        "pairs": one.n,
                        "minus_naive": one.value,
                        "ci_low": one.low,
                        "ci_high": one.high,
                        "p": one.p,
                    }
                    lines.append({**place, cells.ROW: row, **found})
    result = pd.DataFrame(lines, columns=[*by, cells.ROW, "pairs", "minus_naive", "ci_low", "ci_high", "p"])
    result["p_holm"] = stats.holm(result["p"].tolist())
    return result.astype({schema.PARAM_REWIND_EPOCH: "Int64"})


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    numbers = table(frame)
    present = cells.row_order(numbers[cells.ROW])
    drawn, panels = grid.panels(
        numbers,
        cells.axes(frame),
        across=schema.PARAM_WIDTH,
        without=[schema.PARAM_REWIND_EPOCH],
        x=style.AXES[schema.PARAM_REWIND_EPOCH],
        y=f"Accuracy {MINUS} naive (pp)",
        wrap=True,
    )
    for panel in itertools.chain(*panels):
        panel.title(panel.lines["pairs"])
        if len(panel.lines):
            _draw(panel.axes, panel.lines, present)
    style.methods_legend(drawn, [*present, cells.NAIVE] if present else [])
    return drawn


def _draw(axes: Axes, numbers: pd.DataFrame, rows: list[str]) -> None:
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
    """Return the answers of the controls, means over the cells that all pairs have, one line per task and question.

    Columns: ``model``, ``dataset``, ``question``, ``row``, ``over``, ``cells``, ``pairs``, ``difference``, ``ci_low``,
    ``ci_high`` (percentage points, 95 % over pairs). Only questions whose two rows were measured.
    """
    by, lines = cells.axes(frame), []
    for task, scored in facets.places(cells.scores(frame), cells.TASK):
        for question, row, over in QUESTIONS:
            gained = headline.gains(scored, by, row, over)
            one = headline.pooled(gained)
            if one.n:
                place = {**task, "question": question, "row": row, "over": over}
                limits = {"difference": one.value, "ci_low": one.low, "ci_high": one.high}
                lines.append({**place, "cells": gained.shape[1], "pairs": one.n, **limits})
    columns = [*cells.TASK, "question", "row", "over", "cells", "pairs", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(lines, columns=columns)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the questions with their answers as people read them."""
    answered = answers(frame)
    named = facets.several_tasks(answered)
    lines = []
    for line in answered.to_dict("records"):
        difference = stats.format_difference(line["difference"], line["ci_low"], line["ci_high"])
        shown = labels.place(line, named) | {
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
            f"No control was measured; a space asks for them by method={','.join(CONTROLS)}, as mask_controls does."
        ]
    missing = [labels.method(name) for name in CONTROLS if name not in set(numbers[cells.ROW])]
    said = [f"Not measured: {labels.listed(missing)}."] if missing else []
    cut = grid.cut_off(numbers, cells.axes(frame), schema.PARAM_WIDTH, [schema.PARAM_REWIND_EPOCH])
    return said + facets.left_out(frame) + cut
