"""Panels laid out by place in the grid of a study: a column per value of one axis, a row per place on the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import labels
from analysis.drawing import facets, style

MOST_ROWS = 12
"""Rows of panels in a figure, at most; the rest of a larger study (one of sampled recipes, say) is in the tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel of a figure.

    Attributes:
        axes: what to draw on.
        place: axis of the grid -> the panel's value.
        heading: the place in words.
        lines: the numbers at this place; the panel is already marked as empty if there are none.
    """

    axes: Axes
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
    x: str,
    y: str = "",
    without: Collection[str] = (),
    columns: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    absent: str = "no finished run",
    tall: float = 0.56,
    wrap: bool = False,
) -> tuple[Figure, list[list[Panel]]]:
    """Return a figure and its rows of panels, labelled but not drawn; no rows if there are no numbers.

    Args:
        numbers: what the figure shows, a line per place and whatever its panels compare.
        by: the axes of the grid.
        across: the axis whose values are the columns of panels; all axes not named otherwise make up the rows.
        x: label of the horizontal axes.
        y: label of the vertical axes.
        without: axes along which a panel draws.
        columns: values of the columns; by default all that `numbers` has, sorted.
        names: axes that headings name; by default those of :func:`analysis.drawing.facets.told_apart`.
        absent: text of a panel without numbers.
        tall: as in :func:`analysis.drawing.style.panels`.
        wrap: likewise.
    """
    rows = _rows(numbers, by, across, without).head(MOST_ROWS).to_dict("records")
    values = sorted(numbers[across].unique()) if columns is None else columns
    figure, drawn = style.panels(max(len(rows), 1), max(len(values), 1), tall, wrap=wrap)
    style.axis_labels(drawn, x, y)
    if not rows:
        for axes in drawn[0]:
            style.empty(axes, absent)
    named = facets.told_apart(numbers, by, hide=without) if names is None else names
    laid_out: list[list[Panel]] = []
    for row, line in zip(rows, drawn, strict=False):
        laid_out.append([])
        for value, axes in zip(values, line, strict=True):
            place = {**row, across: value}
            here = facets.at(numbers, place)
            if here.empty:
                style.empty(axes, absent)
            laid_out[-1].append(Panel(axes=axes, place=place, heading=labels.cell(place, named), lines=here))
    return figure, laid_out


def _rows(numbers: pd.DataFrame, by: Sequence[str], across: str, without: Collection[str]) -> pd.DataFrame:
    down = [name for name in by if name != across and name not in without]
    return numbers[down].drop_duplicates().sort_values(down)


def cut_off(numbers: pd.DataFrame, by: Sequence[str], across: str = "", without: Collection[str] = ()) -> list[str]:
    """Return a sentence if there are more rows of panels than a figure holds."""
    more = len(_rows(numbers, by, across, without)) - MOST_ROWS
    return [f"{labels.plural(more, 'more row')} of panels left to the table."] if more > 0 else []
