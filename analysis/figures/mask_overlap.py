"""Figure: how much of net B's own mask the mask of A covers, permuted and as it is, by sparsity.

Run it alone with ``python -m analysis.figures.mask_overlap --space NAME``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, style
from analysis.drawing.signs import MINUS
from analysis.load import recipe_fields
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema
from trainables.schema import FINISHED

__all__ = ["CAPTION", "TITLE", "figure", "formatted", "load", "notes", "table"]

TITLE = "Overlap of A's mask with B's own"
CAPTION = (
    "Intersection over union of the kept weights of two masks: that of A, permuted by the match of A onto B or as it "
    "is, and the one that pruning B itself finds. Mean ± sample standard deviation over n pairs (A, B). By chance: "
    "expected of random masks with the same layer densities. 1 would be the same mask."
)
CHANCE = style.Look(colour=style.GREY, marker="p", dash=":")
CURVES: dict[str, tuple[str, style.Look]] = {
    schema.MASK_OVERLAP: ("Permuted", style.look(cells.PERMUTED)),
    schema.MASK_OVERLAP_IDENTITY: ("As it is (naive)", style.look(cells.NAIVE)),
    schema.MASK_OVERLAP_RANDOM: ("By chance", CHANCE),
}
"""Metric -> what it is called, and how it is drawn."""
APART = 0.06
"""By how much marks at one sparsity are set side by side, where the next sparsity is at 1."""
PLACE = (
    *cells.TASK,
    schema.PARAM_WIDTH,
    schema.PARAM_MATCHER,
    schema.PARAM_MATCH_EPOCH,
    schema.PARAM_REWIND_EPOCH,
    schema.PARAM_SPARSITY,
)
"""A mask has a rewind epoch only where pruning rewinds."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per task, width, matcher, match epoch, rewind epoch, sparsity and recipe.

    Columns: those, and the recipe fields that the study varied; ``pairs``; ``<metric>_mean`` and ``<metric>_std`` of
    each of ``mask_overlap``, ``mask_overlap_identity`` and ``mask_overlap_random`` (intersection over union, in
    [0, 1]); and ``gain``, ``gain_low``, ``gain_high``: permuted minus as it is, paired, with its 95 % t interval.
    """
    lines, by = [], places(frame)
    for place, group in measured(frame).groupby(by, dropna=False):
        line: dict[str, Any] = {**dict(zip(by, place, strict=True)), "pairs": len(group)}
        for metric in CURVES:
            one = stats.summarize(group[metric])
            line |= {f"{metric}_mean": one.mean, f"{metric}_std": one.std}
        gained = stats.paired_difference(
            group[schema.MASK_OVERLAP].tolist(), group[schema.MASK_OVERLAP_IDENTITY].tolist()
        )
        lines.append({**line, "gain": gained.mean, "gain_low": gained.low, "gain_high": gained.high})
    spreads = [f"{metric}_{what}" for metric in CURVES for what in ("mean", "std")]
    return pd.DataFrame(lines, columns=[*by, "pairs", *spreads, "gain", "gain_low", "gain_high"])


def places(frame: pd.DataFrame) -> list[str]:
    """Return the columns that tell one line from another: those of ``PLACE``, then the recipe fields that vary."""
    found = measured(frame)
    return [*PLACE, *(name for name in recipe_fields(frame) if found[name].nunique() > 1)]


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the finished measurements."""
    return frame[(frame[schema.PARAM_STAGE] == schema.OVERLAP) & (frame["status"] == FINISHED)]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task (and matcher, and rewind epoch), a column per width."""
    numbers, by = table(frame), places(frame)
    rows, columns = facets.grid(numbers, by, across=schema.PARAM_WIDTH, without=schema.PARAM_SPARSITY)
    drawn, panels = style.panels(max(len(rows), 1), max(len(columns), 1))
    varies = [name for name in by if name != schema.PARAM_SPARSITY and numbers[name].nunique(dropna=False) > 1]
    names = list(dict.fromkeys([*varies, schema.PARAM_WIDTH]))
    for place, line in zip(rows, panels, strict=False):
        for width, axes in zip(columns, line, strict=True):
            panel = {**place, schema.PARAM_WIDTH: width}
            here = facets.at(numbers, panel)
            style.title(axes, labels.cell(panel, names), facets.count(here["pairs"]))
            _panel(axes, here)
        top = max(axes.get_ylim()[1] for axes in line)
        for axes in line:
            axes.set_ylim(0, top)
        line[0].set_ylabel("Overlap with B's mask (IoU)")
    if not rows:
        style.empty(panels[0][0], "not measured")
    for axes in panels[-1]:
        axes.set_xlabel(style.AXES[schema.PARAM_SPARSITY])
    style.legend(drawn, CURVES.values() if rows else [])
    return drawn


def _panel(axes: Axes, numbers: pd.DataFrame) -> None:
    if numbers.empty:
        style.empty(axes, "not measured")
        return
    sparsities = range(len(numbers))
    for number, (metric, (_, look)) in enumerate(CURVES.items()):
        mean, std = numbers[f"{metric}_mean"].tolist(), numbers[f"{metric}_std"].tolist()
        style.errorbars(axes, [place + APART * (number - 1) for place in sparsities], mean, std, look)
    texts = [f"{100 * sparsity:g}" for sparsity in numbers[schema.PARAM_SPARSITY]]
    axes.set_xticks(sparsities, texts)
    axes.set_xlim(-0.5, len(numbers) - 0.5)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it."""
    numbers = table(frame)
    always = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
    names = [name for name in places(frame) if name in always or numbers[name].nunique(dropna=False) > 1]
    lines = []
    for line in numbers.to_dict("records"):
        shown = {labels.axis(name): labels.value(name, line[name]) for name in names}
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
            "The overlap of masks was not measured; a space asks for it by mask_overlap=true, as mask_controls does: "
            "it needs B to be pruned, too."
        ]
    open_jobs = frame[(frame[schema.PARAM_STAGE] == schema.OVERLAP) & (frame["status"] != FINISHED)]
    said = [f"{labels.plural(len(open_jobs), 'measurement')} without a result, left out."] if len(open_jobs) else []
    return said + facets.cut_off(numbers, places(frame), schema.PARAM_WIDTH, schema.PARAM_SPARSITY)


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import mask_overlap

    command.run_module(mask_overlap)
