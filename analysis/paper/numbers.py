"""The numbers of the paper, as printed, under this project's names; ``paper/README.md`` states the sources."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import cells, stats
from trainables import schema
from trainables.knobs import KNOBS, MATCHING, NETWORK, PRUNING, REWINDING, TRAINING
from trainables.models import MODELS
from trainables.training import way

FOLDER = Path(__file__).parent
PLACE = (*cells.CELL, schema.PARAM_MATCH_EPOCH, "method")
DATASETS = {"imagenet": "image_folder"}
"""The paper's name of a dataset -> ours."""
BARRIERS = {"accuracy_drop": schema.ERROR_BARRIER, schema.LOSS_BARRIER: schema.LOSS_BARRIER}
"""Column of the file -> our metric."""
CORRECTIONS = {"vgg11": "repair"}
"""Model without BatchNorm -> correction of its paths; the paths of all others get their BatchNorm reset."""
MASKS = {"svhn": "cifar10"}
"""Dataset -> dataset of its masks, if that is another one."""
VOTES = (schema.ENSEMBLE_ACCURACY, schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE)

_RECORDED = {"epochs": "dense_epochs", "lr": "dense_lr", "sparse_lr": "lr"}
"""Knob -> the name under which runs of sparse nets record it, if that is another one."""
_ROUNDING = {*way.SETTINGS, "deterministic"} - {"precision"}
"""Knobs on which no more than rounding depends, as far as the paper's numbers are concerned."""
_SET = {
    _RECORDED.get(name, name): knob.default
    for name, knob in KNOBS.items()
    if knob.part in (TRAINING, NETWORK, REWINDING, PRUNING, MATCHING)
    and knob.affects_results
    and not (knob.axis or name in _ROUNDING)
}
"""Settings of a sparse net that affect its results -> our default."""
CIFAR: dict[str, float | str] = _SET | {  # tables 2 and 4, which are our defaults
    "init": MODELS["resnet20"].init,
    "imp_schedule": KNOBS["schedule"].default,
}
IMAGENET: dict[str, float | str] = CIFAR | {  # tables 3 and 4; schedules, precision and initialisation are its code's
    "schedule": "steps_paper_code",
    "warmup_epochs": 5.0,
    "imp_schedule": "constant",
    "precision": "fp32",
    "init": "fan_out",
    "dense_epochs": 80,
    "dense_lr": 0.4,
    "lr": 0.4,
    "batch_size": 1024,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "imp_epochs": 20,
    "imp_lr": 0.04,
    "imp_weight_decay": 1e-4,
    "pruner": "imp_finetune",
    "prune_fraction": 0.2,
}
MATCHES: dict[str, dict[str, float | str]] = {
    "resnet20": {"match_images": 0, "match_augment": True, "stream_taps": "paper_code"},
    "vgg11": {"match_images": 0, "match_augment": True, "stream_taps": "end"},
    "resnet50": {"match_images": 12_800, "match_augment": True, "stream_taps": "end"},
}
"""Model -> how its nets were matched, which the paper leaves open: these are its code's settings, not our defaults."""
RECIPES = {
    "resnet20": CIFAR | MATCHES["resnet20"],
    "vgg11": CIFAR | {"init": MODELS["vgg11"].init} | MATCHES["vgg11"],
    "resnet50": IMAGENET | MATCHES["resnet50"],
}
"""Model -> recipe of its sparse nets, by the names that runs record, or else those of knobs."""


def numbers() -> pd.DataFrame:
    """Return every number of the paper (and of REPAIR, for its interpolations), one line each.

    Columns: ``source``; ``model``, ``dataset``, ``width``, ``sparsity``, ``rewind_epoch``, ``match_epoch``,
    ``method``, missing or empty where they do not apply; ``measure``, a metric of ``trainables.schema``; ``mean``,
    ``std`` (NaN if the paper has none), ``n``. Accuracies in percent, divergences and losses in nats.
    """
    return _numbers().copy()


@functools.cache
def nearest_width(model: str, dataset: str, width: float) -> float:
    """Return the width, by its ratio to the given one, at which the paper has permuted nets of a model on a dataset.

    NaN if it has none.
    """
    found = _numbers()
    found = found[(found["method"] == cells.PERMUTED) & (found["model"] == model) & (found["dataset"] == dataset)]
    widths = found["width"].unique().tolist() if 0 < width < math.inf else []
    return float(min(widths, key=lambda theirs: abs(math.log(theirs / width)), default=stats.NAN))


@functools.cache
def _numbers() -> pd.DataFrame:
    accuracies = _read("results").rename(columns={"n_seeds": "n"})
    top5 = accuracies[accuracies["test_top5_mean"].notna()]
    early = _read("early_matching").assign(n=3)
    early = early[early["match_epoch"] < early["match_epoch"].max()]  # the last epoch repeats table 5
    votes = _read("ensembles")
    barriers = _read("interpolation")
    parts = [
        _lines(accuracies, schema.TEST_ACCURACY, "test_accuracy_mean", "test_accuracy_std", accuracies["n"]),
        _lines(top5, schema.TEST_TOP5_ACCURACY, "test_top5_mean", None, top5["n"]),
        _lines(early, schema.TEST_ACCURACY, "test_accuracy_mean", "test_accuracy_std", early["n"]),
        _lines(votes, schema.MEMBER_ACCURACY_MEAN, "member_accuracy_mean", "member_accuracy_std", votes["n_members"]),
        *(_lines(votes, name, name, None, 1) for name in VOTES),
        *(_lines(barriers, ours, theirs, None, 1) for theirs, ours in BARRIERS.items()),
    ]
    return pd.concat(parts, ignore_index=True)


def _read(name: str) -> pd.DataFrame:
    found = pd.read_csv(FOLDER / f"{name}.csv")
    found["dataset"] = found["dataset"].replace(DATASETS)
    return found.astype({schema.PARAM_WIDTH: float})


def _lines(found: pd.DataFrame, measure: str, mean: str, std: str | None, n: Any) -> pd.DataFrame:
    """Return one column of a file as lines of :func:`numbers`."""
    lines = found.reindex(columns=["source", *PLACE]).assign(measure=measure, mean=found[mean], n=n)
    lines["method"] = lines["method"].astype(object).fillna("").astype(str)
    lines["std"] = found[std] if std else stats.NAN
    dense = lines["method"] == cells.DENSE
    lines.loc[dense, schema.PARAM_SPARSITY] = stats.NAN
    kinds = {schema.PARAM_REWIND_EPOCH: "Int64", schema.PARAM_MATCH_EPOCH: "Int64", schema.PARAM_SPARSITY: float}
    return lines.astype({**kinds, "n": int, "std": float})
