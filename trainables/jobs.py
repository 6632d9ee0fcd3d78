"""How each kind of job is computed. Every job is a generator: it yields after each epoch and publishes at its end.

A generator makes a job independent of who drives it: a plain loop, a test, or a Ray Tune trial that advances it one
step at a time. What a job reads are published results of its parents; what it writes becomes visible at once and as
a whole.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainables import schema
from trainables.artifacts import (
    pack,
    pack_checkpoint,
    pack_json,
    read_mask,
    read_metrics,
    read_permutation,
    read_weights,
    unpack_checkpoint,
)
from trainables.config import (
    ConnectConfig,
    DenseConfig,
    MatchConfig,
    PruneConfig,
    Recipe,
    SparseConfig,
    Task,
    model_options,
)
from trainables.connectivity import error_barrier, interpolation_curve, loss_barrier
from trainables.data import load_dataset
from trainables.data.batches import EvalBatches, TrainBatches, subset
from trainables.data.dataset import Augmentation, Dataset
from trainables.evaluation import evaluate, predict_logits
from trainables.graph import Job, Ref, canonical
from trainables.masks import apply_mask, layerwise_random_mask, magnitude_mask, mask_sparsity, network_sparsity
from trainables.matching import match
from trainables.models import MODELS, build_model
from trainables.models.network import Network
from trainables.permutations import apply_permutation, permutation_spec, random_permutation
from trainables.seeding import derive_seed
from trainables.store import Store
from trainables.training import Training

EVAL_BATCH = 1000
"""Images per batch where no gradients are needed."""
LOGITS_LIMIT = 2_000_000
"""Test logits are kept for later comparison of functions unless they are more numbers than this (8 MB)."""

Metrics = dict[str, float]
Row = dict[str, Any]
Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and with what a job runs; none of it changes the result.

    Attributes:
        store: where parents are read and results are published.
        data_dir: directory of the datasets that do not come with a library.
        device: where to compute.
        checkpoint_seconds: a running job is saved at the first end of an epoch after so many seconds; what is lost
            when it is killed is at most that and one epoch.
    """

    store: Store
    data_dir: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint_seconds: float = 30.0


def run_job(job: Job, wanted: Collection[int | None], context: Context) -> Iterator[Row]:
    """Compute one job whose parents are published, and publish it.

    Args:
        job: what to compute.
        wanted: which outputs: None for the final result, numbers for a dense net's states after so many epochs.
        context: where.

    Yields:
        A row after each epoch: ``step`` and the epoch's metrics.

    Raises:
        Diverged: training ended in a loss that is not a number.
        DamagedArtifact: a parent could not be read; it is no longer published.
    """
    if job.kind == schema.DENSE:
        yield from _dense(job, wanted, context)
    else:
        yield from _RUNNERS[job.kind](job, context)
    context.store.drop_checkpoint(job.key)


# --- the kinds of job ---------------------------------------------------------------------------------------------
def _dense(job: Job, wanted: Collection[int | None], context: Context) -> Iterator[Row]:
    config = job.config
    assert isinstance(config, DenseConfig)
    store = context.store
    missing = {epoch for epoch in wanted if Ref(job, epoch).key not in store}
    states = {epoch for epoch in missing if epoch is not None}
    data = _Data(config.task, context)
    torch.manual_seed(derive_seed(config.seed, "init"))
    training = data.training(data.model(), config.recipe, derive_seed(config.seed, "dense"))

    def publish_state(epoch: int) -> None:
        if epoch in states:
            manifest = {**_manifest(job, context), "kind": "snapshot", "epoch": epoch}
            store.publish(Ref(job, epoch).key, {schema.WEIGHTS: pack(training.weights())}, manifest)

    # A checkpoint beyond a state that is asked for is of no use: that state lies before it.
    session = _Session(job, data, training, context, latest=min(states, default=config.recipe.epochs))
    publish_state(training.epoch)
    stop = config.recipe.epochs if None in missing else max(states, default=0)
    for row in session.epochs(stop):
        publish_state(training.epoch)
        session.save_if_due()
        yield row
    if None in missing:
        session.publish({})


def _prune(job: Job, context: Context) -> Iterator[Row]:
    config = job.config
    assert isinstance(config, PruneConfig)
    store, data = context.store, _Data(config.task, context)
    model = data.model()
    previous = job.parent("previous")
    weights = read_weights(store, previous.key)
    prunable = model.prunable_names(prune_shortcuts=config.prune_shortcuts, prune_classifier=config.prune_classifier)
    mask = magnitude_mask(
        {name: weights[name] for name in prunable},
        config.sparsity,
        previous=read_mask(store, previous.key) if previous.job.kind == schema.PRUNE else None,
    )
    start = read_weights(store, job.parent("rewind").key) if "rewind" in dict(job.parents) else weights
    yield from _train_masked(job, context, data, start, mask, derive_seed(config.seed, "prune", config.round))


def _sparse(job: Job, context: Context) -> Iterator[Row]:
    config = job.config
    assert isinstance(config, SparseConfig)
    store, data = context.store, _Data(config.task, context)
    mask = _transform_mask(config, data.model(), read_mask(store, job.parent("mask").key), job, store)
    start = read_weights(store, job.parent("init").key)
    yield from _train_masked(job, context, data, start, mask, derive_seed(config.seed, "sparse"))


def _transform_mask(
    config: SparseConfig, model: nn.Module, mask: dict[str, Tensor], job: Job, store: Store
) -> dict[str, Tensor]:
    """Return the mask that the sparse net wears, see ``methods.TRANSFORMS``."""
    spec = permutation_spec(model)
    seed = derive_seed(config.transform_seed, config.transform)
    if config.transform == "permute":
        return apply_permutation(spec, read_permutation(store, job.parent("permutation").key), mask)
    if config.transform == "shuffle":
        return apply_permutation(spec, random_permutation(spec, seed), mask)
    if config.transform == "layerwise_random":
        return layerwise_random_mask(mask, seed)
    assert config.transform == "none", config.transform
    return mask


def _train_masked(
    job: Job, context: Context, data: _Data, start: Mapping[str, Tensor], mask: Mapping[str, Tensor], seed: int
) -> Iterator[Row]:
    """Train from `start` under `mask`; publish weights and mask."""
    assert isinstance(job.config, PruneConfig | SparseConfig)
    model = data.model()
    model.load_state_dict(apply_mask(mask, start))
    session = _Session(job, data, data.training(model, job.config.recipe, seed, mask), context)
    for row in session.epochs(job.config.recipe.epochs):
        session.save_if_due()
        yield row
    sparsities = {
        schema.SPARSITY_PRUNABLE: mask_sparsity(mask),
        schema.SPARSITY_NETWORK: network_sparsity(mask, dict(model.named_parameters())),
    }
    session.publish(sparsities, {schema.MASK: pack({name: keep.to(torch.uint8) for name, keep in mask.items()})})


def _match(job: Job, context: Context) -> Iterator[Row]:
    config = job.config
    assert isinstance(config, MatchConfig)
    started, data = time.perf_counter(), _Data(config.task, context)
    model_a = data.model(read_weights(context.store, job.parent("a").key), stream_taps=config.stream_taps)
    model_b = data.model(read_weights(context.store, job.parent("b").key), stream_taps=config.stream_taps)
    seed = derive_seed(config.seed, "match")
    found = match(model_a, model_b, data.measuring(config.images, seed), config.matcher, seed=seed)
    metrics = {
        schema.MEAN_CORRELATION: _mean(found.correlation),
        schema.MEAN_CORRELATION_IDENTITY: _mean(found.correlation_identity),
        schema.MOVED_UNITS: found.moved_units,
        **{f"correlation/{group}": value for group, value in found.correlation.items()},
    }
    _publish(job, context, {schema.PERMUTATION: pack(found.permutation)}, metrics, [], time.perf_counter() - started)
    yield from ()


def _connect(job: Job, context: Context) -> Iterator[Row]:
    config = job.config
    assert isinstance(config, ConnectConfig)
    started, data = time.perf_counter(), _Data(config.task, context)
    model_a = data.model(read_weights(context.store, job.parent("a").key))
    model_b = data.model(read_weights(context.store, job.parent("b").key))
    curve = interpolation_curve(
        model_a,
        model_b,
        data.test,
        alphas=[index / (config.points - 1) for index in range(config.points)],
        permutation=read_permutation(context.store, job.parent("permutation").key),
        correction=config.correction,
        train_batches=data.measuring(config.images, derive_seed(config.seed, "connect")),
    )
    history: list[Row] = [
        {
            "step": round(100 * alpha),
            "timestamp": _now(),
            schema.INTERPOLATION_LOSS: loss,
            schema.INTERPOLATION_ACCURACY: accuracy,
        }
        for alpha, loss, accuracy in zip(curve.alphas, curve.losses, curve.accuracies, strict=True)
    ]
    metrics = {
        schema.MIDPOINT_ACCURACY: curve.midpoint_accuracy,
        schema.LOSS_BARRIER: loss_barrier(curve),
        schema.ERROR_BARRIER: error_barrier(curve),
    }
    _publish(job, context, {}, metrics, history, time.perf_counter() - started)
    yield from ()


_RUNNERS: dict[str, Callable[[Job, Context], Iterator[Row]]] = {
    schema.PRUNE: _prune,
    schema.SPARSE: _sparse,
    schema.MATCH: _match,
    schema.CONNECT: _connect,
}


# --- what they share ------------------------------------------------------------------------------------------------
class _Data:
    """The task's dataset and networks that fit it, on the device."""

    def __init__(self, task: Task, context: Context) -> None:
        self._task, self._device = task, context.device
        self._dataset: Dataset = load_dataset(task.dataset, context.data_dir)
        self.num_classes = self._dataset.num_classes
        self.test = self._eval(self._dataset.test)
        self.train_plain = self._eval(self._dataset.train)

    def _eval(self, split: Any) -> EvalBatches:
        dataset = self._dataset
        return EvalBatches(
            split,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=EVAL_BATCH,
            device=self._device,
            channels_last=True,
        )

    def model(self, weights: Mapping[str, Tensor] | None = None, *, stream_taps: str = "end") -> Network:
        """Build the task's network on the device, freshly initialised or with the given weights."""
        task, dataset = self._task, self._dataset
        options: dict[str, object] = dict(model_options(task.shortcut, stream_taps))
        if "image_size" in MODELS[task.model].options:
            options["image_size"] = dataset.image_size
        if "small_images" in MODELS[task.model].options:
            options["small_images"] = dataset.image_size <= 64
        model = build_model(
            task.model,
            width=task.width,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            **options,
        )
        if weights is not None:
            model.load_state_dict(weights)
        return model.to(self._device).to(memory_format=torch.channels_last)

    def training(
        self, model: nn.Module, recipe: Recipe, seed: int, mask: Mapping[str, Tensor] | None = None
    ) -> Training:
        """Return the training of `model` by `recipe`; order and augmentation come from `seed`."""
        dataset = self._dataset
        batches = TrainBatches(
            dataset.train,
            mean=dataset.mean,
            std=dataset.std,
            augmentation=dataset.augmentation if self._task.augment else Augmentation(),
            batch_size=recipe.batch_size,
            seed=seed,
            device=self._device,
            channels_last=True,
        )
        return Training(model, recipe, batches, self.test, mask)

    def measuring(self, images: int, seed: int) -> EvalBatches:
        """Return training images without augmentation: `images` of them, or all if it is 0 or more than there are."""
        train = self._dataset.train
        return self._eval(train if not 0 < images < len(train) else subset(train, images, seed))


class _Session:
    """The course of one training job: history, checkpoints, and what is published at its end."""

    def __init__(self, job: Job, data: _Data, training: Training, context: Context, latest: int | None = None) -> None:
        self._job, self._data, self._training, self._context = job, data, training, context
        self._history: list[Row] = []
        self._seconds = 0.0
        self._started = self._saved = time.perf_counter()
        self._resume(latest)

    def _resume(self, latest: int | None) -> None:
        """Go on from the checkpoint if there is one, it is readable and not beyond epoch `latest`."""
        path = self._context.store.checkpoint(self._job.key)
        if not path.exists():
            return
        try:
            tensors, document = unpack_checkpoint(path.read_bytes())
        except (ValueError, FileNotFoundError):
            return  # a torn checkpoint costs time, never the result: the job starts from its first epoch
        if latest is not None and document["epoch"] > latest:
            return
        self._training.restore(tensors, document)
        self._history, self._seconds = document["history"], document["seconds"]

    def epochs(self, stop: int) -> Iterator[Row]:
        """Train up to epoch `stop`, yielding a row after each."""
        while self._training.epoch < stop:
            metrics = self._training.run_epoch()
            row = {"step": self._training.epoch, "timestamp": _now(), **metrics}
            self._history.append(row)
            yield row

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if time.perf_counter() - self._saved < self._context.checkpoint_seconds:
            return
        tensors, data = self._training.state()
        document = {**data, "history": self._history, "seconds": self._elapsed()}
        self._context.store.write_checkpoint(self._job.key, pack_checkpoint(tensors, document))
        self._saved = time.perf_counter()

    def _elapsed(self) -> float:
        return self._seconds + time.perf_counter() - self._started

    def publish(self, metrics: Metrics, files: Files | None = None) -> None:
        """Measure the final network and publish it."""
        training, data = self._training, self._data
        test = evaluate(training.model, data.test)
        train = evaluate(training.model, data.train_plain)
        files = {**(files or {}), schema.WEIGHTS: pack(training.weights())}
        if test.count * data.num_classes <= LOGITS_LIMIT:
            files[schema.LOGITS] = pack({"logits": predict_logits(training.model, data.test)})
        metrics = {
            schema.TEST_LOSS: test.loss,
            schema.TEST_ACCURACY: test.accuracy,
            schema.FINAL_TRAIN_LOSS: train.loss,
            schema.FINAL_TRAIN_ACCURACY: train.accuracy,
            schema.GENERALIZATION_GAP: train.accuracy - test.accuracy,
            schema.IMAGES_PER_SECOND: training.images_per_second,
            **metrics,
        }
        _publish(self._job, self._context, files, metrics, self._history, self._elapsed())


def _publish(job: Job, context: Context, files: Files, metrics: Metrics, history: list[Row], seconds: float) -> None:
    document = {"history": history, "final": {**metrics, schema.SECONDS: seconds}}
    context.store.publish(job.key, {**files, schema.METRICS: pack_json(document)}, _manifest(job, context))


def _manifest(job: Job, context: Context) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "config": canonical(job.config),
        "parents": {role: ref.key for role, ref in job.parents},
        "finished": _now(),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": _device_name(context.device),
            "threads": torch.get_num_threads(),
            "host": platform.node(),
        },
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " cpu"


def final_metrics(store: Store, key: str) -> Metrics:
    """Return the final metrics of a published job."""
    final: Metrics = read_metrics(store, key)["final"]
    return final


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _now() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return round(time.time() * 1000)
