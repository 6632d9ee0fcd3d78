"""Means with confidence intervals, on an axis whose scale a few wide intervals do not determine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes

from analysis.drawing import style

REACH = 2.5
"""An axis extends to at most this multiple of the largest mean; the interval of two pairs would dwarf all others."""


def limits(numbers: pd.DataFrame, mean: str) -> tuple[float, float]:
    """Return the ends of an axis that shows zero, all means, and all intervals up to ``REACH``.

    Args:
        numbers: at least one line, with ``ci_low`` and ``ci_high``, NaN where there is no interval.
        mean: column of the means.
    """
    means = numbers[mean]
    reach = REACH * float(means.abs().max())
    bottom = min(0.0, float(means.min()), max(-reach, float(numbers["ci_low"].fillna(means).min())))
    top = max(0.0, float(means.max()), min(reach, float(numbers["ci_high"].fillna(means).max())))
    margin = 0.06 * (top - bottom)
    return (bottom - margin, top + margin) if margin else (-1.0, 1.0)


def draw(
    axes: Axes,
    places: Sequence[float],
    numbers: pd.DataFrame,
    mean: str,
    look: style.Look,
    *,
    along: Literal["x", "y"],
    hollow: pd.Series | None = None,
) -> None:
    """Draw a marker at each mean and a line over its interval, with an arrow where the interval leaves the panel.

    Args:
        axes: the panel, whose limits are set.
        places: positions on the other axis.
        numbers: as in :func:`limits`.
        mean: likewise.
        look: colour and marker.
        along: the axis of the means.
        hollow: which markers are drawn as outlines; by default none.
    """

    def plot(place: float, values: Sequence[float], **drawn: Any) -> None:
        spots = [place] * len(values)
        axes.plot(*((values, spots) if along == "x" else (spots, values)), **{"color": look.colour, **drawn})

    first, last = axes.get_xlim() if along == "x" else axes.get_ylim()
    arrows = "<>" if along == "x" else "v^"
    outlined = [False] * len(numbers) if hollow is None else hollow
    columns = (numbers[name] for name in (mean, "ci_low", "ci_high"))
    for place, value, low, high, empty in zip(places, *columns, outlined, strict=True):
        if not pd.isna(low):
            plot(place, [max(low, first), min(high, last)], linewidth=1.4)
        for beyond, end, arrow in zip((low < first, high > last), (first, last), arrows, strict=True):
            if beyond:
                plot(place, [end], marker=arrow, markersize=4, clip_on=False)
        plot(place, [value], **style.mark(look) | (style.OPEN if empty else {}))
