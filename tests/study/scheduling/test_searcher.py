"""The order of work, without a cluster: parents first, longest chain first, failures stop only what hangs on them.

What is tried again, with how much, after which pause; what may start beside what runs; when nothing may start at all.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from one_node import ask, ask_by_width, one_node
from tiny_study import tiny_space

from study.estimate import Estimates
from study.plan import Plan, make_plan
from study.scheduling.cards import CARDS, GIB
from study.scheduling.hosts import Hosts, Node
from study.scheduling.placement import Need, group
from study.scheduling.searcher import (
    FIRST_PAUSE,
    GROWTH_SECONDS,
    HELD_PAUSE,
    LONGEST_PAUSE,
    NO_MORE_TRIALS,
    STARVING_SECONDS,
    PlanSearcher,
)
from study.scheduling.states import BLOCKED, DONE, FAILED, NOT_RUN, QUEUED, READY, RUNNING, WAITING
from trainables import schema
from trainables.config import Cell
from trainables.graph import Closure, Ref, measurements, target
from trainables.storage.store import StorageError

OK = {"status": "ok", "done": True}
FULL = {"status": "storage", "error": "storage /data: No space left on device", "done": True}
NO_MEMORY = {"status": "out_of_memory", "error": "out of memory: CUDA tried", "done": True}
SPACE = tiny_space(
    width=(0.25, 0.5),
    sparsity=(0.5, 0.9),
    rewind_epoch=(0, 1),
    seeds=(0, 1),
    method=("dense", "lth", "naive", "permuted", "shuffled"),
    interpolation_points=3,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SPACE)


def new_searcher(
    plan: Plan,
    published: set[str] | None = None,
    seconds: dict[str, float] | None = None,
    retries: int = 0,
    room: Callable[[], Mapping[str, float]] | None = None,
    **options: Any,
) -> PlanSearcher:
    estimates = Estimates({key: (seconds or {}).get(key, 1.0) for key in plan.jobs}, 0)
    todo = plan.closure.todo(published or set())
    hosts = one_node(room) if room is not None else one_node()
    return PlanSearcher(plan, todo, estimates, {"storage": "/somewhere"}, retries, hosts=hosts, **options)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def handed_out(searcher: PlanSearcher, prefix: str = "t") -> list[dict[str, Any]]:
    """Take all that the searcher hands out for now."""
    configs = []
    while isinstance(config := searcher.suggest(f"{prefix}{len(configs)}"), dict):
        configs.append(config)
    return configs


def descendants(plan: Plan, keys: set[str]) -> set[str]:
    """Return everything below some jobs, found another way than the searcher's."""
    found: set[str] = set()
    for key, job in plan.jobs.items():  # parents first
        if any(ref.job.key in keys | found for _, ref in job.parents):
            found.add(key)
    return found


class Sweep:
    """Plays Ray Tune: a few trials at a time, which end in random order, some of them badly."""

    def __init__(self, searcher: PlanSearcher, slots: int, bad: set[str] | None = None, seed: int = 0) -> None:
        self.searcher, self.slots, self.bad = searcher, slots, bad or set()
        self.random = random.Random(seed)
        self.running: dict[str, str] = {}
        self.order: list[str] = []

    def start_what_fits(self) -> bool:
        """Start trials; return whether the searcher has said that it is finished."""
        while len(self.running) < self.slots:
            config = self.searcher.suggest(f"trial{len(self.order)}")
            if config is None:
                assert self.running, "nothing runs and nothing is offered: the sweep would hang"
                return False
            if config == NO_MORE_TRIALS:
                assert not self.running
                return True
            assert isinstance(config, dict)
            self.check_parents(config["key"])
            self.searcher.on_trial_start(f"trial{len(self.order)}")
            self.running[f"trial{len(self.order)}"] = config["key"]
            self.order.append(config["key"])
        return False

    def check_parents(self, key: str) -> None:
        state = self.searcher.state
        for _, ref in self.searcher.plan.jobs[key].parents:
            assert state.get(ref.job.key, DONE) == DONE

    def end_one(self) -> None:
        trial = self.random.choice(sorted(self.running))
        key = self.running.pop(trial)
        if key not in self.bad:
            self.searcher.on_trial_complete(trial, OK)
        elif self.random.random() < 0.5:
            self.searcher.on_trial_complete(trial, None, error=True)
        else:
            self.searcher.on_trial_complete(trial, {"status": "failed", "error": "loss is nan"})

    def run(self) -> None:
        while not self.start_what_fits():
            self.end_one()


@pytest.mark.parametrize("slots", [1, 3, 1000])
def test_every_job_once_and_never_before_its_parents(plan: Plan, slots: int) -> None:
    sweep = Sweep(new_searcher(plan), slots, seed=slots)
    sweep.run()
    assert sorted(sweep.order) == sorted(plan.jobs)
    assert set(sweep.searcher.state.values()) == {DONE}
    assert sweep.searcher.errors == {}


def test_what_is_published_is_neither_suggested_nor_waited_for(plan: Plan) -> None:
    random_half = random.Random(1).sample(sorted(plan.jobs), len(plan.jobs) // 2)
    published = set(random_half)
    sweep = Sweep(new_searcher(plan, published), 4)
    sweep.run()
    assert set(sweep.order) == set(plan.closure.todo(published))
    wanted_again = {key for key in sweep.order if key in published}
    assert all(plan.jobs[key].kind == schema.DENSE for key in wanted_again), "only for a state that is missing"


def test_nothing_to_do_is_finished_at_once(plan: Plan) -> None:
    assert new_searcher(plan, set(plan.jobs)).suggest("t") == NO_MORE_TRIALS


def test_longest_chain_first(plan: Plan) -> None:
    dense = [key for key, job in plan.jobs.items() if job.kind == schema.DENSE]
    slow_match = next(key for key, job in plan.jobs.items() if job.kind == schema.MATCH)
    urgent = {ref.job.key for _, ref in plan.jobs[slow_match].parents}
    searcher = new_searcher(plan, seconds={slow_match: 1000.0})
    first = [searcher.suggest(f"t{number}")["key"] for number in range(len(dense))]
    assert set(first) == set(dense)
    assert set(first[:2]) == urgent, "a long job below makes a net urgent"
    for number, key in enumerate(first):
        searcher.on_trial_complete(f"t{number}", OK)
        if key == first[1]:
            break
    assert searcher.suggest("next")["key"] == slow_match


def test_chain_of_rounds_goes_before_short_chains(plan: Plan) -> None:
    sweep = Sweep(new_searcher(plan), 1)
    sweep.run()
    kinds = [plan.jobs[key].kind for key in sweep.order]
    last_round = max(index for index, kind in enumerate(kinds) if kind == schema.PRUNE)
    first_connect = min(index for index, kind in enumerate(kinds) if kind == schema.CONNECT)
    assert last_round < first_connect, "measurements at the end of their chain can wait"


@pytest.mark.parametrize("seed", range(5))
def test_failure_blocks_its_descendants_and_nothing_else(plan: Plan, seed: int) -> None:
    bad = set(random.Random(seed).sample(sorted(plan.jobs), 3))
    sweep = Sweep(new_searcher(plan), 3, bad, seed)
    sweep.run()
    state, errors = sweep.searcher.state, sweep.searcher.errors
    below = descendants(plan, bad)
    assert {key for key, each in state.items() if each == FAILED} == bad - below
    assert {key for key, each in state.items() if each == BLOCKED} == below
    assert {key for key, each in state.items() if each == DONE} == plan.jobs.keys() - bad - below
    for key, each in state.items():
        if each == FAILED:
            assert errors[key] in ("loss is nan", "the trial died")
        elif each == BLOCKED:
            assert state[errors[key]] == FAILED
            assert key in descendants(plan, {errors[key]})
        else:
            assert key not in errors


# --- attempts ---------------------------------------------------------------------------------------------------------
def leaf(plan: Plan) -> str:
    """Return a job without children whose parents are wanted as a whole."""
    return next(key for key, job in plan.jobs.items() if job.kind == schema.CONNECT)


def lonely(plan: Plan, **options: Any) -> PlanSearcher:
    """Return a searcher with one job left to do."""
    return new_searcher(plan, plan.jobs.keys() - {leaf(plan)}, **options)


def test_job_that_died_is_tried_again_after_pauses_that_double(plan: Plan) -> None:
    clock = Clock()
    searcher = lonely(plan, retries=7, clock=clock)
    pauses = []
    for attempt in itertools.count():
        died = clock.now
        while (offer := searcher.suggest(f"t{attempt}")) is None:
            clock.now += 0.5
        if offer == NO_MORE_TRIALS:
            break
        pauses.append(clock.now - died)
        searcher.on_trial_complete(f"t{attempt}", None, error=True)
    assert pauses == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert (pauses[1], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    assert searcher.state[leaf(plan)] == FAILED
    assert searcher.errors == {leaf(plan): "the trial died"}


def test_pausing_job_keeps_nobody_waiting_and_comes_back_as_urgent_as_before(plan: Plan) -> None:
    clock = Clock()
    searcher = new_searcher(plan, retries=1, clock=clock, max_concurrent=1)
    first = searcher.suggest("t0")["key"]
    searcher.on_trial_complete("t0", None, error=True)
    assert searcher.state[first] == READY
    second = searcher.suggest("t1")["key"]
    assert second != first
    clock.now += FIRST_PAUSE
    searcher.on_trial_complete("t1", OK)
    assert searcher.suggest("t2")["key"] == first


def test_sweep_is_not_over_while_a_job_pauses(plan: Plan) -> None:
    clock = Clock()
    searcher = lonely(plan, retries=1, clock=clock)
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", None, error=True)
    assert searcher.suggest("t1") is None
    clock.now += FIRST_PAUSE
    assert isinstance(searcher.suggest("t1"), dict)


def test_every_job_may_die_as_often_as_there_are_retries(plan: Plan) -> None:
    clock = Clock()
    searcher = new_searcher(plan, retries=1, clock=clock)
    seen: Counter[str] = Counter()
    for trial in itertools.count():
        if (config := searcher.suggest(f"t{trial}")) is None:
            clock.now += 1.0
            continue
        if config == NO_MORE_TRIALS:
            break
        seen[config["key"]] += 1
        died = seen[config["key"]] == 1
        searcher.on_trial_complete(f"t{trial}", None if died else OK, error=died)
    assert seen == dict.fromkeys(plan.jobs, 2)
    assert set(searcher.state.values()) == {DONE}
    assert searcher.errors == {}


def die_in_epoch(searcher: PlanSearcher, clock: Clock, epochs: list[int]) -> int:
    """Let attempts at a lonely job die after these epochs; return how many were made before it failed."""
    for attempt, epoch in enumerate(epochs):
        while (offer := searcher.suggest(f"t{attempt}")) is None:
            clock.now += 1.0
        if offer == NO_MORE_TRIALS:
            return attempt
        assert isinstance(offer, dict)
        for step in range(1, epoch + 1):
            searcher.on_trial_result(f"t{attempt}", {"job_key": offer["key"], "step": step})
        searcher.on_trial_complete(f"t{attempt}", None, error=True)
    return len(epochs)


def test_attempts_that_get_further_do_not_count(plan: Plan) -> None:
    clock = Clock()
    searcher = lonely(plan, retries=1, clock=clock)
    assert die_in_epoch(searcher, clock, list(range(1, 31))) == 30, "a machine is taken away thirty times"


def test_attempts_that_die_in_the_same_epoch_do_count(plan: Plan) -> None:
    clock = Clock()
    searcher = lonely(plan, retries=2, clock=clock)
    assert die_in_epoch(searcher, clock, [7] * 10) == 1 + 2
    assert searcher.state[leaf(plan)] == FAILED


def test_progress_of_an_ancestor_is_not_the_jobs_own(plan: Plan) -> None:
    searcher = lonely(plan, retries=0)
    searcher.suggest("t")
    searcher.on_trial_result("t", {"job_key": "of another", "step": 3})
    searcher.on_trial_result("t", {"job_key": leaf(plan), "waiting": True})
    searcher.on_trial_complete("t", None, error=True)
    assert searcher.state[leaf(plan)] == FAILED


def test_trials_that_tune_has_lost_are_tried_again(plan: Plan) -> None:
    clock = Clock()
    searcher = new_searcher(plan, retries=1, clock=clock)
    lost = {config["key"] for config in handed_out(searcher)}
    searcher.lose_trials()
    assert {key for key, state in searcher.state.items() if state == READY} == lost
    clock.now += FIRST_PAUSE
    assert {config["key"] for config in handed_out(searcher, "again")} == lost


def test_failure_that_would_only_repeat_itself_is_not_tried_again(plan: Plan) -> None:
    searcher = new_searcher(plan, retries=3)
    key = searcher.suggest("t")["key"]
    searcher.on_trial_complete("t", {"status": "failed", "error": "loss is nan"})
    assert (searcher.state[key], searcher.errors[key]) == (FAILED, "loss is nan")


@pytest.mark.parametrize("result", [None, {}, {"status": None}, {"done": True}, {"status": "failed"}])
def test_result_without_a_good_status_is_a_failure(plan: Plan, result: dict[str, Any] | None) -> None:
    searcher = new_searcher(plan)
    key = searcher.suggest("t")["key"]
    searcher.on_trial_complete("t", result)
    assert searcher.state[key] == FAILED


def test_total_on_whatever_is_reported(plan: Plan) -> None:
    searcher = new_searcher(plan)
    before = dict(searcher.state)
    searcher.on_trial_complete("never heard of", OK)
    searcher.on_trial_complete("never heard of", None, error=True)
    searcher.on_trial_result("never heard of", {"epoch": 1})
    assert searcher.state == before
    key = searcher.suggest("t")["key"]
    for _ in range(2):  # reported twice
        searcher.on_trial_complete("t", OK)
    assert searcher.state[key] == DONE
    searcher.on_trial_complete("t", None, error=True)
    assert searcher.state[key] == DONE


def test_states_on_the_way(plan: Plan) -> None:
    searcher = new_searcher(plan)
    roots = {key for key, job in plan.jobs.items() if not job.parents}
    assert {key for key, state in searcher.state.items() if state == READY} == roots
    assert {key for key, state in searcher.state.items() if state == WAITING} == plan.jobs.keys() - roots
    key = searcher.suggest("t")["key"]
    assert searcher.state[key] == QUEUED
    searcher.on_trial_start("t")
    assert searcher.state[key] == RUNNING


def test_job_that_another_study_computes_is_looked_at_again(plan: Plan) -> None:
    clock = Clock()
    searcher = lonely(plan, retries=0, clock=clock)
    for look in range(5):
        assert isinstance(searcher.suggest(f"t{look}"), dict)
        searcher.on_trial_complete(f"t{look}", {"status": "held", "done": True})
        assert searcher.suggest("at once") is None
        clock.now += HELD_PAUSE
    searcher.suggest("last")
    searcher.on_trial_complete("last", OK)
    assert searcher.state[leaf(plan)] == DONE


@pytest.mark.parametrize("ancestor", [False, True])
@pytest.mark.parametrize("trouble", [None, StorageError("away")])
def test_job_that_another_study_computes_gets_a_trial_once_its_lease_is_free(
    plan: Plan, trouble: StorageError | None, ancestor: bool
) -> None:
    clock, answers, parent = Clock(), list[Future[bool]](), "the key of an ancestor"

    def free(key: str) -> Future[bool]:
        assert key == (parent if ancestor else leaf(plan))
        answers.append(Future())
        return answers[-1]

    searcher = lonely(plan, retries=0, clock=clock, free=free)
    searcher.suggest("first")
    held = {"held": {leaf(plan): parent}} if ancestor else {}
    searcher.on_trial_complete("first", {"status": "held", "done": True, **held})
    for looks in range(1, 4):
        clock.now += 10 * HELD_PAUSE
        assert searcher.suggest("unanswered") is None
        assert len(answers) == looks, "one question at a time"
        answers[-1].set_result(False)
        assert searcher.suggest("held") is None
        assert searcher.suggest("in the pause") is None
        assert len(answers) == looks, "it asks again after a pause"
        clock.now += HELD_PAUSE
        assert searcher.suggest("after the pause") is None
    if trouble is None:
        answers[-1].set_result(True)
    else:
        answers[-1].set_exception(trouble)
        assert searcher.suggest("unanswered") is None, "a trial finds out, but not at once"
        clock.now += HELD_PAUSE
    assert isinstance(searcher.suggest("free"), dict)
    searcher.on_trial_complete("free", OK)
    assert searcher.state[leaf(plan)] == DONE
    assert searcher.suggest("end") == NO_MORE_TRIALS
    assert len(answers) == 4


# --- memory -----------------------------------------------------------------------------------------------------------
def shares(searcher: PlanSearcher, result: Mapping[str, Any] = NO_MEMORY) -> list[float]:
    """Let every trial run out of memory; return the shares of a GPU that were asked for."""
    asked, clock = [], searcher._clock
    assert isinstance(clock, Clock)
    for attempt in itertools.count():
        while (offer := searcher.suggest(f"t{attempt}")) is None:
            clock.now += 1.0
        if offer == NO_MORE_TRIALS:
            return asked
        assert isinstance(offer, dict)
        asked.append(offer["resources"].get("GPU", 0.0))
        searcher.on_trial_complete(f"t{attempt}", dict(result))
    raise AssertionError


def test_out_of_memory_doubles_the_share_up_to_a_whole_gpu(plan: Plan) -> None:
    searcher = lonely(plan, retries=2, needs=ask(plan, CPU=1, GPU=0.125), clock=Clock())
    asked = shares(searcher)
    assert asked[:4] == [0.125, 0.25, 0.5, 1.0], "it would not fit at a second attempt either"
    assert set(asked[4:]) == {1.0}, "then the batches are divided"
    error = searcher.errors[leaf(plan)]
    assert error.startswith(
        "out of memory: CUDA tried; it had a whole GPU, and its batches cannot be divided further: "
    )
    assert "batch_size" in error
    assert searcher.recurring == {leaf(plan)}


def test_odd_share_ends_at_a_whole_gpu(plan: Plan) -> None:
    searcher = lonely(plan, needs=ask(plan, CPU=1, GPU=0.3), clock=Clock())
    assert [share for share, _ in itertools.groupby(shares(searcher))] == [0.3, 0.6, 1.0]


def out_of_memory(searcher: PlanSearcher, trial: str) -> dict[str, Any]:
    """Hand out a trial and let it run out of memory; return its config."""
    config = searcher.suggest(trial)
    assert isinstance(config, dict)
    searcher.on_trial_complete(trial, NO_MEMORY)
    return config


def test_a_batch_that_a_whole_gpu_does_not_hold_is_divided_down_to_the_least_micro_batch(plan: Plan) -> None:
    dense = [key for key, job in plan.jobs.items() if job.kind == schema.DENSE and job.config.task.width == 0.25]
    others = plan.jobs.keys() - {dense[0]}
    searcher = new_searcher(plan, set(others), needs=ask(plan, CPU=1, GPU=1.0), say=(lines := list[str]()).append)
    asked = [out_of_memory(searcher, f"t{attempt}").get(schema.MICRO_BATCHES) for attempt in range(4)]
    assert asked == [None, 2, 4, 8], "128 images are eight micro-batches of 16"
    assert (searcher.suggest("t4"), searcher.state[dense[0]]) == (NO_MORE_TRIALS, FAILED)
    assert "with batches of 128 images in 2 micro-batches" in lines[0]
    assert searcher.recurring == {dense[0]}


def test_all_trained_networks_of_a_group_are_divided_alike_and_measurements_for_themselves(plan: Plan) -> None:
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=1.0))
    first = out_of_memory(searcher, "first")
    width = plan.jobs[first["key"]].config.task.width
    for number in itertools.count():
        config = searcher.suggest(f"t{number}")
        if config == NO_MORE_TRIALS:
            break
        assert isinstance(config, dict)
        job = plan.jobs[config["key"]]
        trains = job.kind in (schema.DENSE, schema.PRUNE, schema.SPARSE)
        expected = 2 if trains and job.config.task.width == width else None
        assert config.get(schema.MICRO_BATCHES) == expected, job.kind
        searcher.on_trial_complete(f"t{number}", OK)


def test_jobs_that_run_out_of_memory_side_by_side_are_divided_once(plan: Plan) -> None:
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=1.0))
    configs = {trial: searcher.suggest(trial) for trial in ("one", "other")}
    assert len({plan.jobs[config["key"]].config.task for config in configs.values() if isinstance(config, dict)}) == 1
    for trial in configs:
        searcher.on_trial_complete(trial, NO_MEMORY)
    again = [searcher.suggest(f"{trial} again") for trial in configs]
    assert [config[schema.MICRO_BATCHES] for config in again if isinstance(config, dict)] == [2, 2]


def test_what_has_to_have_the_same_bits_on_every_card_of_a_kind_is_not_divided() -> None:
    plan = make_plan(tiny_space(method=("dense",), deterministic=True))
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=1.0))
    out_of_memory(searcher, "t")
    assert set(searcher.state.values()) == {FAILED}


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_memory_of_the_host_may_become_free_when_other_trials_end(plan: Plan, gpus: float) -> None:
    searcher = lonely(plan, retries=1, needs=ask(plan, CPU=1, GPU=gpus), clock=Clock())
    assert shares(searcher, {**NO_MEMORY, "status": "host_memory"}) == ([0.0, 0.0] if not gpus else [0.5, 1.0, 1.0])
    assert "--max-concurrent" in searcher.errors[leaf(plan)]
    assert searcher.recurring == set()


def test_what_did_not_fit_is_not_tried_with_its_like(plan: Plan) -> None:
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=0.25))
    tasks = {key: job.config.task for key, job in plan.jobs.items()}
    key = searcher.suggest("t")["key"]
    searcher.on_trial_complete("t", NO_MEMORY)
    for config in handed_out(searcher, "next"):
        same_width = tasks[config["key"]].width == tasks[key].width
        assert config["resources"] == {"CPU": 1, "GPU": 0.5 if same_width else 0.25}


def test_out_of_memory_on_a_whole_card_is_tried_on_a_larger_kind_only(plan: Plan) -> None:
    nodes = {name: Node(name, {"CPU": 8.0, "GPU": 1.0}, CARDS[name]) for name in ("T4", "H100")}
    small = {group(job): Need(share=None) for job in plan.jobs.values()}
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    todo = plan.closure.todo(plan.jobs.keys() - {leaf(plan)})
    searcher = PlanSearcher(plan, todo, estimates, {}, 0, hosts=Hosts(lambda: nodes), needs=small, clock=Clock())
    places = []
    for attempt in itertools.count():
        if (offer := searcher.suggest(f"t{attempt}")) == NO_MORE_TRIALS:
            break
        assert isinstance(offer, dict)
        (allowed,) = nodes.keys() - set(offer["avoided"])
        places.append((allowed, offer["resources"]["GPU"]))
        searcher.on_trial_complete(f"t{attempt}", NO_MEMORY)
    assert [place for place, _ in itertools.groupby(places)] == [("T4", 1.0), ("H100", 1.0)]
    assert searcher.state[leaf(plan)] == FAILED


def test_out_of_memory_on_a_card_that_the_trial_was_not_meant_for_says_nothing_about_its_need(plan: Plan) -> None:
    nodes = {"H100": Node("H100", {"CPU": 8.0, "GPU": 1.0}, CARDS["H100"])}
    wide = {group(job): Need(share=None, memory=70 * GIB) for job in plan.jobs.values()}
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    todo = plan.closure.todo(plan.jobs.keys() - {leaf(plan)})
    searcher = PlanSearcher(plan, todo, estimates, {}, 0, hosts=Hosts(lambda: nodes), needs=wide, clock=Clock())
    searcher.suggest("first")
    nodes["T4"] = Node("T4", {"CPU": 8.0, "GPU": 1.0}, CARDS["T4"])
    searcher.on_trial_complete("first", {**NO_MEMORY, "node": "T4"})
    offer = searcher.suggest("second")
    assert isinstance(offer, dict)
    assert (offer["avoided"], offer["resources"]["GPU"]) == (["T4"], 1.0)
    assert schema.MICRO_BATCHES not in offer
    searcher.on_trial_complete("second", {**NO_MEMORY, "node": "H100"})
    third = searcher.suggest("third")
    assert isinstance(third, dict)
    assert third[schema.MICRO_BATCHES] == 2


# --- storage ----------------------------------------------------------------------------------------------------------
def test_storage_that_stays_away_halts_the_sweep(plan: Plan) -> None:
    clock = Clock()
    searcher = new_searcher(plan, retries=1, clock=clock)
    configs = handed_out(searcher)
    searcher.on_trial_complete("t0", FULL)
    assert searcher.halted is None
    clock.now += FIRST_PAUSE
    assert searcher.suggest("again")["key"] == configs[0]["key"]
    searcher.on_trial_complete("again", FULL)
    assert searcher.halted == FULL["error"]
    searcher.on_trial_complete("t1", OK)
    assert searcher.suggest("more") is None, "those that run may end"
    for number in range(2, len(configs)):
        searcher.on_trial_complete(f"t{number}", None, error=True)
    assert searcher.suggest("more") == NO_MORE_TRIALS
    assert Counter(searcher.state.values()) == {DONE: 1, NOT_RUN: len(plan.jobs) - 1}
    assert set(searcher.unfinished()) == plan.jobs.keys() - {configs[1]["key"]}
    assert searcher.errors == {}


def test_failure_after_the_halt_still_blocks(plan: Plan) -> None:
    searcher = new_searcher(plan)
    configs = handed_out(searcher)
    searcher.on_trial_complete("t0", FULL)
    searcher.on_trial_complete("t1", {"status": "failed", "error": "loss is nan"})
    below = descendants(plan, {configs[1]["key"]})
    assert {key for key, state in searcher.state.items() if state == BLOCKED} == below
    assert searcher.state[configs[0]["key"]] == NOT_RUN


# --- what may start ---------------------------------------------------------------------------------------------------
def test_no_more_trials_at_a_time_than_allowed(plan: Plan) -> None:
    searcher = new_searcher(plan, max_concurrent=3)
    assert len(handed_out(searcher)) == 3
    searcher.on_trial_complete("t1", OK)
    assert isinstance(searcher.suggest("next"), dict)
    assert searcher.suggest("one too many") is None


def test_hands_out_what_fits_and_a_few_ahead(plan: Plan) -> None:
    room = {"CPU": 2.0}
    searcher = new_searcher(plan, room=lambda: room, ahead=1)
    assert len(handed_out(searcher)) == 2
    searcher.on_trial_start("t0")
    searcher.on_trial_start("t1")
    assert len(handed_out(searcher, "ahead")) == 1
    room["CPU"] = 4.0  # a machine has joined
    assert len(handed_out(searcher, "joined")) == 1


def test_fills_a_large_cluster_at_once(plan: Plan) -> None:
    searcher = new_searcher(plan, room=lambda: {"CPU": 64.0}, ahead=1)
    ready = sum(state == READY for state in searcher.state.values())
    assert len(handed_out(searcher)) == ready > 2


def test_demand_is_seen_where_there_are_no_machines_yet(plan: Plan) -> None:
    searcher = new_searcher(plan, room=dict, ahead=3)
    assert len(handed_out(searcher)) == 3


def test_a_growing_cluster_is_asked_for_what_all_ready_jobs_need(plan: Plan) -> None:
    clock, room = Clock(), {"CPU": 1.0}
    searcher = new_searcher(plan, room=lambda: room, ahead=1, ahead_in_growth=4, clock=clock)
    ready = sum(state == READY for state in searcher.state.values())
    assert len(handed_out(searcher)) == 4 < ready
    clock.now += GROWTH_SECONDS
    searcher.on_trial_start("t0")
    searcher.on_trial_complete("t0", OK)
    assert searcher.suggest("no more machines come") is None
    room["CPU"] = 2.0  # one has
    assert isinstance(searcher.suggest("more"), dict)


def test_fractions_add_up_to_a_whole_gpu(plan: Plan) -> None:
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=0.3), room=lambda: {"CPU": 64.0, "GPU": 0.9}, ahead=1)
    for number in range(3):
        assert isinstance(searcher.suggest(f"t{number}"), dict)
        searcher.on_trial_start(f"t{number}")
    assert isinstance(searcher.suggest("ahead"), dict)
    assert searcher.suggest("one too many") is None


def test_large_trial_is_not_starved_by_small_ones(plan: Plan) -> None:
    clock, room = Clock(), {"CPU": 99.0, "GPU": 1.0}
    asks = ask_by_width(plan, Need(share=0.25), Need(share=1.0))
    urgent = {key: 100.0 for key, job in plan.jobs.items() if job.config.task.width == 0.25}
    searcher = new_searcher(plan, seconds=urgent, needs=asks, room=lambda: room, ahead=9, clock=clock)
    waiting = None
    for number in itertools.count():  # small ones first; then the first large one, which does not fit beside them
        config = searcher.suggest(f"t{number}")
        assert isinstance(config, dict)
        if config["resources"]["GPU"] == 1.0:
            waiting = f"t{number}"
            break
        searcher.on_trial_start(f"t{number}")
    assert waiting is not None
    searcher.on_trial_complete("t0", OK)
    clock.now += STARVING_SECONDS + 1
    offers = handed_out(searcher, "meanwhile")
    assert all(config["resources"]["GPU"] == 1.0 for config in offers), "nothing smaller"
    assert searcher.suggest("small") is None
    searcher.on_trial_start(waiting)
    for number in range(len(offers)):
        searcher.on_trial_start(f"meanwhile{number}")
    assert searcher.suggest("small")["resources"]["GPU"] == 0.25


def test_slots_are_what_the_cluster_has_room_for_now(plan: Plan) -> None:
    room = {"CPU": 8.0, "GPU": 1.0}
    searcher = new_searcher(plan, needs=ask(plan, CPU=1, GPU=0.25), room=lambda: room)
    searcher.suggest("t")
    assert searcher.slots() == 4
    room["GPU"] = 3.0
    searcher.suggest("t2")
    assert searcher.slots() == 8, "CPUs are short now"
    room.clear()
    searcher.suggest("t3")
    assert searcher.slots() == 1
    assert new_searcher(plan, room=lambda: {"CPU": 8.0}, max_concurrent=3).slots() <= 3


def test_slots_of_nodes_without_cpus_are_those_of_their_gpus(plan: Plan) -> None:
    need = Need(share=None, cpus_may_shrink=True)
    searcher = PlanSearcher(
        plan,
        plan.closure.todo(set()),
        Estimates(dict.fromkeys(plan.jobs, 1.0), 0),
        {},
        hosts=Hosts(lambda: {"node": Node("node", {"CPU": 0.0, "GPU": 2.0}, CARDS["H100"])}),
        needs={group(job): need for job in plan.jobs.values()},
    )
    assert searcher.slots() == 16


def test_config_is_all_that_a_trial_needs(plan: Plan) -> None:
    sweep = Sweep(new_searcher(plan), 1)
    configs = []
    suggest = sweep.searcher.suggest

    def noting(trial: str) -> Any:
        configs.append(suggest(trial))
        return configs[-1]

    sweep.searcher.suggest = noting  # type: ignore[method-assign]
    sweep.run()
    assert configs.pop() == NO_MORE_TRIALS
    for config in configs:
        cell = Cell.from_mapping(json.loads(config["cell"]))
        jobs = Closure(Ref(job) for job in (target(cell), *measurements(cell))).jobs
        assert config["key"] in jobs
        assert config["storage"] == "/somewhere"
        assert config["resources"] == {"CPU": 1.0}
        assert set(config["outputs"]) == plan.closure.todo(set())[config["key"]]
        assert json.loads(json.dumps(config)) == config, "plain data"
