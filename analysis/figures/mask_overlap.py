"""Figure: overlap of A's mask, permuted and as it is, with the mask found by pruning B, by sparsity."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.memo import once
from trainables import schema
from trainables.schema import FINISHED

TITLE = "Overlap of A's mask with B's own"
SHARED = CAPTION = (
    "Intersection over union of the kept weights of two masks: A's mask, permuted by the match of A onto B or as it "
    "is, and the mask found by pruning B itself. Mean ± sample standard deviation over n pairs (A, B). By chance: the "
    "expected value for random masks with the same layer densities. 1 means identical masks."
)
TABLE_CAPTION = f"{SHARED} Permuted {MINUS} as it is: mean of the paired differences with its 95 % t interval."
CHANCE = style.Look(colour=style.GREY, marker="p", dash=":")
CURVES: dict[str, tuple[str, style.Look]] = {
    schema.MASK_OVERLAP: ("Permuted", style.look(cells.PERMUTED)),
    schema.MASK_OVERLAP_IDENTITY: ("As it is (naive)", style.look(cells.NAIVE)),
    schema.MASK_OVERLAP_RANDOM: ("By chance", CHANCE),
}
"""Metric -> its name, and how it is drawn."""
PLACE = (
    *cells.TASK,
    schema.PARAM_WIDTH,
    schema.PARAM_MATCHER,
    schema.PARAM_MATCH_EPOCH,
    schema.PARAM_REWIND_EPOCH,
    schema.PARAM_SPARSITY,
)
"""Axes of the table; a mask has a rewind epoch only where pruning rewinds."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per task, width, matcher, match epoch, rewind epoch, sparsity and recipe.

    Columns: those, and the recipe fields that the study varied; ``pairs``; ``<metric>_mean`` and ``<metric>_std`` for
    each of ``mask_overlap``, ``mask_overlap_identity`` and ``mask_overlap_random`` (intersection over union, in
    [0, 1]); and ``gain``, ``gain_low``, ``gain_high``: permuted minus as it is, paired, with its 95 % t interval.
    """
    measured = _measured(frame)
    lines, by = [], facets.axes(measured, PLACE)
    for place, group in facets.places(measured, by):
        line = {**place, "pairs": len(group)}
        for metric in CURVES:
            one = stats.summarize(group[metric])
            line |= {f"{metric}_mean": one.mean, f"{metric}_std": one.std}
        gained = stats.paired_difference(
            group[schema.MASK_OVERLAP].tolist(), group[schema.MASK_OVERLAP_IDENTITY].tolist()
        )
        lines.append({**line, "gain": gained.value, "gain_low": gained.low, "gain_high": gained.high})
    spreads = [f"{metric}_{what}" for metric in CURVES for what in ("mean", "std")]
    return pd.DataFrame(lines, columns=[*by, "pairs", *spreads, "gain", "gain_low", "gain_high"])


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    return cells.repeated(facets.finished(frame, schema.OVERLAP))


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task (and matcher, and rewind epoch), a column per width."""
    numbers = table(frame).rename(columns={"pairs": "n"})
    parts = [
        numbers.rename(columns={f"{metric}_{what}": what for what in ("mean", "std")}).assign(mask=metric)
        for metric in CURVES
    ]
    drawn, panels = grid.means(
        pd.concat(parts),
        facets.axes(numbers, PLACE),
        across=schema.PARAM_WIDTH,
        along=schema.PARAM_SPARSITY,
        scale=style.sparsity_axis,
        line="mask",
        looks=CURVES,
        y="Overlap with B's mask (IoU)",
        absent="not measured",
    )
    for line in panels:
        top = max(panel.axes.get_ylim()[1] for panel in line)
        for panel in line:
            panel.axes.set_ylim(0, top)
    return drawn


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it."""
    numbers = table(frame)
    names = facets.told_apart(numbers, facets.axes(numbers, PLACE))
    lines = []
    for line in numbers.to_dict("records"):
        shown = labels.place(line, names)
        for metric, (name, _) in CURVES.items():
            mean, std = line[f"{metric}_mean"], line[f"{metric}_std"]
            shown[name] = stats.format_mean(mean, std, line["pairs"], decimals=3)
        gain = stats.format_difference(line["gain"], line["gain_low"], line["gain_high"], decimals=3)
        lines.append({**shown, f"Permuted {MINUS} as it is [95 % CI]": gain})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [
            "The overlap of masks was not measured; a space asks for it by mask_overlap=true, as mask_controls does. "
            "It requires pruning B, too."
        ]
    open_jobs = frame[(frame[schema.PARAM_STAGE] == schema.OVERLAP) & (frame["status"] != FINISHED)]
    return [f"{labels.plural(len(open_jobs), 'measurement')} without a result, left out."] if len(open_jobs) else []
