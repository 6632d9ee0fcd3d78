"""Progress of a study: what has finished, what has failed and which comparisons are incomplete."""

from __future__ import annotations

import pandas as pd

from analysis import cells, labels
from trainables import schema
from trainables.schema import FAILED, FINISHED, KILLED, RUNNING, SCHEDULED

STATUSES = (FINISHED, RUNNING, SCHEDULED, FAILED, KILLED)


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the number of recorded jobs by stage (lines) and status (columns), with totals."""
    table = pd.crosstab(frame[schema.PARAM_STAGE], frame["status"])
    table = table.reindex(
        index=[name for name in schema.STAGES if name in table.index],
        columns=[name for name in STATUSES if name in table.columns],
    )
    table["total"] = table.sum(axis="columns")
    table.loc["total"] = table.sum()
    return table.rename(columns=str.lower).rename_axis(index="job", columns=None).reset_index()


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the failed jobs with the first line of their error, one line each."""
    lines = [
        {
            "job": run["name"],
            "key": run["key"][:12],
            "error": (run["error"].strip().splitlines() or ["not recorded"])[0][:200],
        }
        for _, run in frame[frame["status"] == FAILED].iterrows()
    ]
    return pd.DataFrame(lines, columns=["job", "key", "error"])


def missing(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how many results each row lacks for a full grid.

    Columns: ``method``; ``results``, finished (cell, pair) combinations; ``expected``, combinations that are recorded
    for any method; ``missing``, the difference. Jobs that have not started may not be recorded yet.
    """
    by = cells.axes(frame)
    sparse = frame[frame["stage"] == schema.SPARSE]
    named = sparse.assign(**{cells.ROW: cells.rows(frame), cells.PAIR: cells.pairs(sparse)})
    named = cells.everywhere(named, by)
    of_a = [*by, schema.PARAM_SEED_A]
    with_b = named[schema.PARAM_SEED_B].notna()
    nets = named[of_a].drop_duplicates()
    pairs = named.loc[with_b, [*of_a, cells.PAIR]].drop_duplicates().merge(nets, on=of_a, how="right")
    lines = []
    for row in cells.row_order(named[cells.ROW]):
        recorded = named[named[cells.ROW] == row]
        # A method without a net B, such as LTH, has one result for all pairs of a net A.
        expected, place = (pairs, [*by, cells.PAIR]) if with_b[recorded.index].any() else (nets, of_a)
        done = recorded[recorded["status"] == FINISHED].drop_duplicates(place)
        lines.append({"method": labels.method(row), "results": len(done), "expected": len(expected)})
    table = pd.DataFrame(lines, columns=["method", "results", "expected"])
    return table.assign(missing=table["expected"] - table["results"])


def is_complete(frame: pd.DataFrame) -> bool:
    """Return whether all recorded jobs have finished and no comparison lacks a result."""
    return bool((frame["status"] == FINISHED).all()) and not missing(frame)["missing"].any()
