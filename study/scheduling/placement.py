"""The resources that a trial requests: CPUs, and a share of a GPU.

Ray only books GPU fractions; it does not enforce them. The share must be large enough for the job's memory, and trials
that share a GPU slow each other down unless it has time for all of them. Both follow from the job: the network at its
width, the batch, the dataset that stays on the device. All jobs of a network on one dataset need the same, because Tune
reuses a worker process, with its imports and its CUDA context, only for a trial with exactly the same request as the
last one.

Ray fills one GPU with fractions before it uses the next one, on a node and across nodes. Trials therefore request more
than they need while GPUs are idle: that spreads them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from study.estimate import SECONDS_PER_PASS, image_size, launching, multiply_adds_per_image
from study.plan import Plan
from study.scheduling.cards import GIB, Card
from study.scheduling.hosts import TOLERANCE, Node, Resources
from trainables.config import TRAINING_CONFIGS, ConnectConfig, MatchConfig, PlaneConfig, input_size, workers_of
from trainables.data.dataset import DatasetFacts
from trainables.graph import Job
from trainables.knobs import BF16, FP32
from trainables.training import HELD_OUTPUTS, eval_batch
from trainables.training.engines import GPU

SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a GPU that a trial may get. An eighth is the least: processes on one GPU compute one after another, so more
processes would only wait for each other."""
ROUNDING: Final = 0.75
"""A trial's share is at least this part of the fraction of the time for which it keeps the GPU busy. Shares may thus
overbook a GPU: each trial on it may be slower, but it is never idle while trials wait for one."""
STEPS: Final = 10_000
"""Ray counts resources in steps of this fraction."""
PROCESS_BYTES: Final = GIB
"""Memory that every process takes on a GPU before its first tensor: CUDA context, loaded kernels, workspaces of cuDNN
and cuBLAS. It is about 0.4 to 0.9 GiB, more on newer devices."""
SLACK: Final = 1.25
"""Factor on the tensors' bytes: the caching allocator rounds up, and its blocks do not always fit the next request."""
COPIES: Final = 5
"""Copies of the weights in measurements: two nets, the permuted net, the mixture and its corrected statistics. Training
holds one less: weights, gradient, momentum and mask."""
HELD_COPIES: Final = 3
"""Further copies of the weights that an engine keeps between steps, if it does: weights, momentum, mask."""
LAYER_COPIES: Final = 4
"""Momentary copies of the largest layer's output: its input, its output before and after normalisation, a sum."""
OBSERVED_COPIES: Final = 3
"""Further ones where a match observes a layer: its units, the shifted ones, and their squares."""


class Group(NamedTuple):
    """Jobs that request the same."""

    model: str
    width: float
    shortcut: str
    dataset: str
    uses_gpu: bool
    """Whether a GPU can compute the jobs."""
    workers: int = 1
    """Number of workers that share each of the jobs."""


def group(job: Job, workers: int = 1) -> Group:
    """Return the group of a job in a space with this number of workers."""
    config, task = job.config, job.config.task
    uses_gpu = not isinstance(config, TRAINING_CONFIGS) or GPU in config.recipe.engine.devices
    return Group(task.model, task.width, task.shortcut, task.dataset, uses_gpu, workers_of(config, workers))


def device_bytes(job: Job, facts: DatasetFacts, nets: int = 1, memory: float = math.inf) -> float:
    """Return an estimate of the bytes of GPU memory that a job needs.

    Args:
        job: a job of any kind.
        facts: facts about its dataset.
        nets: number of jobs of its group that share its trial if their networks may be stacked.
        memory: bytes of the GPU, which keeps no dataset that would fill it.
    """
    from trainables.data.batches import resident_bytes
    from trainables.training.footprint import footprint

    config, task = job.config, job.config.task
    size = input_size(task, facts)
    net = footprint(task, image_size=size, num_classes=facts.num_classes, in_channels=facts.in_channels)
    images = eval_batch(size)
    momentary = float(images * LAYER_COPIES * net.largest)
    copies = COPIES
    if isinstance(config, TRAINING_CONFIGS):
        half = config.recipe.precision == BF16
        kept = config.recipe.batch_size * net.kept * (0.5 if half else 1) + (0.5 * net.parameters if half else 0)
        engine = config.recipe.engine
        nets = nets if engine.shares_trial else 1
        # Stacked networks train together but are evaluated one after another.
        step = nets * (kept + config.recipe.batch_size * LAYER_COPIES * net.largest)
        momentary = momentary + step if engine.holds_memory else max(momentary, step)
        copies = nets * (copies + HELD_COPIES * engine.holds_memory)
    elif isinstance(config, MatchConfig):
        # The observed layers of one network wait for the other's; sums, products and scores of unit pairs are float64.
        observed = images * (net.tapped + OBSERVED_COPIES * net.largest) + 2 * 3 * net.correlations
        momentary += max(observed, images * HELD_OUTPUTS * net.largest)
    elif isinstance(config, ConnectConfig | PlaneConfig) and config.correction != "none":
        momentary += images * HELD_OUTPUTS * net.largest
    pixels = facts.in_channels * size**2
    train, test = (
        number * pixels if number * pixels <= resident_bytes(memory) else 0
        for number in (facts.train_images, facts.test_images)
    )
    # All networks of a process share the images.
    return PROCESS_BYTES + train + test + SLACK * 4 * (copies * net.parameters + momentary)


def gpu_share(needed: float, memory: float) -> float:
    """Return the smallest share of a GPU with `memory` bytes that holds `needed` bytes; a whole GPU if none does."""
    return next((share for share in SHARES if needed <= share * memory), SHARES[-1])


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the trials of a group need.

    Attributes:
        cpus: CPUs of each worker of a trial.
        workers: workers of a trial; if there are several, each gets a whole GPU, or none.
        cpus_may_shrink: whether a trial on a share of a GPU may get fewer CPUs, so that CPUs do not limit their number.
        share: share of a GPU, whatever the card; None: what `memory` and `multiply_adds` need.
        memory: bytes of GPU memory of each worker.
        multiply_adds: multiply-adds of a training step of all networks that are stacked.
        launching: seconds that launching the kernels of a step takes.
        precision: number format of the step.
        nets: most networks that may share a trial, so that the GPU has memory and time for them; None: as many as the
            study allows.
    """

    cpus: float = 1.0
    workers: int = 1
    cpus_may_shrink: bool = False
    share: float | None = 0.0
    memory: float = 0.0
    multiply_adds: float = 0.0
    launching: float = 3 * SECONDS_PER_PASS
    precision: str = FP32
    nets: int | None = None

    def busy(self, card: Card) -> float:
        """Return the fraction of the time, in (0, 1], for which a trial alone on a card keeps it busy."""
        return card.computing(self.multiply_adds, self.precision) / self.step_seconds(card)

    def step_seconds(self, card: Card) -> float:
        """Return the seconds of a training step of a trial alone on a card."""
        return card.seconds(self.multiply_adds, self.launching, self.precision)

    def fits(self, card: Card) -> bool:
        """Return whether a card has the memory for a trial."""
        return self.memory <= card.memory

    def share_of(self, card: Card) -> float:
        """Return the share of a card that a trial needs."""
        if self.share is not None:
            return self.share
        if self.workers > 1:  # NCCL refuses workers that share a GPU
            return 1.0
        return max(gpu_share(self.memory, card.memory), gpu_share(ROUNDING * self.busy(card), 1.0))

    def after_running_out(self, card: Card | None, share: float) -> Need:
        """Return the need of a job that ran out of memory with a share of a card: twice as much."""
        if self.share is not None or card is None:
            return dataclasses.replace(self, share=max(self.share or 0.0, min(1.0, 2 * share)))
        return dataclasses.replace(self, memory=max(self.memory, 2 * share * card.memory))


Slot = tuple[str, int]
"""A GPU: id of its node, and its number there."""


@dataclass(frozen=True)
class Request:
    """What a trial asks Ray for.

    Attributes:
        resources: CPUs and share of a GPU of each worker.
        card: the kind of GPU that it is meant for; None if the kind does not matter.
        avoided: nodes on which it must not run, because their GPUs are of another kind.
        workers: number of workers.
    """

    resources: Resources
    card: Card | None = None
    avoided: frozenset[str] = frozenset()
    workers: int = 1


class Pool:
    """The GPUs of the nodes that get jobs, by kind, and what trials have taken of them.

    Ray does not say on which GPU a trial will run. It fills the fullest GPU that has room, and so does this class.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        """Start with free GPUs; `nodes` are id -> node."""
        self._free: dict[Card, dict[Slot, float]] = {}
        self._cpus: dict[Card, float] = {}
        for each, node in nodes.items():
            if node.card is not None and (gpus := int(node.resources.get("GPU", 0.0))):
                self._free.setdefault(node.card, {}).update(((each, number), 1.0) for number in range(gpus))
                per_gpu = node.resources.get("CPU", 0.0) / gpus
                self._cpus[node.card] = min(self._cpus.get(node.card, per_gpu), per_gpu)

    def take(self, card: Card, share: float, slot: Slot | None = None) -> Slot | None:
        """Take a share of a GPU of a kind; return the GPU, or None if none has room.

        Args:
            card: the kind.
            share: the share.
            slot: the GPU; None for the fullest with room. If its node is gone, nothing is taken.
        """
        free = self._free.get(card, {})
        if slot is None:
            slot = min((each for each in free if free[each] >= share - TOLERANCE), key=free.__getitem__, default=None)
        if slot in free:
            free[slot] -= share
        return slot

    def places(self, card: Card, share: float) -> int:
        """Return how many more trials with a share of a GPU fit on the GPUs of a kind."""
        return sum(int(free / share + TOLERANCE) for free in self._free.get(card, {}).values())

    def request(self, need: Need, ready: float, expected: Card | None = None) -> Request:
        """Return what the next trial of a group asks for.

        It gets the kind of GPU that trains it fastest among those with room, and the smallest of equally fast ones: a
        step of a small network takes the same time on any card. It gets more than it needs, up to a whole GPU, if all
        ready trials could get as much.

        Args:
            need: what the trial needs.
            ready: number of trials that the ready jobs make, this one included; infinity for what it needs at least.
            expected: the kind of GPU of nodes that are yet to come; matters if the cluster has no GPU now.
        """
        if need.share is not None:
            resources = {"CPU": need.cpus, "GPU": need.share} if need.share else {"CPU": need.cpus}
            return Request(resources, workers=need.workers)
        held = [card for card in self._free if need.fits(card)]
        cards: Sequence[Card] = held or sorted(self._free, key=lambda card: card.memory)[-1:]
        if not cards:
            assert expected is not None, "without GPUs there are no shares"
            return Request({"CPU": need.cpus, "GPU": need.share_of(expected)}, expected, workers=need.workers)

        def rank(card: Card) -> tuple[bool, float, float]:
            return self.places(card, need.share_of(card)) < need.workers, need.step_seconds(card), card.memory

        card = min(cards, key=rank)
        shares = [share for share in SHARES if ready <= sum(self.places(each, share) for each in cards)]
        share = max([need.share_of(card), *(share for share in shares if self.places(card, share))])
        cpus = min(need.cpus, self._cpus[card] * share) if need.cpus_may_shrink else need.cpus
        others = [node for other, slots in self._free.items() if other is not card for node, _ in slots]
        cpus = math.floor(cpus * STEPS + TOLERANCE) / STEPS
        return Request({"CPU": cpus, "GPU": share}, card, frozenset(others), need.workers)


def check_shares(groups: Iterable[Group], gpus: float | None) -> None:
    """Raise ValueError if several workers of a trial would share a GPU.

    Args:
        groups: groups of jobs.
        gpus: GPUs of each worker; None: workers get whole ones.
    """
    for each in groups:
        if each.uses_gpu and each.workers > 1 and 0.0 < (gpus or 0.0) < 1.0:
            raise ValueError(f"each of {each.workers} workers needs a whole GPU or none, got --gpus-per-trial {gpus:g}")


def needs(
    plan: Plan,
    keys: Iterable[str],
    *,
    cpus: float | None,
    gpus: float | None,
    cards: Sequence[Card],
    nets_per_trial: int = 1,
) -> tuple[dict[Group, Need], list[str]]:
    """Return what the trials of each group need, and a warning if a group may not fit any GPU.

    A job whose engine computes on CPUs only needs no GPU, whatever the arguments are.

    Args:
        plan: the study.
        keys: keys of the jobs.
        cpus: CPUs of each worker; None: one, or less for trials that share a GPU.
        gpus: GPUs of each worker, whatever its job; None derives them from the group's largest job.
        cards: kinds of GPUs of the cluster; empty if it has none.
        nets_per_trial: most networks that are stacked in one trial.

    Raises:
        ValueError: several workers of a trial would share a GPU.
    """
    members: dict[Group, list[Job]] = {}
    for key in keys:
        members.setdefault(group(plan.jobs[key], plan.space.workers), []).append(plan.jobs[key])
    check_shares(members, gpus)
    found: dict[Group, Need] = {}
    warnings = []
    largest = max((card.memory for card in cards), default=0.0)
    for each, jobs in members.items():
        share = gpus or 0.0 if each.uses_gpu else 0.0
        need = Need(cpus=cpus or 1.0, workers=each.workers, share=share)
        if each.uses_gpu and gpus is None and cards:
            facts = plan.facts[each.dataset]
            need = dataclasses.replace(need, cpus_may_shrink=cpus is None, share=None)
            nets, (alone, _) = nets_per_trial, _largest(jobs, facts, 1, largest)
            step = max((_step(plan, job) for job in jobs if isinstance(job.config, TRAINING_CONFIGS)), default=None)
            if step is not None:
                adds, launch, precision = step
                need = dataclasses.replace(need, multiply_adds=adds, launching=launch, precision=precision)
                nets = min(nets, max(int(1 / need.busy(card)) for card in cards))
            smallest = min((card.memory for card in cards if alone <= card.memory), default=largest)
            while nets > 1 and _largest(jobs, facts, nets, largest)[0] > smallest:
                nets //= 2  # several networks that share a trial need not fit where one does
            needed, kind = _largest(jobs, facts, nets, largest)
            trained = nets if any(_shares_trial(job) for job in jobs) else 1
            need = dataclasses.replace(
                need,
                memory=needed,
                multiply_adds=trained * need.multiply_adds,
                nets=nets if nets < nets_per_trial else None,
            )
            if needed > largest:
                warnings.append(
                    f"{each.model} of width {each.width:g} on {each.dataset} needs about {needed / GIB:.0f} GiB for "
                    f"its {kind} jobs, the largest GPU has {largest / GIB:.0f}: they may run out of it, "
                    "and then compute their batches in micro-batches (a smaller batch_size, or precision=bf16, needs "
                    "less)"
                )
        found[each] = need
    return found, warnings


def _largest(jobs: Iterable[Job], facts: DatasetFacts, nets: int, memory: float) -> tuple[float, str]:
    """Return the most bytes of GPU memory that one of the jobs needs, see :func:`device_bytes`, and its kind."""
    return max((device_bytes(job, facts, nets, memory), job.kind) for job in jobs)


def _shares_trial(job: Job) -> bool:
    return isinstance(job.config, TRAINING_CONFIGS) and job.config.recipe.engine.shares_trial


def _step(plan: Plan, job: Job) -> tuple[float, float, str]:
    """Return the multiply-adds of a training step of one network, the seconds of launching it, and its precision."""
    config, task = job.config, job.config.task
    assert isinstance(config, TRAINING_CONFIGS)
    adds = config.recipe.batch_size * multiply_adds_per_image(task.model, task.width, image_size(plan, job))
    return 3 * adds, 3 * launching(job), config.recipe.precision
