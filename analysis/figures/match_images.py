"""Figure: how many images a match needs: remaining barrier and gain over naive, by the number of images."""

from __future__ import annotations

import functools
import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.figures import match_quality
from analysis.memo import once
from trainables import schema
from trainables.methods import MATCHERS

TITLE = "How many images a match needs"
IMAGES = "match_images"
ALL = 0
GAIN = "gain"
CAPTION = (
    "Matches of net A onto net B that use different numbers of training images. Barrier: test loss at the midpoint "
    "of the two nets minus the mean of their own losses, with A as it is and matched; the same images are used to "
    "recompute the BatchNorm statistics there. Same as by weights: share of units that weight matching, which uses "
    f"no images, assigns alike. Permuted {MINUS} naive: difference in test accuracy of the nets permuted by the "
    "match, mean over the cells of the grid. Mean ± sample standard deviation over n pairs (A, B)."
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


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per place, number of images and measure: n, mean and std.

    A place is a task, width, matcher and match epoch, and a value of every other setting in which the matches differ.

    ``match_images``: 0 is all training images. ``measure``: ``loss_barrier_before``, ``loss_barrier_after`` (nats),
    ``agreement_with_weight`` (percent), ``gain`` (percentage points). Empty if no two matches differ only in the number
    of images.
    """
    done = facets.finished(frame, schema.MATCH)
    done = done[done[schema.PARAM_MATCHER].isin([name for name, matcher in MATCHERS.items() if matcher.needs_data])]
    if IMAGES not in done:  # no match has finished yet
        done = done.iloc[:0].assign(**{IMAGES: ""})
    done = cells.repeated(done.assign(**{name: 100 * done[name] for name in PERCENT}))
    # A gain depends on all settings of the nets, also on those of which the match knows nothing.
    varied = cells.varied(frame)
    own = [name for name in varied if done[name].notna().any()]
    gains = match_quality.table(frame).groupby(["match", *varied])[GAIN].mean().reset_index()
    done = done.drop(columns=[name for name in varied if name not in own])
    done = done.merge(gains.rename(columns={"match": "key"}), on=["key", *own], how="left")
    by = _axes(done)
    several = done.groupby(by, dropna=False)[IMAGES].transform("nunique") > 1
    counts = done[IMAGES].astype(float)  # a setting, which is text in the frame
    done = done[several].assign(**{IMAGES: counts.where(counts != ALL, math.inf)})  # all images come last
    numbers = facets.spread(done, [*by, IMAGES], MEASURES)
    return numbers.assign(**{IMAGES: numbers[IMAGES].where(numbers[IMAGES] != math.inf, ALL).astype(int)})


def _axes(numbers: pd.DataFrame) -> list[str]:
    return [name for name in facets.axes(numbers, [*PLACE, IMAGES]) if name != IMAGES]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per place, a column per measure."""
    numbers = table(frame)
    column = {measure: label for label, curves in PANELS.items() for measure, _, _ in curves}
    drawn, _ = grid.means(
        numbers.assign(label=numbers["measure"].map(column)),
        _axes(numbers),
        across="label",
        along=IMAGES,
        scale=functools.partial(style.category_axis, text=_images),
        line="measure",
        looks={measure: (name, look) for curves in PANELS.values() for measure, name, look in curves},
        x="Images",
        y={label: label for label in PANELS},
        absent="not measured",
    )
    return drawn


def _images(count: int) -> str:
    return "all" if count == ALL else f"{count:,}"


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: a line per number of images."""
    numbers = table(frame)
    columns = {
        schema.LOSS_BARRIER_BEFORE: ("barrier as it is (nats)", 3),
        schema.LOSS_BARRIER_AFTER: ("barrier matched (nats)", 3),
        schema.AGREEMENT_WITH_WEIGHT: ("same as by weights (%)", 1),
        GAIN: (f"permuted {MINUS} naive (pp)", 2),
    }
    shown = facets.crossed(
        numbers,
        [*_axes(numbers), IMAGES],
        [*facets.told_apart(numbers, _axes(numbers)), IMAGES],
        heads=[columns[measure][0] for measure in numbers["measure"]],
        texts=[
            stats.format_mean(one.mean, one.std, one.n, decimals=columns[str(one.measure)][1])
            for one in numbers.itertuples()
        ],
        order=[name for name, _ in columns.values()],
    )
    return shown.assign(**{IMAGES: [_images(int(count)) for count in shown[IMAGES]]}).rename(
        columns={IMAGES: labels.IMAGES}
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    if not table(frame).empty:
        return []
    return [f"All matches use the same number of images; --set {IMAGES}=100,1000,10000 makes it an axis."]
