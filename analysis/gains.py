"""Paired differences between rows of the same cells, pooled over cells: the pairs of nets are the observations."""

from __future__ import annotations

import pandas as pd

from analysis import cells, stats


def gains(scored: pd.DataFrame, by: list[str], row: str = cells.PERMUTED, over: str = cells.NAIVE) -> pd.DataFrame:
    """Return `row` - `over` (percentage points), a line per pair and a column per cell that has all pairs.

    Args:
        scored: as returned by :func:`analysis.cells.scores`.
        by: the axes that tell one cell from another.
        row: what is compared.
        over: what it is compared with.
    """
    shared = _shared(scored, by, row, over)
    return (shared[row] - shared[over]).unstack(by) if len(shared) else pd.DataFrame()


def pooled(gained: pd.DataFrame) -> stats.Estimate:
    """Return the mean over cells of each pair's gain, and its interval over pairs.

    The cells of a pair share their dense nets, so they are not independent observations.
    """
    return stats.interval(gained.mean(axis="columns") if gained.size else [])


def share(scored: pd.DataFrame, by: list[str]) -> stats.Estimate:
    """Return the share of the gap from naive to LTH that permuting closes, of each pair's means over the same cells.

    Arguments are those of :func:`gains`; see :func:`analysis.stats.paired_share`.
    """
    rows = (cells.PERMUTED, cells.NAIVE, cells.LTH)
    means = _shared(scored, by, *rows).groupby(level=cells.PAIR).mean()
    return stats.paired_share(*(means[row].tolist() for row in rows))


def _shared(scored: pd.DataFrame, by: list[str], *rows: str) -> pd.DataFrame:
    """Return the accuracies of rows, a column for each, in the cells in which all pairs have all of them."""
    found = cells.paired(scored, by).reindex(columns=[*rows]).dropna()
    pairs = found.index.get_level_values(cells.PAIR).nunique()
    return found[found.groupby(level=by, dropna=False)[rows[0]].transform("size") == pairs]
