"""Numbers that the figures share: finished runs of one kind, means over seeds, and the places of the grid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing.signs import DASH
from analysis.load import recipe_fields
from trainables import schema
from trainables.knobs import SETTINGS
from trainables.schema import FINISHED

ALWAYS = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
"""Axes that titles and tables name even if they do not vary."""


def finished(frame: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Return the finished runs of one kind of job."""
    return frame[(frame[schema.PARAM_STAGE] == stage) & (frame["status"] == FINISHED)]


def finite(frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return the frame with infinite values of the measures missing."""
    return frame.assign(**{name: frame[name].where(np.isfinite(frame[name].astype(float))) for name in measures})


def summaries(frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return one line per cell, row and measure: the axes, ``row``, ``measure``, ``n``, ``mean``, ``std``, ``sem``.

    Lines without a value are left out. The order is that of the grid, and within a cell that of the method table.
    """
    by = cells.axes(frame)
    return spread(cells.nets(cells.scores(frame), by), [*by, cells.ROW], measures)


def spread(frame: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Return ``n``, ``mean``, sample ``std`` and ``sem`` of each measure by place, one line for each that has a value.

    Lines are sorted by place (rows in the order of the method table), then by measure in the order given.
    """
    long = frame.melt([*by], [*measures], var_name="measure", value_name="value").dropna(subset="value")
    order: dict[str, dict[str, int]] = {"measure": {name: place for place, name in enumerate(measures)}}
    if cells.ROW in by:
        order[cells.ROW] = {name: place for place, name in enumerate(cells.row_order(long[cells.ROW]))}
    found = long.groupby([*by, "measure"], dropna=False)["value"].agg(n="count", mean="mean", std="std").reset_index()
    found = found.sort_values(
        [*by, "measure"], key=lambda column: column.map(order.get(str(column.name))) if column.name in order else column
    )
    return found.assign(sem=found["std"] / found["n"] ** 0.5).reset_index(drop=True)


def places(
    numbers: pd.DataFrame, by: Sequence[str], *, sort: bool = True
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each place, as axis -> value, with its lines; a missing value is a value."""
    for place, group in numbers.groupby([*by], dropna=False, sort=sort):
        yield dict(zip(by, place, strict=True)), group


def at(numbers: pd.DataFrame, place: Mapping[str, Any]) -> pd.DataFrame:
    """Return the lines at a place; a missing value matches missing values."""
    chosen = pd.Series(True, index=numbers.index)
    for name, value in place.items():
        chosen &= numbers[name].isna() if pd.isna(value) else numbers[name] == value
    return numbers[chosen]


def axes(runs: pd.DataFrame, place: Sequence[str]) -> list[str]:
    """Return the axes of a figure's grid: those in `place`, then all other settings in which the figure's runs differ.

    Never average over a setting: the spread over seeds would then include the spread over its values. Runs that cells
    with several values share must have been repeated for each (`analysis.cells.repeated`).
    """
    settings = set(recipe_fields(runs)) & {name for name, knob in SETTINGS.items() if not knob.axis} - {*place}
    return [*place, *(name for name in SETTINGS if name in settings and runs[name].nunique() > 1)]


def told_apart(
    numbers: pd.DataFrame, by: Sequence[str], *, hide: Collection[str] = (), always: Collection[str] = ALWAYS
) -> list[str]:
    """Return the axes to name: those that vary and those in `always`, without those in `hide`."""
    return [name for name in by if name not in hide and (name in always or numbers[name].nunique(dropna=False) > 1)]


def several_tasks(numbers: pd.DataFrame) -> tuple[str, ...]:
    """Return model and dataset, to be named, if there are several; nothing if there is one."""
    return cells.TASK if len(numbers[list(cells.TASK)].drop_duplicates()) > 1 else ()


def count(counts: pd.Series) -> str:
    """Return ``n = 3``, ``n = 1-3`` or nothing."""
    if counts.empty:
        return ""
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}" if low == high else f"n = {low}{DASH}{high}"


def leads(frame: pd.DataFrame, over: str = cells.NAIVE) -> pd.DataFrame:
    """Return how far each row is ahead of another row of its cell, one line per cell and row with pairs in common.

    Columns: the cell's axes, ``row``, ``pairs``, ``lead``, ``ci_low``, ``ci_high`` (percentage points, 95 %), ``p``.
    """
    by = cells.axes(frame)
    pairs = cells.paired(cells.scores(frame), by).reset_index()
    lines = []
    for place, group in places(pairs, by) if over in pairs else ():
        for row in cells.row_order(pairs.columns.drop([*by, cells.PAIR, over])):
            one = stats.paired_difference(*cells.observations(group, row, over))
            if one.n:
                lines.append([*place.values(), row, one.n, one.value, one.low, one.high, one.p])
    found = pd.DataFrame(lines, columns=[*by, cells.ROW, "pairs", "lead", "ci_low", "ci_high", "p"])
    return typed(found, frame, by)


def typed(numbers: pd.DataFrame, frame: pd.DataFrame, by: Iterable[str]) -> pd.DataFrame:
    """Return numbers whose axes have the types that they have in a frame, so that both can be joined."""
    return numbers.astype({name: frame[name].dtype for name in by})


def crossed(
    numbers: pd.DataFrame,
    by: Sequence[str],
    named: Sequence[str],
    *,
    heads: Iterable[str],
    texts: Iterable[str],
    order: Iterable[str],
) -> pd.DataFrame:
    """Return a table for readers, with a line per place, in the order of the numbers, and a column per head.

    Args:
        numbers: a line per entry of the table.
        by: the axes that tell the table's lines apart.
        named: those among them that the table shows.
        heads: the column of each entry.
        texts: each entry.
        order: all heads from left to right; those without an entry are left out.
    """
    entries = numbers.assign(head=list(heads), text=list(texts))
    lines = [
        labels.place(place, named) | dict(zip(group["head"], group["text"], strict=True))
        for place, group in places(entries, by, sort=False)
    ]
    present = set(entries["head"])
    return pd.DataFrame(lines, columns=[*map(labels.axis, named), *filter(present.__contains__, order)]).fillna("")


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return a sentence on the sparse runs that have no result, by method and status."""
    sparse = frame[(frame["stage"] == schema.SPARSE) & (frame["status"] != FINISHED)]
    if sparse.empty:
        return []
    groups = sparse.groupby([schema.PARAM_METHOD, "status"]).size()
    items = [f"{n} {labels.method(str(method))} {str(status).lower()}" for (method, status), n in groups.items()]
    return [f"Left out, because they have no result: {labels.listed(items)}."]
