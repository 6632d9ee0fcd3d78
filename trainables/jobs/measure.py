"""Jobs that measure without training: matching, paths and planes between networks, ensembles, mask overlap."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trainables import schema
from trainables.config import (
    BARRIER_ALPHAS,
    ConnectConfig,
    EnsembleConfig,
    MatchConfig,
    OverlapConfig,
    PlaneConfig,
    same_data,
)
from trainables.graph import Job, Ref
from trainables.host.clock import now
from trainables.jobs.publishing import Context, Files, Metrics, Row, publish
from trainables.jobs.task import TaskData
from trainables.masks import expected_overlap, mask_overlap
from trainables.methods import MATCHERS
from trainables.seeding import derive_seed
from trainables.storage.artifacts import pack, pack_json, read_mask, read_permutation, read_weights, unpack
from trainables.storage.store import Store
from trainables.symmetry.connectivity import interpolation_curve, loss_barrier
from trainables.symmetry.landscape import plane_grid
from trainables.symmetry.matching import match, mean_over_groups
from trainables.symmetry.permutations import Permutation, apply_permutation, permutation_spec
from trainables.symmetry.repair import batchnorm_layers
from trainables.symmetry.similarity import disagreement, ensemble_accuracy, js_divergence, kl_divergence, pairwise_mean
from trainables.training.allocation import keep_freed_memory
from trainables.training.engines import CPU
from trainables.training.evaluation import predict_logits

Outcome = tuple[Files, Metrics, list[Row]]


def measure(job: Job, context: Context) -> None:
    """Compute and publish one measurement.

    Raises:
        DamagedArtifact: a parent was damaged; it is no longer published.
    """
    if context.device.type == CPU:
        keep_freed_memory()  # as training does: the next batch allocates what this one frees
    publish(job, context, *MEASUREMENTS[job.kind](job, context))


def _match(job: Job, context: Context) -> Outcome:
    config = job.config
    assert isinstance(config, MatchConfig)
    store, data = context.store, TaskData(config.task, context)
    model_a, model_b = (
        data.model(read_weights(store, job.parent(role).key), stream_taps=config.stream_taps) for role in ("a", "b")
    )
    seed = derive_seed(config.seed, "match")
    images = data.measuring(config.images, seed, augment=config.augment)
    found = match(model_a, model_b, images, config.matcher, seed=seed)

    def losses(permutation: Permutation | None, alphas: Sequence[float]) -> tuple[float, ...]:
        return interpolation_curve(
            model_a,
            model_b,
            data.test,
            alphas=alphas,
            permutation=permutation,
            correction="bn_reset" if batchnorm_layers(model_a) else "repair",
            train_batches=images,
        ).losses

    def barriers() -> Metrics:
        before = after = losses(None, BARRIER_ALPHAS)
        if found.moved_units:
            # B is the same end point, to the bit. The other one is not: permuting A changes the order of its sums.
            *moved, _ = BARRIER_ALPHAS
            after = *losses(found.permutation, moved), before[-1]
        return {
            schema.LOSS_BARRIER_BEFORE: loss_barrier(BARRIER_ALPHAS, before),
            schema.LOSS_BARRIER_AFTER: loss_barrier(BARRIER_ALPHAS, after),
        }

    comparable = same_data(job.parent("a").job.config.task, config.task)
    metrics = {
        **(barriers() if comparable else {}),
        schema.MEAN_CORRELATION: mean_over_groups(found.correlation),
        schema.MEAN_CORRELATION_IDENTITY: mean_over_groups(found.correlation_identity),
        schema.MOVED_UNITS: found.moved_units,
        **{f"correlation/{group}": value for group, value in found.correlation.items()},
    }
    if MATCHERS[config.matcher].needs_data:
        by_weight = match(model_a, model_b, None, "weight", seed=seed)
        metrics[schema.AGREEMENT_WITH_WEIGHT] = agreement(found.permutation, by_weight.permutation)
    return {schema.PERMUTATION: pack(found.permutation)}, metrics, []


def agreement(first: Permutation, second: Permutation) -> float:
    """Return the share of units, in [0, 1], that two permutations of the same groups map alike."""
    same = sum(int((indices == second[group]).sum()) for group, indices in first.items())
    return same / sum(len(indices) for indices in first.values())


def _connect(job: Job, context: Context) -> Outcome:
    config = job.config
    assert isinstance(config, ConnectConfig)
    store, data = context.store, TaskData(config.task, context)
    parents = dict(job.parents)
    curve = interpolation_curve(
        data.model(read_weights(store, parents["a"].key)),
        data.model(read_weights(store, parents["b"].key)),
        data.test,
        alphas=[index / (config.points - 1) for index in range(config.points)],
        permutation=read_permutation(store, parents["permutation"].key) if "permutation" in parents else None,
        correction=config.correction,
        train_batches=data.measuring(config.images, derive_seed(config.seed, "connect"), augment=config.augment),
        measure_train=True,
    )
    stamp = now()
    history: list[Row] = [
        {
            "step": round(100 * alpha),
            "timestamp": stamp,
            schema.INTERPOLATION_LOSS: loss,
            schema.INTERPOLATION_ACCURACY: accuracy,
            schema.INTERPOLATION_TRAIN_LOSS: train_loss,
        }
        for alpha, loss, accuracy, train_loss in zip(
            curve.alphas, curve.losses, curve.accuracies, curve.train_losses, strict=True
        )
    ]
    metrics = {
        schema.MIDPOINT_ACCURACY: curve.midpoint_accuracy,
        schema.LOSS_BARRIER: loss_barrier(curve),
        schema.TRAIN_LOSS_BARRIER: loss_barrier(curve.alphas, curve.train_losses),
        schema.ERROR_BARRIER: loss_barrier(curve.alphas, curve.errors),
    }
    return {}, metrics, history


def _plane(job: Job, context: Context) -> Outcome:
    config = job.config
    assert isinstance(config, PlaneConfig)
    store, data = context.store, TaskData(config.task, context)
    model = data.model()
    spec = permutation_spec(model)
    permutation = read_permutation(store, job.parent("permutation").key)
    # The permuted network is already in B's frame; A and its LTH network are moved there.
    dense, lth = (
        apply_permutation(spec, permutation, read_weights(store, job.parent(role).key)) for role in ("dense", "lth")
    )
    grid = plane_grid(
        model,
        (dense, lth, read_weights(store, job.parent("permuted").key)),
        data.test,
        resolution=config.resolution,
        margin=config.margin,
        # Without BatchNorm, a reset changes nothing, and its warning would recommend REPAIR, which planes do not have.
        correction=config.correction if batchnorm_layers(model) else "none",
        train_batches=data.measuring(config.images, derive_seed(config.seed, "plane"), augment=config.augment),
    )
    document = {"networks": ["dense", "lth", "permuted"], **dataclasses.asdict(grid)}
    errors = dict(zip(("dense", "lth", "permuted"), grid.network_errors, strict=True))
    metrics = {f"{schema.PLANE_ERROR}/{name}": error for name, error in errors.items()}
    return {schema.PLANE_GRID: pack_json(document)}, metrics, []


def _ensemble(job: Job, context: Context) -> Outcome:
    config = job.config
    assert isinstance(config, EnsembleConfig)
    data = TaskData(config.task, context)
    labels = torch.cat([labels for _, labels in data.test]).cpu()
    members = [_logits(context.store, ref, data) for _, ref in job.parents]
    accuracies = [ensemble_accuracy([logits], labels) for logits in members]
    metrics = {
        schema.MEMBERS: float(len(members)),
        schema.MEMBER_ACCURACY_MEAN: statistics.fmean(accuracies),
        schema.MEMBER_ACCURACY_STD: statistics.stdev(accuracies),
        schema.ENSEMBLE_ACCURACY: ensemble_accuracy(members, labels),
        schema.DISAGREEMENT: pairwise_mean(disagreement, members),
        schema.KL_DIVERGENCE: pairwise_mean(kl_divergence, members),
        schema.JS_DIVERGENCE: pairwise_mean(js_divergence, members),
    }
    return {}, metrics, []


def _overlap(job: Job, context: Context) -> Outcome:
    config = job.config
    assert isinstance(config, OverlapConfig)
    store = context.store
    spec = permutation_spec(TaskData(config.task, context).model())
    mask, own = (read_mask(store, job.parent(role).key) for role in ("mask", "own"))
    permuted = apply_permutation(spec, read_permutation(store, job.parent("permutation").key), mask)
    metrics = {
        schema.MASK_OVERLAP: mask_overlap(permuted, own),
        schema.MASK_OVERLAP_IDENTITY: mask_overlap(mask, own),
        # A permutation does not change the layer densities, so the expectation is the same for both.
        schema.MASK_OVERLAP_RANDOM: expected_overlap(mask, own),
    }
    return {}, metrics, []


def _logits(store: Store, ref: Ref, data: TaskData) -> Tensor:
    """Return a member's test logits, (images, classes); computed if they were too large to be stored."""
    if schema.LOGITS in store.manifest(ref.key)["files"]:
        return unpack(store.read(ref.key, schema.LOGITS))["logits"]
    return predict_logits(data.model(read_weights(store, ref.key)), data.test)


MEASUREMENTS: Mapping[str, Callable[[Job, Context], Outcome]] = {
    schema.MATCH: _match,
    schema.CONNECT: _connect,
    schema.PLANE: _plane,
    schema.ENSEMBLE: _ensemble,
    schema.OVERLAP: _overlap,
}
