"""Which jobs a cell needs, and the key of each: the science as a graph, before anything is computed. Torch-free.

::

    dense A --+--> prune 1 -> prune 2 -> ... -> prune r      (the mask of A)
              |                                    |
              +--> match A onto B --+              |
    dense B --+                     v              v
      | state after k epochs ----> sparse (LTH: A at k; naive, permuted: B at k)

A job's key is the sha256 of what decides its result: kind, version, configuration and the keys of its parents. Two
cells that need the same dense net or the same pruning round therefore meet in one job, whichever search space, user
or machine asks for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trainables.config import (
    MAX_SEED,
    Cell,
    Config,
    ConnectConfig,
    DenseConfig,
    MatchConfig,
    PruneConfig,
    Recipe,
    SparseConfig,
    Task,
)
from trainables.methods import METHODS
from trainables.schema import CONNECT, DENSE, MATCH, PRUNE, SPARSE

VERSIONS: dict[str, int] = {DENSE: 1, PRUNE: 1, MATCH: 1, SPARSE: 1, CONNECT: 1}
"""Bumped when the meaning of a kind of job changes; results of the old meaning are then no longer found."""

FRESH_SEEDS = 2 * (MAX_SEED + 1)
"""Seeds from here on are for nets that belong to no pair (the ``reinit`` control)."""


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """One output of a job: its final result, or for a dense job its state after `epoch` epochs."""

    job: Job
    epoch: int | None = None

    @property
    def key(self) -> str:
        """Key under which the output is published."""
        return self.job.key if self.epoch is None else snapshot_key(self.job.key, self.epoch)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One unit of computation. Jobs with equal keys are the same job.

    Attributes:
        kind: a name of ``schema.STAGES``.
        config: what the kind needs to know.
        parents: (role, output of another job) pairs.
        key: 64 hex digits, the name of the result in the store.
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
        """Passes over the training set that the job makes to train (0 for measurements)."""
        return 0 if isinstance(self.config, MatchConfig | ConnectConfig) else self.config.recipe.epochs


def make_job(kind: str, config: Config, **parents: Ref) -> Job:
    """Return the job with its key computed."""
    document = {
        "kind": kind,
        "version": VERSIONS[kind],
        "config": canonical(config),
        "parents": {role: ref.key for role, ref in parents.items()},
    }
    return Job(kind, config, tuple(parents.items()), digest(document))


def canonical(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data, without the fields that are at their neutral value.

    A field's neutral value means that the knob is not there: adding a knob later does not rename old results.
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

    Which snapshots are kept does not enter the dense job's own key: asking for one more rewind epoch renames nothing.
    """
    return digest({"kind": "snapshot", "version": VERSIONS[DENSE], "epoch": epoch, "parents": {"dense": dense_key}})


# --- from a cell to jobs ----------------------------------------------------------------------------------------
def target(cell: Cell) -> Job:
    """Return the job whose result is the cell's number; its ancestors hang on it."""
    method = METHODS[cell.method]
    if method.mask is None:
        return dense_job(cell, cell.seed_a)
    mask_seed = cell.seed_a if method.mask == "a" else cell.seed_b
    pruned = prune_job(cell, mask_seed)
    if method.init == "final":
        return pruned
    init_seed = {"a": cell.seed_a, "b": cell.seed_b, "fresh": FRESH_SEEDS + cell.seed}[method.init]
    rewind_epoch = 0 if method.init == "fresh" else cell.rewind_epoch
    parents = {"init": Ref(dense_job(cell, init_seed), rewind_epoch), "mask": Ref(pruned)}
    if method.transform == "permute":
        parents["permutation"] = Ref(match_job(cell, cell.matcher))
    config = SparseConfig(
        task=_task(cell),
        recipe=_recipe(cell, epochs=cell.epochs - rewind_epoch, lr=cell.sparse_lr),
        seed=init_seed,
        transform=method.transform,
        transform_seed=cell.seed if method.transform in ("shuffle", "layerwise_random") else 0,
    )
    return make_job(SPARSE, config, **parents)


def measurements(cell: Cell) -> tuple[Job, ...]:
    """Return the jobs that explain the cell's number: the path from A to B before and after matching."""
    if METHODS[cell.method].transform != "permute" or not cell.interpolation_points:
        return ()
    return tuple(connect_job(cell, matcher) for matcher in dict.fromkeys(("identity", cell.matcher)))


def dense_job(cell: Cell, seed: int) -> Job:
    """Return the training of the dense net with the given seed."""
    return _dense(_task(cell), _recipe(cell, epochs=cell.epochs, lr=cell.lr), seed)


@lru_cache(maxsize=1 << 14)
def _dense(task: Task, recipe: Recipe, seed: int) -> Job:
    return make_job(DENSE, DenseConfig(task=task, recipe=recipe, seed=seed))


def prune_job(cell: Cell, seed: int) -> Job:
    """Return the pruning round that lands on the cell's sparsity, hanging on the rounds before it."""
    if cell.pruner == "imp_rewind":
        rewind: int | None = cell.rewind_epoch
        recipe = _recipe(cell, epochs=cell.epochs - cell.rewind_epoch, lr=cell.sparse_lr)
    else:
        rewind = None
        recipe = dataclasses.replace(
            _recipe(cell, epochs=cell.imp_epochs, lr=cell.imp_lr),
            momentum=cell.imp_momentum,
            weight_decay=cell.imp_weight_decay,
            warmup_epochs=0.0,
        )
    if cell.pruner == "one_shot":
        sparsities: tuple[float, ...] = (cell.sparsity,)
    else:
        sparsities = round_sparsities(cell.sparsity, cell.prune_fraction)
    return _prune(dense_job(cell, seed), recipe, sparsities, rewind, cell.prune_shortcuts, cell.prune_classifier)


@lru_cache(maxsize=1 << 14)
def _prune(
    dense: Job, recipe: Recipe, sparsities: tuple[float, ...], rewind: int | None, shortcuts: bool, classifier: bool
) -> Job:
    job = dense
    for number, sparsity in enumerate(sparsities, start=1):
        job = _round(job, dense, recipe, sparsity, number, rewind, shortcuts, classifier)
    return job


@lru_cache(maxsize=1 << 14)
def _round(
    previous: Job,
    dense: Job,
    recipe: Recipe,
    sparsity: float,
    number: int,
    rewind: int | None,
    shortcuts: bool,
    classifier: bool,
) -> Job:
    assert isinstance(dense.config, DenseConfig)
    config = PruneConfig(
        task=dense.config.task,
        recipe=recipe,
        sparsity=sparsity,
        round=number,
        seed=dense.config.seed,
        prune_shortcuts=shortcuts,
        prune_classifier=classifier,
    )
    parents = {"previous": Ref(previous)}
    if rewind is not None:
        parents["rewind"] = Ref(dense, rewind)
    return make_job(PRUNE, config, **parents)


def round_sparsities(sparsity: float, fraction: float) -> tuple[float, ...]:
    """Return the sparsity after each round of iterative magnitude pruning, the last one exactly `sparsity`.

    Each round prunes `fraction` of the remaining weights; the last is shortened to land (paper section 4). Rounds on
    the way to a lower sparsity are a prefix of the rounds to a higher one, so all targets share one chain.

    >>> round_sparsities(0.5, 0.2)
    (0.2, 0.36, 0.488, 0.5)
    """
    rounds: list[float] = []
    while True:
        reached = round(1.0 - (1.0 - fraction) ** (len(rounds) + 1), 12)
        if reached >= sparsity - 1e-9:
            return (*rounds, sparsity)
        rounds.append(reached)


def match_job(cell: Cell, matcher: str) -> Job:
    """Return the search for the permutation that moves A onto B."""
    return _match(
        dense_job(cell, cell.seed_a),
        dense_job(cell, cell.seed_b),
        matcher,
        cell.match_images,
        cell.seed,
        cell.stream_taps,
    )


@lru_cache(maxsize=1 << 14)
def _match(a: Job, b: Job, matcher: str, images: int, seed: int, stream_taps: str) -> Job:
    assert isinstance(a.config, DenseConfig)
    config = MatchConfig(task=a.config.task, matcher=matcher, images=images, seed=seed, stream_taps=stream_taps)
    return make_job(MATCH, config, a=Ref(a), b=Ref(b))


def connect_job(cell: Cell, matcher: str) -> Job:
    """Return the measurement of the path from A, permuted by `matcher`, to B."""
    return _connect(match_job(cell, matcher), cell.interpolation_points, cell.correction)


@lru_cache(maxsize=1 << 14)
def _connect(match: Job, points: int, correction: str) -> Job:
    assert isinstance(match.config, MatchConfig)
    config = ConnectConfig(
        task=match.config.task, points=points, correction=correction, images=match.config.images, seed=match.config.seed
    )
    return make_job(CONNECT, config, a=match.parent("a"), b=match.parent("b"), permutation=Ref(match))


def _task(cell: Cell) -> Task:
    return Task(
        model=cell.model,
        width=cell.width,
        shortcut=cell.shortcut,
        dataset=cell.dataset,
        data_version=cell.data_version,
        augment=cell.augment,
    )


def _recipe(cell: Cell, *, epochs: int, lr: float) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch_size=cell.batch_size,
        lr=lr,
        momentum=cell.momentum,
        weight_decay=cell.weight_decay,
        schedule=cell.schedule,
        warmup_epochs=cell.warmup_epochs,
        precision=cell.precision,
    )


# --- walking the graph --------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Closure:
    """Some outputs that are asked for, and every job that they may need.

    Attributes:
        roots: the outputs asked for.
        jobs: key -> job, in an order in which parents come first.
    """

    roots: list[Ref] = dataclasses.field(default_factory=list)
    jobs: dict[str, Job] = dataclasses.field(default_factory=dict)
    _seen: set[str] = dataclasses.field(default_factory=set)

    def add(self, root: Ref) -> list[Job]:
        """Ask for an output; return the jobs that were not in the closure before."""
        self.roots.append(root)
        added: list[Job] = []
        # Depth first with an explicit stack: a chain of pruning rounds can be longer than Python's recursion limit.
        stack = [(root.job, False)]
        while stack:
            job, parents_done = stack.pop()
            if parents_done:
                self.jobs[job.key] = job
                added.append(job)
            elif job.key not in self._seen:
                self._seen.add(job.key)
                stack.append((job, True))
                stack.extend((ref.job, False) for _, ref in reversed(job.parents))
        return added

    def todo(self, published: Container[str]) -> dict[str, set[int | None]]:
        """Return what has to be computed: key of a job -> its outputs that are needed and not published.

        Whatever only led to a published result is not needed, whether or not it is still there.

        Args:
            published: the keys in the store, or the store itself.

        Returns:
            Jobs in an order in which parents come first. Among the outputs None is the final result, a number a dense
            net's state after so many epochs.
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


def closure(roots: Iterable[Ref]) -> Closure:
    """Return the closure of some outputs."""
    result = Closure()
    for root in roots:
        result.add(root)
    return result
