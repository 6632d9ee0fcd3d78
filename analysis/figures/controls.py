"""Figure: is it the alignment, the layer densities or the mask? Every way to mask net B, compared with naive."""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, intervals, style
from analysis.drawing.signs import MINUS
from analysis.gains import block
from analysis.memo import once
from trainables import schema
from trainables.methods import COMPARED, METHODS

TITLE = "Is it the alignment, the layer densities or the mask?"
ROWS_EXPLAINED = (
    "Shuffled: A's mask, permuted at random. Layerwise random: a random mask with A's layer densities. Own mask: the "
    "mask found by pruning B. Reinit: A's mask on a third net, which starts from its initialisation at every rewind "
    "epoch."
)
SHARED = (
    "Differences in test accuracy between methods on the same pairs (A, B), in percentage points: means with 95 % t "
    f"intervals over n pairs. {ROWS_EXPLAINED}"
)
CAPTION = (
    f"{SHARED} By rewind epoch, each method {MINUS} naive, which is the line at 0. An arrow means that the interval "
    "extends beyond the panel."
)
TABLE_CAPTION = (
    f"{SHARED} Over the largest set of pairs and cells in which no pair lacks a cell; widths with fewer pairs are left "
    "out."
)
APART = (cells.DENSE, cells.IMP, cells.NAIVE)
"""Rows that are not compared: they are trained differently, or are the reference."""
CONTROLS = tuple(name for name in METHODS if name not in (*APART, *COMPARED))
QUESTIONS = (
    ("Is it the alignment, or any permutation?", cells.PERMUTED, "shuffled"),
    ("Does it say more than its layer densities?", cells.PERMUTED, "layerwise_random"),
    ("Is an unaligned mask worth more than its layer densities?", cells.NAIVE, "layerwise_random"),
    ("What would pruning the other net itself add?", "own_mask", cells.PERMUTED),
    ("Does it matter that B is trained up to the rewind epoch?", cells.NAIVE, "reinit"),
)
"""Question, the row that is ahead if the answer is yes, and the row it is compared with."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell and row that has pairs in common with naive; empty if no control was measured.

    Columns: the cell's axes, ``row``, ``pairs``, ``minus_naive``, ``ci_low``, ``ci_high`` (percentage points, 95 %),
    ``p`` and ``p_holm``, adjusted for the number of the row's cells: each row is a question of its own.
    """
    found = facets.leads(frame).rename(columns={"lead": "minus_naive"})
    found = found[~found[cells.ROW].isin(APART)] if found[cells.ROW].isin(CONTROLS).any() else found.iloc[:0]
    found = found.reset_index(drop=True)
    adjusted = found.groupby(cells.ROW)["p"].transform(lambda p: stats.holm(p.tolist()))
    found = found.assign(p_holm=adjusted.astype(float))
    return found.astype({schema.PARAM_REWIND_EPOCH: "Int64"})


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
    named = [*present, cells.NAIVE] if present else []
    style.legend(drawn, [style.handle(labels.method(row), style.look(row)) for row in named])
    return drawn


def _draw(axes: Axes, numbers: pd.DataFrame, rows: list[str]) -> None:
    axes.axhline(0, color=style.look(cells.NAIVE).colour, linewidth=1.1)
    axes.set_ylim(*intervals.limits(numbers, "minus_naive"))
    epochs = sorted(numbers[schema.PARAM_REWIND_EPOCH].unique())
    for place, row in enumerate(rows):
        line = numbers[numbers[cells.ROW] == row].sort_values(schema.PARAM_REWIND_EPOCH)
        shift = 0.72 * ((place + 0.5) / len(rows) - 0.5)
        x = [epochs.index(epoch) + shift for epoch in line[schema.PARAM_REWIND_EPOCH]]
        intervals.draw(axes, x, line, "minus_naive", style.look(row), along="y")
    style.ticks(axes, range(len(epochs)), map(str, epochs))
    axes.grid(False, axis="x")


def answers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the answers of the controls, one line per task and question, over a :class:`analysis.gains.Block` each.

    Columns: ``model``, ``dataset``, ``question``, ``row``, ``over``, ``cells``, ``pairs``, ``difference``, ``ci_low``,
    ``ci_high`` (percentage points, 95 % over pairs). Only questions whose two rows were measured.
    """
    by, lines = cells.axes(frame), []
    for task, scored in facets.places(cells.scores(frame), cells.TASK):
        for question, row, over in QUESTIONS:
            compared = block(scored, by, row, over)
            one = compared.gain(row, over)
            if one.n:
                place = {**task, "question": question, "row": row, "over": over}
                limits = {"difference": one.value, "ci_low": one.low, "ci_high": one.high}
                lines.append({**place, "cells": compared.cells, "pairs": compared.pairs, **limits})
    columns = [*cells.TASK, "question", "row", "over", "cells", "pairs", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(lines, columns=columns)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the questions with their answers as people read them."""
    answered = answers(frame)
    named = facets.several_tasks(answered)
    lines = []
    for line in answered.to_dict("records"):
        difference = stats.Estimate(line["pairs"], line["difference"], line["ci_low"], line["ci_high"])
        shown = labels.place(line, named) | {
            "question": line["question"],
            "compared": f"{labels.method(line['row'])} {MINUS} {labels.method(line['over']).lower()}",
        }
        lines.append({**shown, "points [95 % CI] (n)": str(difference), "cells": str(line["cells"])})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [
            f"No control was measured; a space asks for them by method={','.join(CONTROLS)}, as mask_controls does."
        ]
    missing = [labels.method(name) for name in CONTROLS if name not in set(numbers[cells.ROW])]
    return labels.said({f"Not measured: {labels.listed(missing)}.": missing}) + facets.left_out(frame)
