"""Groups of runs for comparison: cells of the grid, the rows of a cell, and the pairs in a row.

A *cell* is one point of the grid: model, dataset, width, sparsity, rewind epoch and every other setting that the study
varied. The *rows* of a cell are compared: a row is a method, with the way of matching if the study tried several. A
*pair* is one (net A, net B). LTH and pruned nets have no net B and belong to every pair of their net A. Dense nets have
neither sparsity nor rewind epoch, and nets that depend on no rewind epoch, such as fine-tuned and reinitialised ones,
have none; these belong to many cells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.load import column
from analysis.memo import once
from trainables import schema
from trainables.knobs import KNOBS
from trainables.methods import COMPARED, METHODS
from trainables.schema import FINISHED

TASK = (schema.PARAM_MODEL, schema.PARAM_DATASET)
GRID = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
"""The axes of every grid."""
CELL = (*TASK, *GRID)
ROW, PAIR = schema.PARAM_ROW, "pair"
ARROW = "→"
"""Between net A and net B in the name of a pair."""
NETS = (schema.PARAM_SEED_A, schema.PARAM_SEED_B, schema.PARAM_DATA_ORDER)
DENSE, IMP = "dense", "imp"
LTH, NAIVE, PERMUTED = COMPARED
MAIN = (DENSE, LTH, PERMUTED, NAIVE)
"""The rows that a study is about, the one that should be most accurate first."""
MEASURES = (
    schema.TEST_ACCURACY,
    schema.TEST_TOP5_ACCURACY,
    schema.GENERALIZATION_GAP,
    schema.GAP_TO_DENSE,
    schema.GAP_TO_LTH,
)
MATCHED = frozenset(name for name, method in METHODS.items() if method.aligned)
MATCHER: str = KNOBS[schema.PARAM_MATCHER].default
"""The default matcher, which names of rows leave out wherever the study used it."""
END: int = KNOBS[schema.PARAM_MATCH_EPOCH].default
"""Value of ``match_epoch`` for nets that were matched after B's training; names of rows leave it out, too."""


@once
def axes(frame: pd.DataFrame) -> list[str]:
    """Return the columns that identify a cell: those of ``CELL``, then the settings that vary."""
    return [*CELL, *varied(frame)]


@once
def varied(frame: pd.DataFrame) -> list[str]:
    """Return the settings, other than the axes of every grid, in which trained nets of the study differ.

    Never average over them: the spread over seeds would then include the spread over recipes.
    """
    trained = repeated(frame[frame["stage"].isin([schema.DENSE, schema.PRUNE, schema.SPARSE])])
    return [name for name in frame.attrs.get(schema.VARIED, ()) if trained[name].nunique() > 1]


def repeated(runs: pd.DataFrame) -> pd.DataFrame:
    """Repeat each run for every combination of varied settings with which cells need its job.

    A setting on which the job does not depend takes each value that other runs have. It stays missing if none of the
    runs depends on it.
    """
    if schema.RECIPES not in runs:
        return runs
    long = runs.assign(order=range(len(runs))).explode(schema.RECIPES, ignore_index=True)
    for name in dict.fromkeys(name for recipe in long[schema.RECIPES] for name in recipe):
        long[name] = column([recipe.get(name) for recipe in long[schema.RECIPES]])
        missing = long[name].isna()
        values = long.loc[~missing, [name]].drop_duplicates()
        if len(values):
            anywhere = long[missing].drop(columns=name).merge(values, how="cross")
            long = pd.concat([long[~missing], anywhere], ignore_index=True)
    return long.sort_values("order", kind="stable", ignore_index=True).drop(columns=["order", schema.RECIPES])


@once
def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per finished run and cell that the run belongs to.

    Columns: those of :func:`axes`, ``row`` (see :func:`rows`), ``pair`` (``A0→B1``, or ``A0`` if there is no net B),
    ``seed_a`` (a dense net's own seed), ``seed_b``, ``data_order``, ``run_id`` and the ``MEASURES``.
    """
    by = axes(frame)
    needed = dict.fromkeys([*by, *NETS, "run_id", *MEASURES, "stage", "status", schema.RECIPES])
    named = frame[[name for name in needed if name in frame]]
    named = named.assign(**{ROW: rows(frame), PAIR: pairs(frame), schema.PARAM_SPARSITY: frame[schema.TAG_ASKED]})
    named = repeated(named)
    stage, row = named["stage"], named[ROW]
    trained = named[stage.isin([schema.DENSE, schema.SPARSE]) | ((stage == schema.PRUNE) & (row == IMP))]
    columns = [*by, ROW, PAIR, *NETS, "run_id", *MEASURES]
    return _spread(trained[trained["status"] == FINISHED], _grid(named, by), by)[columns]


def everywhere(sparse: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return sparse runs, one line for every cell that a run belongs to; needs ``row``, ``stage`` and the axes `by`."""
    return _spread(sparse, _grid(sparse, by), by)


def rows(frame: pd.DataFrame) -> pd.Series:
    """Return each run's row: its method, and where its matching deviates from the main one (:func:`main_matching`).

    ``permuted`` is the main matching, ``permuted:weight`` another matcher, ``permuted:t=5`` a match after 5 epochs of
    B's training, ``permuted:match_images=1000`` a match on 1000 images, ``permuted:weight, t=5`` another matcher and
    another epoch.
    """
    main = main_matching(frame)
    prefixes = {schema.PARAM_MATCHER: "", schema.PARAM_MATCH_EPOCH: "t="}

    def row(method: str, matching: dict[str, object]) -> str:
        how = [f"{prefixes.get(name, name + '=')}{value}" for name, value in matching.items() if value != main[name]]
        return f"{method}:{', '.join(how)}" if how else method

    names = [row(*run) for run in zip(frame[schema.PARAM_METHOD], frame[schema.MATCHING], strict=True)]
    return pd.Series(names, index=frame.index, dtype=str)


def method_of(row: str) -> str:
    """Return the method in a name of :func:`rows`."""
    return row.partition(":")[0]


def how_of(row: str) -> str:
    """Return how the matching in a name of :func:`rows` deviates from the main one; empty if it does not."""
    return row.partition(":")[2]


def main_matching(frame: pd.DataFrame) -> dict[str, object]:
    """Return the study's main way of matching, which names of rows leave out: setting -> value.

    These are the default matcher and the end of B's training if sparse runs used them. For every other setting, it is
    the value of most sparse runs, and the largest of several equally frequent ones.
    """
    main: dict[str, object] = {schema.PARAM_MATCHER: MATCHER, schema.PARAM_MATCH_EPOCH: END}
    used: dict[str, Counter[object]] = {}
    for stage, matching in zip(frame[schema.PARAM_STAGE], frame[schema.MATCHING], strict=True):
        for name, value in matching.items():
            used.setdefault(name, Counter())[value] += stage == schema.SPARSE
    for name, counts in used.items():
        if not counts[main.get(name)]:
            most = max(counts.values())
            main[name] = max((value for value in counts if counts[value] == most), key=_size)
    return main


def _size(value: object) -> tuple[float, str]:
    return (value, "") if isinstance(value, int | float) else (0.0, str(value))


def early(names: pd.Series) -> pd.Series:
    """Return whether each row's name says that the nets were matched before the end of B's training."""
    return names.astype(str).str.contains(r":(?:.*, )?t=").astype(bool)


def pairs(frame: pd.DataFrame) -> pd.Series:
    """Return each run's nets: ``A0→B1``, or ``A0`` if there is no net B."""
    a, b = (frame[name].astype("string").fillna("") for name in (schema.PARAM_SEED_A, schema.PARAM_SEED_B))
    return ("A" + a + (f"{ARROW}B" + b).where(b != "", "")).astype(str)


def by_mask(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return lines of :func:`paired` with one per cell and net A: those under one mask are no independent observations.

    Remove lines that lack a row before, or the means of two rows may be over different nets B.
    """
    levels = [pairs.index.get_level_values(name) for name in pairs.index.names]
    masks = [level.map(_net_a) if level.name == PAIR else level for level in levels]
    return pairs.groupby(masks, dropna=False).mean()


def observations(pairs: pd.DataFrame, *rows: str) -> list[list[float]]:
    """Return the independent values of each row: means by net A over the pairs that have all of the rows.

    Args:
        pairs: a line per pair, with the column ``pair`` and one for each row that was measured.
        rows: what is compared.
    """
    found = pairs.reindex(columns=[PAIR, *rows]).dropna(subset=[*rows])
    means = found.groupby(found[PAIR].map(_net_a))[[*rows]].mean()
    return [means[row].tolist() for row in rows]


def _net_a(pair: str) -> str:
    return pair.partition(ARROW)[0]


def nets(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return scores with one line per cell, row and pair: data orders are averaged, as all start from one state."""
    return _averaged(scored, [*by, ROW, PAIR, schema.PARAM_SEED_A, schema.PARAM_SEED_B])


def by_seed(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return scores with one line per cell, row and net A, for intervals: nets B under one mask are averaged, too."""
    found = _averaged(nets(scored, by), [*by, ROW, schema.PARAM_SEED_A])
    return found.assign(**{schema.PARAM_SEED_B: pd.NA, PAIR: pairs})


def _averaged(scored: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    means = scored.groupby(place, dropna=False)[[*MEASURES]].mean().reset_index()
    return means.assign(**{schema.PARAM_DATA_ORDER: pd.NA})


def row_order(names: pd.Series) -> list[str]:
    """Return the distinct rows in the order of ``METHODS``, unknown methods last; numbers in names sort by value."""
    order = {name: place for place, name in enumerate(METHODS)}

    def key(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
        parts = [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
        return order.get(method_of(name), len(order)), parts

    return sorted(map(str, names.unique()), key=key)


def paired(scored: pd.DataFrame, by: list[str], measure: str = schema.TEST_ACCURACY) -> pd.DataFrame:
    """Return a measure with one line per cell and pair, indexed by both, and one column per row, without dense nets.

    Nets without a net B (LTH, IMP) appear in every pair of their net A. Data orders are averaged, and so are runs of a
    pair that no recorded param distinguishes (:func:`indistinct` counts them).
    """
    sparse = scored[scored[ROW] != DENSE]
    of_pair = sparse[schema.PARAM_SEED_B].notna()
    place = [*by, schema.PARAM_SEED_A]
    wide = _means(sparse[of_pair], [*place, PAIR], measure).merge(
        _means(sparse[~of_pair], place, measure), on=place, how="outer"
    )
    wide[PAIR] = wide[PAIR].fillna("A" + wide[schema.PARAM_SEED_A].astype(str))
    wide = wide.set_index([*by, PAIR]).drop(columns=schema.PARAM_SEED_A).sort_index()
    return wide.rename_axis(columns=ROW)


def over_rewind_epochs(
    frame: pd.DataFrame, epochs: pd.DataFrame, by: list[str], measures: Sequence[str]
) -> pd.DataFrame:
    """Return each run's or pair's means over rewind epochs, a line per place, row, pair and data order.

    Args:
        frame: lines with the columns of `by`, ``row``, ``pair``, ``data_order`` and the measures.
        epochs: the rewind epochs to average over, as :func:`shared_epochs` returns them.
        by: the axes of a cell.
        measures: what to average; missing where a line lacks one of the epochs.
    """
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    kept = frame.merge(epochs, on=by)
    wanted = kept.groupby(apart, dropna=False)[schema.PARAM_REWIND_EPOCH].transform("nunique").clip(lower=1)
    groups = kept.assign(wanted=wanted).groupby([*apart, ROW, PAIR, schema.PARAM_DATA_ORDER], dropna=False)
    values = groups[[*measures]]
    return values.mean().where(values.count().ge(groups["wanted"].first(), axis="index")).reset_index()


def shared_epochs(scored: pd.DataFrame, by: list[str], planned: pd.DataFrame) -> pd.DataFrame:
    """Return the cells whose results may be averaged over rewind epochs, so that means differ in nothing else.

    These are the rewind epochs that the study plans at every width and sparsity and, at each place, those of the
    largest block of nets that all have results (:func:`complete`). The initialisation, epoch 0, counts only where there
    is no other rewind epoch.

    Args:
        scored: as returned by :func:`scores`.
        by: the axes that tell one cell from another.
        planned: the same of all recorded runs, as if they had finished.
    """
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    found = _late(scored, apart).merge(_planned_everywhere(_late(planned, apart), by), on=by)
    parts = []
    for _, group in found.groupby(apart, dropna=False):
        parts.append(group[complete(group[ROW] + group[PAIR], group[schema.PARAM_REWIND_EPOCH])])
    return pd.concat(parts or [found])[by].drop_duplicates()


def _late(scored: pd.DataFrame, apart: list[str]) -> pd.DataFrame:
    """Return the lines at rewind epochs from 1 on, and all lines of places that have no such epoch."""
    late = scored[schema.PARAM_REWIND_EPOCH].fillna(0) > 0
    some = late.groupby([scored[name] for name in apart], dropna=False).transform("any")
    return scored[late | ~some]


def _planned_everywhere(planned: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the cells at rewind epochs that all widths and sparsities have; all cells where these share none."""
    grid, size = planned[by].drop_duplicates(), [schema.PARAM_WIDTH, schema.PARAM_SPARSITY]
    others = [name for name in by if name not in (*size, schema.PARAM_REWIND_EPOCH)]
    parts = [grid.iloc[:0]]
    for _, group in grid.groupby(others, dropna=False):
        sizes = group.groupby(schema.PARAM_REWIND_EPOCH, dropna=False)[size[0]].transform("size")
        common = sizes == len(group[size].drop_duplicates())
        parts.append(group[common] if common.any() else group)
    return pd.concat(parts)


def complete(nets: pd.Series, places: pd.Series) -> pd.Series:
    """Return which measurements are in the largest block of nets that were all measured at all of its places.

    A pair of nets that has only begun, or one of another width, would leave few places or none if all pairs had to have
    them. Of the k nets with the most places, k times the number of places that they share is largest for the block's k;
    more nets win a tie.

    Args:
        nets: the net or pair of each measurement.
        places: its place, on the same index; a missing value is a place.
    """
    codes = pd.Series(pd.factorize(places, use_na_sentinel=False)[0], index=places.index)
    present = pd.crosstab(nets.to_numpy(), codes.to_numpy()).astype(bool)
    fullest = present.loc[present.sum(axis="columns").sort_values(ascending=False, kind="stable").index]
    shared = fullest.cummin()  # the places that each net shares with all fuller ones
    sizes = [k * int(count) for k, count in enumerate(shared.sum(axis="columns"), 1)]
    count = max(range(len(sizes)), key=lambda place: (sizes[place], place), default=-1) + 1
    return nets.isin(fullest.index[:count]) & codes.isin(shared.columns[shared.iloc[:count].all()])


def _means(scored: pd.DataFrame, place: list[str], measure: str) -> pd.DataFrame:
    """Return the mean of a measure, with a line per place and a column per row."""
    means = scored.groupby([*place, ROW], dropna=False)[measure].mean()
    return means.unstack(ROW).reset_index().rename_axis(columns=None)


def indistinct(scored: pd.DataFrame, by: list[str]) -> int:
    """Return the number of combinations of cell, row, pair and data order that hold more than one run."""
    return int((scored.groupby([*by, ROW, PAIR, schema.PARAM_DATA_ORDER], dropna=False).size() > 1).sum())


def _grid(named: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the cells of the recorded runs, finished or not, that make up the grid.

    These are the sparse runs; without sparse runs, the pruned nets of all rounds; without those, the dense runs. Sparse
    runs that no rewind epoch affects are at epoch 0 where no others are at the same place.
    """
    sparse, dense = named["stage"] == schema.SPARSE, named["stage"] == schema.DENSE
    pruned = (named["stage"] == schema.PRUNE) & (named[ROW] == IMP)
    chosen = next((choice for choice in (sparse, pruned) if choice.any()), dense)
    grid = named.loc[chosen, by].drop_duplicates()
    if not sparse.any():
        return grid
    place = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    some = grid[schema.PARAM_REWIND_EPOCH].notna()
    others = some.groupby([grid[name] for name in place], dropna=False).transform("any")
    return grid[some | ~others].fillna({schema.PARAM_REWIND_EPOCH: 0})


def _spread(found: pd.DataFrame, grid: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Repeat each run for every cell of the grid that has the run's values, where the run has values."""
    parts = [found.iloc[:0]]
    for missing, runs in found.groupby([found[name].isna() for name in by]):
        lacking = {name for name, lacks in zip(by, missing, strict=True) if lacks}
        fixed = [name for name in by if name not in lacking]
        how: dict[str, Any] = {"on": fixed} if fixed else {"how": "cross"}
        parts.append(runs.drop(columns=[*lacking]).merge(grid, **how))
    return pd.concat(parts, ignore_index=True)
