"""Figure: how many images a match needs: remaining barrier and gain over naive, by the number of images."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.figures import match_quality
from analysis.load import runs
from analysis.memo import once
from trainables import schema
from trainables.methods import MATCHERS

TITLE = "How many images a match needs"
IMAGES = "match_images"
ALL = 0
GAIN = "gain"
CAPTION = (
    "Matches of net A onto net B that use different numbers of training images. Left: test loss at the midpoint of the "
    "two nets minus the mean of their own losses, with A as it is and matched; the same images are used to recompute "
    "the BatchNorm statistics there. Middle: share of units that weight matching, which uses no images, assigns alike. "
    f"Right: test accuracy of the nets permuted by the match {MINUS} naive, mean over the cells of the grid. Mean ± "
    "sample standard deviation over n pairs (A, B)."
)
Curve = tuple[str, str, style.Look]
MATCHED = style.look(cells.PERMUTED)
PANELS: dict[str, tuple[Curve, ...]] = {
    "Loss barrier (nats)": (
        (schema.LOSS_BARRIER_BEFORE, "As it is", style.look(cells.NAIVE)),
        (schema.LOSS_BARRIER_AFTER, "Matched", MATCHED),
    ),
    "Same as by weights (%)": ((schema.AGREEMENT_WITH_WEIGHT, "Matched", MATCHED),),
    f"Permuted {MINUS} naive (pp)": ((GAIN, "Matched", MATCHED),),
}
"""Axis label -> the curves: measure, name, look."""
MEASURES = (schema.LOSS_BARRIER_BEFORE, schema.LOSS_BARRIER_AFTER, schema.AGREEMENT_WITH_WEIGHT, GAIN)
PERCENT = (schema.AGREEMENT_WITH_WEIGHT,)
"""Measures that are recorded as shares and shown in percent."""
PLACE = (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_MATCHER, schema.PARAM_MATCH_EPOCH)

load = runs


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per task, width, matcher, match epoch, number of images and measure: n, mean and std.

    ``match_images``: 0 is all training images. ``measure``: ``loss_barrier_before``, ``loss_barrier_after`` (nats),
    ``agreement_with_weight`` (percent), ``gain`` (percentage points). Empty if no two matches differ only in the number
    of images.
    """
    done = facets.finished(frame, schema.MATCH)
    done = done[done[schema.PARAM_MATCHER].isin([name for name, matcher in MATCHERS.items() if matcher.needs_data])]
    if IMAGES not in done:  # no match has finished yet
        done = done.iloc[:0].assign(**{IMAGES: ""})
    gains = match_quality.table(frame).groupby("match")[GAIN].mean()
    done = done.assign(**{GAIN: done["key"].map(gains), **{name: 100 * done[name] for name in PERCENT}})
    varied = done.groupby(list(PLACE), dropna=False)[IMAGES].transform("nunique") > 1
    counts = done[IMAGES].astype(float)  # a setting, which is text in the frame
    done = done[varied].assign(**{IMAGES: counts.where(counts != ALL, math.inf)})  # all images come last
    numbers = facets.spread(done, [*PLACE, IMAGES], MEASURES)
    return numbers.assign(**{IMAGES: numbers[IMAGES].where(numbers[IMAGES] != math.inf, ALL).astype(int)})


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task and width (and matcher), a column per measure."""
    numbers = table(frame)
    places = numbers[list(PLACE)].drop_duplicates().head(grid.MOST_ROWS).to_dict("records")
    drawn, panels = style.panels(max(len(places), 1), len(PANELS))
    names = facets.told_apart(numbers, PLACE)
    for place, line in zip(places, panels, strict=False):
        here = facets.at(numbers, place)
        for (label, curves), axes in zip(PANELS.items(), line, strict=True):
            shown = here[here["measure"].isin([measure for measure, _, _ in curves])]
            style.title(axes, labels.cell(place, names), facets.count(shown["n"]))
            axes.set_ylabel(label)
            _panel(axes, shown, curves)
    if not places:
        style.empty(panels[0][0], "not measured")
    for axes in panels[-1]:
        axes.set_xlabel("Images")
    style.legend(drawn, [curve[1:] for curve in next(iter(PANELS.values()))] if places else [])
    return drawn


def _panel(axes: Axes, numbers: pd.DataFrame, curves: tuple[Curve, ...]) -> None:
    if numbers.empty:
        style.empty(axes, "not measured")
        return
    counts = list(dict.fromkeys(numbers[IMAGES]))
    for measure, _, look in curves:
        found = numbers[numbers["measure"] == measure].set_index(IMAGES)
        there = [images for images in counts if images in found.index]
        style.errorbars(axes, map(counts.index, there), found.loc[there], look)
    axes.set_xticks(range(len(counts)), [_images(images) for images in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)


def _images(count: int) -> str:
    return "all" if count == ALL else f"{count:,}"


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: a line per number of images."""
    numbers = table(frame)
    names = facets.told_apart(numbers, PLACE)
    columns = {
        schema.LOSS_BARRIER_BEFORE: ("barrier as it is (nats)", 3),
        schema.LOSS_BARRIER_AFTER: ("barrier matched (nats)", 3),
        schema.AGREEMENT_WITH_WEIGHT: ("same as by weights (%)", 1),
        GAIN: (f"permuted {MINUS} naive (pp)", 2),
    }
    lines = []
    for place, group in facets.places(numbers, [*PLACE, IMAGES], sort=False):
        line = labels.place(place, names) | {"images": _images(place[IMAGES])}
        for one in group.itertuples():
            name, decimals = columns[str(one.measure)]
            line[name] = stats.format_mean(one.mean, one.std, one.n, decimals=decimals)
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [f"All matches use the same number of images; --set {IMAGES}=100,1000,10000 makes it an axis."]
    return grid.cut_off(numbers, PLACE)
