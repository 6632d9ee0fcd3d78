"""The study in one sentence, as strong as the data and no stronger."""

from __future__ import annotations

import math

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.drawing.signs import MINUS
from analysis.figures import accuracy_table
from trainables import schema


def headline(frame: pd.DataFrame) -> str:
    """Return what permuting the mask gains over reusing it as it is, one sentence per task.

    The gain of each pair of nets is averaged over the cells that all pairs have, and the interval is over pairs:
    the cells of a pair share their dense nets, so they are not independent observations.
    """
    scored, by = cells.scores(frame), cells.axes(frame)
    tasks = facets.places(scored, cells.TASK)
    sentences = [_sentence(labels.cell(task, cells.TASK), gains(group, by)) for task, group in tasks]
    return " ".join(sentences) or "No run has finished yet."


def details(frame: pd.DataFrame) -> list[str]:
    """Return the sentences that qualify the headline: by rewind epoch, and in how many cells it is significant."""
    scored, by = cells.scores(frame), cells.axes(frame)
    named = facets.several_tasks(scored)
    said = []
    for task, group in facets.places(scored, cells.TASK):
        where = f"With {labels.cell(task, named)} permuted" if named else "Permuted"
        epochs = group[schema.PARAM_REWIND_EPOCH]
        parts = {"from the untouched initialisation": group[epochs == 0], "from epoch 1 or later": group[epochs > 0]}
        found = {start: pooled(gains(part, by)) for start, part in parts.items()}
        if all(one.n for one in found.values()):
            points = "; ".join(f"{start}: {_points(one)}" for start, one in found.items())
            said.append(f"{where} {MINUS} naive {points}.")
    return said + _tested(frame)


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


def gains(scored: pd.DataFrame, by: list[str], row: str = cells.PERMUTED, over: str = cells.NAIVE) -> pd.DataFrame:
    """Return `row` - `over` (percentage points), a line per pair and a column per cell that has all pairs.

    Args:
        scored: as returned by :func:`analysis.cells.scores`.
        by: the axes that tell one cell from another.
        row: what is compared.
        over: what it is compared with.
    """
    pairs = cells.paired(scored, by).reindex(columns=[row, over])
    difference = (pairs[row] - pairs[over]).dropna()
    return difference.unstack(by).dropna(axis="columns") if len(difference) else pd.DataFrame()


def pooled(gained: pd.DataFrame) -> stats.Estimate:
    """Return the mean over cells of each pair's gain, and its interval over pairs."""
    return stats.interval(gained.mean(axis="columns") if gained.size else [])


def _sentence(where: str, gained: pd.DataFrame) -> str:
    one = pooled(gained)
    if not one.n:
        return f"With {where}, no cell has permuted and naive results of the same pairs yet."
    basis = f"{labels.plural(one.n, 'pair')} of nets, {labels.plural(gained.shape[1], 'cell')} of the grid"
    points = f"{abs(one.value):.2f} points of test accuracy"
    if one.n == 1:
        side = "ahead of" if one.value >= 0 else "behind"
        lead = f"the permuted mask is {points} {side} the naive one in the only pair so far"
        return f"With {where}, {lead} ({basis}): too few for an interval."
    if math.isnan(one.low):
        signed = stats.format_difference(one.value)
        return f"With {where}, all pairs differ by the same {signed} points ({basis}): this has no interval."
    basis = f"{_interval(one)}; {basis}"
    if not one.excludes_zero:
        signed = stats.format_difference(one.value)
        return f"With {where}, permuted and naive masks do not differ significantly: {signed} points ({basis})."
    verb = "gains" if one.value > 0 else "loses"
    return f"With {where}, permuting the mask {verb} {points} over reusing it as it is ({basis})."


def _points(one: stats.Estimate) -> str:
    """Return a difference with its unit and interval."""
    mean = stats.format_difference(one.value)
    return f"{mean} points" + ("" if math.isnan(one.low) else f" ({_interval(one)})")


def _interval(one: stats.Estimate) -> str:
    limits = stats.format_difference(one.value, one.low, one.high).partition(" ")[2]
    return f"{100 * stats.CONFIDENCE:g} % CI {limits}"
