"""The jobs that a cell needs, and their keys: the study as a graph before any computation. Torch-free.

::

    dense A --+--> prune 1 -> prune 2 -> ... -> prune r      (the mask of A)
              |                                    |
              +--> match A onto B --+              |
    dense B --+                     v              v
      | state after k epochs ----> sparse (LTH: A at k; naive, permuted: B at k)

A job's key is the sha256 of everything that decides its result: kind, version, configuration and its parents' keys.
Cells that need the same dense net or the same pruning round therefore share one job, across search spaces, users and
machines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args

from trainables.config import (
    TRAINING_CONFIGS,
    Cell,
    Config,
    ConnectConfig,
    DenseConfig,
    EnsembleConfig,
    MatchConfig,
    OverlapConfig,
    PlaneConfig,
    PruneConfig,
    Recipe,
    SparseConfig,
    Task,
    same_data,
)
from trainables.knobs import KNOBS, MAX_MEMBERS, MAX_SEED
from trainables.methods import MATCHERS, METHODS, TRANSFORMS
from trainables.models import MODELS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, OVERLAP, PLANE, PRUNE, SPARSE

Part = TypeVar("Part")

VERSIONS: dict[str, int] = {DENSE: 1, PRUNE: 1, MATCH: 1, SPARSE: 1, CONNECT: 2, PLANE: 2, ENSEMBLE: 1, OVERLAP: 1}
"""Kind of job -> version. Raise it when the job's computation changes: this renames all results of the kind."""

PLANE_MARGIN = 0.2
"""How far a plane's grid reaches beyond the nets on each side, as a share of their extent."""

FRESH_SEEDS = 2 * (MAX_SEED + 1 + MAX_MEMBERS)
"""First seed of the nets that belong to no pair (the ``reinit`` control)."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One output of a job: its final result, or the state of a dense net after `epoch` epochs."""

    job: Job
    epoch: int | None = None

    @property
    def key(self) -> str:
        """The key under which the output is published."""
        return self.job.key if self.epoch is None else snapshot_key(self.job.key, self.epoch)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One unit of computation. Jobs with equal keys are the same job.

    Attributes:
        kind: a name of ``schema.STAGES``.
        config: the configuration that this kind takes.
        parents: (role, output of another job) pairs.
        key: 64 hex digits; names the result in the store.
    """

    kind: str
    config: Config
    parents: tuple[tuple[str, Ref], ...]
    key: str

    def parent(self, role: str) -> Ref:
        """Return the parent output with the given role."""
        return dict(self.parents)[role]

    @property
    def epochs(self) -> int:
        """Number of epochs to the final result; 0 for measurements."""
        return self.config.recipe.epochs if isinstance(self.config, TRAINING_CONFIGS) else 0

    def epochs_to(self, outputs: Collection[int | None]) -> int:
        """Return the number of epochs that the job trains to publish some of its outputs; None is the final result."""
        return self.epochs if None in outputs else max((epoch for epoch in outputs if epoch is not None), default=0)


@lru_cache(maxsize=1 << 16)  # a grid's cells share most of their jobs
def make_job(kind: str, config: Config, **parents: Ref) -> Job:
    """Return the job with its key; `parents` maps roles to outputs."""
    document = {
        "kind": kind,
        "version": VERSIONS[kind],
        "config": canonical(config),
        "parents": {role: ref.key for role, ref in parents.items()},
    }
    return Job(kind, config, tuple(parents.items()), digest(document))


def canonical(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data, without fields at their neutral value.

    At its neutral value a knob has no effect, so adding a knob later does not rename old results.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "neutral" in field.metadata and value == field.metadata["neutral"]:
            continue
        plain[field.name] = canonical(value) if dataclasses.is_dataclass(value) else value
    return plain


def digest(document: dict[str, Any]) -> str:
    """Return the sha256 of canonical JSON (sorted keys, no spaces, shortest floats that round-trip)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1 << 16)
def snapshot_key(dense_key: str, epoch: int) -> str:
    """Return the key of a dense net's state after `epoch` epochs.

    The dense job's own key does not depend on its snapshots, so another rewind epoch renames no result.
    """
    return digest({"kind": "snapshot", "version": VERSIONS[DENSE], "epoch": epoch, "parents": {"dense": dense_key}})


# --- from a cell to jobs ----------------------------------------------------------------------------------------
def target(cell: Cell) -> Job:
    """Return the job that trains the cell's network; its parents lead to all other jobs that it needs."""
    method = METHODS[cell.method]
    if method.mask is None:
        return dense_job(cell, cell.seed_own)
    if method.init == "final":
        return prune_job(cell, cell.seed_own)
    pruned = prune_job(cell, cell.seed_a if method.mask == "a" else cell.seed_b)
    init_seed = {"a": cell.seed_a, "b": cell.seed_b, "fresh": FRESH_SEEDS + cell.seed + cell.member}[method.init]
    rewind_epoch = 0 if method.init == "fresh" else cell.rewind_epoch
    rewound = Ref(dense_job(cell, init_seed), 0 if method.init == "fresh" else rewind_epoch + cell.rewind_offset)
    parents = {"init": rewound, "mask": Ref(pruned)}
    if method.aligned:
        parents["permutation"] = Ref(match_job(cell, cell.matcher))
    config = _config(
        SparseConfig,
        cell,
        recipe=_sparse_recipe(cell, rewind_epoch).at(cell.sparsity),
        seed=init_seed,
        transform=method.transform,
        transform_seed=cell.seed + cell.member if TRANSFORMS[method.transform].drawn else 0,
        order=cell.member if method.init == "a" else 0,
    )
    return make_job(SPARSE, config, **parents)


def measurements(cell: Cell) -> tuple[Job, ...]:
    """Return the additional measurements that the cell requests; ``trainables.knobs`` documents the settings."""
    jobs: list[Job] = []
    if METHODS[cell.method].aligned:
        alike = same_data(_mask_cell(cell), cell)  # no path leads to B from a net with another classifier
        if cell.interpolation_points and alike:
            matches = [match_job(cell, matcher) for matcher in dict.fromkeys(("identity", cell.matcher))]
            jobs += [connect_job(cell, match.parent("a"), match.parent("b"), match) for match in matches]
        if cell.plane_resolution and alike:
            jobs.append(plane_job(cell))
        if cell.mask_overlap:
            jobs.append(overlap_job(cell))
    if METHODS[cell.method].init == "final" and cell.imp_path:
        source = _mask_cell(cell)  # measure these nets on the dataset on which they were trained
        dense = Ref(dense_job(source, cell.seed_own))
        # Without BatchNorm, a reset measures the same as no correction.
        same = cell.correction == "bn_reset" and not MODELS[cell.model].batchnorm
        corrections = ("none",) if same else tuple(dict.fromkeys(("none", cell.correction)))
        jobs += [
            connect_job(dataclasses.replace(source, correction=correction), dense, Ref(pruned))
            for pruned in pruning_rounds(target(cell))
            for correction in corrections
        ]
    if cell.members and cell.member == 0:
        jobs.append(ensemble_job(cell))
    return tuple(jobs)


def pruning_rounds(job: Job) -> tuple[Job, ...]:
    """Return the pruning rounds up to `job`, in order, `job` last."""
    rounds: list[Job] = []
    while job.kind == PRUNE:
        rounds.append(job)
        job = job.parent("previous").job
    return tuple(reversed(rounds))


def dense_job(cell: Cell, seed: int) -> Job:
    """Return the training of the dense net with the given seed."""
    return make_job(DENSE, _config(DenseConfig, cell, recipe=_recipe(cell, cell.epochs, cell.lr).at(0.0), seed=seed))


def prune_job(cell: Cell, seed: int) -> Job:
    """Return the pruning round that reaches the cell's sparsity; its parents are the rounds before it."""
    cell = _mask_cell(cell)
    dense, rewind = dense_job(cell, seed), None
    if cell.pruner == "imp_rewind":
        rewind = Ref(dense, cell.rewind_epoch + cell.rewind_offset)
        recipe = _sparse_recipe(cell, cell.rewind_epoch)
    else:
        assert cell.pruner in ("imp_finetune", "one_shot"), cell.pruner
        recipe = dataclasses.replace(
            _recipe(cell, cell.imp_epochs, cell.imp_lr),
            momentum=cell.imp_momentum,
            weight_decay=cell.imp_weight_decay,
            schedule=cell.imp_schedule or cell.schedule,
            warmup_epochs=0.0,
        )
    if cell.pruner == "one_shot":
        sparsities: tuple[float, ...] = (cell.sparsity,)
    else:
        sparsities = round_sparsities(cell.sparsity, cell.prune_fraction, cell.prune_tolerance)
    return _rounds(dense, _config(PruneConfig, cell, recipe=recipe, round=0, seed=seed), sparsities, rewind)


@lru_cache(maxsize=1 << 14)
def _rounds(dense: Job, config: PruneConfig, sparsities: tuple[float, ...], rewind: Ref | None) -> Job:
    """Return the last of the rounds that reach these sparsities; `config` has the settings that they share."""
    job = dense
    for number, sparsity in enumerate(sparsities, start=1):
        own = dataclasses.replace(config, recipe=config.recipe.at(sparsity), sparsity=sparsity, round=number)
        job = make_job(PRUNE, own, previous=Ref(job), **({"rewind": rewind} if rewind else {}))
    return job


def round_sparsities(sparsity: float, fraction: float, tolerance: float = 0.0) -> tuple[float, ...]:
    """Return the sparsity after each round of iterative magnitude pruning, the last one exactly `sparsity`.

    Each round prunes `fraction` of the remaining weights; the last round prunes fewer, to reach `sparsity` exactly
    (paper, section 4). Targets share all rounds but their last. With a tolerance, as in the paper's code, the first
    round within `tolerance` of the target is the last one, even if it falls short of the target.

    Args:
        sparsity: target, in [0, 1).
        fraction: share of the remaining weights that a round prunes, in (0, 1).
        tolerance: largest accepted shortfall from the target, at least 0.

    >>> round_sparsities(0.5, 0.2)
    (0.2, 0.36, 0.488, 0.5)
    >>> round_sparsities(0.5, 0.2, tolerance=0.02)
    (0.2, 0.36, 0.488)
    """
    rounds: list[float] = []
    while True:
        reached = round(1.0 - (1.0 - fraction) ** (len(rounds) + 1), 12)
        if reached >= sparsity - 1e-9:
            return (*rounds, sparsity)
        rounds.append(reached)
        if reached >= sparsity - tolerance:
            return tuple(rounds)


def match_job(cell: Cell, matcher: str) -> Job:
    """Return the job that matches A, fully trained, onto B after ``cell.match_epoch`` epochs (-1: fully trained)."""
    a = Ref(dense_job(_mask_cell(cell), cell.seed_a))
    b = Ref(dense_job(cell, cell.seed_b), None if cell.match_epoch in (-1, cell.epochs) else cell.match_epoch)
    # Members of an ensemble match with the same images; only what is drawn at random is drawn for each.
    seed = cell.seed + cell.member if MATCHERS[matcher].drawn else cell.seed
    return make_job(MATCH, _config(MatchConfig, cell, matcher=matcher, seed=seed), a=a, b=b)


def connect_job(cell: Cell, a: Ref, b: Ref, match: Job | None = None) -> Job:
    """Return the job that measures the path from net `a`, permuted by `match` if given, to net `b`."""
    parents = {"a": a, "b": b} | ({"permutation": Ref(match)} if match else {})
    return make_job(CONNECT, _config(ConnectConfig, cell), **parents)


def plane_job(cell: Cell) -> Job:
    """Return the job that measures the plane through dense A, its LTH net and the permuted net, in B's frame."""
    permuted = target(cell)
    # REPAIR has no meaning outside the triangle of the three nets.
    correction = "none" if cell.correction == "none" else "bn_reset"
    config = _config(PlaneConfig, cell, margin=PLANE_MARGIN, correction=correction)
    return make_job(
        PLANE,
        config,
        dense=Ref(dense_job(_mask_cell(cell), cell.seed_a)),
        lth=Ref(target(lth_cell(cell))),
        permuted=Ref(permuted),
        permutation=permuted.parent("permutation"),
    )


def ensemble_job(cell: Cell) -> Job:
    """Return the job that compares the networks of an ensemble of ``cell.members`` members."""
    members = [target(dataclasses.replace(cell, member=number)) for number in range(cell.members)]
    parents = {f"member{number:02}": Ref(job) for number, job in enumerate(members)}
    return make_job(ENSEMBLE, EnsembleConfig(task=members[0].config.task), **parents)


def overlap_job(cell: Cell) -> Job:
    """Return the job that compares the permuted mask with the mask from pruning B itself, on B's own dataset."""
    permuted = target(cell)
    own = prune_job(dataclasses.replace(cell, mask_dataset="", mask_data_version=""), cell.seed_b)
    return make_job(
        OVERLAP,
        _config(OverlapConfig, cell),
        mask=permuted.parent("mask"),
        own=Ref(own),
        permutation=permuted.parent("permutation"),
    )


def lth_cell(cell: Cell) -> Cell:
    """Return the cell of the LTH net with which nets under the same mask are compared."""
    return dataclasses.replace(cell, method="lth", member=0)


def _mask_cell(cell: Cell) -> Cell:
    """Return the cell with the dataset that net A is trained and pruned on."""
    if not cell.mask_dataset:
        return cell
    return dataclasses.replace(
        cell, dataset=cell.mask_dataset, data_version=cell.mask_data_version, mask_dataset="", mask_data_version=""
    )


def _sparse_recipe(cell: Cell, rewind_epoch: int) -> Recipe:
    epochs = cell.epochs - rewind_epoch - (cell.rewind_offset if cell.rewind_offset_counts else 0)
    if cell.sparse_schedule == "resume":
        return dataclasses.replace(_recipe(cell, epochs, cell.lr), first_epoch=cell.epochs - epochs)
    return _recipe(cell, epochs, cell.sparse_lr)


def _recipe(cell: Cell, epochs: int, lr: float) -> Recipe:
    return _taken(Recipe, cell, epochs=epochs, lr=lr)


def _config(kind: type[Part], cell: Cell, **others: Any) -> Part:
    """Return a job's configuration for the cell's task."""
    task = _taken(Task, cell, init="default" if cell.init == MODELS[cell.model].init else cell.init)
    return _taken(kind, cell, task=task, **others)


def _taken(kind: type[Part], cell: Cell, **others: Any) -> Part:
    """Return a configuration; its fields that are knobs take the cell's values unless `others` has them."""
    return kind(**{name: getattr(cell, knob) for name, knob in _KNOBS_OF[kind] if name not in others}, **others)


_KNOBS_OF: dict[type, list[tuple[str, str]]] = {
    kind: [
        (field.name, knob)
        for field in dataclasses.fields(kind)
        if (knob := field.metadata.get("knob", field.name)) in KNOBS
    ]
    for kind in (Task, Recipe, *get_args(Config))
}
"""Configuration -> (field, knob) of its fields that are knobs."""


# --- walking the graph --------------------------------------------------------------------------------------------
class Closure:
    """Requested outputs and every job that they may need."""

    def __init__(self, roots: Iterable[Ref] = ()) -> None:
        self.roots: list[Ref] = []
        """The requested outputs."""
        self.jobs: dict[str, Job] = {}
        """Key -> job, parents before their children."""
        self.outputs: defaultdict[str, set[int | None]] = defaultdict(set)
        """Key of a job -> its outputs that are requested or that other jobs take; None is the final result."""
        self._seen: set[str] = set()
        for root in roots:
            self.add(root)

    def add(self, root: Ref) -> list[Job]:
        """Request an output; return the jobs that this adds to the closure, parents first."""
        self.roots.append(root)
        self.outputs[root.job.key].add(root.epoch)
        added: list[Job] = []
        # Depth first with an explicit stack: a chain of pruning rounds can be longer than Python's recursion limit.
        stack = [(root.job, False)]
        while stack:
            job, parents_done = stack.pop()
            if parents_done:
                self.jobs[job.key] = job
                added.append(job)
                for _, ref in job.parents:
                    self.outputs[ref.job.key].add(ref.epoch)
            elif job.key not in self._seen:
                self._seen.add(job.key)
                stack.append((job, True))
                stack.extend((ref.job, False) for _, ref in reversed(job.parents))
        return added

    def epochs_of(self, key: str) -> int:
        """Return the number of epochs that a job trains, which are all only if something takes its final result."""
        return self.jobs[key].epochs_to(self.outputs[key])

    def todo(self, published: Container[str]) -> dict[str, set[int | None]]:
        """Return the missing outputs of each job that has to be computed.

        A job that only published results depend on is not needed, whether or not it is published itself.

        Args:
            published: the keys in the store, or the store itself.

        Returns:
            Job key -> missing outputs, parents first. None stands for the final result, a number for a dense net's
            state after that number of epochs.
        """
        needed: dict[str, set[int | None]] = {}
        stack = list(self.roots)
        while stack:
            ref = stack.pop()
            if ref.epoch in needed.get(ref.job.key, ()) or ref.key in published:
                continue
            if ref.job.key not in needed:
                stack.extend(parent for _, parent in ref.job.parents)
            needed.setdefault(ref.job.key, set()).add(ref.epoch)
        return {key: needed[key] for key in self.jobs if key in needed}
