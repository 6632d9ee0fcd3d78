"""Means with confidence intervals, on an axis whose scale a few wide intervals do not determine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes

from analysis.drawing import style

REACH = 2.5
"""An axis extends to at most this multiple of the largest mean; the interval of two pairs would dwarf all others."""


def limits(mean: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Return the ends of an axis that shows zero, all means, and all intervals up to ``REACH``.

    Args:
        mean: the means, at least one.
        low: lower ends of their intervals, NaN where there is none.
        high: upper ends, likewise.
    """
    reach = REACH * float(mean.abs().max())
    bottom = min(0.0, float(mean.min()), max(-reach, float(low.fillna(mean).min())))
    top = max(0.0, float(mean.max()), min(reach, float(high.fillna(mean).max())))
    margin = 0.06 * (top - bottom)
    return (bottom - margin, top + margin) if margin else (-1.0, 1.0)


def draw(
    axes: Axes,
    places: Sequence[float],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    look: style.Look,
    *,
    along: Literal["x", "y"],
    hollow: Sequence[bool] = (),
) -> None:
    """Draw a marker at each mean and a line over its interval, with an arrow where the interval leaves the panel.

    Args:
        axes: the panel, whose limits are set.
        places: positions on the other axis.
        mean: the means.
        low: lower ends of their intervals, NaN where there is none.
        high: upper ends, likewise.
        look: colour and marker.
        along: the axis of the means.
        hollow: which markers are drawn as outlines; by default none.
    """
    ends = axes.get_xlim() if along == "x" else axes.get_ylim()
    arrows = "<>" if along == "x" else "v^"
    outlined = list(hollow) or [False] * len(places)
    for place, value, bottom, top, empty in zip(places, mean, low, high, outlined, strict=True):
        inside = [min(max(end, ends[0]), ends[1]) for end in (bottom, top) if not pd.isna(end)]
        _plot(axes, along, inside, [place] * len(inside), color=look.colour, linewidth=1.4)
        for end, limit, arrow, beyond in zip(
            (bottom, top), ends, arrows, (bottom < ends[0], top > ends[1]), strict=True
        ):
            if beyond and not pd.isna(end):
                _plot(axes, along, [limit], [place], color=look.colour, marker=arrow, markersize=4, clip_on=False)
        _plot(axes, along, [value], [place], **mark(look, hollow=empty))


def mark(look: style.Look, *, hollow: bool = False) -> dict[str, Any]:
    """Return how a mean is drawn, as keywords of ``plot``."""
    face = "none" if hollow else look.colour
    edge = {"markeredgewidth": 1.1 if hollow else 0.0, "markeredgecolor": look.colour}
    size = 8 if look.marker == "*" else 5  # a star has little area for its height
    return {"color": look.colour, "marker": look.marker, "markersize": size, "markerfacecolor": face, **edge}


def _plot(axes: Axes, along: str, values: Sequence[float], places: Sequence[float], **drawn: Any) -> None:
    axes.plot(*((values, places) if along == "x" else (places, values)), **drawn)
