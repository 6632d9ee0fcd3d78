"""The order of work, without a cluster: parents first, longest chain first, failures stop only what hangs on them."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from ray.tune.search import Searcher
from tiny_study import tiny_space

from study.estimate import Estimates
from study.plan import Plan, make_plan
from study.searcher import BLOCKED, DONE, FAILED, READY, RUNNING, WAITING, PlanSearcher
from trainables import schema
from trainables.config import Cell
from trainables.graph import Ref, closure, measurements, target

OK = {"status": "ok", "done": True}
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
    plan: Plan, published: set[str] | None = None, seconds: dict[str, float] | None = None
) -> PlanSearcher:
    estimates = Estimates({key: (seconds or {}).get(key, 1.0) for key in plan.jobs}, 0)
    return PlanSearcher(plan, plan.closure.todo(published or set()), estimates, {"storage": "/somewhere"})


def descendants(plan: Plan, keys: set[str]) -> set[str]:
    """Return everything below some jobs, found another way than the searcher's."""
    found: set[str] = set()
    for key, job in plan.jobs.items():  # parents first
        if any(ref.job.key in keys | found for _, ref in job.parents):
            found.add(key)
    return found


def check_counts(searcher: PlanSearcher) -> None:
    """The counts by kind and state are those of the states."""
    kinds = searcher.plan.jobs
    expected = Counter((kinds[key].kind, state) for key, state in searcher.state.items())
    assert +searcher.counts == expected


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
            if config == Searcher.FINISHED:
                assert not self.running
                return True
            assert isinstance(config, dict)
            self.check_parents(config["key"])
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
        check_counts(self.searcher)

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
    assert new_searcher(plan, set(plan.jobs)).suggest("t") == Searcher.FINISHED


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


def test_error_that_the_callback_knows_better_is_kept(plan: Plan) -> None:
    searcher = new_searcher(plan)
    key = searcher.suggest("t")["key"]
    searcher.errors[key] = "CUDA out of memory"
    searcher.on_trial_complete("t", None, error=True)
    assert searcher.errors[key] == "CUDA out of memory"


def test_job_that_died_is_tried_again_and_failed_after_the_last_attempt(plan: Plan) -> None:
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    searcher = PlanSearcher(plan, plan.closure.todo(set()), estimates, {}, retries=2)
    key = searcher.suggest("t0")["key"]
    for attempt in range(2):
        searcher.on_trial_complete(f"t{attempt}", None, error=True)
        check_counts(searcher)
        assert searcher.state[key] == READY
        assert searcher.suggest(f"t{attempt + 1}")["key"] == key, "as urgent as before"
    searcher.on_trial_complete("t2", None, error=True)
    assert searcher.state[key] == FAILED
    check_counts(searcher)


def test_every_job_may_die_as_often_as_there_are_retries(plan: Plan) -> None:
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    searcher = PlanSearcher(plan, plan.closure.todo(set()), estimates, {}, retries=1)
    seen: Counter[str] = Counter()
    trial = 0
    while isinstance(config := searcher.suggest(f"t{trial}"), dict):
        seen[config["key"]] += 1
        died = seen[config["key"]] == 1
        searcher.on_trial_complete(f"t{trial}", None if died else OK, error=died)
        trial += 1
    assert config == Searcher.FINISHED
    assert seen == dict.fromkeys(plan.jobs, 2)
    assert set(searcher.state.values()) == {DONE}
    assert searcher.errors == {}


def test_failure_that_would_only_repeat_itself_is_not_tried_again(plan: Plan) -> None:
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    searcher = PlanSearcher(plan, plan.closure.todo(set()), estimates, {}, retries=3)
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
    assert searcher.key_of("never heard of") is None
    key = searcher.suggest("t")["key"]
    assert searcher.key_of("t") == key
    for _ in range(2):  # reported twice
        searcher.on_trial_complete("t", OK)
    assert searcher.state[key] == DONE
    searcher.on_trial_complete("t", None, error=True)
    assert searcher.state[key] == DONE
    check_counts(searcher)


def test_states_on_the_way(plan: Plan) -> None:
    searcher = new_searcher(plan)
    roots = {key for key, job in plan.jobs.items() if not job.parents}
    assert {key for key, state in searcher.state.items() if state == READY} == roots
    assert {key for key, state in searcher.state.items() if state == WAITING} == plan.jobs.keys() - roots
    key = searcher.suggest("t")["key"]
    assert searcher.state[key] == RUNNING
    check_counts(searcher)


def test_config_is_all_that_a_trial_needs(plan: Plan) -> None:
    sweep = Sweep(new_searcher(plan), 1)
    configs = []
    suggest = sweep.searcher.suggest

    def noting(trial: str) -> Any:
        configs.append(suggest(trial))
        return configs[-1]

    sweep.searcher.suggest = noting  # type: ignore[method-assign]
    sweep.run()
    assert configs.pop() == Searcher.FINISHED
    for config in configs:
        cell = Cell.from_mapping(json.loads(config["cell"]))
        jobs = closure(Ref(job) for job in (target(cell), *measurements(cell))).jobs
        assert config["key"] in jobs
        assert config["storage"] == "/somewhere"
        assert set(config["outputs"]) == plan.closure.todo(set())[config["key"]]
        assert json.loads(json.dumps(config)) == config, "plain data"
