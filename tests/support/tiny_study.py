"""A study that takes seconds (ResNet8 at width 0.25, three epochs of digits), and helpers to inspect its results."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from checkout import ROOT, SUPPORT
from stored import file_of
from torch import Tensor

from search_spaces import SPACES, SearchSpace
from trainables import knobs, schema
from trainables.config import Cell
from trainables.graph import Job, Ref
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context, Row
from trainables.methods import METHODS as ALL_METHODS
from trainables.storage.store import Store

if TYPE_CHECKING:  # processes that tests start do not need it
    import pytest

    from study.plan import Plan

METHODS = tuple(ALL_METHODS)
SETTINGS: dict[str, Any] = {
    "model": "resnet8",
    "dataset": "digits",
    "width": 0.25,
    "sparsity": 0.5,
    "rewind_epoch": 1,
    "epochs": 3,
    "batch_size": 128,
    "imp_epochs": 1,
    "match_images": 200,
    "prune_shortcuts": False,
}
TIMES = ("timestamp", *schema.OF_THE_MACHINE)
"""Metrics that may differ between two computations of one job."""


def tiny_cell(method: str = "permuted", **changes: Any) -> Cell:
    """Return one cell of the tiny study."""
    return Cell(**{**SETTINGS, "method": method, "interpolation_points": 3, **changes})


def tiny_space(name: str = "tiny", **changes: Any) -> SearchSpace:
    """Return the tiny study: one cell for each of the four methods."""
    return SearchSpace(name=name, question="Does it work?", **{**SETTINGS, "seeds": (0,), **changes})


@contextmanager
def only_space(name: str, space: SearchSpace) -> Iterator[None]:
    """Make a space the only registered one for the block; the others come back in their order."""
    registered = dict(SPACES)
    SPACES.clear()
    SPACES[name] = space
    try:
        yield
    finally:
        SPACES.clear()
        SPACES.update(registered)


def assignments(space: SearchSpace, **changes: Any) -> list[str]:
    """Return the ``--set`` assignments that turn a space into the tiny study."""
    tiny, settings = tiny_space(interpolation_points=3, **changes), []
    for name in knobs.SETTINGS:
        value = getattr(tiny, name)
        if value != getattr(space, name):
            settings.append(f"{name}={','.join(map(str, value if isinstance(value, tuple) else (value,)))}")
    return settings


def publish(roots: Iterable[Ref], context: Context) -> list[Row]:
    """Compute outputs and their missing ancestors; return the rows."""
    return [row for root in roots for row in compute(root.job, [root.epoch], context)]


def publish_all(plan: Plan, context: Context) -> None:
    """Compute all that a plan asks for in this process, each job with the outputs that a study wants of it."""
    for key, outputs in plan.closure.todo(context.store).items():
        for _ in compute(plan.jobs[key], outputs, context):
            pass


def tensors(store: Store, key: str) -> dict[str, bytes]:
    """Return the files of tensors of a result: weights, mask, permutation, logits."""
    names = [name for name in store.manifest(key)["files"] if name.endswith(".safetensors")]
    return {name: store.read(key, name) for name in names}


def numbers(store: Store, key: str) -> dict[str, Any]:
    """Return the metrics of a result without its timings."""
    document = store.read_json(key, schema.METRICS)
    return {
        "final": _without_times(document["final"]),
        "history": [_without_times(row) for row in document["history"]],
    }


def _without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


def assert_same_result(left: Store, right: Store, key: str) -> None:
    """Assert that two stores hold the same bits and the same numbers under a key."""
    assert tensors(left, key) == tensors(right, key), f"{left.manifest(key)['kind']} {key[:12]} differs"
    assert numbers(left, key) == numbers(right, key)


def assert_same_store(one: Store, other: Store) -> None:
    """Assert that two stores hold the same results, to the bit."""
    assert one.keys() == other.keys()
    for key in one.keys():  # noqa: SIM118 - a store is no dict
        if schema.METRICS in one.manifest(key)["files"]:
            assert_same_result(one, other, key)
        else:
            assert tensors(one, key) == tensors(other, key)


def computed_epochs(rows: Iterable[Row], job: Job) -> list[int]:
    """Return the epochs of a job among rows of ``compute``, in the order in which they were computed."""
    return [row["step"] for row in rows if row["job_key"] == job.key and "step" in row]


def trained(rows: Iterable[Row]) -> Counter[tuple[str, int]]:
    """Return how often each epoch of each job was computed, among rows of ``compute``."""
    return Counter((row["job_key"], row["step"]) for row in rows if "step" in row)


def zeros(tree: Mapping[str, Tensor]) -> int:
    """Return the number of weights that a mask prunes."""
    return sum(int((~keep).sum()) for keep in tree.values())


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Return whether two dicts hold equal tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def flip_bit(path: Path, position: int = -9) -> None:
    """Damage one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def damage_when_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Damage every file of this name, in any result, just before it is read."""
    read = Store.read

    def damaging(store: Store, key: str, asked: str) -> bytes:
        if asked == name:
            flip_bit(file_of(store, key, name))
        return read(store, key, asked)

    monkeypatch.setattr(Store, "read", damaging)


def python(*arguments: str, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
    """Start Python in its own process group, output captured; it finds this checkout and the tests' modules."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}", **options.pop("env", {})}
    return subprocess.Popen(
        [*prefix, sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
        env=environment,
        **options,
    )


def _interruptible() -> None:
    """Heed Ctrl-C, which a shell ignores in its background jobs, and the end of a terminal, which nohup ignores."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_DFL)


def with_method(cell: Cell, method: str) -> Cell:
    """Return the cell of another method at the same point of the grid."""
    return dataclasses.replace(cell, method=method)
