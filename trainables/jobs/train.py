"""How each kind of job is computed. Every job is a generator that yields after each epoch and publishes at its end.

As a generator, a job does not depend on its driver: a plain loop, a test, or a Ray Tune trial that advances it step by
step. It announces each epoch before training it, so a driver of several jobs can train their nets as one. A job reads
only published results of its parents, and its own result is published atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables import schema
from trainables.config import DenseConfig, PruneConfig, SparseConfig, nothing_left
from trainables.errors import Verdict, verdict
from trainables.graph import Job, Ref
from trainables.host.clock import now
from trainables.host.usage import Usage
from trainables.jobs.checkpoints import CheckpointWriter
from trainables.jobs.measure import measure
from trainables.jobs.publishing import (
    Context,
    Files,
    JobLog,
    Metrics,
    Row,
    environment,
    failure_note,
    in_words,
    manifest,
    publish,
)
from trainables.jobs.task import TaskData
from trainables.masks import (
    apply_mask,
    collapsed_layers,
    layerwise_random_mask,
    magnitude_mask,
    mask_sparsity,
    network_sparsity,
)
from trainables.methods import PERMUTE
from trainables.seeding import derive_seed
from trainables.storage.artifacts import (
    pack,
    read_mask,
    read_permutation,
    read_weights,
    unpack_checkpoint,
)
from trainables.storage.store import DamagedArtifact, NotPublished, StorageError
from trainables.symmetry.permutations import apply_permutation, permutation_spec, random_permutation
from trainables.training.determinism import deterministic
from trainables.training.engines import CPU, free_idle_memory
from trainables.training.evaluation import evaluate, joined
from trainables.training.loop import Diverged, Training, tensor_float

LOGITS_LIMIT = 2_000_000
"""Test logits are kept, to compare functions later, unless they have more elements than this (8 MB)."""


@dataclass(kw_only=True, slots=True)
class EpochWanted:
    """Announces the next epoch of a job's net, which the job trains when it is advanced.

    Attributes:
        training: the training of the net.
        deterministic: whether the epoch has to be trained with deterministic algorithms.
        log: the job's log.
        end: finishes the epoch: returns its metrics or raises ``Diverged``. It trains the net on its own, unless the
            driver, having trained the epoch of several nets at once, replaces it.
    """

    training: Training
    deterministic: bool
    log: JobLog
    end: Callable[[], Metrics]


Course = Generator[EpochWanted | Row, None, None]
"""A running job: it announces each epoch, yields a row after it, and publishes its result before it ends."""


def course(job: Job, wanted: Collection[int | None], context: Context) -> Course:
    """Compute and publish one job whose parents are published; arguments and errors as in ``execution.compute``.

    Yields:
        For each epoch an ``EpochWanted``, then a row with ``step`` and the epoch's metrics.
    """
    context = dataclasses.replace(context, log=JobLog())
    surroundings = ", ".join(f"{name} {value}" for name, value in environment(context.device).items())
    context.log.write(f"{job.kind} {job.key}\n{surroundings}")
    # Python shows a warning once per place in the code and process, so a job's log would lack those that an earlier job
    # of the process has had. Any change of the filters, such as this one, makes Python forget which it has shown.
    with warnings.catch_warnings():
        pass
    try:
        with contextlib.closing(_steps(job, wanted, context)) as steps:
            while True:
                # Entered again for each step, because other jobs of this process may run between two steps.
                # TF32 is off here: a recipe's precision applies to its epochs only.
                with context.log.capturing(), tensor_float(False), deterministic(_is_deterministic(job, context)):
                    step = next(steps, None)
                if step is None:
                    return
                yield step
    except (DamagedArtifact, NotPublished, StorageError):
        raise  # not caused by this job
    except Exception as error:
        if (found := verdict(error)) is not Verdict.OF_HOST:
            # Only the driver knows when it makes no more attempts at what may still succeed.
            record = context.store.record_failure if found is Verdict.RECURRING else context.store.record_attempt
            with contextlib.suppress(StorageError):  # raising the error matters more than recording it
                record(job.key, failure_note(error, context))
        raise


def _is_deterministic(job: Job, context: Context) -> bool:
    """Return whether a job needs deterministic algorithms; on a CPU, the usual ones are."""
    return job.config.task.deterministic and context.device.type != CPU


def _steps(job: Job, wanted: Collection[int | None], context: Context) -> Course:
    match job.kind:
        case schema.DENSE:
            yield from _dense(job, wanted, context)
        case schema.PRUNE:
            yield from _prune(job, context)
        case schema.SPARSE:
            yield from _sparse(job, context)
        case _:
            free_idle_memory()  # the trial asked for the memory of training or of measuring, not for both at once
            measure(job, context)
    context.store.forget_attempts(job.key)


# --- the kinds of job ---------------------------------------------------------------------------------------------
def _dense(job: Job, wanted: Collection[int | None], context: Context) -> Course:
    config = job.config
    assert isinstance(config, DenseConfig)
    store = context.store
    missing = {epoch for epoch in wanted if Ref(job, epoch).key not in store}
    states = {epoch for epoch in missing if epoch is not None}
    data = TaskData(config.task, context, config.recipe.precision)
    torch.manual_seed(derive_seed(config.seed, "init"))
    training = data.training(data.model(), config.recipe, derive_seed(config.seed, "dense"))

    def publish_state(epoch: int) -> None:
        if epoch in states:
            described = {**manifest(job, session.context), "kind": "snapshot", "epoch": epoch}
            store.publish(Ref(job, epoch).key, {schema.WEIGHTS: pack(training.weights())}, described)

    # A checkpoint later than a missing state is of no use: training must pass through that state.
    session = _Session(job, data, training, context, latest=min(states, default=config.recipe.epochs))
    publish_state(training.epoch)
    yield from session.epochs(job.epochs_to(missing), publish_state, states)
    if None in missing:
        session.publish({})


def _prune(job: Job, context: Context) -> Course:
    config = job.config
    assert isinstance(config, PruneConfig)
    store, data = context.store, TaskData(config.task, context, config.recipe.precision)
    model = data.model()
    previous = job.parent("previous")
    weights = read_weights(store, previous.key)
    prunable = model.prunable_names(prune_shortcuts=config.prune_shortcuts, prune_classifier=config.prune_classifier)
    mask = magnitude_mask(
        {name: weights[name] for name in prunable},
        config.sparsity,
        previous=read_mask(store, previous.key) if previous.job.kind == schema.PRUNE else None,
    )
    if not any(kept.any() for kept in mask.values()):  # the plan checks this only if it knows the image size
        count = sum(kept.numel() for kept in mask.values())
        raise ValueError(nothing_left(config.sparsity, count, f"{config.task.model} at width {config.task.width:g}"))
    start = read_weights(store, job.parent("rewind").key) if "rewind" in dict(job.parents) else weights
    yield from _train_masked(job, context, data, start, mask, derive_seed(config.seed, "prune", config.round))


def _sparse(job: Job, context: Context) -> Course:
    config = job.config
    assert isinstance(config, SparseConfig)
    store, data = context.store, TaskData(config.task, context, config.recipe.precision)
    mask = read_mask(store, job.parent("mask").key)
    seed = derive_seed(config.transform_seed, config.transform)
    if config.transform == "layerwise_random":
        mask = layerwise_random_mask(mask, seed)
    elif config.transform != "none":
        spec = permutation_spec(data.model())
        if config.transform == PERMUTE:
            permutation = read_permutation(store, job.parent("permutation").key)
        else:
            assert config.transform == "shuffle", config.transform
            permutation = random_permutation(spec, seed)
        mask = apply_permutation(spec, permutation, mask)
    start = read_weights(store, job.parent("init").key)
    # Data order 0 adds no counter: it is the order of all nets outside ensembles.
    order = derive_seed(config.seed, "sparse", *([config.order] if config.order else []))
    yield from _train_masked(job, context, data, start, mask, order)


def _train_masked(
    job: Job, context: Context, data: TaskData, start: Mapping[str, Tensor], mask: Mapping[str, Tensor], seed: int
) -> Course:
    """Train from `start` under `mask`; publish weights and mask."""
    assert isinstance(job.config, PruneConfig | SparseConfig)
    model = data.model()
    model.load_state_dict(apply_mask(mask, start))
    training = data.training(model, job.config.recipe, seed, mask)
    session = _Session(job, data, training, context)
    collapsed = collapsed_layers(mask)
    if collapsed:
        context.log.write(
            f"warning: {len(collapsed)} of {len(mask)} masked layers have no weight left: {', '.join(collapsed)}"
        )
    yield from session.epochs(job.config.recipe.epochs)
    sparsities = {
        schema.SPARSITY_PRUNABLE: mask_sparsity(mask),
        schema.SPARSITY_NETWORK: network_sparsity(mask, dict(model.named_parameters())),
        schema.COLLAPSED_LAYERS: float(len(collapsed)),
    }
    session.publish(sparsities, {schema.MASK: pack({name: keep.to(torch.uint8) for name, keep in mask.items()})})


class _Session:
    """The state of one training job around its training loop: history, checkpoints, and publication."""

    def __init__(
        self, job: Job, data: TaskData, training: Training, context: Context, latest: int | None = None
    ) -> None:
        self._job, self._data, self._training = job, data, training
        self.context = context
        """The job's surroundings, with the most micro-batches of all attempts."""
        self._history: list[Row] = []
        self._usage = Usage(context.device)
        self._saved = time.perf_counter()
        self._resume(latest)
        if training.micro_batches > 1:
            context.log.write(
                f"warning: the GPU's memory does not hold batches of {training.recipe.batch_size} images, so they are "
                f"computed in {training.micro_batches} micro-batches; BatchNorm normalises each by its own statistics"
            )

    def _resume(self, latest: int | None) -> None:
        """Resume from the job's checkpoint, unless it is missing, damaged or later than epoch `latest`."""
        content = self.context.store.read_checkpoint(self._job.key)
        if content is None:
            return
        try:
            tensors, document = unpack_checkpoint(content, self._job.key)
            if [row["step"] for row in document["history"]] != list(range(1, document["epoch"] + 1)):
                raise ValueError(f"the history of a checkpoint does not match its {document['epoch']} epochs")
            if latest is not None and document["epoch"] > latest:
                return
            self._training.restore(tensors, document)
        except ValueError as error:  # training again costs time but gives the same result
            self.context.log.write(f"starting from the first epoch: {error}")
            return
        self._history = document["history"]
        most = max(self.context.micro_batches, document.get(schema.MICRO_BATCHES, 1))
        self.context = dataclasses.replace(self.context, micro_batches=most)
        self.context.log.precede(document["log"], document["seconds"])
        self.context.log.write(f"resuming after epoch {self._training.epoch}")

    def epochs(
        self, stop: int, ended: Callable[[int], None] = lambda _epoch: None, saved: Collection[int] = ()
    ) -> Course:
        """Train until `stop` epochs are complete; call `ended` with the number of each before its row is yielded.

        After the epochs `saved`, a checkpoint is written first: if the process dies behind a published state, the net
        goes on from there, even where a repetition would not lead through the same state.
        """
        training, log = self._training, self.context.log
        repeats = _is_deterministic(self._job, self.context)
        # A traced network is a reference cycle: without the release, the activations of a whole batch would stay in the
        # process beside those of its next job, until Python next looks for cycles.
        with contextlib.ExitStack() as end, CheckpointWriter(self._job.key, self.context) as checkpoints:
            end.callback(training.trainer.release)
            while training.epoch < stop:
                wanted = EpochWanted(training=training, deterministic=repeats, log=log, end=training.run_epoch)
                yield wanted
                metrics = wanted.end()
                row = {"step": training.epoch, "timestamp": now(), **metrics, **self._usage.sample()}
                self._history.append(row)
                log.write(f"epoch {training.epoch}/{training.recipe.epochs}: {in_words(metrics)}")
                if training.epoch in saved:
                    self._save(checkpoints)
                    checkpoints.wait()
                ended(training.epoch)
                if time.perf_counter() - self._saved >= self.context.checkpoint_seconds:
                    self._save(checkpoints)
                yield row

    def _save(self, checkpoints: CheckpointWriter) -> None:
        checkpoints.wait()  # memory holds one copy of the state, not two
        tensors, data = self._training.state()
        log = self.context.log
        document = {**data, "history": list(self._history), "seconds": log.seconds, "log": log.lines}
        document[schema.MICRO_BATCHES] = self.context.micro_batches
        checkpoints.write(tensors, document)
        self._saved = time.perf_counter()

    def publish(self, metrics: Metrics, files: Files | None = None) -> None:
        """Measure the final network on test and training images, and publish it with `metrics` and `files`.

        Raises:
            Diverged: its loss is not a number.
        """
        training, data = self._training, self._data
        logits: list[Tensor] | None = [] if data.test.num_images * data.num_classes <= LOGITS_LIMIT else None
        test = evaluate(training.model, data.test, logits)
        train = evaluate(training.model, data.train_plain)
        if math.isnan(test.loss) or math.isnan(train.loss):  # no training loss has seen the last update
            raise Diverged(f"the trained network's loss is not a number (learning rate {training.recipe.lr:g})")
        files = {**(files or {}), schema.WEIGHTS: pack(training.weights())}
        if logits is not None:
            files[schema.LOGITS] = pack({"logits": joined(logits)})
        top5 = {schema.TEST_TOP5_ACCURACY: test.top5_accuracy} if data.num_classes >= schema.TOP5_CLASSES else {}
        metrics = {
            schema.TEST_LOSS: test.loss,
            schema.TEST_ACCURACY: test.accuracy,
            **top5,
            schema.FINAL_TRAIN_LOSS: train.loss,
            schema.FINAL_TRAIN_ACCURACY: train.accuracy,
            schema.GENERALIZATION_GAP: train.accuracy - test.accuracy,
            schema.IMAGES_PER_SECOND: training.images_per_second,
            **metrics,
        }
        publish(self._job, self.context, files, metrics, self._history)
