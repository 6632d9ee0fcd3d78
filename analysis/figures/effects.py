"""Figure: what permuting the mask gains over reusing it as it is, cell by cell, with intervals: a forest plot.

Run it alone with ``python -m analysis.figures.effects --space NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import cells, labels, stats
from analysis.drawing import facets, intervals, style
from analysis.drawing.signs import DASH, MINUS
from analysis.figures import accuracy_table
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema

__all__ = ["CAPTION", "TITLE", "figure", "formatted", "load", "notes", "table"]

TITLE = "What permuting the mask gains, cell by cell"
CAPTION = (
    f"Test accuracy of the permuted net {MINUS} that of the naive net of the same pair (A, B), in percentage points: "
    "mean and 95 % t interval over n pairs, a line per rewind epoch. Filled marks: p < 0.05 in the paired t test after "
    "Holm's correction over all cells of the study. Bars below: mean over the rewind epochs from 1 on, interval over "
    f"pairs. On the right: share of the way from naive to LTH that permuting covers, {DASH} where LTH is not ahead of "
    "naive by more than a standard error; in the table with Fieller's 95 % interval over pairs. The panels of one "
    "row share their scale; arrows: the interval goes on."
)
LEVEL = 0.05
DRAWN = style.look(cells.PERMUTED)
COMPARED = (cells.PERMUTED, cells.NAIVE, cells.LTH)
COLUMNS = ("permuted_minus_naive", "ci_low", "ci_high", "pairs", "p")
SHARES = ("lth_minus_naive", "lth_minus_permuted", "share_closed", "share_low", "share_high")


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell that has a pair with both nets, and one for each mean over rewind epochs.

    Columns: the cell's axes; ``cells``, how many cells the line is the mean of: a line without a rewind epoch is that
    over the epochs from 1 on that all its pairs have; ``permuted_minus_naive``, ``ci_low``, ``ci_high`` (percentage
    points, 95 %), ``pairs``, ``p``; ``p_holm``, adjusted for the number of single cells; ``lth_minus_naive``,
    ``lth_minus_permuted`` (percentage points, over the pairs that have all three); ``share_closed`` with ``share_low``,
    ``share_high`` (:func:`analysis.stats.paired_share`), missing where the gap from naive to LTH is too small.
    """
    by = cells.axes(frame)
    pairs = cells.paired(cells.scores(frame), by).reindex(columns=list(COMPARED)).reset_index()
    pairs = pairs.dropna(subset=[cells.PERMUTED, cells.NAIVE])
    lines = [_line(group, by, cell) for cell, group in pairs.groupby(by, dropna=False)]
    lines += _pooled(pairs, by)
    result = pd.DataFrame(lines, columns=[*by, "cells", *COLUMNS, "p_holm", *SHARES])
    single = result["cells"] == 1
    result.loc[single, "p_holm"] = stats.holm(result.loc[single, "p"].tolist())
    result = result.astype({schema.PARAM_REWIND_EPOCH: "Int64", "p_holm": float})
    return result.sort_values([*by], na_position="last", ignore_index=True)


def _line(pairs: pd.DataFrame, by: Sequence[str], cell: Sequence[Any], count: int = 1) -> dict[str, Any]:
    permuted, naive, lth = pairs[list(COMPARED)].to_numpy(dtype=float).T
    gaps = {
        "lth_minus_naive": stats.summarize(lth - naive).mean,
        "lth_minus_permuted": stats.summarize(lth - permuted).mean,
    }
    return {**dict(zip(by, cell, strict=True)), "cells": count, **gaps, **accuracy_table.comparison(pairs)}


def _pooled(pairs: pd.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    """Return a line per place that has several rewind epochs from 1 on: means over them, intervals over pairs."""
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    late = pairs[pairs[schema.PARAM_REWIND_EPOCH] > 0]
    lines = []
    for place, group in late.groupby(apart, dropna=False):
        present = group.groupby(schema.PARAM_REWIND_EPOCH)[cells.PAIR].nunique()
        shared = present.index[present == group[cells.PAIR].nunique()]
        if len(shared) > 1:
            common = group[group[schema.PARAM_REWIND_EPOCH].isin(shared)].groupby(cells.PAIR)[list(COMPARED)]
            line = _line(common.mean().where(common.count() == len(shared)), apart, place, len(shared))
            lines.append({schema.PARAM_REWIND_EPOCH: pd.NA, **line})
    return lines


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity (and task, and varied recipe), columns by width."""
    by = cells.axes(frame)
    numbers = table(frame)
    rows, columns = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_REWIND_EPOCH)
    drawn, panels = style.panels(max(len(rows), 1), max(len(columns), 1))
    names = facets.told_apart(numbers, by, hide=schema.PARAM_REWIND_EPOCH)
    for place, line in zip(rows, panels, strict=False):
        limits = intervals.limits(*_values(facets.at(numbers, place)))
        for width, axes in zip(columns, line, strict=True):
            panel = {**place, schema.PARAM_WIDTH: width}
            here = facets.at(numbers, panel)
            style.title(axes, labels.cell(panel, names), facets.count(here["pairs"]), beside=0.5)
            _panel(axes, here, limits, last=width == columns[-1])
        line[0].set_ylabel(style.AXES[schema.PARAM_REWIND_EPOCH])
    if not rows:
        style.empty(panels[0][0])
    for axes in panels[-1]:
        axes.set_xlabel(f"Permuted {MINUS} naive (pp)")
    if rows:
        _legend(drawn, pooled=bool((numbers["cells"] > 1).any()))
    return drawn


def _values(numbers: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    return numbers["permuted_minus_naive"], numbers["ci_low"], numbers["ci_high"]


def _panel(axes: Axes, numbers: pd.DataFrame, limits: tuple[float, float], *, last: bool) -> None:
    if numbers.empty:
        style.empty(axes)
        return
    axes.set_xlim(*limits)
    axes.axvline(0, color=style.look(cells.NAIVE).colour, linewidth=1.1)
    axes.grid(False, axis="y")
    single, pooled = numbers[numbers["cells"] == 1], numbers[numbers["cells"] > 1]
    hollow = ~(single["p_holm"] < LEVEL)
    intervals.draw(axes, range(len(single)), *_values(single), DRAWN, along="x", hollow=hollow.tolist())
    for height, (_, one) in enumerate(pooled.iterrows(), start=len(single)):
        _diamond(axes, height, one, half=min(0.28, 0.04 * len(numbers)))
    texts = [labels.value(schema.PARAM_REWIND_EPOCH, epoch) for epoch in single[schema.PARAM_REWIND_EPOCH]]
    heights = range(len(numbers))
    axes.set_yticks(heights, [*texts, *["mean"] * len(pooled)])
    axes.set_ylim(len(numbers) - 0.4, -0.6)
    with style.themed():
        beside = axes.twinx()
    beside.set_ylim(*axes.get_ylim())
    beside.set_yticks(heights, [_share(share) for share in [*single["share_closed"], *pooled["share_closed"]]])
    beside.tick_params(axis="y", length=0, labelsize=7.5)
    beside.grid(False)
    beside.spines[:].set_visible(False)
    beside.set_ylabel("Share of gap closed" if last else "")


def _diamond(axes: Axes, height: int, one: pd.Series, half: float) -> None:
    """Draw a mean over several cells as wide as its interval; a mark alone where it has none."""
    mean = one["permuted_minus_naive"]
    low, high = (mean if pd.isna(one[name]) else one[name] for name in ("ci_low", "ci_high"))
    axes.fill([low, mean, high, mean], [height, height - half, height, height + half], color=style.INK, linewidth=0)
    axes.plot(mean, height, marker="d", markersize=4, color=style.INK, linestyle="none")


def _share(share: float) -> str:
    return DASH if pd.isna(share) else f"{100 * share:.0f} %".replace("-", MINUS)


def _legend(drawn: Figure, *, pooled: bool) -> None:
    handles = [
        Line2D([], [], **intervals.mark(DRAWN), label="p < 0.05 (Holm)"),
        Line2D([], [], **intervals.mark(DRAWN, hollow=True), label="not significant"),
        Line2D([], [], color=style.look(cells.NAIVE).colour, linewidth=1.1, label="as good as naive"),
    ]
    if pooled:
        handles.append(Line2D([], [], linestyle="none", color=style.INK, marker="d", label="mean, rewind epochs ≥ 1"))
    wide = drawn.get_size_inches()[0] > 7
    with style.themed():
        drawn.legend(handles=handles, loc="outside upper left", ncols=4 if wide else 2, handlelength=2.2)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the means over rewind epochs as people read them, or the cells if none has several."""
    numbers, by = table(frame), cells.axes(frame)
    pooled = numbers[numbers["cells"] > 1]
    lines = []
    for line in (numbers if pooled.empty else pooled).to_dict("records"):
        names = [name for name in facets.told_apart(numbers, by, hide="") if name != schema.PARAM_REWIND_EPOCH]
        shown = {labels.axis(name): labels.value(name, line[name]) for name in names}
        gap = stats.format_difference(line["lth_minus_naive"], stats.NAN, stats.NAN)
        interval = stats.format_difference(*(line[name] for name in ("permuted_minus_naive", "ci_low", "ci_high")))
        share = stats.Share(n=0, value=line["share_closed"], low=line["share_low"], high=line["share_high"])
        epoch = labels.value(schema.PARAM_REWIND_EPOCH, line[schema.PARAM_REWIND_EPOCH])
        shown["rewind epochs"] = f"{line['cells']} (all ≥ 1)" if line["cells"] > 1 else epoch
        shown[f"Permuted {MINUS} naive [95 % CI] (n)"] = f"{interval} ({line['pairs']})"
        lines.append({**shown, f"LTH {MINUS} naive": gap, "Gap closed [95 % CI]": str(share) or DASH})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    single = numbers[numbers["cells"] == 1]
    if single.empty:
        return ["No pair of nets has both a permuted and a naive result yet."]
    said = []
    alone = single["pairs"] == 1
    if alone.any():
        said.append(f"{labels.plural(int(alone.sum()), 'cell')} of one pair each, without an interval.")
    small = single["share_closed"].isna() & single["lth_minus_naive"].notna()
    if small.any():
        said.append(
            f"In {labels.plural(int(small.sum()), 'cell')} the gap between naive and LTH is too small (within a "
            "standard error of nothing) to ask for a share of it."
        )
    loose = single["share_closed"].notna() & single["share_low"].isna() & ~alone
    if loose.any():
        said.append(
            f"In {labels.plural(int(loose.sum()), 'cell')} LTH is not ahead of naive with confidence, or the pairs do "
            "not vary, so that the share has no interval."
        )
    by = cells.axes(frame)
    return said + facets.left_out(frame) + facets.cut_off(numbers, by, schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import effects

    command.run_module(effects)
