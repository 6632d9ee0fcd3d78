"""Figure: does a better match gain more? Quality of each match against the gain of its permuted nets over naive."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import DASH, MINUS, RHO
from analysis.memo import once
from trainables import schema

TITLE = "Match quality against gain"
SHARED = (
    "Quality of n matches of a net A onto a net B: correlation of the matched units, its excess over unmatched "
    "units, and the loss barrier that remains at the midpoint of the matched nets. What the nets permuted by a match "
    f"gain: test accuracy {MINUS} naive, and the share of the gap from naive to LTH that this closes, both as means "
    f"over the cells that all pairs of a width have in common. {RHO}: Spearman's rank correlation of quality and "
    "gain; within widths: the same within each width, because width changes match and gain alike."
)
CAPTION = f"{SHARED} One point per match; if pairs of nets have several, n says of how many pairs the matches are."
TABLE_CAPTION = (
    f"{SHARED} Pairs: of a net A and a net B of one width. With 95 % intervals where each pair has one match: several "
    "matches of a pair share its naive and LTH nets, so they are not independent."
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
"""Permuting by the identity reuses the mask as it is: these nets serve as naive in a study that has no naive nets."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per match whose permuted nets can be compared with naive ones, and combination of settings.

    Columns: ``model``, ``dataset``, ``width``, ``row`` (how it was matched: ``permuted`` or ``permuted:weight``, see
    :func:`analysis.cells.rows`), settings that the study varies; ``pair``, ``match`` (key); ``mean_correlation``,
    ``correlation_excess`` (in [-1, 1]), ``loss_barrier_after`` (nats); ``cells``, the number of cells that the
    following are means over; ``gain`` (percentage points), ``share`` (percent of the gap from naive to LTH, missing
    where LTH is not ahead).
    """
    return _lines(frame, cells.varied(frame))


@once
def points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per match: :func:`table`, averaged over the settings on which no match depends.

    Such settings, as the learning rate of sparse nets, count as cells. A match that counted once for each of their
    values would look like several matches.
    """
    return _lines(frame, _settings(frame))


def _settings(frame: pd.DataFrame) -> list[str]:
    """Return the settings that the study varies and on which its matches depend."""
    matches = facets.finished(frame, schema.MATCH)
    return [name for name in cells.varied(frame) if matches[name].notna().any()]


def _lines(frame: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Return what :func:`table` documents, with lines of their own for the values of these settings only."""
    lines: list[dict[str, Any]] = []
    matches, by = _matches(frame), [*PLACE, *settings]
    for place, group in facets.places(_gains(frame, matches), by):
        wide = group.groupby([cells.PAIR, "match", "cell"])[["gain", "gap"]].mean().unstack("cell")
        shared = wide["gain"].dropna(axis="columns").columns
        means = {name: wide[name][shared].mean(axis="columns", skipna=False) for name in ("gain", "gap")}
        for pair, match in wide.index if len(shared) else ():
            gain, gap = (float(means[name][pair, match]) for name in ("gain", "gap"))
            found = {"cells": len(shared), "gain": gain, "share": 100 * gain / gap if gap > 0 else stats.NAN}
            lines.append({**place, cells.PAIR: pair, "match": match, **matches.loc[match], **found})
    return pd.DataFrame(lines, columns=[*by, cells.PAIR, "match", *QUALITIES, "cells", *OUTCOMES])


def _matches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the quality of each finished match, by key."""
    done = facets.finished(frame, schema.MATCH).set_index("key")
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

    Columns: ``model``, ``dataset``, ``outcome`` (``gain`` or ``share``), ``quality``, ``matches``, ``pairs`` (of nets A
    and B that these matches are of), ``rho``, ``low``, ``high`` (95 %); ``within``, ``within_low``, ``within_high``:
    the same within each width (and setting on which matches depend, if the study varies it), missing if there is only
    one. Intervals are missing where a pair has several matches: these share its naive and LTH nets.
    """
    lines, by = [], [schema.PARAM_WIDTH, *_settings(frame)]
    for task, group in facets.places(points(frame), cells.TASK):
        for outcome in OUTCOMES:
            for quality in QUALITIES:
                here = group.dropna(subset=[quality, outcome])
                widths, pairs = (here.groupby(names, dropna=False).ngroup() for names in (by, [*by, cells.PAIR]))
                values = (here[quality].tolist(), here[outcome].tolist())
                one, within = stats.rank_correlation(*values), stats.rank_correlation(*values, within=widths.tolist())
                line = {**task, "outcome": outcome, "quality": quality, "matches": one.n, "pairs": pairs.nunique()}
                line |= {"rho": one.value}
                if widths.nunique() > 1:
                    line |= {"within": within.value}
                if pairs.is_unique:
                    line |= {"low": one.low, "high": one.high}
                if pairs.is_unique and widths.nunique() > 1:
                    line |= {"within_low": within.low, "within_high": within.high}
                lines.append(line)
    numbers = ["rho", "low", "high", "within", "within_low", "within_high"]
    return pd.DataFrame(lines, columns=[*cells.TASK, "outcome", "quality", "matches", "pairs", *numbers])


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: two rows of panels per task, a column per quality; colour: width, marker: the matching."""
    numbers = points(frame)
    widths, rows = sorted(numbers[schema.PARAM_WIDTH].unique()), cells.row_order(numbers[cells.ROW])
    drawn, panels = grid.panels(
        correlations(frame),
        [*cells.TASK, "outcome"],
        across="quality",
        names=facets.several_tasks(numbers),
        x=QUALITIES,
        absent="no match to compare",
    )
    for panel in itertools.chain(*panels):
        quality, outcome = panel.place["quality"], panel.place["outcome"]
        here = facets.at(numbers, {name: panel.place[name] for name in cells.TASK}).dropna(subset=[quality, outcome])
        correlation = panel.lines.iloc[0]
        style.title(panel.axes, _said(correlation), _count(correlation))
        if panel.leads:
            style.label(panel.axes, y=", ".join(filter(None, [panel.heading, OUTCOMES[outcome]])))
        _panel(panel.axes, here, quality, outcome, widths, rows)
    handles = [
        Line2D([], [], **_mark(_colour(widths, width), 0), label=f"width {labels.value(schema.PARAM_WIDTH, width)}")
        for width in widths
    ]
    for number, row in enumerate(rows if len(rows) > 1 else ()):
        handles.append(Line2D([], [], **_mark(style.GREY, number), label=labels.method(row)))
    style.legend(drawn, handles)
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
    """Return the colour of a width, from a scale because widths are ordered, and distinct from the methods' colours."""
    return to_hex(colormaps["viridis"](widths.index(width) / max(len(widths) - 1, 1)))


def _mark(colour: str, row: int) -> dict[str, Any]:
    rim = {"markeredgecolor": style.INK, "markeredgewidth": 0.6}  # sets pale and dark colours off from the page
    return {"color": colour, "marker": MARKERS[row % len(MARKERS)], "markersize": 5.5, "linestyle": "none", **rim}


def _said(found: pd.Series) -> str:
    """Return the rank correlation, and the one within widths if there are several."""
    values = {RHO: found["rho"], "within": found["within"]}
    return ", ".join(f"{name} = {stats.format_difference(rho)}" for name, rho in values.items() if not pd.isna(rho))


def _count(found: pd.Series) -> str:
    """Return the number of matches, and of pairs of nets if that is smaller."""
    matches, pairs = int(found["matches"]), int(found["pairs"])
    return f"n = {matches}" if matches == pairs else f"n = {matches} of {labels.plural(pairs, 'pair')}"


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rank correlations as people read them."""
    found = correlations(frame)
    named = facets.several_tasks(found)
    lines = []
    for line in found.to_dict("records"):
        shown = labels.place(line, named) | {"match": QUALITIES[line["quality"]], "outcome": OUTCOMES[line["outcome"]]}
        rho = stats.format_difference(line["rho"], line["low"], line["high"])
        within = stats.format_difference(line["within"], line["within_low"], line["within_high"])
        said = {f"{RHO} [95 % CI] (n)": f"{rho or DASH} ({line['matches']})", f"{RHO} within widths": within}
        lines.append({**shown, **said, "pairs": str(line["pairs"])})
    return pd.DataFrame(lines)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    numbers = points(frame)
    if numbers.empty:
        return ["No match has permuted nets yet that can be compared with naive ones of the same pair and cell."]
    absent = [label.removesuffix(" (nats)") for name, label in QUALITIES.items() if numbers[name].isna().all()]
    sparse = frame.loc[frame[schema.PARAM_STAGE] == schema.SPARSE, schema.PARAM_METHOD]
    unmoved = "Naive: here, nets whose mask was permuted by the identity, which is equivalent."
    gaps = int(numbers["share"].isna().sum())
    matches = labels.plural(gaps, "match", "matches")
    return labels.said(
        {
            f"Not recorded by these matches: {labels.listed(absent)}.": absent,
            unmoved: not (sparse == cells.NAIVE).any(),
            f"No share for {matches}: LTH is missing or not ahead of naive.": gaps,
        }
    )
