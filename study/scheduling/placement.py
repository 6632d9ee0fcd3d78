"""The resources that a trial requests: CPUs, and the share of a GPU that its job's memory needs.

Ray only books GPU fractions; it does not enforce them, so the share must be large enough for the job's memory. It is
computed from the job: the network at its width, the batch, the dataset that stays on the device. All jobs of a network
on one dataset request the same, because Tune reuses a worker process, with its imports and its CUDA context, only for a
trial with exactly the same request as the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from study.plan import Plan
from trainables.config import TRAINING_CONFIGS, MatchConfig
from trainables.data.batches import RESIDENT_BYTES
from trainables.data.dataset import DatasetFacts
from trainables.graph import Job
from trainables.models import MODELS
from trainables.training import EVAL_BATCH
from trainables.training.engines import GPU
from trainables.training.footprint import footprint
from trainables.training.way import Way

Resources = Mapping[str, float]
"""Ray's name of a resource (``CPU``, ``GPU``) -> amount, which may be a fraction."""
Group = tuple[str, float, str, str, bool]
"""Model, width, shortcut, dataset, and whether a GPU can compute the job: jobs of one group request the same."""

GIB: Final = 2**30
SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a GPU that a trial may get. An eighth is the least: processes on one GPU compute one after another, and
each occupies a CPU, so more processes would only wait for each other."""
PROCESS_BYTES: Final = GIB
"""Memory that every process takes on a GPU before its first tensor: CUDA context, loaded kernels, workspaces of cuDNN
and cuBLAS. It is about 0.4 to 0.9 GiB, more on newer devices."""
SLACK: Final = 1.25
"""Factor on the tensors' bytes: the caching allocator rounds up, and its blocks do not always fit the next request."""
COPIES: Final = 5
"""Copies of the weights in training: weights, gradient, momentum, mask, and the copy for a checkpoint. Measurements
hold as many: two nets, the permuted net, the mixture and its corrected statistics."""
LAYER_COPIES: Final = 4
"""Momentary copies of the largest layer's output: its input, its output before and after normalisation, a sum."""


def group(job: Job) -> Group:
    """Return the group of a job."""
    task = job.config.task
    return task.model, task.width, task.shortcut, task.dataset, _uses_gpu(job)


def device_bytes(job: Job, facts: DatasetFacts, nets: int = 1) -> float:
    """Return an estimate of the bytes of GPU memory that a job needs.

    Args:
        job: a job of any kind.
        facts: facts about its dataset.
        nets: number of jobs of its group that share its trial if their networks may be stacked.
    """
    config, task = job.config, job.config.task
    size = facts.image_size or MODELS[task.model].reference_image_size
    net = footprint(task, image_size=size, num_classes=facts.num_classes, in_channels=facts.in_channels)
    momentary = float(EVAL_BATCH * LAYER_COPIES * net.largest)
    copies = COPIES
    if isinstance(config, TRAINING_CONFIGS):
        half = config.recipe.precision == "bf16"
        kept = config.recipe.batch_size * net.kept * (0.5 if half else 1) + (0.5 * net.parameters if half else 0)
        nets = nets if config.recipe.engine.shares_trial else 1
        # Stacked networks train together but are evaluated one after another.
        momentary = max(momentary, nets * (kept + config.recipe.batch_size * LAYER_COPIES * net.largest))
        copies *= nets
    elif isinstance(config, MatchConfig):
        # The observed layers of one network wait for the other's; sums, products and scores of unit pairs are float64.
        momentary += EVAL_BATCH * net.tapped + 2 * 3 * net.correlations
    pixels = facts.in_channels * size**2
    train, test = (
        images * pixels if images * pixels <= RESIDENT_BYTES else 0
        for images in (facts.train_images, facts.test_images)
    )
    # All networks of a process share the images.
    return PROCESS_BYTES + train + test + SLACK * 4 * (copies * net.parameters + momentary)


def gpu_share(needed: float, memory: float) -> float:
    """Return the smallest share of a GPU with `memory` bytes that holds `needed` bytes; a whole GPU if none does."""
    return next((share for share in SHARES if needed <= share * memory), SHARES[-1])


def requests(
    plan: Plan,
    keys: Iterable[str],
    *,
    cpus: float,
    gpus: float | None,
    gpu_memory: float | None,
    nets_per_trial: int = 1,
) -> tuple[dict[str, Resources], list[str]]:
    """Return the resources that each job requests, and a warning for each group that may not fit the smallest GPU.

    A job whose engine computes on CPUs only requests no GPU, whatever the arguments are.

    Args:
        plan: the study.
        keys: keys of the jobs.
        cpus: CPUs of each trial.
        gpus: GPUs of each trial, whatever its job; None derives them from the job's memory.
        gpu_memory: bytes of the smallest GPU of the cluster; None if the cluster has no GPU.
        nets_per_trial: most networks that are stacked in one trial.
    """
    keys = list(keys)
    asked = {key: _resources(cpus, gpus or 0.0) for key in keys}
    asked |= {key: _resources(cpus, 0.0) for key in keys if not _uses_gpu(plan.jobs[key])}
    if gpus is not None or gpu_memory is None:
        return asked, []
    members: dict[Group, list[str]] = {}
    for key in keys:
        if _uses_gpu(plan.jobs[key]):
            members.setdefault(group(plan.jobs[key]), []).append(key)
    warnings = []
    for each, its_keys in members.items():
        # Within a group, a job's needs depend only on its kind and recipe.
        kinds = {(plan.jobs[key].kind, _recipe(plan.jobs[key])): key for key in its_keys}
        needed = {key: device_bytes(plan.jobs[key], plan.facts[each[3]], nets_per_trial) for key in kinds.values()}
        worst = max(needed, key=lambda key: needed[key])
        asked.update(dict.fromkeys(its_keys, _resources(cpus, gpu_share(needed[worst], gpu_memory))))
        if needed[worst] > gpu_memory:
            warnings.append(
                f"{each[0]} of width {each[1]:g} on {each[3]} needs about {needed[worst] / GIB:.0f} GiB for its "
                f"{plan.jobs[worst].kind} jobs, the smallest GPU has {gpu_memory / GIB:.0f}: they may run out of it "
                "(a smaller batch_size, or precision=bf16, needs less)"
            )
    return asked, warnings


def _uses_gpu(job: Job) -> bool:
    return not isinstance(job.config, TRAINING_CONFIGS) or GPU in job.config.recipe.engine.devices


def _recipe(job: Job) -> tuple[int, Way] | None:
    if not isinstance(job.config, TRAINING_CONFIGS):
        return None
    recipe = job.config.recipe
    return recipe.batch_size, Way.of(recipe)


def _resources(cpus: float, gpus: float) -> Resources:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
