"""The study in a few words, as strong as the data and no stronger.

A study asks for what it measures: ensembles, several ways of matching, controls, paths between nets. So the headline
depends on what there is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.drawing.signs import MINUS
from analysis.figures import accuracy_table, controls, function_space, interpolation, match_images, match_quality
from analysis.gains import gains, pooled, share
from analysis.memo import once
from trainables import schema

NOTHING = "No run has finished yet."
MANY_WIDTHS = 3
"""A study of so many widths asks for their effect."""
FIGURES_OF_WAYS = {schema.PARAM_MATCH_EPOCH: "early_matching", match_images.IMAGES: "match_images"}
"""Setting of matching -> the figure of its effect; ``match_quality`` has that of any other."""
FIRST_CONTROLS = 2
"""How many of the controls' questions the headline answers; the figure answers all."""


def headline(frame: pd.DataFrame) -> str:
    """Return what the study found, a few sentences per task.

    The gain of each pair of nets is averaged over the cells that all pairs have, and the interval is over pairs.
    """
    found = " ".join(sentence for answer in _answers(frame) for sentence in answer.sentences)
    tasks = _tasks(frame)
    return found or (f"{tasks[0].where}, nothing can be compared yet." if tasks else NOTHING)


def details(frame: pd.DataFrame) -> list[str]:
    """Return the sentences that qualify the headline, those that the headline leaves out included."""
    by, tasks = cells.axes(frame), _tasks(frame)
    named = len(tasks) > 1
    said = []
    for (where, runs, scored), answer in zip(tasks, _answers(frame), strict=True):
        found = _gain(scored, by, where), _paths(runs, where)
        others = [" ".join(each) for each in found if not {*each} <= {*answer.sentences}]
        epochs = scored[schema.PARAM_REWIND_EPOCH]
        parts = {"from the untouched initialisation": scored[epochs == 0], "from epoch 1 or later": scored[epochs > 0]}
        starts = {start: pooled(gains(part, by)) for start, part in parts.items()}
        if all(one.n for one in starts.values()):
            points = "; ".join(f"{start}: {_points(one)}" for start, one in starts.items())
            others.append(f"{f'{where}, permuted' if named else 'Permuted'} {MINUS} naive {points}.")
        said += others
    return said + _tested(frame)


def figure_of(frame: pd.DataFrame) -> str:
    """Return the name of the figure that shows what the headline says; it may lack numbers so far."""
    return next((answer.figure for answer in _answers(frame) if answer.figure), "rewind")


class _Task(NamedTuple):
    """A task in words, its runs, and their lines of :func:`analysis.cells.scores`."""

    where: str
    runs: pd.DataFrame
    scored: pd.DataFrame


class _Answer(NamedTuple):
    """What a task's headline says, and the name of the figure that shows it; empty if none does."""

    figure: str
    sentences: list[str]


@once
def _tasks(frame: pd.DataFrame) -> list[_Task]:
    tasks = facets.places(cells.scores(frame), cells.TASK)
    return [_Task(f"With {labels.cell(task, cells.TASK)}", facets.at(frame, task), scored) for task, scored in tasks]


@once
def _answers(frame: pd.DataFrame) -> list[_Answer]:
    """Return the answer of each task, in the order of :func:`_tasks`."""
    return [_answer(task, cells.axes(frame)) for task in _tasks(frame)]


def _answer(task: _Task, by: list[str]) -> _Answer:
    where, runs, scored = task
    if said := _ensembles(runs, where):
        return _Answer("function_space", said)
    if said := _ways(runs, scored, by, where):
        several = [figure for name, figure in FIGURES_OF_WAYS.items() if len(_values(runs, name)) > 1]
        return _Answer(several[0] if several else "match_quality", said)
    if said := _gain(scored, by, where):
        many = scored[schema.PARAM_WIDTH].nunique() >= MANY_WIDTHS
        return _Answer("width" if many else "rewind", said + _controls(scored, by))
    if said := _paths(runs, where):
        return _Answer("interpolation", said)
    return _Answer("", _compared(scored, by, where))


def _tested(frame: pd.DataFrame) -> list[str]:
    """Return in how many cells permuted is ahead, and in how many the difference is significant."""
    numbers = accuracy_table.table(frame)
    numbers = numbers[numbers["pairs"] > 1] if len(numbers) else numbers
    if numbers.empty:
        return []
    ahead = int((numbers["permuted_minus_naive"] > 0).sum())
    clear = int((numbers["p_holm"] < stats.LEVEL).sum())
    return [
        f"Permuted is ahead of naive in {ahead} of {labels.plural(len(numbers), 'cell')}; tested cell by cell, the "
        f"difference is significant (p < {stats.LEVEL} after Holm's correction) in {clear or 'none'}."
    ]


# --- what permuting gains ---------------------------------------------------------------------------------------
def _gain(scored: pd.DataFrame, by: list[str], where: str) -> list[str]:
    """Return what permuting gains over reusing the mask as it is, and how much of the gap to LTH that closes."""
    gained = gains(scored, by)
    one = pooled(gained)
    if not one.n:
        return []
    basis, points = _basis(one, gained), f"{abs(one.value):.2f} points of test accuracy"
    if one.n == 1:
        lead = f"the permuted mask is {points} {_side(one)} the naive one in the only pair so far"
        return [f"{where}, {lead} ({basis}): too few for an interval."]
    if math.isnan(one.low):
        signed = stats.format_difference(one.value)
        return [f"{where}, all pairs differ by the same {signed} points ({basis}): this has no interval."]
    basis = f"{_interval(one)}; {basis}"
    if not one.excludes_zero:
        signed = stats.format_difference(one.value)
        return [f"{where}, permuted and naive masks do not differ significantly: {signed} points ({basis})."]
    verb = "gains" if one.value > 0 else "loses"
    said = [f"{where}, permuting the mask {verb} {points} over reusing it as it is ({basis})."]
    return said + _closed(scored, by) if one.value > 0 else said


def _closed(scored: pd.DataFrame, by: list[str]) -> list[str]:
    whole, widths = share(scored, by), dict[str, stats.Estimate]()
    for width, group in scored.groupby(schema.PARAM_WIDTH):
        widths[labels.value(schema.PARAM_WIDTH, width)] = share(group, by)
    if math.isnan(whole.value):
        return []
    each = [
        f"{stats.format_share(one.value)} at width {width}"
        for width, one in widths.items()
        if not math.isnan(one.value)
    ]
    by_width = f": {labels.listed(each)}" if len(each) > 1 else ""
    return [f"This closes {stats.format_share(whole.value)} of the gap from naive to LTH{by_width}."]


def _ways(runs: pd.DataFrame, scored: pd.DataFrame, by: list[str], where: str) -> list[str]:
    """Return the gain of every way of matching, if the study has several."""
    present = cells.row_order(scored[cells.ROW])
    over = cells.NAIVE if cells.NAIVE in present else match_quality.UNMOVED
    ways = [row for row in present if row.partition(":")[0] == cells.PERMUTED and row != over]
    if any("=" in row for row in ways):  # by number, the largest last
        ways = [row for row in ways if row != cells.PERMUTED] + [row for row in ways if row == cells.PERMUTED]
    found = {row: gains(scored, by, row, over) for row in ways}
    if len(ways) < 2 or not all(map(len, found.values())):
        return []
    main = cells.main_matching(runs)
    usual = ", ".join(_setting(name, value) for name, value in main.items() if len(_values(runs, name)) > 1)
    each = [
        f"{labels.short(row.partition(':')[2]) or usual} {_differs(pooled(gained))}" for row, gained in found.items()
    ]
    basis = _basis(pooled(found[ways[0]]), found[ways[0]])
    return [
        f"{where}, permuting the mask gains over reusing it as it is, in points of test accuracy with "
        f"{100 * stats.CONFIDENCE:g} % intervals: {'; '.join(each)} ({basis})."
    ]


def _values(runs: pd.DataFrame, name: str) -> set[object]:
    """Return the values of a setting of matching that a study has."""
    return {matching[name] for matching in runs[schema.MATCHING] if name in matching}


def _setting(name: str, value: object) -> str:
    if name == schema.PARAM_MATCHER:
        return str(value)
    return "at the end" if name == schema.PARAM_MATCH_EPOCH and value == cells.END else f"{name}={value}"


def _controls(scored: pd.DataFrame, by: list[str]) -> list[str]:
    """Return how permuted compares with other ways to get a mask."""
    said = []
    for _, row, over in controls.QUESTIONS[:FIRST_CONTROLS]:
        one = pooled(gains(scored, by, row, over))
        if one.n:
            names = labels.method(row), labels.method(over).lower()
            said.append(f"{names[0]} {MINUS} {names[1]}: {_points(one)}.")
    return said


def _compared(scored: pd.DataFrame, by: list[str], where: str) -> list[str]:
    """Return how permuted compares with LTH, or LTH with naive, in a study without permuted or naive nets."""
    for row, over in ((cells.PERMUTED, cells.LTH), (cells.LTH, cells.NAIVE)):
        gained = gains(scored, by, row, over)
        if (one := pooled(gained)).n:
            names = labels.method(row), labels.method(over).replace("Naive", "naive")
            points = f"{abs(one.value):.2f} points of test accuracy {_side(one)}"
            limits = "" if math.isnan(one.low) else f"{_interval(one)}; "
            return [f"{where}, {names[0]} is {points} {names[1]} ({limits}{_basis(one, gained)})."]
    return []


# --- other questions --------------------------------------------------------------------------------------------
def _ensembles(runs: pd.DataFrame, where: str) -> list[str]:
    """Return what ensembles gain over their members, means over the places at which there are several."""
    numbers = function_space.table(runs)
    if numbers.empty:
        return []
    each = []
    for row in cells.row_order(numbers[cells.ROW]):
        own = numbers[numbers[cells.ROW] == row]
        reached, gained = own[schema.ENSEMBLE_ACCURACY].mean(), own["ensemble_gain"].mean()
        each.append(f"{labels.method(row)} {reached:.2f} % ({stats.format_difference(gained)})")
    count = facets.count(numbers[schema.MEMBERS])
    said = f"{where}, ensembles reach this test accuracy (points over the mean of their members; {count} nets)"
    return [f"{said}: {', '.join(each)}."]


def _paths(runs: pd.DataFrame, where: str) -> list[str]:
    """Return what matching leaves of the error barrier between A and B, at the smallest and at the largest width."""
    numbers = interpolation.table(runs)
    numbers = numbers[numbers["measure"] == schema.ERROR_BARRIER]
    main = cells.main_matching(runs)[schema.PARAM_MATCHER]
    each = []
    for width in sorted(numbers[schema.PARAM_WIDTH].unique()):
        here = numbers[numbers[schema.PARAM_WIDTH] == width]
        means = here.groupby([schema.PARAM_CORRECTION, schema.PARAM_MATCHER])["mean"].mean().unstack()
        means = means.reindex(columns=[interpolation.IDENTITY, main]).dropna()
        if len(means):
            correction = means[main].idxmin()
            before, after = means.loc[correction]
            each.append(f"from {before:.1f} to {after:.1f} points at width {labels.value(schema.PARAM_WIDTH, width)}")
    ends = " and ".join(dict.fromkeys((each[0], each[-1]))) if each else ""
    return [f"{where}, matching changes the error barrier between A and B {ends}."] if each else []


# --- words ------------------------------------------------------------------------------------------------------
def _basis(one: stats.Estimate, gained: pd.DataFrame) -> str:
    return f"{labels.plural(one.n, 'pair')} of nets, {labels.plural(gained.shape[1], 'cell')} of the grid"


def _side(one: stats.Estimate) -> str:
    return "ahead of" if one.value >= 0 else "behind"


def _differs(one: stats.Estimate) -> str:
    return stats.format_difference(one.value, one.low, one.high)


def _points(one: stats.Estimate) -> str:
    """Return a difference with its unit and interval."""
    mean = stats.format_difference(one.value)
    return f"{mean} points" + ("" if math.isnan(one.low) else f" ({_interval(one)})")


def _interval(one: stats.Estimate) -> str:
    limits = _differs(one).partition(" ")[2]
    return f"{100 * stats.CONFIDENCE:g} % CI {limits}"
