"""Figure: what permuting the mask gains over reusing it as it is, cell by cell: a forest plot."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, intervals, style
from analysis.drawing.signs import DASH, MINUS
from analysis.figures import accuracy_table
from analysis.memo import once
from trainables import schema
from trainables.methods import COMPARED

TITLE = "What permuting the mask gains, cell by cell"
SHARED = (
    f"Test accuracy of the permuted net {MINUS} that of the naive net of the same pair (A, B), in percentage points: "
    "mean and 95 % t interval over n pairs. Gap closed: share of the gap from naive to LTH that permuting closes; "
    f"{DASH} where LTH is not ahead of naive by more than a standard error."
)
CAPTION = (
    f"{SHARED} A line per rewind epoch. Filled markers: p < {stats.LEVEL} in the paired t test after Holm's correction "
    "over all cells of the study. Diamonds: mean over the rewind epochs from 1 on. On the right: gap closed. The "
    "panels of a row share their scale; an arrow means that the interval extends beyond the panel."
)
TABLE_CAPTION = (
    f"{SHARED} Several rewind epochs are averaged within each pair. The interval of the gap closed is Fieller's 95 % "
    "interval over pairs."
)
DRAWN = style.look(cells.PERMUTED)
POOLED = style.Look(colour=style.INK, marker="d", dash="None")
MEAN = "permuted_minus_naive"
COLUMNS = (MEAN, "ci_low", "ci_high", "pairs", "p")
SHARES = ("lth_minus_naive", "lth_minus_permuted", "share_closed", "share_low", "share_high")


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell that has a pair with both nets, and one for each mean over rewind epochs.

    Columns: the cell's axes; ``cells``, the number of cells that the line averages: a line without a rewind epoch is
    the mean over the epochs from 1 on that all its pairs have (:func:`analysis.cells.complete`);
    ``permuted_minus_naive``, ``ci_low``, ``ci_high`` (percentage points, 95 %), ``pairs``, ``p``; ``p_holm``, adjusted
    for the number of single cells; ``lth_minus_naive``, ``lth_minus_permuted`` (percentage points, over the pairs that
    have all three); ``share_closed`` with ``share_low``, ``share_high`` (:func:`analysis.stats.paired_share`), missing
    where LTH is not ahead of naive by more than a standard error.
    """
    by = cells.axes(frame)
    pairs = cells.paired(cells.scores(frame), by).reindex(columns=list(COMPARED)).reset_index()
    pairs = pairs.dropna(subset=[cells.PERMUTED, cells.NAIVE])
    lines = [place | _line(group) for place, group in facets.places(pairs, by)]
    result = pd.DataFrame([*lines, *_pooled(pairs, by)], columns=[*by, "cells", *COLUMNS, "p_holm", *SHARES])
    single = result["cells"] == 1
    result.loc[single, "p_holm"] = stats.holm(result.loc[single, "p"].tolist())
    result = result.astype({schema.PARAM_REWIND_EPOCH: "Int64", "p_holm": float})
    return result.sort_values([*by], na_position="last", ignore_index=True)


def _line(pairs: pd.DataFrame, count: int = 1) -> dict[str, Any]:
    lth, naive, permuted = cells.observations(pairs, *COMPARED)
    gaps = {
        "lth_minus_naive": stats.paired_difference(lth, naive).value,
        "lth_minus_permuted": stats.paired_difference(lth, permuted).value,
    }
    return {"cells": count, **gaps, **accuracy_table.comparison(pairs)}


def _pooled(pairs: pd.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    """Return a line per place with several rewind epochs from 1 on: means over epochs, intervals over pairs."""
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    late = pairs[pairs[schema.PARAM_REWIND_EPOCH] > 0]
    lines = []
    for place, group in facets.places(late, apart):
        chosen = group[cells.complete(group[cells.PAIR], group[schema.PARAM_REWIND_EPOCH])]
        count = chosen[schema.PARAM_REWIND_EPOCH].nunique()
        if count > 1:
            common = chosen.groupby(cells.PAIR)[list(COMPARED)]
            line = _line(common.mean().where(common.count() == count).reset_index(), count)
            lines.append({**place, schema.PARAM_REWIND_EPOCH: pd.NA, **line})
    return lines


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    numbers = table(frame)
    drawn, panels = grid.panels(
        numbers,
        cells.axes(frame),
        across=schema.PARAM_WIDTH,
        without=[schema.PARAM_REWIND_EPOCH],
        x=f"Permuted {MINUS} naive (pp)",
        y=style.AXES[schema.PARAM_REWIND_EPOCH],
        listed=True,
    )
    for line in panels:
        limits = intervals.limits(pd.concat([panel.lines for panel in line]), MEAN)
        for panel in line:
            panel.title(panel.lines["pairs"], beside=0.5)
            if len(panel.lines):
                _draw(panel.axes, panel.lines, limits)
    if panels:
        handles = [
            style.handle(f"p < {stats.LEVEL} (Holm)", DRAWN),
            style.handle("not significant", DRAWN, **style.OPEN),
            style.handle("as good as naive", style.look(cells.NAIVE), marker="None"),
        ]
        if (numbers["cells"] > 1).any():
            handles.append(style.handle("mean, rewind epochs ≥ 1", POOLED))
        style.legend(drawn, handles)
    return drawn


def _draw(axes: Axes, numbers: pd.DataFrame, limits: tuple[float, float]) -> None:
    axes.set_xlim(*limits)
    axes.axvline(0, color=style.look(cells.NAIVE).colour, linewidth=1.1)
    axes.grid(False, axis="y")
    single, pooled = numbers[numbers["cells"] == 1], numbers[numbers["cells"] > 1]
    hollow = ~(single["p_holm"] < stats.LEVEL)
    intervals.draw(axes, range(len(single)), single, MEAN, DRAWN, along="x", hollow=hollow)
    intervals.draw(axes, range(len(single), len(numbers)), pooled, MEAN, POOLED, along="x")
    texts = [labels.value(schema.PARAM_REWIND_EPOCH, epoch) for epoch in single[schema.PARAM_REWIND_EPOCH]]
    heights = range(len(numbers))
    axes.set_yticks(heights, [*texts, *["mean"] * len(pooled)])
    axes.set_ylim(len(numbers) - 0.4, -0.6)
    with style.themed():
        beside = axes.twinx()
    beside.set_ylim(*axes.get_ylim())
    shares = [*single["share_closed"], *pooled["share_closed"]]
    beside.set_yticks(heights, [stats.format_share(share) or DASH for share in shares])
    beside.tick_params(axis="y", length=0, labelsize=7.5)
    beside.grid(False)
    beside.spines[:].set_visible(False)
    style.label(beside, y="Gap closed" if style.place(axes).is_last_col() else "")


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over rewind epochs at each place as people read it, or its cells where there is no mean."""
    numbers, by = table(frame), cells.axes(frame)
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    most = numbers.groupby(apart, dropna=False)["cells"].transform("max")
    lines = []
    for line in numbers[(numbers["cells"] > 1) | (most == 1)].to_dict("records"):
        shown = labels.place(line, facets.told_apart(numbers, by, hide=[schema.PARAM_REWIND_EPOCH]))
        gap = stats.format_difference(line["lth_minus_naive"])
        gain = stats.Estimate(line["pairs"], line[MEAN], line["ci_low"], line["ci_high"])
        share = stats.format_share(*(line[name] for name in ("share_closed", "share_low", "share_high")))
        epoch = labels.value(schema.PARAM_REWIND_EPOCH, line[schema.PARAM_REWIND_EPOCH])
        shown[labels.SEVERAL_EPOCHS] = f"{line['cells']} (all ≥ 1)" if line["cells"] > 1 else epoch
        shown[f"Permuted {MINUS} naive [95 % CI] (n)"] = str(gain)
        lines.append({**shown, f"LTH {MINUS} naive": gap, "Gap closed [95 % CI]": share or DASH})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    single = numbers[numbers["cells"] == 1]
    if single.empty:
        return ["No pair of nets has both a permuted and a naive result yet."]
    alone = single["pairs"] == 1
    small = single["share_closed"].isna() & single["lth_minus_naive"].notna()
    loose = single["share_closed"].notna() & single["share_low"].isna() & ~alone
    found = {
        "{} with a single pair, without an interval.": alone,
        "In {} LTH is not ahead of naive by more than a standard error, so there is no share of the gap.": small,
        "In {} the share has no interval, because LTH is not significantly ahead of naive or because the pairs do not "
        "vary.": loose,
    }
    said = {text.format(labels.plural(int(cell.sum()), "cell")): cell.any() for text, cell in found.items()}
    return labels.said(said) + facets.left_out(frame)
