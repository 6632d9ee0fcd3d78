"""Figure: the 0-1 loss on the plane through dense A, its LTH net and the permuted net (the paper's figure 4b)."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.load import planes
from analysis.memo import once
from trainables import schema

TITLE = "The plane through dense A, LTH and permuted net"
CAPTION = (
    "Test error (percent) on the plane through three nets in weight space, all in the frame of net B: dense A and its "
    "LTH net, both permuted by the match of A onto B, and the permuted net. Contours are labelled with their error; "
    "distances are Euclidean, between parameter vectors. BatchNorm statistics are recomputed at every point if the "
    "study corrects them. Each panel shows one pair (A, B), that of the lowest seed; the table has the errors of the "
    "three nets for all n pairs."
)
NETS = (cells.DENSE, cells.LTH, cells.PERMUTED)
PLACE = (*cells.CELL, schema.PARAM_MATCHER, schema.PARAM_MATCH_EPOCH, schema.PARAM_CORRECTION)
LEVELS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 95, 99)
"""Errors in percent at which contours may be drawn."""
MOST_LEVELS = 8
GROUND = LinearSegmentedColormap.from_list("error", ["#f7fbff", "#c9ddf0", "#7fb2d9", "#60a0d0"])
"""From low error to high; light enough for dark contours and markers in any theme of the page."""
CONTOUR = "#26323d"
CLEAR = (0.1, 0.05)
"""Shares of the panel's width and height, around nets and along the edges, that are kept free of contour labels."""

load = planes


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per plane and net in it: where it lies, and its error.

    Columns: ``model``, ``dataset``, ``width``, ``sparsity``, ``rewind_epoch``, ``matcher``, ``match_epoch``,
    ``correction`` and other settings in which the planes differ; ``seed_a``, ``seed_b``; ``net``; ``x``, ``y``
    (distances in weight space: dense A is at the origin, LTH on the x axis); ``error`` (percent of the test set),
    ``loss`` (nats).
    """
    frame = cells.repeated(frame)
    columns = [*facets.axes(frame, PLACE), schema.PARAM_SEED_A, schema.PARAM_SEED_B, "net", "x", "y", "error", "loss"]
    return frame.loc[frame["net"] != "", columns].reset_index(drop=True)


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: rows of panels by sparsity, rewind epoch, task and varied setting, columns by width."""
    frame = cells.repeated(frame)
    drawn, panels = grid.panels(
        frame,
        facets.axes(frame, PLACE),
        across=schema.PARAM_WIDTH,
        x="Distance in weight space",
        y="Distance in weight space",
        absent="not measured",
        tall=0.9,
    )
    for panel in itertools.chain(*panels):
        pairs = panel.lines["run_id"].nunique()
        style.title(panel.axes, f"{panel.heading}, n = 1 of {pairs}" if pairs else panel.heading)
        if pairs:
            _draw(panel.axes, panel.lines)
    handles = [style.handle(labels.method(net), style.look(net), linestyle="None") for net in NETS]
    handles.append(style.handle("Contours: test error (%)", style.Look(colour=style.INK, marker="None")))
    style.legend(drawn, handles if panels else ())
    return drawn


def _draw(axes: Axes, frame: pd.DataFrame) -> None:
    first = frame.sort_values([schema.PARAM_SEED_A, schema.PARAM_SEED_B])["run_id"].iloc[0]
    plane = frame[frame["run_id"] == first]
    points = plane[plane["net"] == ""].pivot(index="y", columns="x", values="error")
    errors = np.ma.masked_invalid(points.to_numpy())
    levels = chosen_levels(float(errors.min()), float(errors.max()))
    bounds = [-1.0, *levels, 101.0]  # beyond all errors
    fill = [to_hex(GROUND(share)) for share in np.linspace(0, 1, len(levels) + 1)]
    axes.set_axisbelow(False)
    axes.grid(False)
    axes.contourf(points.columns, points.index, errors, bounds, colors=fill)
    lines = axes.contour(points.columns, points.index, errors, levels, colors=CONTOUR, linewidths=0.6)
    texts = axes.clabel(lines, fmt=lambda value: f"{value:g}", fontsize=7, colors=CONTOUR, inline_spacing=2)
    nets = plane[plane["net"] != ""]
    for net in nets.to_dict("records"):
        rim = {"markeredgecolor": "white", "markeredgewidth": 0.9}  # sets the net off from the contours
        axes.plot(net["x"], net["y"], **style.mark(style.look(net["net"]), 7) | rim)
    size = np.array([np.ptp(points.columns), np.ptp(points.index)])
    corner = np.array([points.columns[0], points.index[0]])
    for text in texts:
        place = (np.array(text.get_position()) - corner) / size
        apart = np.abs((nets[["x", "y"]].to_numpy() - corner) / size - place)
        if (np.minimum(place, 1 - place) < CLEAR).any() or (apart < CLEAR).all(axis=1).any():
            text.remove()  # it would be cut off, or overlap a net's marker
    axes.set_aspect("equal")
    axes.set_anchor("W")  # where the title starts


def chosen_levels(low: float, high: float) -> list[float]:
    """Return the errors to draw contours at: round ones between the extremes, most of them low, at least one."""
    inside = [float(level) for level in LEVELS if low < level < high] or [(low + high) / 2]
    step = -(-len(inside) // MOST_LEVELS)
    return inside[::step]


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    unreadable = frame.attrs.get("unreadable", 0)
    planes = labels.plural(unreadable, "plane")
    said = labels.said({f"{planes} whose file {schema.PLANE_GRID} is not among the artifacts, left out.": unreadable})
    if frame.empty:
        return said or ["No plane was measured; a space asks for them by plane_resolution."]
    undefined = frame.loc[~np.isfinite(frame["error"]), "run_id"].nunique()
    planes = labels.plural(undefined, "plane")
    return said + labels.said({f"{planes} with points without an error, left blank.": undefined})
