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
from analysis.drawing import facets, style
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
"""Axes that have rows of panels: B after some epochs of training is another net than B at the end."""
CURVES = (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
BARRIERS = (schema.ERROR_BARRIER, schema.LOSS_BARRIER)
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
    """Return both barriers by task, match epoch, width, matcher and correction, one line each: n, mean, std and sem.

    Error barrier in percentage points, loss barrier in nats; ``measure`` says which. Match epoch: epochs of B's
    training, -1 for all.
    """
    measured = _with_epoch(frame.drop_duplicates("run_id"))
    return facets.spread(facets.finite(measured, BARRIERS), [*PLACE, schema.PARAM_WIDTH, *HOW], BARRIERS)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: two rows of panels per task (and match epoch), a column per width and one for the barriers."""
    frame = _with_epoch(frame)
    places = frame[list(PLACE)].drop_duplicates().sort_values(list(PLACE)).to_dict("records")
    widths = sorted(frame[schema.PARAM_WIDTH].unique())
    names = facets.told_apart(frame, PLACE, always=())
    names = [*dict.fromkeys([*(cells.TASK if set(names) & set(cells.TASK) else ()), *names]), schema.PARAM_WIDTH]
    drawn_as = looks(frame)
    drawn, panels = style.panels(2 * max(len(places), 1), max(len(widths), 1) + 1)
    for number, place in enumerate(places):
        here = facets.at(frame, place)
        for curve, barrier, line in zip(CURVES, BARRIERS, panels[2 * number : 2 * number + 2], strict=True):
            for width, axes in zip(widths, line, strict=False):
                panel = {**place, schema.PARAM_WIDTH: width}
                _curve(axes, curve, facets.at(here, panel), drawn_as, labels.cell(panel, names))
            _barrier(line[-1], barrier, table(here), drawn_as)
            line[0].set_ylabel(style.AXES[curve])
    for axes in panels[-1][:-1]:
        axes.set_xlabel(style.AXES["alpha"])
    panels[-1][-1].set_xlabel(style.AXES[schema.PARAM_WIDTH])
    for axes in itertools.chain(*panels) if not places else ():
        style.empty(axes, ABSENT)
    style.legend(drawn, [(_name(how, drawn_as), look) for how, look in drawn_as.items()])
    return drawn


def _with_epoch(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a match epoch everywhere."""
    return frame.assign(**{schema.PARAM_MATCH_EPOCH: frame[schema.PARAM_MATCH_EPOCH].fillna(cells.END)})


def looks(frame: pd.DataFrame) -> dict[How, style.Look]:
    """Return how the lines are drawn, by (matcher, correction): colour tells matchers apart, the dash corrections."""
    hows = sorted({(str(how[0]), str(how[1])) for how in frame[list(HOW)].itertuples(index=False)}, key=_first_identity)
    matchers = list(dict.fromkeys(matcher for matcher, _ in hows if matcher != IDENTITY))
    corrections = sorted({correction for _, correction in hows})
    drawn = {}
    for matcher, correction in hows:
        look = BEFORE if matcher == IDENTITY else AFTER[matchers.index(matcher) % len(AFTER)]
        dash = DASHES[corrections.index(correction) % len(DASHES)]
        drawn[matcher, correction] = dataclasses.replace(look, dash=dash)
    return drawn


def _first_identity(how: How) -> tuple[bool, How]:
    return how[0] != IDENTITY, how


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
    axes.set_ylabel(style.AXES[barrier])
    numbers = numbers[numbers["measure"] == barrier]
    if numbers.empty:
        style.empty(axes, ABSENT)
        return
    for how, look in drawn.items():
        line = facets.at(numbers, dict(zip(HOW, how, strict=True))).sort_values(schema.PARAM_WIDTH)
        style.errorbars(axes, line[schema.PARAM_WIDTH], line, look)
    style.title(axes, "", facets.count(numbers["n"]))
    style.width_axis(axes, sorted(numbers[schema.PARAM_WIDTH].unique()))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if frame.empty:
        return ["No interpolation between A and B has finished; a space asks for it by interpolation_points."]
    said = []
    infinite = frame.loc[~np.isfinite(frame[list(CURVES)].astype(float)).all(axis=1), "run_id"].nunique()
    if infinite:
        said.append(
            f"{labels.plural(infinite, 'curve')} with a missing or infinite value at some {ALPHA}, left out there."
        )
    matchers = set(frame[schema.PARAM_MATCHER])
    if IDENTITY not in matchers:
        said.append("Nothing was measured before matching.")
    elif matchers == {IDENTITY}:
        said.append("Nothing was measured after matching yet.")
    return said
