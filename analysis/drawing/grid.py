"""Panels laid out by place in the grid of a study: a column per value of one axis, a row per place on the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, style
from trainables import schema

UNPAIRED = (cells.DENSE, cells.IMP)
"""Rows without a net B, which the number of pairs in a title does not count."""
APART = 0.011
"""Distance between the markers of neighbouring lines at the same place, as a share of the axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel of a figure.

    Attributes:
        axes: what to draw on.
        leads: whether it is the first of its row, or of a line of it.
        place: axis of the grid -> the panel's value.
        heading: the place in words.
        lines: the numbers at this place; the panel is already marked as empty if there are none.
    """

    axes: Axes
    leads: bool
    place: dict[str, Any]
    heading: str
    lines: pd.DataFrame

    def title(self, counts: pd.Series, beside: float = 0.0) -> None:
        """Write the heading and ``n`` above the panel; `beside` as in :func:`analysis.drawing.style.title`."""
        style.title(self.axes, self.heading, facets.count(counts), beside)


def panels(
    numbers: pd.DataFrame,
    by: Sequence[str],
    *,
    across: str,
    x: str | Mapping[Any, str],
    y: str | Mapping[Any, str] = "",
    without: Collection[str] = (),
    names: Sequence[str] | None = None,
    absent: str = "no finished run",
    tall: float = 0.56,
    wrap: bool = False,
    listed: bool = False,
) -> tuple[Figure, list[list[Panel]]]:
    """Return a figure and its rows of panels, labelled but not drawn; no rows if there are no numbers.

    A footnote says how many rows the medium has no room for: at every place on the other axes those of the lowest
    sparsities, because the more weights are pruned, the more it matters which.

    Args:
        numbers: what the figure shows, a line per place and whatever its panels compare.
        by: the axes of the grid.
        across: the axis whose values are the columns of panels; all axes not named otherwise make up the rows.
        x: label of the horizontal axes, for the lowest panels; or column -> its own, which says what columns there are,
            for panels above none with the same.
        y: label of the vertical axes, for the leftmost panels; or likewise.
        without: axes along which a panel draws.
        names: axes that headings name; by default those of :func:`analysis.drawing.facets.told_apart`.
        absent: text of a panel without numbers.
        tall: as in :func:`analysis.drawing.style.panels`.
        wrap: likewise.
        listed: whether the vertical axis of a panel has a label for each line of its numbers.
    """
    down = [name for name in by if name != across and name not in without]
    rows = numbers[down].drop_duplicates().sort_values(down, ignore_index=True)
    named_columns = x if isinstance(x, Mapping) else y if isinstance(y, Mapping) else sorted(numbers[across].unique())
    values = list(named_columns)
    entries = numbers.groupby([*down, across], dropna=False).size().max() if listed and len(numbers) else 0
    figure, drawn = style.panels(max(len(rows), 1), max(len(values), 1), tall, wrap=wrap, entries=entries)
    if rows.empty:
        for axes in drawn[0]:
            style.empty(axes, absent)
    named = facets.told_apart(numbers, by, hide=without) if names is None else names
    laid_out: list[list[Panel]] = []
    stacks: dict[int, list[tuple[Axes, str]]] = {}
    for row, line in zip(_kept(rows, len(drawn)).to_dict("records"), drawn, strict=False):
        laid_out.append([])
        for value, axes in zip(values, line, strict=True):
            place, spot = {**row, across: value}, style.place(axes)
            stacks.setdefault(spot.colspan.start, []).append((axes, x if isinstance(x, str) else x[value]))
            leads = value == values[0] or spot.is_first_col()
            if not isinstance(y, str) or spot.is_first_col():
                style.label(axes, y=y if isinstance(y, str) else y[value])
            here = facets.at(numbers, place)
            if here.empty:
                style.empty(axes, absent)
            heading = labels.cell(place, named)
            laid_out[-1].append(Panel(axes=axes, leads=leads, place=place, heading=heading, lines=here))
    for stack in stacks.values():
        below = [*(text for _, text in stack[1:]), None]
        for (axes, text), other in zip(stack, below, strict=True):
            if text != other:
                style.label(axes, x=text)
    if len(rows) > len(drawn):
        more = labels.plural(len(rows) - len(drawn), "more row of panels", "more rows of panels")
        denser = schema.PARAM_SPARSITY in rows and _elsewhere(rows).ngroups <= len(drawn)
        which = " of lower sparsities" if denser else ""
        with style.themed():
            figure.supxlabel(f"{more}{which} left to the table.", x=0.99, ha="right", fontsize="small")
    return figure, laid_out


def _kept(rows: pd.DataFrame, room: int) -> pd.DataFrame:
    """Return the rows to draw, at most `room`, in order: at every place on the other axes the highest sparsities."""
    if len(rows) <= room or schema.PARAM_SPARSITY not in rows:
        return rows.head(room)
    rank = _elsewhere(rows)[schema.PARAM_SPARSITY].rank(ascending=False, method="first", na_option="bottom")
    return rows.loc[rank.sort_values(kind="stable").index[:room]].sort_index()


def _elsewhere(rows: pd.DataFrame) -> Any:
    """Return rows grouped by their place on the axes other than sparsity."""
    return rows.groupby([name for name in rows if name != schema.PARAM_SPARSITY], dropna=False)


def means(
    numbers: pd.DataFrame,
    by: Sequence[str],
    *,
    along: str,
    scale: Callable[[Axes, pd.Series], Callable[[Any], float]],
    line: str = cells.ROW,
    looks: Mapping[str, tuple[str, style.Look]] | None = None,
    level: Collection[str] = (),
    absent: str = "no finished run",
    **layout: Any,
) -> tuple[Figure, list[list[Panel]]]:
    """Return a figure of means and standard deviations along an axis of the grid, several lines in each panel.

    Args:
        numbers: a line per place, position on the axis and line of a panel, with ``n``, ``mean`` and ``std``.
        by: the axes of the grid.
        along: the horizontal axis.
        scale: one of the functions ``style.*_axis``, which prepares the axis for the given values.
        line: column that tells the lines of a panel apart.
        looks: value of that column -> name in the legend and look, in order; by default those of the methods.
        level: lines that do not depend on the axis, and are drawn as a level line with a band.
        absent: text of a panel without numbers.
        layout: further arguments of :func:`panels`.
    """
    known = looks or {row: (labels.method(row), style.look(row)) for row in cells.row_order(numbers[line])}
    layout = {"x": style.AXES.get(along, ""), "without": [along], **layout}
    figure, laid_out = panels(numbers, by, absent=absent, **layout)
    for panel in itertools.chain(*laid_out):
        axes, flat = panel.axes, panel.lines[line].isin(level)
        panel.title(panel.lines.loc[~panel.lines[line].isin(UNPAIRED), "n"])
        if flat.all():
            if len(flat):
                style.empty(axes, absent)
            continue
        position = scale(axes, panel.lines.loc[~flat, along])
        step = APART * float(np.ptp(axes.get_xlim()))
        present = [name for name in known if (panel.lines.loc[~flat, line] == name).any()]
        for place, name in enumerate(present):
            means = panel.lines[panel.lines[line] == name].sort_values(along, key=lambda values: values.map(position))
            shift = step * (place - (len(present) - 1) / 2)
            style.errorbars(axes, [position(value) + shift for value in means[along]], means, known[name][1])
        for name in level:
            spread = panel.lines.loc[panel.lines[line] == name, ["mean", "std"]].drop_duplicates()
            for mean, std in spread.itertuples(index=False):
                style.level(axes, mean, std, known[name][1])
    drawn = {name: look for key, (name, look) in known.items() if (numbers[line] == key).any()}
    unmarked = {known[key][0]: {"marker": "None"} for key in level if key in known}
    style.legend(figure, [style.handle(name, look, **unmarked.get(name, {})) for name, look in drawn.items()])
    return figure, laid_out
