"""Figure: accuracy and loss on the line from net A to net B, before and after matching, and the barrier by width.

The same as the paper's figure 3.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import ALPHA
from analysis.load import curves
from analysis.memo import once
from trainables import schema

TITLE = "From net A to net B, before and after matching"
CAPTION = (
    "Test accuracy and loss on the straight line between the weights of the dense nets A "
    f"({ALPHA} = 0) and B ({ALPHA} = 1), and their barriers against width: the largest excess over the straight line "
    "between the end points' values. Before matching: A as it is. After matching: A with its units permuted. Mean ± "
    "sample standard deviation over n pairs (A, B)."
)
IDENTITY = "identity"
How = tuple[str, str]
HOW = (schema.PARAM_MATCHER, schema.PARAM_CORRECTION)
PLACE = (*cells.TASK, schema.PARAM_MATCH_EPOCH)
"""Axes that always have rows of panels: B after some epochs of training is another net than B at the end."""
CURVES = (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
BARRIERS = (schema.ERROR_BARRIER, schema.LOSS_BARRIER)
CURVE = "curve"
BESIDE = ""
"""Column of the panels that show barriers; the others are those of a width."""
ABSENT = "no pair measured"
BEFORE = style.Look(colour=style.VERMILLION, marker="s")
DASHES: tuple[style.Dash, ...] = ("-", "--", ":")
AFTER = (
    style.Look(colour=style.GREEN, marker="D"),
    style.Look(colour=style.BLUE, marker="o"),
    style.Look(colour=style.PURPLE, marker="X"),
    style.Look(colour=style.ORANGE, marker="v"),
)

load = curves


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return both barriers by place, width, matcher and correction, one line each: n, mean, std and sem.

    A place is a task and match epoch (epochs of B's training, -1 for all), and a value of every other setting in which
    the measurements differ. ``measure`` says which barrier: error in percentage points, loss in nats.
    """
    measured = cells.repeated(_with_epoch(frame.drop_duplicates("run_id")))
    by = [*_axes(measured), schema.PARAM_WIDTH, *HOW]
    return facets.spread(facets.finite(measured, BARRIERS), by, BARRIERS)


def _axes(frame: pd.DataFrame) -> list[str]:
    """Return the axes that have rows of panels."""
    return [name for name in facets.axes(frame, [*PLACE, *HOW]) if name not in HOW]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: two rows of panels per place, a column per width and one for the barriers."""
    frame, drawn_as = cells.repeated(_with_epoch(frame)), looks(frame)
    by = _axes(frame)
    widths = sorted(frame[schema.PARAM_WIDTH].unique())
    columns = {**dict.fromkeys(widths, style.AXES["alpha"]), BESIDE: style.AXES[schema.PARAM_WIDTH]}
    spots = frame[by].drop_duplicates()
    for name, values in {CURVE: CURVES, schema.PARAM_WIDTH: columns}.items():
        spots = spots.merge(pd.Series(list(values), dtype=object, name=name), how="cross")
    names = facets.told_apart(frame, by, always=())
    names = [*dict.fromkeys([*(cells.TASK if set(names) & set(cells.TASK) else ()), *names]), schema.PARAM_WIDTH]
    drawn, panels = grid.panels(spots, [*by, CURVE], across=schema.PARAM_WIDTH, names=names, x=columns, absent=ABSENT)
    for panel in itertools.chain(*panels):
        curve, width = panel.place[CURVE], panel.place[schema.PARAM_WIDTH]
        here = facets.at(frame, {name: panel.place[name] for name in by})
        if width == BESIDE:
            _barrier(panel.axes, BARRIERS[CURVES.index(curve)], table(here), drawn_as)
        else:
            _curve(panel.axes, curve, here[here[schema.PARAM_WIDTH] == width], drawn_as, panel.heading)
            if panel.leads:
                style.label(panel.axes, y=style.AXES[curve])
    style.legend(drawn, [style.handle(_name(how, drawn_as), look) for how, look in drawn_as.items()])
    return drawn


def _with_epoch(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a match epoch everywhere."""
    return frame.assign(**{schema.PARAM_MATCH_EPOCH: frame[schema.PARAM_MATCH_EPOCH].fillna(cells.END)})


def looks(frame: pd.DataFrame) -> dict[How, style.Look]:
    """Return how the lines are drawn, by (matcher, correction): colour tells matchers apart, the dash corrections."""
    hows = sorted(map(tuple, frame[list(HOW)].drop_duplicates().to_numpy()), key=lambda how: (how[0] != IDENTITY, how))
    matchers = list(dict.fromkeys(matcher for matcher, _ in hows if matcher != IDENTITY))
    corrections = sorted({correction for _, correction in hows})
    drawn = {}
    for matcher, correction in hows:
        look = BEFORE if matcher == IDENTITY else AFTER[matchers.index(matcher) % len(AFTER)]
        dash = DASHES[corrections.index(correction) % len(DASHES)]
        drawn[matcher, correction] = dataclasses.replace(look, dash=dash)
    return drawn


def _name(how: How, drawn: Iterable[How]) -> str:
    """Return a line's name; the correction is named only if there are several."""
    matcher, correction = how
    name = "Before matching" if matcher == IDENTITY else f"After matching ({matcher})"
    return f"{name}, {correction}" if len({other for _, other in drawn}) > 1 else name


def _curve(axes: Axes, curve: str, frame: pd.DataFrame, drawn: Mapping[How, style.Look], heading: str) -> None:
    """Draw mean and standard deviation of one curve at one width."""
    style.title(axes, heading, facets.count(frame.groupby(list(HOW))["run_id"].nunique()))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    points = facets.spread(facets.finite(frame, [curve]), [*HOW, "alpha"], [curve])
    if points.empty:
        style.empty(axes, ABSENT)
    for how, look in drawn.items():
        line = facets.at(points, dict(zip(HOW, how, strict=True))).sort_values("alpha")
        spread = line["std"].fillna(0.0)
        axes.plot(line["alpha"], line["mean"], color=look.colour, linestyle=look.dash, linewidth=1.5)
        low, high = line["mean"] - spread, line["mean"] + spread
        axes.fill_between(line["alpha"], low, high, color=look.colour, alpha=0.18, linewidth=0)


def _barrier(axes: Axes, barrier: str, numbers: pd.DataFrame, drawn: Mapping[How, style.Look]) -> None:
    """Draw one barrier against width."""
    style.label(axes, y=style.AXES[barrier])
    numbers = numbers[numbers["measure"] == barrier]
    if numbers.empty:
        style.empty(axes, ABSENT)
        return
    position = style.width_axis(axes, numbers[schema.PARAM_WIDTH])
    for how, look in drawn.items():
        line = facets.at(numbers, dict(zip(HOW, how, strict=True))).sort_values(schema.PARAM_WIDTH)
        style.errorbars(axes, map(position, line[schema.PARAM_WIDTH]), line, look)
    style.title(axes, "", facets.count(numbers["n"]))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if frame.empty:
        return ["No interpolation between A and B has finished; a space asks for it by interpolation_points."]
    infinite = frame.loc[~np.isfinite(frame[list(CURVES)].astype(float)).all(axis=1), "run_id"].nunique()
    curves, matchers = labels.plural(infinite, "curve"), set(frame[schema.PARAM_MATCHER])
    return labels.said(
        {
            f"{curves} with a missing or infinite value at some {ALPHA}, left out there.": infinite,
            "Nothing was measured before matching.": IDENTITY not in matchers,
            "Nothing was measured after matching yet.": matchers == {IDENTITY},
        }
    )
