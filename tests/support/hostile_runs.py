"""A study as whoever may write to its MLflow experiment can leave it: names that act, numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import synthetic_runs as synthetic
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from analysis.load import METRICS
from trainables import schema

MARKUP, LATEX, MATH = "<script>alert(1)</script>", r"\input{x}", r"$\frac{"
FOREIGN = f"=1+1|{MATH}|{LATEX}|[a](x)|{MARKUP}%_#&~^"
"""What a spreadsheet, Matplotlib, LaTeX, Markdown and a browser would each act on."""
CONTROLS = "\x1b]0;x\x07\x00\u202e\r"
PLACE: dict[str, Any] = {"width": 1.0, "sparsity": 0.95, "rewind_epoch": 10, "seed_a": 8, "seed_b": 9}
NO_NUMBERS = (float("nan"), float("inf"), "wide", -2, "0x10", 10**400)
NO_METRICS = (float("nan"), float("inf"), float("-inf"), 1e308)
CURVES = (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)


def write(folder: Path, space: str) -> None:
    """Write a study with sound runs, also under foreign names, beside runs that are damaged or another tool's."""
    for name in ("resnet20", FOREIGN):
        _sound(synthetic.Recorder(folder, space, model=name, dataset=name, augment=name, note="@x"))
    recorder = synthetic.Recorder(folder, space)
    for number, name in enumerate(("width", "sparsity", "rewind_epoch", "seed_a")):
        for bad in NO_NUMBERS:
            settings = PLACE | {"seed_b": 100 + number, name: bad}
            recorder.run({schema.TEST_ACCURACY: 50.0}, stage=schema.SPARSE, method="naive", **settings)
    for bad in NO_METRICS:
        for stage in schema.STAGES:
            curves = {name: dict.fromkeys((0, 50, 100), bad) for name in CURVES} if stage == schema.CONNECT else {}
            method = {schema.DENSE: "dense", schema.PRUNE: "imp"}.get(stage, "permuted")
            metrics = dict.fromkeys((*METRICS, "plane_error/x"), bad)
            recorder.run(metrics, curves=curves, stage=stage, method=method, lr=bad, **PLACE)
    _strange(recorder.experiment_id, MlflowClient(tracking_uri=synthetic.tracking_uri(folder)))


def _sound(recorder: synthetic.Recorder) -> None:
    for seed in range(4):
        recorder.dense(1.0, seed)
    for pair in synthetic.PAIRS[:2]:
        for rewind in synthetic.REWINDS:
            for method in ("lth", "naive", "permuted", "shuffled"):
                recorder.sparse(method, 1.0, 0.95, rewind, pair)
            recorder.sparse("permuted", 1.0, 0.95, rewind, pair, matcher=FOREIGN)
            place = PLACE | {"rewind_epoch": rewind, "seed_a": pair[0], "seed_b": pair[1]}
            recorder.run({schema.TEST_ACCURACY: 50.0}, stage=schema.SPARSE, method=FOREIGN, **place)
        for matcher in ("identity", "activation", FOREIGN):
            recorder.connect(1.0, pair, matcher)


def _strange(experiment: str, client: Any) -> None:
    """Write runs of other tools: with a key that is none or another's, texts without end, no params of a job."""
    for key in (None, "", "twice", "twice", FOREIGN):
        tags = {} if key is None else {schema.TAG_KEY: key, schema.TAG_PLACE: '{"stage": "dense", "width": 1}'}
        tags[schema.TAG_ERROR] = f"{FOREIGN}{CONTROLS}DB_PASS=hunter2 {'x' * 4000}"
        run = client.create_run(experiment, tags=tags, run_name=f"=1+1{CONTROLS}")
        params = [Param("y" * 200, "z" * 5000), Param("stage", FOREIGN), Param("-1", f"{MARKUP}{CONTROLS}")]
        client.log_batch(run.info.run_id, [Metric("x", 1.0, 0, 0)], params, [RunTag("version", FOREIGN + CONTROLS)])
        client.set_terminated(run.info.run_id, status="FAILED")
    client.set_experiment_tag(experiment, "mlflow.note.content", f"{FOREIGN}{CONTROLS}\n\nmore")
