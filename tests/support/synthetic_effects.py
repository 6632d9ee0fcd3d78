"""Frames in the shape of ``analysis.load.runs``, made by hand: what an analysis must say of them can be worked out.

Nothing is written to MLflow; that what a study writes comes back in this shape is tested elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis import load
from trainables import schema

PAIRS = ((0, 1), (2, 3), (4, 5))
SPREAD = (-1.0, 0.0, 1.0)
"""Three values of mean 0 and sample standard deviation 1."""


def runs(lines: Iterable[Mapping[str, Any]], **recipe: Any) -> pd.DataFrame:
    """Return the frame of some jobs; what a line does not say of a job is as it is where a job has no such thing."""
    rows = []
    for number, line in enumerate(lines):
        row: dict[str, Any] = dict.fromkeys(load.TEXTS, "") | dict.fromkeys((*load.FRACTIONS, *load.COUNTS), None)
        row |= dict.fromkeys(load.METRICS, float("nan")) | dict.fromkeys(load.TAGS, "")
        row |= {"key": f"{number:064x}", "run_id": f"run{number}", "name": f"job {number}", "status": schema.FINISHED}
        row |= {"reused": False, "device": "x86_64 cpu", "torch": "2.11.0", "started": pd.NaT, "ended": pd.NaT}
        row |= {schema.PARAM_MODEL: "resnet20", schema.PARAM_DATASET: "cifar10", schema.PARAM_WIDTH: 1.0}
        row |= {name: str(value) for name, value in recipe.items()} | dict(line)
        rows.append({schema.TAG_ASKED: row["sparsity"], schema.MATCHING: matching(row)} | row)
    numbers = (*load.FRACTIONS, schema.TAG_ASKED, *load.METRICS)
    kinds = dict.fromkeys(load.COUNTS, "Int64") | dict.fromkeys(numbers, "float64")
    columns = [*load.BOOKKEEPING, *load.IDENTITY, *load.METRICS, *recipe]
    return pd.DataFrame(rows, columns=None if rows else columns).astype(kinds)


def matching(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the nets of a job were matched."""
    names = ("match_images", "match_augment", "stream_taps")
    settings = {name: row[name] for name in names if name in row}
    if row.get("method") != "permuted":
        return {}
    epoch = row["match_epoch"]
    return {"matcher": row["matcher"] or "activation", "match_epoch": -1 if epoch is None else epoch, **settings}


def sparse(
    method: str,
    accuracy: float,
    pair: tuple[int, int] = PAIRS[0],
    *,
    sparsity: float = 0.9,
    rewind: int | None = 10,
    **more: Any,
) -> dict[str, Any]:
    """Return a sparse job that reached an accuracy (percent)."""
    line = {
        "stage": schema.SPARSE,
        "method": method,
        "sparsity": sparsity,
        "rewind_epoch": rewind,
        "seed_a": pair[0],
        schema.TEST_ACCURACY: accuracy,
    }
    if method != "lth":
        line["seed_b"] = pair[1]
    if method == "permuted":
        line |= {"matcher": "activation", "match_epoch": -1}
    return line | more


def cell(accuracies: Mapping[str, Iterable[float]], **place: Any) -> list[dict[str, Any]]:
    """Return the sparse jobs of one cell: method -> accuracy of each pair."""
    return [
        sparse(method, accuracy, (2 * number, 2 * number + 1), **place)
        for method, values in accuracies.items()
        for number, accuracy in enumerate(values)
    ]


def dense(accuracy: float, seed: int, **more: Any) -> dict[str, Any]:
    """Return a dense job."""
    return {"stage": schema.DENSE, "method": "dense", "seed_a": seed, schema.TEST_ACCURACY: accuracy} | more


def match(pair: tuple[int, int], key: str, quality: float, **more: Any) -> dict[str, Any]:
    """Return a match of a quality in [0, 1]: its correlation; the barrier that it leaves is what it lacks."""
    line = {"stage": schema.MATCH, "key": key, "seed_a": pair[0], "seed_b": pair[1], "matcher": "activation"}
    line |= {"match_epoch": -1, schema.MEAN_CORRELATION: quality, schema.MEAN_CORRELATION_IDENTITY: 0.1}
    return line | {schema.LOSS_BARRIER_AFTER: 1 - quality} | more


def overlap(pair: tuple[int, int], permuted: float, identity: float, chance: float, **more: Any) -> dict[str, Any]:
    """Return a measurement of the overlap of masks."""
    line = {"stage": schema.OVERLAP, "matcher": "activation", "sparsity": 0.9, "seed_a": pair[0], "seed_b": pair[1]}
    metrics = (schema.MASK_OVERLAP, schema.MASK_OVERLAP_IDENTITY, schema.MASK_OVERLAP_RANDOM)
    return line | dict(zip(metrics, (permuted, identity, chance), strict=True)) | more


def as_if_ours(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return three (or one) runs for each mean and standard deviation of a published table, as if they were ours.

    The paper has no accuracies of single seeds. These have its mean and its sample standard deviation exactly, and a
    spread where it has none is nothing. How seeds go together over methods is made up, so intervals of paired
    differences of this frame mean nothing: only means, standard deviations and numbers of runs are the paper's.

    Args:
        numbers: as returned by :func:`analysis.paper.numbers.numbers`, accuracies only.
    """
    lines = []
    for one in numbers.to_dict("records"):
        n, spread = one["n"], 0.0 if pd.isna(one["std"]) else one["std"]
        place = {name: one[name] for name in ("model", "dataset", "width")}
        for deviation, pair in zip(SPREAD if n == 3 else (0.0,), itertools.islice(PAIRS, n), strict=True):
            value = one["mean"] + deviation * spread
            if one["method"] == "dense":
                lines.append(dense(value, pair[0], **place))
            else:
                where = {"sparsity": one["sparsity"], "rewind": one["rewind_epoch"], **place}
                lines.append(sparse(one["method"], value, pair, **where))
    return runs(lines)
