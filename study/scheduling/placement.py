"""The resources that a trial requests: CPUs, and the share of a GPU that its job's memory needs.

Ray only books GPU fractions; it does not enforce them, so the share must be large enough for the job's memory. It is
computed from the job: the network at its width, the batch, the dataset that stays on the device. All jobs of a network
on one dataset request the same, because Tune reuses a worker process, with its imports and its CUDA context, only for a
trial with exactly the same request as the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from study.plan import Plan
from study.scheduling.hosts import Resources
from trainables.config import TRAINING_CONFIGS, MatchConfig
from trainables.data.batches import RESIDENT_BYTES
from trainables.data.dataset import DatasetFacts
from trainables.graph import Job
from trainables.models import MODELS
from trainables.training import EVAL_BATCH
from trainables.training.engines import GPU
from trainables.training.footprint import footprint

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


class Group(NamedTuple):
    """Jobs that request the same."""

    model: str
    width: float
    shortcut: str
    dataset: str
    uses_gpu: bool
    """Whether a GPU can compute the jobs."""


def group(job: Job) -> Group:
    """Return the group of a job."""
    config, task = job.config, job.config.task
    uses_gpu = not isinstance(config, TRAINING_CONFIGS) or GPU in config.recipe.engine.devices
    return Group(task.model, task.width, task.shortcut, task.dataset, uses_gpu)


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
) -> tuple[dict[Group, Resources], list[str]]:
    """Return the resources that the jobs of each group request, and a warning if a group may not fit the smallest GPU.

    A job whose engine computes on CPUs only requests no GPU, whatever the arguments are.

    Args:
        plan: the study.
        keys: keys of the jobs.
        cpus: CPUs of each trial.
        gpus: GPUs of each trial, whatever its job; None derives them from the memory of the group's largest job.
        gpu_memory: bytes of the smallest GPU of the cluster; None if the cluster has no GPU.
        nets_per_trial: most networks that are stacked in one trial.
    """
    members: dict[Group, list[Job]] = {}
    for key in keys:
        members.setdefault(group(plan.jobs[key]), []).append(plan.jobs[key])
    asked: dict[Group, Resources] = {}
    warnings = []
    for each, jobs in members.items():
        share = (gpus or 0.0) if each.uses_gpu else 0.0
        if each.uses_gpu and gpus is None and gpu_memory is not None:
            facts = plan.facts[each.dataset]
            needed, kind = max((device_bytes(job, facts, nets_per_trial), job.kind) for job in jobs)
            share = gpu_share(needed, gpu_memory)
            if needed > gpu_memory:
                warnings.append(
                    f"{each.model} of width {each.width:g} on {each.dataset} needs about {needed / GIB:.0f} GiB for "
                    f"its {kind} jobs, the smallest GPU has {gpu_memory / GIB:.0f}: they may run out of it "
                    "(a smaller batch_size, or precision=bf16, needs less)"
                )
        asked[each] = {"CPU": cpus, **({"GPU": share} if share else {})}
    return asked, warnings
