"""The study in a few words, as strong as the data and no stronger.

A study asks for what it measures: ensembles, several ways of matching, controls, paths between nets. So the headline
depends on what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.drawing.signs import MINUS
from analysis.figures import accuracy_table, controls, function_space, interpolation, match_images, match_quality
from analysis.gains import Block, block
from analysis.memo import once
from trainables import schema

NOTHING = "No run has finished yet."
MANY_WIDTHS = 3
"""A study of so many widths asks for their effect."""
FIGURES_OF_WAYS = {schema.PARAM_MATCH_EPOCH: "early_matching", match_images.IMAGES: "match_images"}
"""Setting of matching -> the figure of its effect; ``match_quality`` has that of any other."""
FIRST_CONTROLS = 2
"""How many of the controls' questions the headline answers; the figure answers all."""
_LEVEL = f"{100 * stats.CONFIDENCE:g} % CI"


def headline(frame: pd.DataFrame) -> str:
    """Return what the study found, a few sentences per task; :class:`analysis.gains.Block` says over which nets."""
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
        present = set(scored[cells.ROW])
        for row, over in ((cells.PERMUTED, cells.NAIVE), *(rows for _, *rows in controls.QUESTIONS)):
            if {row, over} <= present:
                others += _by_part(runs, scored, by, row, over, f"{where}: " if named else "")
        said += others
    return said + _tested(frame)


def figure_of(frame: pd.DataFrame) -> str:
    """Return the name of the figure that shows what the headline says; it may lack numbers so far."""
    return next((answer.figure for answer in _answers(frame) if answer.figure), "rewind")


def _by_part(runs: pd.DataFrame, scored: pd.DataFrame, by: list[str], row: str, over: str, where: str) -> list[str]:
    """Return how two rows compare at widths that have fewer pairs, and at early and late rewind epochs."""
    whole = block(scored, by, row, over)
    said = []
    for width in whole.behind:
        compared = block(scored[scored[schema.PARAM_WIDTH] == width], by, row, over)
        said.append({f"at width {labels.value(schema.PARAM_WIDTH, width)}": compared})
    kept = scored[~scored[schema.PARAM_WIDTH].isin(whole.behind)]
    epochs = kept[schema.PARAM_REWIND_EPOCH]
    parts = {_from_epoch_0(runs): kept[epochs == 0], "from epoch 1 or later": kept[epochs > 0]}
    starts = {start: block(part, by, row, over) for start, part in parts.items()}
    if all(compared.pairs for compared in starts.values()):
        said.append(starts)
    names = f"{where}{labels.method(row)} {MINUS} {labels.method(over).lower()}"
    points = [[f"{part}: {_points(found, found.gain(row, over))}" for part, found in each.items()] for each in said]
    return [f"{names} {'; '.join(each)}." for each in points]


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
    by, main = cells.axes(frame), cells.main_matching(frame)
    return [_answer(task, by, main) for task in _tasks(frame)]


def _answer(task: _Task, by: list[str], main: Mapping[str, object]) -> _Answer:
    where, runs, scored = task
    if said := _ensembles(runs, where):
        return _Answer("function_space", said)
    if said := _ways(task, by, main):
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
    every = accuracy_table.table(frame)
    numbers = every[every["pairs"] > 1] if len(every) else every
    if numbers.empty:
        return []
    tested = labels.plural(len(numbers), "cell") + (" that have two pairs or more" if len(numbers) < len(every) else "")
    ahead = int((numbers["permuted_minus_naive"] > 0).sum())
    clear = int((numbers["p_holm"] < stats.LEVEL).sum())
    return [
        f"Permuted is ahead of naive in {ahead} of {tested}; tested cell by cell, the "
        f"difference is significant (p < {stats.LEVEL} after Holm's correction) in {clear or 'none'}."
    ]


# --- what permuting gains ---------------------------------------------------------------------------------------
def _gain(scored: pd.DataFrame, by: list[str], where: str) -> list[str]:
    """Return what permuting gains over reusing the mask as it is, and how much of the gap to LTH that closes."""
    compared = block(scored, by, cells.PERMUTED, cells.NAIVE)
    one = compared.gain()
    if not one.n:
        return []
    basis, points = _basis(compared), f"{abs(one.value):.2f} points of test accuracy"
    if one.n == 1:
        only = "the only pair" if compared.pairs == 1 else "the pairs of the only net A"
        lead = f"the permuted mask is {points} {_side(one)} the naive one in {only} so far"
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
    return said + _closed(scored, by, compared) if one.value > 0 else said


def _closed(scored: pd.DataFrame, by: list[str], compared: Block) -> list[str]:
    """Return the share of the gap to LTH that is closed, also by width over the cells that every width has."""
    triple = (cells.PERMUTED, cells.NAIVE, cells.LTH)
    whole = block(scored, by, *triple)
    closed = whole.share()
    if math.isnan(closed.value):
        return []
    scored = scored[~scored[schema.PARAM_WIDTH].isin(whole.behind)]
    everywhere, each = _at_every_width(scored, by), []
    for width, group in everywhere.groupby(schema.PARAM_WIDTH):
        part = stats.format_share(block(group, by, *triple).share().value)
        each += [f"{part} at width {labels.value(schema.PARAM_WIDTH, width)}"] if part else []
    same = whole.accuracies.index.equals(compared.accuracies.index)
    lead = "This closes" if same else f"Where LTH nets have finished, too ({_basis(whole)}), it closes"
    common = "" if len(everywhere) == len(scored) else " over the cells that they have in common"
    by_width = f": {labels.listed(each)}{common}" if len(each) > 1 else ""
    share, _, limits = stats.format_share(closed.value, closed.low, closed.high).partition(" [")
    interval = f" ({_LEVEL} [{limits} %)" if limits else ""
    return [f"{lead} {share} of the gap from naive to LTH{interval}{by_width}."]


def _at_every_width(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the lines of the cells that every width has, so that widths differ in nothing else."""
    apart = [name for name in by if name != schema.PARAM_WIDTH]
    widths = scored.groupby(apart, dropna=False)[schema.PARAM_WIDTH].transform("nunique")
    return scored[widths == scored[schema.PARAM_WIDTH].nunique()]


def _ways(task: _Task, by: list[str], main: Mapping[str, object]) -> list[str]:
    """Return the gain of every way of matching that most pairs have, over the same cells, if the study has several."""
    where, runs, scored = task
    present = cells.row_order(scored[cells.ROW])
    over = cells.NAIVE if cells.NAIVE in present else match_quality.UNMOVED
    ways = [row for row in present if cells.method_of(row) == cells.PERMUTED and row != over]
    if any("=" in row for row in ways):  # by number, the largest last
        ways = [row for row in ways if row != cells.PERMUTED] + [row for row in ways if row == cells.PERMUTED]
    pairs = {row: block(scored, by, row, over).pairs for row in ways}
    ways = [row for row in ways if pairs[row] == max(pairs.values())]
    compared = block(scored, by, *ways, over)
    if len(ways) < 2 or not compared.pairs:
        return []
    usual = ", ".join(_setting(name, value) for name, value in main.items() if len(_values(runs, name)) > 1)
    each = [f"{labels.short(cells.how_of(row)) or usual} {_differs(compared.gain(row, over))}" for row in ways]
    return [
        f"{where}, permuting the mask gains over reusing it as it is, in points of test accuracy with "
        f"{100 * stats.CONFIDENCE:g} % intervals: {'; '.join(each)} ({_basis(compared)})."
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
        compared = block(scored, by, row, over)
        if compared.pairs:
            names = labels.method(row), labels.method(over).lower()
            said.append(f"{names[0]} {MINUS} {names[1]}: {_points(compared, compared.gain(row, over))}.")
    return said


def _compared(scored: pd.DataFrame, by: list[str], where: str) -> list[str]:
    """Return how permuted compares with LTH, or LTH with naive, in a study without permuted or naive nets."""
    for row, over in ((cells.PERMUTED, cells.LTH), (cells.LTH, cells.NAIVE)):
        compared = block(scored, by, row, over)
        if (one := compared.gain(row, over)).n:
            names = labels.method(row), labels.method(over).replace("Naive", "naive")
            points = f"{abs(one.value):.2f} points of test accuracy {_side(one)}"
            limits = "" if math.isnan(one.low) else f"{_interval(one)}; "
            return [f"{where}, {names[0]} is {points} {names[1]} ({limits}{_basis(compared)})."]
    return []


# --- other questions --------------------------------------------------------------------------------------------
def _ensembles(runs: pd.DataFrame, where: str) -> list[str]:
    """Return what ensembles gain over their members at each place, where all methods have an ensemble of the nets A."""
    numbers, by = function_space.table(runs), cells.axes(runs)
    if numbers.empty:
        return []
    rows = numbers.groupby([*by, schema.PARAM_SEED_A], dropna=False)[cells.ROW].transform("nunique")
    whole = numbers[rows == rows.max()]
    named = facets.told_apart(whole, [name for name in by if name not in cells.TASK], always=())
    said = []
    for place, found in facets.places(whole, by):
        each = []
        for row in cells.row_order(found[cells.ROW]):
            own = found[found[cells.ROW] == row]
            reached, gained = own[schema.ENSEMBLE_ACCURACY].mean(), own["ensemble_gain"].mean()
            each.append(f"{labels.method(row)} {reached:.2f} % ({stats.format_difference(gained)})")
        nets, count = facets.count(found[schema.MEMBERS]), found[schema.PARAM_SEED_A].nunique()
        of_each = f"{nets} nets" if count == 1 else f"{nets} nets, means of {count} ensembles"
        spot = ", ".join([where, *filter(None, [labels.cell(place, named)])])
        reach = f"{spot}, ensembles reach this test accuracy (points over the mean of their members; {of_each})"
        said.append(f"{reach}: {', '.join(each)}.")
    return said


def _paths(runs: pd.DataFrame, where: str) -> list[str]:
    """Return what matching leaves of the error barrier between A and B, at the smallest and at the largest width.

    Only pairs that were measured before and after the main matching count; of several corrections, the one that leaves
    the lowest barriers.
    """
    main, done = cells.main_matching(runs), cells.repeated(facets.finished(runs, schema.CONNECT))
    of_pairs = done[schema.PARAM_PATH].replace("", schema.PATH_PAIR) == schema.PATH_PAIR
    at_end = done[schema.PARAM_MATCH_EPOCH].fillna(cells.END) == main[schema.PARAM_MATCH_EPOCH]
    done = facets.finite(done[of_pairs & at_end], [schema.ERROR_BARRIER]).assign(**{cells.PAIR: cells.pairs})
    place = facets.axes(done, (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_CORRECTION))
    barriers = done.groupby([*place, cells.PAIR, schema.PARAM_MATCHER], dropna=False)[schema.ERROR_BARRIER].mean()
    before, after = interpolation.IDENTITY, main[schema.PARAM_MATCHER]
    wide = barriers.unstack().reindex(columns=[before, after]).dropna()
    if wide.empty:
        return []
    correction = wide[after].groupby(schema.PARAM_CORRECTION).mean().idxmin()
    several = wide.index.get_level_values(schema.PARAM_CORRECTION).nunique() > 1
    each = []
    for width, found in wide.xs(correction, level=schema.PARAM_CORRECTION).groupby(schema.PARAM_WIDTH):
        first, last = found[before].mean(), found[after].mean()
        pairs = labels.plural(found.index.get_level_values(cells.PAIR).nunique(), "pair")
        each.append(
            f"from {first:.1f} to {last:.1f} points at width {labels.value(schema.PARAM_WIDTH, width)} ({pairs})"
        )
    ends = " and ".join(dict.fromkeys((each[0], each[-1])))
    how = f" with {correction}" if several else ""
    return [f"{where}, matching changes the error barrier between A and B{how} {ends}."]


# --- words ------------------------------------------------------------------------------------------------------
def _from_epoch_0(runs: pd.DataFrame) -> str:
    """Return where training from rewind epoch 0 starts."""
    offsets = runs.get("rewind_offset", pd.Series(dtype=str)).replace("", "0")
    return "from the untouched initialisation" if set(offsets) <= {"0"} else "from rewind epoch 0"


def _basis(compared: Block) -> str:
    """Return which part of the study a mean is over."""
    masks = f" that share {labels.plural(compared.masks, 'net A', 'nets A')}" if compared.masks < compared.pairs else ""
    pairs = f"{labels.plural(compared.pairs, 'pair')} of nets{masks}"
    return f"{pairs}, {labels.plural(compared.cells, 'cell')} of the grid{_without(compared)}"


def _without(compared: Block) -> str:
    """Return what a mean leaves out."""
    widths = labels.listed(labels.value(schema.PARAM_WIDTH, width) for width in compared.behind)
    parts = {
        f"; width {widths}, with fewer pairs, left out": widths,
        f"; {labels.plural(compared.left_out, 'pair')} without all of these cells left out": compared.left_out,
    }
    return "".join(labels.said(parts))


def _side(one: stats.Estimate) -> str:
    return "ahead of" if one.value >= 0 else "behind"


def _differs(one: stats.Estimate) -> str:
    return stats.format_difference(one.value, one.low, one.high)


def _points(compared: Block, one: stats.Estimate) -> str:
    """Return a difference with its unit, interval and numbers of pairs and cells."""
    limits = "" if math.isnan(one.low) else f"{_interval(one)}; "
    basis = f"{labels.plural(compared.pairs, 'pair')}, {labels.plural(compared.cells, 'cell')}{_without(compared)}"
    return f"{stats.format_difference(one.value)} points ({limits}{basis})"


def _interval(one: stats.Estimate) -> str:
    limits = _differs(one).partition(" ")[2]
    return f"{_LEVEL} {limits}"
