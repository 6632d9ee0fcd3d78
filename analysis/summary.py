"""The result of a study as plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.drawing.signs import DASH, MINUS
from analysis.figures import accuracy_table
from trainables import schema
from trainables.schema import FAILED, FINISHED

COLUMNS = 100
PRUNED = (cells.DENSE, cells.IMP)
"""Columns of a study that trains no sparse nets besides the pruned ones."""
LAYOUTS = ((2, 2), (2, 1), (1, 2), (1, 1), (0, 1))
"""(decimals, blanks between columns), tried in this order until the table fits."""


def short_table(frame: pd.DataFrame) -> str:
    """Return test accuracy by width, sparsity and rewind epoch in at most 100 columns.

    There is one block per task (and varied recipe): dense, LTH, permuted and naive (dense and IMP if the study has
    nothing else) as mean ± sample standard deviation (number of nets) in percent, and the paired difference permuted -
    naive in percentage points with its 95 % t interval. ``(2/4)`` says that two of four runs have finished; a dash
    stands in place of the mean if none has.

    Args:
        frame: as returned by :func:`analysis.load.runs`.
    """
    numbers = accuracy_table.table(frame)
    if numbers.empty:
        return "No accuracies yet: no run has finished."
    by = cells.axes(frame)
    numbers = _counts(frame, by).merge(numbers, how="left", on=by)
    planned = {name.removesuffix("_all") for name in numbers if name.endswith("_all")}
    rows = PRUNED if cells.IMP in planned <= {*PRUNED} else cells.MAIN
    apart = [name for name in by if name not in cells.GRID]
    lines = [f"Test accuracy (%), mean ± std (nets); permuted {MINUS} naive in points, paired, with 95 % interval"]
    for place, block in facets.places(numbers, apart):
        lines += ["", labels.cell(place, apart), *_block(block, rows)]
    return "\n".join(lines + _footer(frame))


def _counts(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one line per cell, finished or not, with its axes and the number of its runs by row, ``<row>_all``."""
    every = cells.nets(cells.scores(frame.assign(status=FINISHED)), by)
    counts = every.groupby([*by, cells.ROW], dropna=False).size().unstack(cells.ROW, fill_value=0)
    return counts.add_suffix("_all").reset_index().rename_axis(columns=None)


def _block(numbers: pd.DataFrame, rows: Sequence[str]) -> list[str]:
    """Return the lines of a block in the first layout that fits."""
    header = ("width", "sparse", "rewind", *map(labels.method, rows), f"permuted {MINUS} naive")
    for decimals, blanks in LAYOUTS:
        lines = _aligned([header, *_cells(numbers, rows, decimals)], blanks)
        if max(map(len, lines)) <= COLUMNS:
            break
    return lines


def _cells(numbers: pd.DataFrame, rows: Sequence[str], decimals: int) -> list[list[str]]:
    body = []
    for _, line in numbers.iterrows():
        texts = [labels.value(name, line[name]).replace(" ", "") for name in cells.GRID]
        texts += [_entry(line, row, decimals) for row in rows]
        limits = (line["permuted_minus_naive"], line["ci_low"], line["ci_high"])
        difference = stats.format_difference(*limits, decimals=decimals).replace(", ", ",")
        body.append([*texts, difference or DASH])
    return body


def _entry(line: pd.Series, row: str, decimals: int) -> str:
    """Return ``90.00±0.26 (3)``, ``(2/3)`` in place of ``(3)`` if a run is missing; a dash if there is no mean."""
    mean, std, n, planned = (line.get(f"{row}_{what}", stats.NAN) for what in ("mean", "std", "n", "all"))
    if pd.isna(planned) or not planned:
        return DASH
    n = 0 if pd.isna(n) else int(n)
    value = stats.format_mean(mean, std, n, decimals=decimals, gap="").partition(" (")[0] or DASH
    return f"{value} ({n})" if n == planned else f"{value} ({n}/{planned:.0f})"


def _aligned(table: Sequence[Sequence[str]], blanks: int) -> list[str]:
    """Return lines of right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    separator = " " * blanks
    return [
        separator.join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]


def _footer(frame: pd.DataFrame) -> list[str]:
    """Return notes on what the table does not show."""
    said = accuracy_table.notes(frame)
    others = [name for name in cells.row_order(cells.scores(frame)[cells.ROW]) if name not in (*cells.MAIN, cells.IMP)]
    if others:
        said.append(f"Also measured, see the report: {labels.listed(map(labels.method, others))}.")
    failed = frame[frame["status"] == FAILED]
    if len(failed):
        stages = failed[schema.PARAM_STAGE].value_counts()
        said.append("Failed and left out: " + labels.listed(f"{n} {stage}" for stage, n in stages.items()) + ".")
    return ["", *said] if said else []
