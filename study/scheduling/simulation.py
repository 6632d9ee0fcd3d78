"""A plan simulated on hypothetical machines: the real order of work, with a simulated Ray and simulated time.

:class:`PlanSearcher` decides what runs when, with which share of which kind of GPU, as in a real study. This module
plays Ray's part: it puts trials on GPUs as Ray does, and ends them when their time is over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.benchmark.results import Rate
from study.estimate import Estimates, OnCard, on_card
from study.plan import Plan
from study.scheduling.cards import CARDS, CORES_PER_CARD, Card
from study.scheduling.hosts import TOLERANCE, Hosts, Node, in_words
from study.scheduling.placement import group, needs
from study.scheduling.searcher import AHEAD_CLUSTER, AHEAD_LOCAL, PlanSearcher
from trainables.training.engines import CPU
from trainables.trial_results import STATUS_OK

Times = dict[str, dict[Card | None, OnCard]]
"""Key of a job -> kind of GPU, or None for a core -> how it runs there alone."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a plan runs on some devices.

    Attributes:
        seconds: from the start to the end of the last job.
        bound: seconds that no order of work can undercut: the longest chain of jobs, each alone on the fastest device,
            or the time for which all jobs keep the devices busy, divided by the number of devices.
        idle: fraction of the devices' time, in [0, 1), in which no trial is on them.
        alone: key of a job -> its seconds alone on the fastest device.
        measured: fraction of the jobs on GPUs, in [0, 1], whose time comes from rates measured on each kind of GPU.
        warnings: lines on jobs that may not fit.
    """

    seconds: float
    bound: float
    idle: float
    alone: Mapping[str, float]
    measured: float
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class _Machine:
    """A GPU and the cores beside it, or cores only; `free` is what trials may still take."""

    name: str
    card: Card | None
    free: dict[str, float]
    trials: list[_Trial] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """Factor on the time of its trials: processes on one GPU compute one after another."""
        return max(1.0, sum(trial.busy for trial in self.trials if "GPU" in trial.asked))

    @property
    def used(self) -> float:
        """The part of its devices, a GPU or cores, on which there is a trial."""
        if self.card is not None:
            return float(any("GPU" in trial.asked for trial in self.trials))
        return sum(trial.asked["CPU"] for trial in self.trials)


@dataclass(eq=False)
class _Trial:
    """A trial; `left` are the seconds that it still takes alone, `busy` the fraction in which it computes."""

    name: str
    keys: list[str]
    asked: Mapping[str, float]
    avoided: frozenset[str]
    workers: int
    left: float = 0.0
    busy: float = 0.0


class _PretendedRay:
    """Trials on machines, waiting or running, and the time."""

    def __init__(self, machines: list[_Machine], times: Times) -> None:
        self.machines, self.now, self.used = machines, 0.0, 0.0
        self._times = times
        self._waiting: list[_Trial] = []

    @property
    def is_running(self) -> bool:
        return any(machine.trials for machine in self.machines)

    def submit(self, name: str, config: Mapping[str, Any]) -> None:
        """Queue a trial that the searcher has handed out."""
        keys = [config["key"], *(mate["key"] for mate in json.loads(config.get("mates", "[]")))]
        avoided = frozenset(config.get("avoided", ()))
        self._waiting.append(_Trial(name, keys, config["resources"], avoided, config["workers"]))

    def start(self) -> list[str]:
        """Start the waiting trials that fit; return their names."""
        started = []
        for trial in list(self._waiting):
            # Ray fills what is already in use first.
            used = sorted(self.machines, key=lambda each: (each.free.get("GPU", 0.0), each.free["CPU"]))
            places = [
                machine
                for machine in used
                if machine.name not in trial.avoided
                for _ in range(Node(machine.name, machine.free).places(trial.asked))
            ]
            if len(places) >= trial.workers:
                self._waiting.remove(trial)
                self._place(trial, places[: trial.workers])
                started.append(trial.name)
        return started

    def _place(self, trial: _Trial, machines: list[_Machine]) -> None:
        card = machines[0].card if "GPU" in trial.asked else None
        alone = [self._times[key][card] for key in trial.keys]
        # Networks that are stacked compute together, but their kernels are launched only once.
        computing = sum(each.seconds * each.busy for each in alone)
        trial.left = max(computing, *(each.seconds for each in alone))
        trial.busy = computing / trial.left
        for machine in machines:
            for name, amount in trial.asked.items():
                machine.free[name] -= amount
            machine.trials.append(trial)

    def pass_time(self) -> list[_Trial]:
        """Let time pass until the next trials end; return them."""
        places: dict[_Trial, list[_Machine]] = {}
        for machine in self.machines:
            for trial in machine.trials:
                places.setdefault(trial, []).append(machine)
        pace = {trial: max(machine.slowdown for machine in machines) for trial, machines in places.items()}
        seconds = min(trial.left * pace[trial] for trial in places)
        self.now += seconds
        self.used += seconds * sum(machine.used for machine in self.machines)
        ended = []
        for trial, machines in places.items():
            trial.left -= seconds / pace[trial]
            if trial.left <= TOLERANCE:
                ended.append(trial)
                for machine in machines:
                    machine.trials.remove(trial)
                    for name, amount in trial.asked.items():
                        machine.free[name] += amount
        return ended


def simulate(
    plan: Plan,
    todo: Mapping[str, set[int | None]],
    devices: Mapping[str, int],
    on_core: Estimates,
    rates: Mapping[str, Sequence[Rate]] | None = None,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    max_concurrent: int | None = None,
    nets_per_trial: int = 1,
) -> Schedule:
    """Return how the missing jobs of a plan, at least one, run on some devices.

    Args:
        plan: the study.
        todo: missing outputs of each job.
        devices: name of a card, or ``CPU`` for cores of one machine -> their number.
        on_core: seconds of each job on one core.
        rates: name of a card -> rates measured on it.
        cpus: CPUs of each trial, as ``--cpus-per-trial``.
        gpus: share of a GPU of each trial, as ``--gpus-per-trial``.
        max_concurrent: most trials at the same time.
        nets_per_trial: most networks that are stacked in one trial.

    Raises:
        ValueError: a trial asks for more than any machine has.
    """
    cards = [CARDS[name] for name in devices if name != CPU]
    found, warnings = needs(plan, todo, cpus=cpus, gpus=gpus, cards=cards, nets_per_trial=nets_per_trial)
    on_gpu = {key for key in todo if cards and found[group(plan.jobs[key], plan.space.workers)].share != 0.0}
    times: Times = {
        key: {card: on_card(plan, plan.jobs[key], card, (rates or {}).get(card.name, ())) for card in cards}
        if key in on_gpu
        else {None: OnCard(on_core.seconds[key], 1.0, measured=False)}
        for key in todo
    }
    machines = [
        _Machine(f"{card.name} {number}", card, {"CPU": float(CORES_PER_CARD), "GPU": 1.0})
        for card in cards
        for number in range(devices[card.name])
    ]
    if CPU in devices:
        machines.append(_Machine(CPU, None, {"CPU": float(devices[CPU])}))
    nodes = {each.name: Node(each.name, dict(each.free), each.card) for each in machines}
    pretended = _PretendedRay(machines, times)
    fastest = Estimates({key: min(each.seconds for each in its.values()) for key, its in times.items()}, 0)
    searcher = PlanSearcher(
        plan,
        todo,
        fastest,
        {},
        hosts=Hosts(lambda: nodes),
        needs=found,
        ahead=AHEAD_CLUSTER if cards else AHEAD_LOCAL,  # cores are those of one machine
        max_concurrent=max_concurrent,
        nets_per_trial=nets_per_trial,
        clock=lambda: pretended.now,
    )
    number = 0
    while True:
        while isinstance(config := searcher.suggest(str(number)), dict):
            pretended.submit(str(number), config)
            number += 1
            for name in pretended.start():
                searcher.on_trial_start(name)
        if not pretended.is_running:
            break
        for trial in pretended.pass_time():
            ended = [{"key": key, "status": STATUS_OK, "done": True} for key in trial.keys]
            searcher.on_trial_complete(trial.name, {"nets": ended})
        for name in pretended.start():
            searcher.on_trial_start(name)
    if searcher.unfinished():
        waiting = next(iter(searcher.trials.values()))
        has = "none of the machines has" if waiting.workers == 1 else "the machines do not have"
        raise ValueError(f"a trial asks for {in_words(waiting.asked, waiting.workers)}, but {has} that much")

    counts: dict[Card | None, float] = {card: devices[card.name] for card in cards}
    counts[None] = sum(machine.free["CPU"] for machine in machines)
    count = sum(devices.values())
    return Schedule(
        seconds=pretended.now,
        bound=max(
            fastest.makespan(plan, todo, slots=len(todo)),  # the longest chain: with a slot per job none waits
            _seconds_of_work(plan, {key: times[key] for key in on_gpu}, counts),
            _seconds_of_work(plan, {key: times[key] for key in todo.keys() - on_gpu}, counts),
        ),
        idle=1.0 - pretended.used / (count * pretended.now),
        alone=fastest.seconds,
        measured=sum(all(each.measured for each in times[key].values()) for key in on_gpu) / max(1, len(on_gpu)),
        warnings=tuple(warnings),
    )


def _seconds_of_work(plan: Plan, times: Times, counts: Mapping[Card | None, float]) -> float:
    """Return the least seconds for which some jobs keep all devices busy.

    Every job counts with its time on the kind that computes it fastest, and every kind with the speed, relative to
    that, which it reaches in any job.
    """
    total, speeds = 0.0, dict[Card | None, float]()
    for key, its in times.items():
        busy = {card: plan.workers(key) * each.seconds * each.busy for card, each in its.items()}
        least = min(busy.values())
        total += least
        for card, seconds in busy.items():
            speeds[card] = max(speeds.get(card, 0.0), least / seconds if seconds else 1.0)
    return total / sum(speeds[card] * counts[card] for card in speeds) if total else 0.0
