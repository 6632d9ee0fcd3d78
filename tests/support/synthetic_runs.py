"""A small study with known numbers, written to MLflow the way a real one would be.

Two widths x two sparsities x two rewind epochs x three pairs. Accuracies are sums of effects (:func:`accuracy`), so
that a test can work out by hand what a table must say. Rows go into MLflow's tables directly, because its client takes
thirty times as long.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from trainables import schema

WIDTHS = (0.5, 1.0)
SPARSITIES = (0.8, 0.95)
REWINDS = (0, 10)
PAIRS = ((0, 1), (2, 3), (4, 5))
SEED_EFFECT = {0: 0.3, 2: -0.1, 4: -0.2}
"""Percentage points that all methods of a pair share; it cancels in paired differences."""
PERMUTED_GAIN = {0: 0.9, 2: 1.2, 4: 0.6}
"""Permuted minus naive, by pair, at rewind epoch 10; a tenth of it at epoch 0."""
TRAIN_ACCURACY = 99.0


def accuracy(method: str, width: float, sparsity: float, rewind_epoch: int, seed_a: int) -> float:
    """Return the test accuracy (percent) of a finished run."""
    base = 90.0 + 4.0 * math.log2(2 * width) + SEED_EFFECT.get(seed_a, 0.05)
    if method == "dense":
        return base
    pruned = base - 20.0 * (sparsity - 0.75)
    if method == "imp":
        return pruned + 0.2
    lth = pruned - (1.0 if rewind_epoch == 0 else 0.0)
    naive = lth - 3.0 / width
    gain = PERMUTED_GAIN.get(seed_a, 0.0) * (1.0 if rewind_epoch else 0.1)
    return {"lth": lth, "naive": naive, "permuted": naive + gain, "shuffled": naive - 0.1}[method]


class Recorder:
    """Writes runs to one experiment."""

    def __init__(self, folder: Path, space: str, **recipe: Any) -> None:
        self.folder = with_tables(folder)
        self.client = MlflowClient(tracking_uri=tracking_uri(folder))
        self.artifacts = folder / "mlartifacts"
        found = self.client.get_experiment_by_name(space)
        self.experiment_id = (
            found.experiment_id
            if found
            else self.client.create_experiment(space, artifact_location=str(self.artifacts))
        )
        self.recipe = {
            schema.PARAM_MODEL: "resnet20",
            schema.PARAM_DATASET: "cifar10",
            "epochs": 20,
            "lr": 0.08,
        } | recipe
        self.clock = 1_700_000_000_000

    def run(
        self,
        metrics: Mapping[str, float],
        *,
        curves: Mapping[str, Mapping[int, float]] | None = None,
        status: str = "FINISHED",
        tags: Mapping[str, str] | None = None,
        **params: Any,
    ) -> str:
        """Write one job and return its key."""
        settings = self.recipe | {name: value for name, value in params.items() if value is not None}
        key = job_key(settings)
        self.clock += 1000
        points = [(name, value, self.clock, 0) for name, value in metrics.items()]
        for name, curve in (curves or {}).items():
            points += [(name, value, self.clock, step) for step, value in curve.items()]
        run = Rows()
        run.add(
            uuid.uuid4().hex,
            f"{settings.get('method', settings['stage'])} {settings['seed_a']}",
            status,
            self.clock,
            None if status == "RUNNING" else self.clock + 500,
            int(self.experiment_id),
            str(self.artifacts),
            tags={
                schema.TAG_KEY: key,
                schema.TAG_REUSED: "false",
                schema.TAG_PLACE: json.dumps(place_of(settings)),
                "device": "x86_64 cpu",
                "torch": "2.11.0",
                **(tags or {}),
            },
            params={name: number(value) for name, value in settings.items()},
            points=points,
        )
        run.insert(self.folder)
        return key

    def dense(self, width: float, seed: int, **settings: Any) -> str:
        """Write a dense run with its accuracy epoch by epoch."""
        final = accuracy("dense", width, 0, 0, seed)
        return self.run(
            {schema.GENERALIZATION_GAP: TRAIN_ACCURACY - final},
            curves={schema.TEST_ACCURACY: {1: 40.0, 2: 70.0, 20: final}},
            stage=schema.DENSE,
            method="dense",
            width=width,
            seed_a=seed,
            **settings,
        )

    def sparse(
        self, method: str, width: float, sparsity: float, rewind: int, pair: tuple[int, int], **settings: Any
    ) -> str:
        """Write a sparse run; its gaps are to the same pair's nets."""
        final = accuracy(method, width, sparsity, rewind, pair[0])
        dense = accuracy("dense", width, 0, 0, pair[0] if method == "lth" else pair[1])
        lth = accuracy("lth", width, sparsity, rewind, pair[0])
        gaps = {schema.GAP_TO_DENSE: dense - final, schema.GENERALIZATION_GAP: TRAIN_ACCURACY - final}
        if method != "lth":
            gaps[schema.GAP_TO_LTH] = lth - final
        return self.run(
            gaps,
            curves={schema.TEST_ACCURACY: {1: 50.0, 20 - rewind: final}},
            stage=schema.SPARSE,
            method=method,
            width=width,
            sparsity=sparsity,
            rewind_epoch=rewind,
            seed_a=pair[0],
            seed_b=None if method == "lth" else pair[1],
            matcher="activation"
            if method == "permuted" and "matcher" not in settings
            else settings.pop("matcher", None),
            **settings,
        )

    def connect(self, width: float, pair: tuple[int, int], matcher: str, **settings: Any) -> str:
        """Write an interpolation: a parabola whose depth depends on matcher and width."""
        depth = (20.0 if matcher == "identity" else 8.0) / width + SEED_EFFECT[pair[0]]
        alphas = range(0, 101, 10)
        dip = {step: depth * 4 * (step / 100) * (1 - step / 100) for step in alphas}
        return self.run(
            {schema.ERROR_BARRIER: depth, schema.LOSS_BARRIER: depth / 20, schema.MIDPOINT_ACCURACY: 90 - depth},
            curves={
                schema.INTERPOLATION_ACCURACY: {step: 90 - low for step, low in dip.items()},
                schema.INTERPOLATION_LOSS: {step: 0.3 + low / 20 for step, low in dip.items()},
            },
            stage=schema.CONNECT,
            width=width,
            seed_a=pair[0],
            seed_b=pair[1],
            matcher=matcher,
            correction="bn_reset",
            **settings,
        )


class Rows:
    """Rows of MLflow's tables, as its client would write them."""

    def __init__(self) -> None:
        self._tables: dict[str, list[tuple[Any, ...]]] = {}

    def add(
        self,
        run_id: str,
        name: str,
        status: str,
        started: int,
        ended: int | None,
        experiment: int,
        artifacts: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        points: Iterable[tuple[str, float, int, int]],
    ) -> None:
        """Add a run.

        Args:
            run_id: MLflow's.
            name: for people.
            status: MLflow's.
            started: ms since 1970.
            ended: likewise; None if it has not.
            experiment: MLflow's ID.
            artifacts: URI of the experiment's artifacts.
            tags: name -> text.
            params: name -> text.
            points: name, value, time stamp and step of each metric.
        """
        place = f"{artifacts}/{run_id}/artifacts"
        of_run = (run_id, name, "UNKNOWN", "", "", "nobody", status, started, ended)
        self._append("runs", (*of_run, "", "active", place, experiment, None))
        for text, value in ({"mlflow.runName": name} | dict(tags)).items():
            self._append("tags", (text, value, run_id))
        for text, value in params.items():
            self._append("params", (text, value, run_id))
        latest: dict[str, tuple[int, int, float, bool]] = {}
        for metric, value, stamp, step in points:
            unknown = value != value
            kept = 0.0 if unknown else max(-sys.float_info.max, min(sys.float_info.max, value))
            self._append("metrics", (metric, kept, stamp, run_id, step, unknown))
            latest[metric] = max(latest.get(metric, (-1, 0, 0.0, False)), (step, stamp, kept, unknown))
        for metric, (step, stamp, kept, unknown) in latest.items():
            self._append("latest_metrics", (metric, kept, stamp, step, unknown, run_id))

    def _append(self, table: str, row: tuple[Any, ...]) -> None:
        self._tables.setdefault(table, []).append(row)

    def insert(self, folder: Path) -> None:
        """Insert the rows into the database in a folder."""
        with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            for table, rows in self._tables.items():
                connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def with_tables(folder: Path) -> Path:
    """Give a folder a tracking database, unless it has one, and return the folder."""
    file = folder / "mlflow.db"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_empty_database())
    return folder


@functools.cache
def _empty_database() -> bytes:
    """Return a tracking database without experiments of ours, which takes MLflow seconds to make."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(tracking_uri=tracking_uri(Path(folder))).search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def tracking_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def place_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the study writes of a job's place in the grid."""
    names = (*schema.PLACE_TEXTS, *schema.PLACE_FRACTIONS, *schema.PLACE_COUNTS)
    place = {name: settings[name] for name in names if name in settings}
    if settings["stage"] in (schema.DENSE, schema.PRUNE, schema.SPARSE):
        place[schema.ENGINE] = "fp32"
    if settings.get("method") == "permuted":
        place["matching"] = {"matcher": settings.get("matcher", "activation")}
        place["matching"]["match_epoch"] = settings.get("match_epoch", -1)
    return place


def job_key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr(sorted((name, str(value)) for name, value in settings.items())).encode()).hexdigest()


def number(value: Any) -> str:
    """Return a param as the study writes it: ``1`` and ``0.5``, not ``1.0``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_study(folder: Path, space: str, *, methods: tuple[str, ...] = ("lth", "naive", "permuted")) -> None:
    """Write the finished study."""
    recorder = Recorder(folder, space)
    for width in WIDTHS:
        for seed in itertools.chain.from_iterable(PAIRS):
            recorder.dense(width, seed)
        for pair in PAIRS:
            recorder.run(
                {schema.MEAN_CORRELATION: 0.6}, stage=schema.MATCH, width=width, seed_a=pair[0], seed_b=pair[1]
            )
            for matcher in ("identity", "activation"):
                recorder.connect(width, pair, matcher)
            for sparsity in (0.2, *SPARSITIES):  # the first is a round on the way, not a result
                recorder.run(
                    {schema.TEST_ACCURACY: accuracy("imp", width, sparsity, 0, pair[0])},
                    stage=schema.PRUNE,
                    method="imp",
                    width=width,
                    sparsity=sparsity,
                    seed_a=pair[0],
                )
    for width, sparsity, rewind, pair in itertools.product(WIDTHS, SPARSITIES, REWINDS, PAIRS):
        for method in methods:
            recorder.sparse(method, width, sparsity, rewind, pair)


def write_partial(folder: Path, space: str) -> None:
    """Write a study that is still at it: one pair done, one job failed, one running, one diverged."""
    recorder = Recorder(folder, space)
    for seed in (0, 1):
        recorder.dense(1.0, seed)
    first, second, third = PAIRS
    for method in ("lth", "naive", "permuted"):
        recorder.sparse(method, 1.0, 0.95, 10, first)
    recorder.sparse("lth", 1.0, 0.95, 10, second)
    recorder.sparse(
        "naive", 1.0, 0.95, 10, second, status="FAILED", tags={schema.TAG_ERROR: "loss is <NaN> & gone\nmore"}
    )
    recorder.sparse("lth", 1.0, 0.95, 10, third, status="RUNNING")
