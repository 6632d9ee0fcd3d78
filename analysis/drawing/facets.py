"""What the figures share: means by cell, and how cells are laid out in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import cells, labels
from analysis.drawing.signs import DASH
from trainables import schema
from trainables.schema import FINISHED

MOST_ROWS = 12
"""Rows of panels that a figure may have; a study with more (of sampled recipes, say) is read from the tables."""


def summaries(frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return one line per cell, row and measure: the axes, ``row``, ``measure``, ``n``, ``mean``, ``std``, ``sem``.

    Lines without a value are left out; they come in the order of the grid, rows in the order of the method table.
    """
    by = cells.axes(frame)
    return spread(cells.scores(frame), [*by, cells.ROW], measures)


def spread(frame: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Return ``n``, ``mean``, sample ``std`` and ``sem`` of each measure by place, one line for each that has a value.

    Lines are in the order of the places, of rows in that of the method table, and of the measures.
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


def grid(numbers: pd.DataFrame, by: list[str], *, across: str, without: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the places of the rows of panels (values on all other axes) and the values of the columns."""
    down = [name for name in by if name not in (across, without)]
    rows = numbers[down].drop_duplicates().sort_values(down).head(MOST_ROWS)
    return rows.to_dict("records"), sorted(numbers[across].unique())


def cut_off(numbers: pd.DataFrame, by: list[str], across: str, without: str) -> list[str]:
    """Return a sentence if there are more rows of panels than a figure holds."""
    down = [name for name in by if name not in (across, without)]
    more = len(numbers[down].drop_duplicates()) - MOST_ROWS
    return [f"{labels.plural(more, 'more row')} of panels left to the table."] if more > 0 else []


def at(numbers: pd.DataFrame, place: Mapping[str, Any]) -> pd.DataFrame:
    """Return the lines at a place; a missing value stands for itself."""
    chosen = pd.Series(True, index=numbers.index)
    for name, value in place.items():
        chosen &= numbers[name].isna() if pd.isna(value) else numbers[name] == value
    return numbers[chosen]


def told_apart(numbers: pd.DataFrame, by: list[str], *, hide: str) -> list[str]:
    """Return the axes that a panel's title has to name: width and sparsity always, others if they vary."""
    always = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
    return [name for name in by if name != hide and (name in always or numbers[name].nunique(dropna=False) > 1)]


def count(counts: pd.Series) -> str:
    """Return ``n = 3``, ``n = 1-3`` or nothing."""
    if counts.empty:
        return ""
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}" if low == high else f"n = {low}{DASH}{high}"


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return a sentence on the sparse runs that have no result, by method and status."""
    sparse = frame[(frame["stage"] == schema.SPARSE) & (frame["status"] != FINISHED)]
    if sparse.empty:
        return []
    groups = sparse.groupby([schema.PARAM_METHOD, "status"]).size()
    items = [f"{n} {labels.method(str(method))} {str(status).lower()}" for (method, status), n in groups.items()]
    return [f"Without a result and left out: {labels.listed(items)}."]
