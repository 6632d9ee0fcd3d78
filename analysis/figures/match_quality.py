"""Figure: does a better match gain more? Quality of each match against what the nets permuted by it gain over naive.

Run it alone with ``python -m analysis.figures.match_quality --space NAME``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import cells, labels, stats
from analysis.drawing import facets, style
from analysis.drawing.signs import DASH, MINUS, RHO
from analysis.load import runs as load
from analysis.memo import once
from trainables import schema
from trainables.schema import FINISHED

__all__ = ["CAPTION", "TITLE", "correlations", "figure", "formatted", "load", "notes", "table"]

TITLE = "Match quality against gain"
CAPTION = (
    "A point per match of a net A onto a net B. Horizontal: correlation of the matched units, its excess over "
    "unmatched units, and the loss barrier that is left halfway between the matched nets. Vertical: test accuracy of "
    f"the nets permuted by the match {MINUS} naive, and the share of the way from naive to LTH that this is, both as "
    f"means over the cells of the grid that all pairs of a width have. {RHO}: Spearman's rank correlation over n "
    "matches with its 95 % interval; inside: the same from differences between matches of one width alone, for width "
    "moves match and gain alike."
)
EXCESS = "correlation_excess"
QUALITIES = {
    schema.MEAN_CORRELATION: "Mean correlation of matched units",
    EXCESS: "Excess over unmatched units",
    schema.LOSS_BARRIER_AFTER: "Loss barrier after matching (nats)",
}
"""Measure of a match -> axis label."""
OUTCOMES = {"gain": f"Permuted {MINUS} naive (pp)", "share": "Share of gap closed (%)"}
PLACE = (*cells.TASK, schema.PARAM_WIDTH, cells.ROW)
UNMOVED = f"{cells.PERMUTED}:identity"
"""To permute by the identity is to reuse the mask as it is: where a study has no naive nets, these are them."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per match whose permuted nets have naive ones to compare with.

    Columns: ``model``, ``dataset``, ``width``, ``row`` (how it was matched: ``permuted`` or ``permuted:weight``, see
    :func:`analysis.cells.rows`), ``pair``, ``match`` (key); ``mean_correlation``, ``correlation_excess`` (in [-1, 1]),
    ``loss_barrier_after`` (nats); ``cells``, how many cells of the grid the following are means over; ``gain``
    (percentage points), ``share`` (percent of the way from naive to LTH, missing where LTH is not ahead).
    """
    lines: list[dict[str, Any]] = []
    matches = _matches(frame)
    for place, group in _gains(frame, matches).groupby(list(PLACE), dropna=False):
        wide = group.groupby([cells.PAIR, "match", "cell"])[["gain", "gap"]].mean().unstack("cell")
        shared = wide["gain"].dropna(axis="columns").columns
        means = {name: wide[name][shared].mean(axis="columns", skipna=False) for name in ("gain", "gap")}
        for pair, match in wide.index if len(shared) else ():
            gain, gap = (float(means[name][pair, match]) for name in ("gain", "gap"))
            line = dict(zip((*PLACE, cells.PAIR, "match"), (*place, pair, match), strict=True))
            share = 100 * gain / gap if gap > 0 else stats.NAN
            lines.append({**line, **matches.loc[match], "cells": len(shared), "gain": gain, "share": share})
    return pd.DataFrame(lines, columns=[*PLACE, cells.PAIR, "match", *QUALITIES, "cells", *OUTCOMES])


def _matches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the quality of each finished match, by key."""
    done = frame[(frame[schema.PARAM_STAGE] == schema.MATCH) & (frame["status"] == FINISHED)].set_index("key")
    excess = done[schema.MEAN_CORRELATION] - done[schema.MEAN_CORRELATION_IDENTITY]
    return done.assign(**{EXCESS: excess})[list(QUALITIES)]


def _gains(frame: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Return each permuted net with its ``match`` and ``cell``, ``gain`` over naive and ``gap`` from naive to LTH."""
    by, scored = cells.axes(frame), cells.scores(frame)
    parents = frame.set_index("run_id")["parents"].str.split(",")
    permuted = scored[scored[cells.ROW].isin(cells.MATCHED) | scored[cells.ROW].str.startswith(f"{cells.PERMUTED}:")]
    found = [next((key for key in parents[run] if key in matches.index), None) for run in permuted["run_id"]]
    pairs = cells.paired(scored, by)
    pairs = pairs.reindex(columns=list(dict.fromkeys([*pairs.columns, cells.NAIVE, cells.LTH])))
    base = cells.NAIVE if pairs[cells.NAIVE].notna().any() or UNMOVED not in pairs else UNMOVED
    compared = pairs[[base, cells.LTH]].set_axis(["base", "lth"], axis="columns")
    joined = permuted.assign(match=found).merge(compared.reset_index(), on=[*by, cells.PAIR])
    joined = joined[joined["match"].notna() & (joined[cells.ROW] != base)]
    return joined.assign(
        cell=joined.groupby(by, dropna=False).ngroup(),
        gain=joined[schema.TEST_ACCURACY] - joined["base"],
        gap=joined["lth"] - joined["base"],
    ).dropna(subset=["gain"])


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlation of each quality with each outcome, one line per task.

    Columns: ``model``, ``dataset``, ``outcome`` (``gain`` or ``share``), ``quality``, ``matches``, ``rho``, ``low``,
    ``high`` (95 %); ``inside``, ``inside_low``, ``inside_high``: the same from differences between matches of one
    width, missing if there is one width only.
    """
    lines = []
    for task, group in table(frame).groupby(list(cells.TASK)):
        widths = group[schema.PARAM_WIDTH].tolist()
        for outcome in OUTCOMES:
            for quality in QUALITIES:
                points = (group[quality].tolist(), group[outcome].tolist())
                one, inside = stats.rank_correlation(*points), stats.rank_correlation(*points, within=widths)
                line: dict[str, Any] = {**dict(zip(cells.TASK, task, strict=True)), "outcome": outcome}
                line |= {"quality": quality, "matches": one.n, "rho": one.rho, "low": one.low, "high": one.high}
                if len(set(widths)) > 1:
                    line |= {"inside": inside.rho, "inside_low": inside.low, "inside_high": inside.high}
                lines.append(line)
    numbers = ["rho", "low", "high", "inside", "inside_low", "inside_high"]
    return pd.DataFrame(lines, columns=[*cells.TASK, "outcome", "quality", "matches", *numbers])


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: two rows of panels per task, a column per quality; colour is width, the mark the match."""
    numbers, found = table(frame), correlations(frame)
    tasks = numbers[list(cells.TASK)].drop_duplicates().to_dict("records")
    widths, rows = sorted(numbers[schema.PARAM_WIDTH].unique()), cells.row_order(numbers[cells.ROW])
    places = [{**task, "outcome": outcome} for task in tasks for outcome in OUTCOMES]
    drawn, panels = style.panels(max(len(places), 1), len(QUALITIES))
    for place, line in zip(places, panels, strict=False):
        here = facets.at(numbers, {name: place[name] for name in cells.TASK})
        outcome = str(place["outcome"])
        for quality, axes in zip(QUALITIES, line, strict=True):
            said = facets.at(found, {**place, "quality": quality}).iloc[0]
            present = here.dropna(subset=[quality, outcome])
            style.title(axes, _said(said), f"n = {len(present)}")
            _panel(axes, present, quality, outcome, widths, rows)
        where = f"{labels.cell(place, cells.TASK)}\n" if len(tasks) > 1 else ""
        line[0].set_ylabel(f"{where}{OUTCOMES[outcome]}")
    if not places:
        for axes in panels[0]:
            style.empty(axes, "no match to compare")
    for quality, axes in zip(QUALITIES, panels[-1], strict=True):
        axes.set_xlabel(QUALITIES[quality])
    _legend(drawn, widths, rows)
    return drawn


def _panel(axes: Axes, numbers: pd.DataFrame, quality: str, outcome: str, widths: list[float], rows: list[str]) -> None:
    if numbers.empty:
        style.empty(axes, "not recorded")
        return
    for (width, row), group in numbers.groupby([schema.PARAM_WIDTH, cells.ROW]):
        axes.plot(group[quality], group[outcome], **_mark(_colour(widths, width), rows.index(row)))
    axes.axhline(0, color=style.look(cells.NAIVE).colour, linewidth=1.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _colour(widths: list[float], width: float) -> str:
    """Return the colour of a width: of a scale, because widths are ordered, and none that stands for a method."""
    return to_hex(colormaps["viridis"](widths.index(width) / max(len(widths) - 1, 1)))


def _mark(colour: str, row: int) -> dict[str, Any]:
    rim = {"markeredgecolor": style.INK, "markeredgewidth": 0.6}  # some colours are as light, or as dark, as a page
    return {"color": colour, "marker": MARKERS[row % len(MARKERS)], "markersize": 5.5, "linestyle": "none", **rim}


def _legend(drawn: Figure, widths: list[float], rows: list[str]) -> None:
    """Name the widths, and the ways to match if there are several."""
    handles = [
        Line2D([], [], **_mark(_colour(widths, width), 0), label=f"width {labels.value(schema.PARAM_WIDTH, width)}")
        for width in widths
    ]
    if len(rows) > 1:
        handles += [
            Line2D([], [], **_mark(style.GREY, number), label=labels.method(row)) for number, row in enumerate(rows)
        ]
    with style.themed():
        drawn.legend(handles=handles, loc="outside upper left", ncols=5, handletextpad=0.2)


def _said(found: pd.Series) -> str:
    """Return the rank correlation, and the one inside widths where it is another question."""
    if pd.isna(found["rho"]):
        return ""
    inside = "" if pd.isna(found["inside"]) else f", inside {_rho(found['inside'], found, 'inside_')}"
    return f"{RHO} = {_rho(found['rho'], found, '')}{inside}"


def _rho(value: float, found: pd.Series, prefix: str) -> str:
    low, high = found[f"{prefix}low"], found[f"{prefix}high"]
    limits = "" if pd.isna(low) else f" [{low:+.2f} to {high:+.2f}]"
    return f"{value:+.2f}{limits}".replace("-", MINUS)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlations as people read them."""
    found = correlations(frame)
    several = len(found[list(cells.TASK)].drop_duplicates()) > 1
    lines = []
    for line in found.to_dict("records"):
        shown = {name: line[name] for name in cells.TASK} if several else {}
        shown |= {"match": QUALITIES[line["quality"]], "outcome": OUTCOMES[line["outcome"]]}
        rho = stats.format_difference(line["rho"], line["low"], line["high"])
        inside = stats.format_difference(line["inside"], line["inside_low"], line["inside_high"])
        lines.append(
            {**shown, f"{RHO} [95 % CI] (n)": f"{rho or DASH} ({line['matches']})", f"{RHO} inside widths": inside}
        )
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No match has permuted nets with naive ones of the same pair and cell to compare with yet."]
    said = []
    absent = [label.removesuffix(" (nats)") for name, label in QUALITIES.items() if numbers[name].isna().all()]
    if absent:
        said.append(f"Not recorded by these matches: {labels.listed(absent)}.")
    sparse = frame.loc[frame[schema.PARAM_STAGE] == schema.SPARSE, schema.PARAM_METHOD]
    if not (sparse == cells.NAIVE).any():
        said.append("Naive here: nets whose mask was permuted by the identity, which is the same.")
    gaps = int(numbers["share"].isna().sum())
    if gaps:
        said.append(f"{labels.plural(gaps, 'match', 'matches')} without LTH, or with LTH not ahead, have no share.")
    return said


if __name__ == "__main__":
    from analysis import command
    from analysis.figures import match_quality

    command.run_module(match_quality)
