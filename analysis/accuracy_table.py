"""Table: test accuracy of every method in every cell, and what permuting the mask gains over reusing it as it is.

Run it alone with ``python -m analysis.accuracy_table --space NAME``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis import cells, labels, stats
from analysis.load import runs as load
from analysis.signs import MINUS
from trainables import schema

__all__ = ["CAPTION", "TITLE", "comparison", "controls", "formatted", "load", "notes", "table"]

GRID = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
INTERVAL = "[95\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}CI] (n)"
MAIN = (cells.DENSE, cells.LTH, cells.PERMUTED, cells.NAIVE)
"""Rows of the main table; the others are in :func:`controls`."""
KEPT = {labels.axis(name) for name in GRID}
TITLE = "Test accuracy"
CAPTION = (
    "Test accuracy in percent after the last epoch: mean ± sample standard deviation (number of runs). "
    f"Permuted {MINUS} naive: mean of the paired differences in percentage points with its 95 % t interval (number of "
    "pairs A, B that have both). p: paired t test, adjusted for the number of cells (Holm). Gap closed: "
    f"(permuted {MINUS} naive) / (LTH {MINUS} naive), where LTH is ahead of naive by more than a standard error."
)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell with unrounded numbers.

    Columns: the cell's axes; ``<row>_mean``, ``<row>_std``, ``<row>_n`` for each row (percent); then those of
    :func:`comparison`.
    """
    by = cells.axes(frame)
    scored = cells.scores(frame)
    lines = []
    for cell, group in scored.groupby(by, dropna=False):
        line: dict[str, Any] = dict(zip(by, cell, strict=True))
        for row in cells.row_order(scored[cells.ROW]):
            summary = stats.summarize(group.loc[group[cells.ROW] == row, schema.TEST_ACCURACY])
            line |= {f"{row}_mean": summary.mean, f"{row}_std": summary.std, f"{row}_n": summary.n}
        lines.append(line | comparison(cells.paired(group, by)))
    result = pd.DataFrame(lines)
    if len(result):
        result["p_holm"] = stats.holm(result["p"].tolist())
        result[schema.PARAM_REWIND_EPOCH] = result[schema.PARAM_REWIND_EPOCH].astype("Int64")
    return result


def comparison(pairs: pd.DataFrame) -> dict[str, float]:
    """Return how the permuted mask compares with the naive one in a cell.

    ``permuted_minus_naive`` with ``ci_low``, ``ci_high`` (percentage points, 95 %), ``pairs`` and ``p``; and
    ``share_closed``, over the pairs that have LTH, too, where LTH is ahead of naive by more than a standard error.
    """
    columns = pairs.reindex(columns=[cells.PERMUTED, cells.NAIVE, cells.LTH])
    difference = stats.paired_difference(columns[cells.PERMUTED], columns[cells.NAIVE])
    complete = columns.dropna()
    ahead = stats.summarize(complete[cells.LTH] - complete[cells.NAIVE])
    clear = ahead.n > 0 and not ahead.mean <= (0.0 if ahead.n == 1 else ahead.sem)
    permuted, naive, lth = (float(value) for value in complete.mean())
    return {
        "permuted_minus_naive": difference.mean,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "pairs": difference.n,
        "p": difference.p,
        "share_closed": stats.share_closed(permuted, naive, lth) if clear else stats.NAN,
    }


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it; an axis on which all cells agree is left to the caption."""
    numbers = table(frame)
    if numbers.empty:
        return numbers
    columns = _places(numbers, cells.axes(frame)) | _means(numbers, MAIN)
    columns[f"Permuted {MINUS} naive {INTERVAL}"] = [str(_ahead(pairs, cells.NAIVE)) for pairs in _paired(frame)]
    columns["p (Holm)"] = [stats.format_p(p) for p in numbers["p_holm"]]
    columns["Gap closed"] = ["" if pd.isna(share) else f"{100 * share:.0f} %" for share in numbers["share_closed"]]
    return _without_empty(columns)


def controls(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the other rows as people read them, each with what permuted is ahead of it; empty if there are none."""
    numbers = table(frame)
    others = [row for row in _rows(numbers) if row not in MAIN]
    if not others:
        return pd.DataFrame()
    columns = _places(numbers, cells.axes(frame))
    for row in others:
        columns |= _means(numbers, [row])
        if row != cells.IMP:
            name = f"Permuted {MINUS} {labels.method(row).lower()} {INTERVAL}"
            columns[name] = [str(_ahead(pairs, row)) for pairs in _paired(frame)]
    return _without_empty(columns)


def _paired(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the pairs of each cell, in the order of the table."""
    by = cells.axes(frame)
    return [cells.paired(group, by) for _, group in cells.scores(frame).groupby(by, dropna=False)]


def _ahead(pairs: pd.DataFrame, row: str) -> stats.Difference:
    columns = pairs.reindex(columns=[cells.PERMUTED, row])
    return stats.paired_difference(columns[cells.PERMUTED], columns[row])


def _rows(numbers: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_n") for name in numbers.columns if name.endswith("_n")]


def _places(numbers: pd.DataFrame, by: list[str]) -> dict[str, list[str]]:
    """Return the columns that say where in the grid a line stands."""
    shown = [name for name in by if name in GRID or numbers[name].nunique(dropna=False) > 1]
    return {labels.axis(name): [labels.value(name, value) for value in numbers[name]] for name in shown}


def _means(numbers: pd.DataFrame, rows: Iterable[str]) -> dict[str, list[str]]:
    """Return a column of ``mean ± std (n)`` for each of the rows that was measured."""
    columns = {}
    for row in rows:
        if row in _rows(numbers):
            triples = zip(numbers[f"{row}_mean"], numbers[f"{row}_std"], numbers[f"{row}_n"], strict=True)
            columns[labels.method(row)] = [stats.format_mean(*triple, decimals=2) for triple in triples]
    return columns


def _without_empty(columns: dict[str, list[str]]) -> pd.DataFrame:
    return pd.DataFrame({name: column for name, column in columns.items() if name in KEPT or any(column)})


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the table leaves out, one sentence each."""
    by = cells.axes(frame)
    scored = cells.scores(frame)
    said = []
    if scored.empty:
        said.append("No run has finished yet.")
    elif cells.indistinct(scored, by):
        said.append(
            f"{labels.plural(cells.indistinct(scored, by), 'entry', 'entries')} average several runs of one pair "
            "that no recorded setting tells apart."
        )
    matchers = sorted({name.partition(":")[2] for name in scored[cells.ROW]} - {""})
    if matchers:
        main = cells.main_matcher(frame[frame["stage"] == schema.SPARSE])
        said.append(f"Permuted without a matcher's name is matched by {main}.")
    return said


if __name__ == "__main__":
    from analysis import accuracy_table, command

    command.run_module(accuracy_table)
