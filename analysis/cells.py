"""Which runs belong together: cells of the grid, the rows of each, and the pairs inside.

A *cell* is one point of the grid: model, dataset, width, sparsity, rewind epoch and whatever recipe field the study
varied. A *row* is what is compared in it: a method. A *pair* is one (net A, net B), known by the seed of A. Dense nets
have neither sparsity nor rewind epoch and pruned nets have no rewind epoch, so they stand in many cells.
"""

from __future__ import annotations

import pandas as pd

from analysis.load import FINISHED, recipe_fields
from trainables import schema
from trainables.methods import METHODS

TASK = (schema.PARAM_MODEL, schema.PARAM_DATASET)
CELL = (*TASK, schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
ROW, PAIR = "row", "pair"
DENSE, IMP, LTH, NAIVE, PERMUTED = "dense", "imp", "lth", "naive", "permuted"
MEASURES = (
    schema.TEST_ACCURACY,
    schema.GENERALIZATION_GAP,
    schema.GAP_TO_DENSE,
    schema.GAP_TO_LTH,
)
NO_REWIND = frozenset(name for name, method in METHODS.items() if method.init == "fresh")
"""Methods that start at the initialisation whatever the rewind epoch, and so stand beside every one of them."""


def axes(frame: pd.DataFrame) -> list[str]:
    """Return the columns that tell one cell from another: those of ``CELL``, then the recipe fields that vary."""
    return [*CELL, *varied(frame)]


def varied(frame: pd.DataFrame) -> list[str]:
    """Return the recipe fields in which runs differ that are alike in all else but the seed.

    What the grid decides (a sparse net trains for the epochs that rewinding leaves) does not vary in this sense. What
    does must never be averaged over, or the spread over seeds would be the spread over recipes.
    """
    trained = frame[frame["stage"].isin([schema.DENSE, schema.PRUNE, schema.SPARSE])]
    alike = trained.groupby([schema.PARAM_STAGE, schema.PARAM_METHOD, *CELL, schema.PARAM_MATCHER], dropna=False)
    fields = [name for name in recipe_fields(frame) if "seed" not in name]
    return [name for name in fields if (alike[name].nunique() > 1).any()]


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per finished run and cell that it stands in.

    Columns: those of :func:`axes`, ``row`` (a method; ``permuted:NAME`` for a matcher other than the study's main
    one), ``pair`` (seed of net A; for a dense net its own seed), ``run_id`` and the ``MEASURES``.
    """
    by = axes(frame)
    named = frame.assign(**{ROW: rows(frame), PAIR: frame[schema.PARAM_SEED_A]})
    named[[schema.PARAM_WIDTH, schema.PARAM_SPARSITY]] = named[[schema.PARAM_WIDTH, schema.PARAM_SPARSITY]].round(9)
    grid = _grid(named, by)
    done = named[named["status"] == FINISHED]
    sparse = done[done["stage"] == schema.SPARSE]
    free = sparse[ROW].isin(NO_REWIND)
    columns = [*by, ROW, PAIR, "run_id", *MEASURES]
    parts = [
        _dense(named, done, grid, by),
        _beside(done[(done["stage"] == schema.PRUNE) & (done[ROW] == IMP)], grid, by),
        _beside(sparse[free], grid, by),
        sparse[~free],
    ]
    return pd.concat([part[columns] for part in parts if len(part)] or [named.loc[[], columns]], ignore_index=True)


def rows(frame: pd.DataFrame) -> pd.Series:
    """Return the name under which each run is compared: its method, with the matcher where several were tried."""
    label = frame[schema.PARAM_METHOD].copy()
    for method, group in frame[frame["stage"] == schema.SPARSE].groupby(schema.PARAM_METHOD):
        main = main_matcher(group)
        other = group[(group[schema.PARAM_MATCHER] != "") & (group[schema.PARAM_MATCHER] != main)]
        label[other.index] = str(method) + ":" + other[schema.PARAM_MATCHER]
    return label


def main_matcher(frame: pd.DataFrame) -> str:
    """Return the matcher that goes without saying: the paper's if it was used, else the most frequent one."""
    used = frame.loc[frame[schema.PARAM_MATCHER] != "", schema.PARAM_MATCHER]
    if used.empty or (used == "activation").any():
        return "activation"
    return str(used.mode().iloc[0])


def row_order(names: pd.Series) -> list[str]:
    """Return the distinct rows in the order of the method table, strangers last."""
    order = {name: place for place, name in enumerate(METHODS)}
    return sorted(map(str, names.unique()), key=lambda name: (order.get(name.split(":")[0], len(order)), name))


def paired(scored: pd.DataFrame, by: list[str], measure: str = schema.TEST_ACCURACY) -> pd.DataFrame:
    """Return one line per cell and pair with a column per row; dense nets are left out, they belong to no pair.

    Runs of one pair that no recorded param tells apart are averaged (:func:`indistinct` counts them).
    """
    sparse = scored[scored[ROW] != DENSE]
    return sparse.groupby([*by, PAIR, ROW], dropna=False)[measure].mean().unstack(ROW)


def indistinct(scored: pd.DataFrame, by: list[str]) -> int:
    """Return how many (cell, row, pair) hold more than one run."""
    return int((scored.groupby([*by, ROW, PAIR], dropna=False).size() > 1).sum())


def _grid(named: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the cells that the study asks for, as far as it has got: those of its sparse runs, finished or not."""
    sparse = named[(named["stage"] == schema.SPARSE) & ~named[ROW].isin(NO_REWIND)]
    if sparse.empty:
        sparse = named[named["stage"] == schema.SPARSE]
    if sparse.empty:
        sparse = named[named["stage"] == schema.DENSE]
    return sparse[by].drop_duplicates()


def _beside(found: pd.DataFrame, grid: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return runs that have no rewind epoch once for each rewind epoch of the grid."""
    fixed = [name for name in by if name in CELL[:-1] or found[name].nunique() > 1]
    return found.drop(columns=[name for name in by if name not in fixed]).merge(grid, on=fixed)


def _dense(named: pd.DataFrame, done: pd.DataFrame, grid: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return dense runs once for each cell: all of the cell's task and width.

    Where recipes vary, the key of the dense net in the tags of the cell's sparse runs decides instead.
    """
    dense = done[done["stage"] == schema.DENSE]
    if by == list(CELL):
        shared = [*TASK, schema.PARAM_WIDTH]
        return dense.drop(columns=[name for name in by if name not in shared]).merge(grid, on=shared)
    links = named.loc[named["dense_key"] != "", [*by, "dense_key"]].drop_duplicates()
    return dense.drop(columns=by).merge(links, left_on="key", right_on="dense_key")
