"""Table: test accuracy of every method in every cell, and what permuting the mask gains over reusing it as it is."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets
from analysis.drawing.signs import MINUS
from analysis.memo import once
from trainables import schema

INTERVAL = "[95\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}CI] (n)"
GAIN = f"Permuted {MINUS} naive {INTERVAL}"
SPREAD = ("mean", "std", "n")
COMPARED = ("permuted_minus_naive", "ci_low", "ci_high", "pairs", "p", "share_closed", "share_low", "share_high")
"""Rows of the main table; the others are in :func:`imp` and :func:`controls`."""
KEPT = {labels.axis(name) for name in cells.GRID}
TITLE = "Test accuracy"
CAPTION = (
    "Test accuracy in percent after the last epoch: mean ± sample standard deviation (number of nets). "
    f"Permuted {MINUS} naive: mean of the paired differences in percentage points with its 95 % t interval (number of "
    "pairs A, B that have both). p: paired t test, adjusted for the number of cells (Holm). Gap closed: "
    f"(permuted {MINUS} naive) / (LTH {MINUS} naive), if LTH is ahead of naive by more than a standard error."
)
MORE = {
    "imp": "Test accuracy in percent of the pruned nets themselves: mean ± sample standard deviation (number of nets).",
    "controls": (
        "Test accuracy of the controls in percent: mean ± sample standard deviation (number of nets). Permuted "
        f"{MINUS} each of them: mean of the paired differences in percentage points with its 95 % t interval (number "
        "of pairs A, B that have both)."
    ),
}
"""Function that returns a further table -> its caption."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cell with unrounded numbers.

    Columns: the cell's axes; ``<row>_mean``, ``<row>_std``, ``<row>_n`` for each row (percent); then those of
    :func:`comparison`.
    """
    by, scored = cells.axes(frame), cells.scores(frame)
    spread = facets.spread(cells.nets(scored, by), [*by, cells.ROW], [schema.TEST_ACCURACY])
    rows = [f"{row}_{what}" for row in cells.row_order(spread[cells.ROW]) for what in SPREAD]
    wide = spread.groupby([*by, cells.ROW], dropna=False)[list(SPREAD)].first().unstack(cells.ROW)
    wide = wide.set_axis([f"{row}_{what}" for what, row in wide.columns], axis="columns")[rows].reset_index()
    pairs = facets.places(cells.paired(scored, by).reset_index(), by)
    compared = pd.DataFrame([place | comparison(group) for place, group in pairs], columns=[*by, *COMPARED])
    result = facets.typed(wide, frame, by).merge(facets.typed(compared, frame, by), how="left", on=by)
    counts = [name for name in rows if name.endswith("_n")] + ["pairs"]
    result = result.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(COMPARED, float) | dict.fromkeys(counts, int))
    return result.assign(p_holm=stats.holm(result["p"].tolist()))


def comparison(pairs: pd.DataFrame) -> dict[str, float]:
    """Return how the permuted mask compares with the naive one in a cell.

    ``permuted_minus_naive`` with ``ci_low``, ``ci_high`` (percentage points, 95 %), ``pairs`` and ``p``; and
    ``share_closed`` with ``share_low``, ``share_high`` (:func:`analysis.stats.paired_share`).
    """
    rows = (cells.PERMUTED, cells.NAIVE, cells.LTH)
    difference = stats.paired_difference(*cells.observations(pairs, *rows[:2]))
    share = stats.paired_share(*cells.observations(pairs, *rows))
    gain = (difference.value, difference.low, difference.high, difference.n, difference.p)
    return dict(zip(COMPARED, (*gain, share.value, share.low, share.high), strict=True))


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it, with the axes of the grid that vary, and width, sparsity and rewind epoch."""
    numbers = table(frame)
    if numbers.empty:
        return numbers
    columns = _places(numbers, cells.axes(frame)) | _means(numbers, cells.MAIN)
    columns[GAIN] = _ahead(frame, cells.NAIVE)
    columns["p (Holm)"] = [stats.format_p(p) for p in numbers["p_holm"]]
    columns["Gap closed"] = [stats.format_share(share) for share in numbers["share_closed"]]
    return _without_empty(columns)


def imp(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of the pruned nets themselves; empty if there are none.

    There is a column for the rewind epoch only if they depend on it, as those of ``pruner=imp_rewind`` do.
    """
    numbers = table(frame)
    places, means = _places(numbers, cells.axes(frame)), _means(numbers, [cells.IMP])
    name, epoch = labels.method(cells.IMP), labels.axis(schema.PARAM_REWIND_EPOCH)
    if name not in means:
        return pd.DataFrame()
    found = pd.DataFrame(places | means)
    found = found[found[name] != ""]
    alike = found.drop(columns=epoch).drop_duplicates()
    return found if alike.duplicated([place for place in places if place != epoch]).any() else alike


def controls(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the other rows as people read them, each with permuted's lead over it; empty if there are none."""
    numbers = table(frame)
    others = [row for row in _rows(numbers) if row not in (*cells.MAIN, cells.IMP)]
    if not others:
        return pd.DataFrame()
    columns = _places(numbers, cells.axes(frame))
    for row in others:
        columns |= _means(numbers, [row])
        columns[f"Permuted {MINUS} {labels.method(row).lower()} {INTERVAL}"] = _ahead(frame, row)
    return _without_empty(columns)


def _ahead(frame: pd.DataFrame, row: str) -> list[str]:
    """Return permuted minus another row in each cell, paired, with its interval."""
    by, ahead = cells.axes(frame), facets.leads(frame, over=row)
    found = table(frame)[by].merge(ahead[ahead[cells.ROW] == cells.PERMUTED], how="left", on=by)
    leads = zip(found["pairs"].fillna(0).astype(int), found["lead"], found["ci_low"], found["ci_high"], strict=True)
    return [str(stats.Estimate(*lead)) for lead in leads]


def _rows(numbers: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_n") for name in numbers.columns if name.endswith("_n")]


def _places(numbers: pd.DataFrame, by: list[str]) -> dict[str, list[str]]:
    """Return the columns that say where in the grid a line stands."""
    shown = facets.told_apart(numbers, by, always=cells.GRID)
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
    if scored.empty:
        return ["No run has finished yet."]
    doubled = labels.plural(cells.indistinct(scored, by), "entry", "entries")
    main = cells.main_matching(frame)
    epoch = main[schema.PARAM_MATCH_EPOCH]
    when = "at the end of B's training" if epoch == cells.END else f"after {epoch} epochs of B's training"
    variants = [row for row in cells.row_order(scored[cells.ROW]) if cells.how_of(row)]
    others = [f", {name}={main[name]}" for name in main if any(f"{name}=" in row for row in variants)]
    how = f"matched by {main[schema.PARAM_MATCHER]}, {when}{''.join(others)}"
    return labels.said(
        {
            f"{doubled} average several runs of one pair whose recorded settings are the same.": doubled[0] != "0",
            f"Permuted, if not stated otherwise: {how}.": variants,
        }
    )
