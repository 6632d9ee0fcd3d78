"""Names and descriptions of jobs in MLflow: a name for people, params for charts, tags for the analysis."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from search_spaces import SearchSpace
from study.plan import Plan, Ways, varied_settings
from trainables import schema
from trainables.config import (
    TRAINING_CONFIGS,
    Cell,
    ConnectConfig,
    DenseConfig,
    EnsembleConfig,
    MatchConfig,
    OverlapConfig,
    PlaneConfig,
    PruneConfig,
    SparseConfig,
)
from trainables.graph import Job, Ref
from trainables.knobs import KNOBS, MATCHING, PRUNING, REWINDING, SETTINGS
from trainables.methods import METHODS
from trainables.models import MODELS
from trainables.training.way import Way


def recipe_digest(space: SearchSpace, ways: Ways | None = None) -> str:
    """Return a digest (12 hex digits) of all settings of a space that are not axes of the grid.

    Cells of one recipe may be compared and pooled, however the grid grows; cells of different recipes may not. For a
    setting that was chosen per network (`ways`), the digest covers the fact that it was chosen, not its value.
    """
    recipe = {name: getattr(space, name) for name, knob in SETTINGS.items() if not knob.axis and knob.affects_results}
    recipe = {
        name: value for name, value in recipe.items() if not (knob := SETTINGS[name]).young or value != knob.neutral
    }
    chosen = {name for way in (ways or {}).values() for name in way}
    recipe |= dict.fromkeys({name for name in chosen if not KNOBS[name].young} or chosen, "fastest")
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def place_tags(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the tags by which the analysis groups runs: key of each job of a plan -> name -> value.

    The values are JSON, so that numbers stay numbers. ``trainables.schema`` documents each tag.
    """
    varied = varied_settings(plan.space)
    recipe = f"{schema.TAG_RECIPE}.{recipe_digest(plan.space, plan.ways)}"
    tags = {}
    for key, job in plan.jobs.items():
        cell = plan.cells[key]
        settings = {schema.VARIED: plan.recipes[key] if varied else {}}
        tags[key] = {schema.TAG_PLACE: json.dumps(_place_of(job, cell)), recipe: json.dumps(settings)}
    for key, job in plan.jobs.items():
        for _, parent in job.parents if job.kind == schema.SPARSE else ():
            if parent.job.kind == schema.PRUNE:
                tags[parent.key][schema.TAG_ASKED] = json.dumps(plan.cells[key].sparsity)
    return tags


def settings_tag(space: SearchSpace) -> str:
    """Return the settings that are the same for all cells of a space, as JSON: name -> value."""
    values = {name: getattr(space, name) for name, knob in SETTINGS.items() if not knob.axis}
    return json.dumps({name: value for name, value in values.items() if not isinstance(value, tuple)})


def _place_of(job: Job, cell: Cell) -> dict[str, Any]:
    """Return a job's place in the grid, and how its net was trained and the nets that it depends on were matched."""
    config, params = job.config, run_params(job, cell)
    identity = (*schema.PLACE_TEXTS, *schema.PLACE_COUNTS, schema.PARAM_SPARSITY)
    place = {name: params[name] for name in identity if name in params} | {schema.PARAM_WIDTH: config.task.width}
    end = job.parent("b").job.config if isinstance(config, ConnectConfig) else config
    if schema.PARAM_SPARSITY in place:
        place[schema.PARAM_SPARSITY] = end.sparsity if isinstance(end, PruneConfig) else cell.sparsity
    if isinstance(config, TRAINING_CONFIGS):
        place[schema.ENGINE] = str(Way.of(config.recipe))
    if job.kind in (schema.SPARSE, schema.ENSEMBLE, schema.PLANE) and (matching := _matching(cell)):
        epoch = cell.match_epoch if _is_early(cell) else KNOBS[schema.PARAM_MATCH_EPOCH].default
        place[schema.MATCHING] = matching | {schema.PARAM_MATCH_EPOCH: epoch}
    return place


def run_name(job: Job, cell: Cell) -> str:
    """Return a name that people can read, such as ``permuted · w4 · S=95% · k=10 · A0→B1``.

    Args:
        job: the job.
        cell: a cell that needs the job; for a sparse job, the cell that it trains.
    """
    width, pair = f"w{cell.width:g}", f"A{cell.seed_a}→B{cell.seed_b}"
    place = _place_in_words(cell)
    match job.config:
        case DenseConfig(seed=seed):
            parts = ["dense", width, _net(seed), *_elsewhere(job, cell)]
        case PruneConfig(round=number, sparsity=sparsity, seed=seed):
            reached = dataclasses.replace(cell, method="imp", sparsity=sparsity)
            parts = ["imp", width, *_place_in_words(reached), f"round {number}", _net(seed)]
        case MatchConfig(matcher=matcher, images=images):
            parts = [f"match {matcher}", width, pair, *_until(job.parent("b")), *_few(images)]
        case ConnectConfig(correction=correction, images=images):
            end = job.parent("b").job.config
            if isinstance(end, PruneConfig):
                parts = ["connect imp", width, f"round {end.round}", _net(end.seed), correction, *_few(images)]
            else:
                parts = [f"connect {_matcher(job)}", width, pair, *_until(job.parent("b")), *_few(images)]
        case PlaneConfig():
            parts = ["plane", width, *place, pair, *_unlike_the_defaults(cell)]
        case OverlapConfig():
            place = _place_in_words(dataclasses.replace(cell, method="imp"))
            parts = ["overlap", width, *place, pair, *_unlike_the_defaults(cell)]
        case EnsembleConfig():
            nets = [_net(cell.seed_a), *_unlike_the_defaults(cell)]
            parts = [f"ensemble of {len(job.parents)} {cell.method}", width, *place, *nets]
        case SparseConfig(order=order):
            nets = [_net(cell.seed_a) if cell.method == "lth" else pair, *_unlike_the_defaults(cell)]
            parts = [cell.method, width, *place, *nets, *([f"order {order}"] if order else [])]
    return " · ".join(parts)


def name_in(plan: Plan, key: str) -> str:
    """Return the name of a job of a plan."""
    return run_name(plan.jobs[key], plan.cells[key])


def run_params(job: Job, cell: Cell) -> dict[str, Any]:
    """Return the params of a job's run: its place in the grid and its recipe. Arguments as in :func:`run_name`."""
    config = job.config
    params: dict[str, Any] = {
        schema.PARAM_STAGE: job.kind,
        schema.PARAM_MODEL: config.task.model,
        schema.PARAM_DATASET: config.task.dataset,
        schema.PARAM_WIDTH: f"{config.task.width:g}",
    }
    if isinstance(config, TRAINING_CONFIGS):
        task = dataclasses.asdict(config.task)
        task["init"] = MODELS[task["model"]].init if task["init"] == "default" else task["init"]
        params = {**dataclasses.asdict(config.recipe), **task, **params}
        del params["data_version"]
    match config:
        case DenseConfig(seed=seed):
            params |= {schema.PARAM_METHOD: "dense", schema.PARAM_SEED_A: seed}
        case PruneConfig(seed=seed, sparsity=sparsity, round=number):
            reached = dataclasses.replace(cell, method="imp", sparsity=sparsity)
            params |= _place(reached) | {schema.PARAM_SEED_A: seed}
            params |= {schema.PARAM_ROUND: number, "pruner": cell.pruner, "prune_fraction": cell.prune_fraction}
            params |= {"prune_shortcuts": config.prune_shortcuts, "prune_classifier": config.prune_classifier}
        case SparseConfig(order=order):
            params |= _place(cell) | {"dense_epochs": cell.epochs, "dense_lr": cell.lr}
            params |= _settings(cell, REWINDING) | _settings(cell, PRUNING)
            params["imp_schedule"] = cell.imp_schedule or cell.schedule
            if METHODS[cell.method].init != "a":
                params[schema.PARAM_SEED_B] = cell.seed_b
            params |= _matching(cell)
            params |= {schema.PARAM_MASK_DATASET: cell.mask_dataset or cell.dataset, schema.PARAM_DATA_ORDER: order}
        case MatchConfig(matcher=matcher):
            params |= _pair(cell) | {schema.PARAM_MATCHER: matcher, "match_images": config.images}
            params |= {
                "match_augment": config.augment,
                "stream_taps": config.stream_taps,
                schema.PARAM_MATCH_EPOCH: cell.match_epoch,
            }
        case ConnectConfig():
            params |= {schema.PARAM_CORRECTION: config.correction, "match_images": config.images}
            params |= {"match_augment": config.augment, "interpolation_points": config.points}
            end = job.parent("b").job.config
            if isinstance(end, PruneConfig):
                params |= {
                    schema.PARAM_PATH: schema.PATH_IMP,
                    schema.PARAM_SEED_A: end.seed,
                    schema.PARAM_ROUND: end.round,
                }
                params[schema.PARAM_SPARSITY] = f"{end.sparsity:g}"
            else:
                params |= _pair(cell) | {schema.PARAM_PATH: schema.PATH_PAIR, schema.PARAM_MATCHER: _matcher(job)}
                params[schema.PARAM_MATCH_EPOCH] = cell.match_epoch
        case PlaneConfig():
            params |= _place(cell) | _pair(cell) | {schema.PARAM_CORRECTION: config.correction}
            params |= _matching(cell) | {"plane_resolution": config.resolution}
        case OverlapConfig():
            params |= _place(dataclasses.replace(cell, method="imp")) | _pair(cell) | _matching(cell)
            params |= _settings(cell, PRUNING)
            del params[schema.PARAM_METHOD]
        case EnsembleConfig():
            params |= _place(cell) | _matching(cell) | {schema.MEMBERS: len(job.parents)}
    return params


def _place(cell: Cell) -> dict[str, Any]:
    """Return a cell's place in the grid.

    A dense net has no sparsity. A net that depends on no rewind epoch has none: it starts at its own initialisation, or
    is fine-tuned, and the pruner of its mask does not rewind.
    """
    method = METHODS[cell.method]
    params: dict[str, Any] = {schema.PARAM_METHOD: cell.method, schema.PARAM_SEED_A: cell.seed_a}
    if method.mask is not None:
        params[schema.PARAM_SPARSITY] = f"{cell.sparsity:g}"
        if method.init not in ("final", "fresh") or cell.pruner == "imp_rewind":
            params[schema.PARAM_REWIND_EPOCH] = cell.rewind_epoch
    return params


def _place_in_words(cell: Cell) -> list[str]:
    place = _place(cell)
    words = [f"S={_percent(cell.sparsity)}"] if schema.PARAM_SPARSITY in place else []
    return [*words, f"k={place[schema.PARAM_REWIND_EPOCH]}"] if schema.PARAM_REWIND_EPOCH in place else words


def _matching(cell: Cell) -> dict[str, Any]:
    if not METHODS[cell.method].aligned:
        return {}
    return {schema.PARAM_MATCHER: cell.matcher, **_settings(cell, MATCHING)}


def _settings(cell: Cell, part: str) -> dict[str, Any]:
    """Return the cell's knobs of one part; without those of its ancestors, runs of different cells would look alike."""
    return {name: getattr(cell, name) for name, knob in KNOBS.items() if knob.part == part}


def _unlike_the_defaults(cell: Cell) -> list[str]:
    """Return in words where the matching of a permuted cell's nets differs from the defaults."""
    if not METHODS[cell.method].aligned:
        return []
    early = [f"t={cell.match_epoch}"] if _is_early(cell) else []
    return [cell.matcher] * (cell.matcher != KNOBS["matcher"].default) + early + _few(cell.match_images)


def _is_early(cell: Cell) -> bool:
    """Return whether the nets are matched before the end of B's training."""
    return cell.match_epoch not in (KNOBS[schema.PARAM_MATCH_EPOCH].default, cell.epochs)


def _few(images: int) -> list[str]:
    return [f"{images:,} images"] if 0 < images < KNOBS["match_images"].default else []


def _elsewhere(job: Job, cell: Cell) -> list[str]:
    task = job.config.task
    return [] if task.dataset == cell.dataset else [task.dataset]


def _pair(cell: Cell) -> dict[str, Any]:
    return {schema.PARAM_SEED_A: cell.seed_a, schema.PARAM_SEED_B: cell.seed_b}


def _matcher(job: Job) -> str:
    config = job.parent("permutation").job.config
    assert isinstance(config, MatchConfig)
    return config.matcher


def _until(ref: Ref) -> list[str]:
    return [] if ref.epoch is None else [f"t={ref.epoch}"]


def _net(seed: int) -> str:
    return f"{'B' if seed % 2 else 'A'}{seed}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".rstrip("0").rstrip(".") + "%"
