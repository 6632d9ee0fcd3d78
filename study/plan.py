"""From a search space to the jobs that it needs. Pure: no torch, ray or mlflow, and nothing is started."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from search_spaces import SearchSpace
from trainables import schema
from trainables.config import Cell, ConnectConfig, DenseConfig, MatchConfig, PruneConfig, SparseConfig
from trainables.data import check_dataset
from trainables.data.dataset import DatasetFacts
from trainables.graph import Closure, Job, Ref, measurements, target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The deduplicated graph of jobs behind a search space.

    Attributes:
        space: the question.
        facts: dataset name -> what is known about its data.
        closure: the jobs, parents first, and the outputs asked for.
        cells: key of a job -> the first cell that needs it; enough to derive the job anew on another machine.
        requests: number of cells in the grid.
        lth_keys: key of a sparse job -> key of the LTH job with the same mask, sparsity and rewind epoch.
        separate_epochs: epochs it would take to compute each cell of the grid by itself.
    """

    space: SearchSpace
    facts: dict[str, DatasetFacts]
    closure: Closure
    cells: dict[str, Cell]
    requests: int
    lth_keys: dict[str, str]
    separate_epochs: int

    @property
    def jobs(self) -> dict[str, Job]:
        """Key -> job, parents first."""
        return self.closure.jobs

    @property
    def epochs(self) -> int:
        """Epochs of all jobs of the plan."""
        return sum(job.epochs for job in self.jobs.values())


def make_plan(space: SearchSpace, data_dir: str | None = None) -> Plan:
    """Return the plan of a search space.

    Raises:
        ValueError: a value out of bounds, an unknown name, or data that is not there; the message says how to get it.
    """
    facts = {name: check_dataset(name, data_dir) for name in space.dataset}
    graph = Closure()
    cells: dict[str, Cell] = {}
    lth_keys: dict[str, str] = {}
    asked: set[str] = set()
    requests = separate = 0
    own_epochs: dict[str, int] = {}
    for values in space.cells():
        cell = Cell.from_mapping({**values, "data_version": facts[str(values["dataset"])].fingerprint})
        job = target(cell)
        requests += 1
        separate += _epochs_alone(job, own_epochs)
        for root in (job, *measurements(cell)):  # cells of one job may still differ in what explains its number
            if root.key not in asked:
                asked.add(root.key)
                cells |= dict.fromkeys((added.key for added in graph.add(Ref(root))), cell)
        if job.kind == schema.SPARSE and "lth" in space.method and job.key not in lth_keys:
            lth_keys[job.key] = target(dataclasses.replace(cell, method="lth")).key
    return Plan(
        space=space,
        facts=facts,
        closure=graph,
        cells=cells,
        requests=requests,
        lth_keys=lth_keys,
        separate_epochs=separate,
    )


def _epochs_alone(job: Job, known: dict[str, int]) -> int:
    """Return the epochs of a job and all its ancestors, each counted once."""
    if job.key not in known:
        seen: dict[str, int] = {}
        stack = [job]
        while stack:
            current = stack.pop()
            if current.key not in seen:
                seen[current.key] = current.epochs
                stack.extend(ref.job for _, ref in current.parents)
        known[job.key] = sum(seen.values())
    return known[job.key]


# --- overriding fields of a space -----------------------------------------------------------------------------------
def override(space: SearchSpace, assignments: Iterable[str]) -> SearchSpace:
    """Return the space with ``key=value`` assignments applied; commas separate the values of an axis.

    Raises:
        ValueError: not an assignment, an unknown key, or a value of the wrong type or out of bounds.
    """
    fields = {field.name: field for field in SearchSpace.settings()}
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {assignment!r}")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown key {key!r} of --set{hint}; known: {', '.join(fields)}")
        example = getattr(space, key)
        default: Any = fields[key].default
        kind = type(default[0] if isinstance(default, tuple) else default)
        parsed = tuple(_parse(key, part.strip(), kind) for part in text.split(","))
        changes[key] = parsed if isinstance(example, tuple) or len(parsed) > 1 else parsed[0]
    return dataclasses.replace(space, **changes)


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key} must be {_KINDS[kind]}, got {text!r}") from None


_KINDS = {int: "a whole number", float: "a number", str: "a name"}


# --- what people read -------------------------------------------------------------------------------------------------
def run_name(job: Job, cell: Cell) -> str:
    """Return a name by which a person recognises a job, such as ``permuted · w4 · S=95% · k=10 · A0→B1``."""
    config, width = job.config, f"w{cell.width:g}"
    pair = f"A{cell.seed_a}→B{cell.seed_b}"
    match config:
        case DenseConfig(seed=seed):
            parts = ["dense", width, _net(seed)]
        case PruneConfig(round=round_, sparsity=sparsity, seed=seed):
            parts = ["imp", width, f"S={_percent(sparsity)}", f"round {round_}", _net(seed)]
        case MatchConfig(matcher=matcher):
            parts = [f"match {matcher}", width, pair]
        case ConnectConfig():
            parts = [f"connect {_matcher(job)}", width, pair]
        case SparseConfig(seed=seed):
            method = "lth" if cell.method == "lth" else cell.method
            nets = _net(seed) if method == "lth" else pair
            parts = [method, width, f"S={_percent(cell.sparsity)}", f"k={cell.rewind_epoch}", nets]
    return " · ".join(parts)


def run_params(job: Job, cell: Cell) -> dict[str, Any]:
    """Return the params of the job's MLflow run: where it lies in the grid, and its recipe."""
    config = job.config
    params: dict[str, Any] = {
        schema.PARAM_STAGE: job.kind,
        schema.PARAM_MODEL: cell.model,
        schema.PARAM_DATASET: cell.dataset,
        schema.PARAM_WIDTH: f"{cell.width:g}",
    }
    if not isinstance(config, MatchConfig | ConnectConfig):
        params |= dataclasses.asdict(config.recipe)
        params |= {"augment": cell.augment, "shortcut": cell.shortcut}
    match config:
        case DenseConfig(seed=seed):
            params |= {schema.PARAM_METHOD: "dense", schema.PARAM_SEED_A: seed}
        case PruneConfig(seed=seed, sparsity=sparsity, round=round_):
            params |= {schema.PARAM_METHOD: "imp", schema.PARAM_SEED_A: seed, schema.PARAM_SPARSITY: f"{sparsity:g}"}
            params |= {"round": round_, "pruner": cell.pruner, "prune_fraction": cell.prune_fraction}
            params |= {"prune_shortcuts": config.prune_shortcuts, "prune_classifier": config.prune_classifier}
        case SparseConfig():
            params |= {
                schema.PARAM_METHOD: cell.method,
                schema.PARAM_SPARSITY: f"{cell.sparsity:g}",
                schema.PARAM_REWIND_EPOCH: cell.rewind_epoch,
                schema.PARAM_SEED_A: cell.seed_a,
                "dense_epochs": cell.epochs,
                "dense_lr": cell.lr,
                **{name: getattr(cell, name) for name in _PRUNING},
            }
            if cell.method != "lth":
                params[schema.PARAM_SEED_B] = cell.seed_b
            if config.transform == "permute":
                params[schema.PARAM_MATCHER] = cell.matcher
                params |= {name: getattr(cell, name) for name in _MATCHING}
        case MatchConfig(matcher=matcher):
            params |= {schema.PARAM_SEED_A: cell.seed_a, schema.PARAM_SEED_B: cell.seed_b}
            params |= {schema.PARAM_MATCHER: matcher, "match_images": config.images, "stream_taps": config.stream_taps}
        case ConnectConfig():
            params |= {schema.PARAM_SEED_A: cell.seed_a, schema.PARAM_SEED_B: cell.seed_b}
            params |= {schema.PARAM_MATCHER: _matcher(job), schema.PARAM_CORRECTION: config.correction}
            params |= {"match_images": config.images, "interpolation_points": config.points}
    return params


_PRUNING = (
    "pruner",
    "prune_fraction",
    "prune_shortcuts",
    "prune_classifier",
    "imp_epochs",
    "imp_lr",
    "imp_momentum",
    "imp_weight_decay",
)
_MATCHING = ("match_images", "stream_taps")
"""Settings of the jobs that a sparse net rests on: without them on its run, cells that differ there look the same."""


def _matcher(job: Job) -> str:
    config = job.parent("permutation").job.config
    assert isinstance(config, MatchConfig)
    return config.matcher


def _net(seed: int) -> str:
    return f"{'B' if seed % 2 else 'A'}{seed}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".rstrip("0").rstrip(".") + "%"
