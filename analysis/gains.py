"""Differences between rows of the same cells, pooled over cells: the masks are the observations."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import stats
from analysis.cells import LTH, NAIVE, PAIR, PERMUTED, by_mask, complete, paired
from trainables import schema


@dataclass(frozen=True, slots=True)
class Block:
    """Accuracies of some rows in all combinations of some pairs and cells.

    Cells of a pair share their dense nets, and pairs of one net A share its mask, so neither are independent
    observations: means are over the cells and the pairs of each net A, and intervals over the nets A.

    Attributes:
        accuracies: percent, a column per row, a line per cell and net A.
        pairs: number of pairs (A, B).
        cells: number of cells.
        left_out: number of other pairs that have all rows in some cell of these widths.
        behind: widths that are left out, because they have fewer pairs than the width with the largest block.
    """

    accuracies: pd.DataFrame
    pairs: int
    cells: int
    left_out: int
    behind: tuple[float, ...]

    @property
    def masks(self) -> int:
        """Number of nets A."""
        return int(self.accuracies.index.get_level_values(PAIR).nunique())

    def gain(self, row: str = PERMUTED, over: str = NAIVE) -> stats.Estimate:
        """Return the mean of `row` - `over` (percentage points)."""
        means = self._means()
        return stats.paired_difference(means[row].tolist(), means[over].tolist())

    def share(self) -> stats.Estimate:
        """Return the share of the gap from naive to LTH that permuting closes (:func:`analysis.stats.paired_share`)."""
        means = self._means()
        return stats.paired_share(*(means[row].tolist() for row in (PERMUTED, NAIVE, LTH)))

    def _means(self) -> pd.DataFrame:
        return self.accuracies.groupby(level=PAIR).mean()


def block(scored: pd.DataFrame, by: list[str], *rows: str) -> Block:
    """Return the largest block in which each pair has all rows in each cell (:func:`analysis.cells.complete`).

    A study goes on from width to width, and the first cells of another width must not cost a pair: of the widths, only
    those count that have at least as many pairs as the one with the largest block of its own.

    Args:
        scored: as returned by :func:`analysis.cells.scores`.
        by: the axes that tell one cell from another.
        rows: what is to be compared.
    """
    found = paired(scored, by).reindex(columns=[*rows]).dropna()
    names = [PAIR, schema.PARAM_WIDTH]
    lines = found.index.to_frame(index=False)[names].assign(cell=found.groupby(level=by, dropna=False).ngroup().array)
    largest = {width: _largest(own) for width, own in lines.groupby(schema.PARAM_WIDTH)}
    _, pairs = max(((len(own), own[PAIR].nunique()) for own in largest.values()), default=(0, 0))
    behind = tuple(width for width, own in largest.items() if own[PAIR].nunique() < pairs)
    lines = lines[~lines[schema.PARAM_WIDTH].isin(behind)]
    chosen = _largest(lines)
    count = chosen[PAIR].nunique()
    left_out = lines[PAIR].nunique() - count
    return Block(by_mask(found.iloc[chosen.index]), count, chosen["cell"].nunique(), left_out, behind)


def _largest(lines: pd.DataFrame) -> pd.DataFrame:
    """Return those lines, each of a pair in a cell, that make up the largest complete block."""
    return lines[complete(lines[PAIR], lines["cell"])]
