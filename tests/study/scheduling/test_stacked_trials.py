"""Trials of several jobs, whose networks are stacked: who shares one, and that each of the jobs ends for itself."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from one_node import ask, one_node
from tiny_study import tiny_space

from study.estimate import Estimates
from study.plan import Plan, make_plan
from study.scheduling.callback import StudyCallback
from study.scheduling.searcher import LIKE_LENGTH, NO_MORE_TRIALS, PlanSearcher
from study.scheduling.states import BLOCKED, DONE, FAILED, READY, RUNNING
from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.trial_results import by_net

SPACE = tiny_space(
    width=(0.25, 0.5),
    rewind_epoch=(0, 1),
    epochs=8,
    seeds=(0, 1, 2),
    method=("dense", "lth", "naive", "permuted"),
    stacked=True,
)
NO_MEMORY = {"status": "out_of_memory", "error": "out of memory: CUDA tried", "done": True}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SPACE)


def new_searcher(plan: Plan, **options: Any) -> PlanSearcher:
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    todo = plan.closure.todo(set())
    options = {"nets_per_trial": 4, "ahead": 10**6, "hosts": one_node(dict), **options}
    return PlanSearcher(plan, todo, estimates, {"storage": "/somewhere"}, **options)


def keys_of(config: dict[str, Any]) -> list[str]:
    return [config["key"], *(mate["key"] for mate in json.loads(config.get("mates", "[]")))]


def net(key: str, **entries: Any) -> dict[str, Any]:
    """Return what a result says of one job."""
    return {"key": key, "job_key": key, "done": False, **entries}


def ends(keys: Iterable[str], **entries: Any) -> dict[str, Any]:
    """Return a last result in which all these jobs end."""
    return {"nets": [net(key, **{"status": "ok", "done": True, **entries}) for key in keys], "done": True}


# --- who shares a trial -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_every_job_is_handed_out_once_with_its_like_after_its_parents(plan: Plan, seed: int) -> None:
    searcher, luck = new_searcher(plan), random.Random(seed)
    running: dict[str, list[str]] = {}
    handed_out: list[str] = []
    sizes = []
    while (config := searcher.suggest(trial := f"t{len(handed_out)}")) != NO_MORE_TRIALS:
        if isinstance(config, dict):
            keys = running[trial] = keys_of(config)
            sizes.append(len(keys))
            jobs = [plan.jobs[key] for key in keys]
            for job in jobs:
                assert all(searcher.state[ref.job.key] == DONE for _, ref in job.parents)
            if len(jobs) > 1:
                configs = [job.config for job in jobs]
                assert all(isinstance(each, TRAINING_CONFIGS) for each in configs)
                assert len({each.task for each in configs}) == 1
                assert min(job.epochs for job in jobs) >= LIKE_LENGTH * max(job.epochs for job in jobs)
            searcher.on_trial_start(trial)
            assert {searcher.state[key] for key in keys} == {RUNNING}
            handed_out += keys
        if running and (config is None or luck.random() < 0.4):
            trial = luck.choice(sorted(running))
            searcher.on_trial_complete(trial, ends(running.pop(trial)))
    assert sorted(handed_out) == sorted(plan.jobs)
    assert set(searcher.state.values()) == {DONE}
    assert max(sizes) == 4


def test_a_mate_is_described_as_the_first_job_is(plan: Plan) -> None:
    config = new_searcher(plan).suggest("t")
    for each in (config, *json.loads(config["mates"])):
        assert json.loads(each["cell"])["width"] == plan.jobs[each["key"]].config.task.width
        assert each["outputs"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"stacked": False}, {}), ({}, {"nets_per_trial": 1})],
    ids=["the space does not ask for it", "one net per trial"],
)
def test_only_what_is_asked_for_is_stacked(changes: dict[str, Any], options: dict[str, Any]) -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=(0, 1, 2), **{"stacked": True, **changes}))
    searcher = new_searcher(plan, **options)
    configs = [searcher.suggest(f"t{number}") for number in range(len(plan.jobs))]
    assert all("mates" not in config for config in configs)


@pytest.mark.parametrize(
    ("room", "options", "sizes"),
    [
        ({"CPU": 2.0}, {}, [3, 3]),
        ({"CPU": 8.0}, {}, [1, 1, 1, 1, 1, 1]),
        ({"CPU": 8.0}, {"max_concurrent": 1}, [6]),
        ({"CPU": 8.0, "GPU": 1.0}, {"share": 0.25}, [6]),
        ({"CPU": 8.0, "GPU": 2.0}, {"share": 0.25}, [3, 3]),
    ],
)
def test_a_stack_leaves_no_device_without_work(
    room: dict[str, float], options: dict[str, Any], sizes: list[int]
) -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=tuple(range(6)), stacked=True))
    share = {"GPU": options.pop("share")} if "share" in options else {}
    searcher = new_searcher(
        plan,
        hosts=one_node(lambda: room),
        needs=ask(plan, CPU=1.0, **share),
        nets_per_trial=8,
        ahead=8,
        **options,
    )
    found = []
    while isinstance(config := searcher.suggest(f"t{len(found)}"), dict):
        found.append(len(keys_of(config)))
    assert found == sizes


def test_stacks_do_not_dwindle_along_chains() -> None:
    plan = make_plan(tiny_space(method=("lth",), sparsity=0.9, seeds=(0, 1, 2, 3), stacked=True))
    searcher = new_searcher(plan, hosts=one_node(lambda: {"CPU": 2.0}), nets_per_trial=8, ahead=2)
    running: deque[tuple[str, list[str]]] = deque()
    sizes: dict[str, list[int]] = {}
    while (config := searcher.suggest(trial := f"t{sum(map(len, sizes.values()))}")) != NO_MORE_TRIALS:
        if config is None:
            over, keys = running.popleft()
            searcher.on_trial_complete(over, ends(keys))
        else:
            keys = keys_of(config)
            running.append((trial, keys))
            searcher.on_trial_start(trial)
            sizes.setdefault(plan.jobs[keys[0]].kind, []).append(len(keys))
    assert sum(sizes["prune"]) == 4 * 11
    assert min(sizes["prune"]) >= 2


def test_unlike_networks_are_not_stacked() -> None:
    plan = make_plan(tiny_space(method=("dense",), width=(0.25, 0.5), seeds=(0, 1), stacked=True, batch_size=(64, 128)))
    searcher = new_searcher(plan)
    stacks = [keys_of(searcher.suggest(f"t{number}")) for number in range(len(plan.jobs) // 2)]
    for stack in stacks:
        first, second = (plan.jobs[key].config for key in stack)
        assert first.task == second.task
        assert first.recipe == second.recipe
        assert first.seed != second.seed


def test_networks_of_which_only_an_early_state_is_needed_are_stacked_among_themselves() -> None:
    space = tiny_space(method=("dense", "reinit"), seeds=(0, 1), stacked=True)
    plan = make_plan(space)
    searcher = new_searcher(plan)
    stacks = [keys_of(searcher.suggest(f"t{number}")) for number in range(2)]
    assert {len(stack) for stack in stacks} == {2}
    assert all(len({plan.closure.epochs_of(key) for key in stack}) == 1 for stack in stacks)


# --- how they end -----------------------------------------------------------------------------------------------------
def first_stack(searcher: PlanSearcher) -> list[str]:
    """Start the first trial, "t"; return the keys of its jobs."""
    keys = keys_of(searcher.suggest("t"))
    assert len(keys) == 4
    searcher.on_trial_start("t")
    return keys


def test_what_waited_for_one_of_them_need_not_wait_for_the_others(plan: Plan) -> None:
    searcher = new_searcher(plan)
    one, *others = first_stack(searcher)
    searcher.on_trial_result("t", {"nets": [net(one, status="ok", done=True), net(others[0], step=3)], "done": False})
    assert searcher.state[one] == DONE
    assert {searcher.state[key] for key in others} == {RUNNING}
    released = {key for key, state in searcher.state.items() if state == READY}
    assert any(one in {ref.job.key for _, ref in plan.jobs[key].parents} for key in released)
    searcher.on_trial_complete("t", ends(others))
    assert {searcher.state[key] for key in others} == {DONE}


def test_failure_of_one_blocks_only_what_hangs_on_it(plan: Plan) -> None:
    searcher = new_searcher(plan)
    bad, *others = first_stack(searcher)
    searcher.on_trial_result("t", {"nets": [net(bad, status="failed", error="loss is nan", done=True)], "done": False})
    assert searcher.state[bad] == FAILED
    assert searcher.errors[bad] == "loss is nan"
    blocked = {key for key, state in searcher.state.items() if state == BLOCKED}
    assert blocked
    searcher.on_trial_complete("t", ends(others))
    assert {searcher.state[key] for key in others} == {DONE}


def hand_out(searcher: PlanSearcher, key: str, name: str) -> tuple[str, list[str]]:
    """Hand out trials, and let them end well, until one has a job; return that trial and the keys of its jobs."""
    for number in itertools.count():
        config = searcher.suggest(trial := f"{name}{number}")
        keys = keys_of(config)
        if key in keys:
            return trial, keys
        searcher.on_trial_complete(trial, ends(keys))
    raise AssertionError(key)


def test_after_a_death_each_is_tried_again_alone(plan: Plan) -> None:
    now = [0.0]
    searcher = new_searcher(plan, retries=1, clock=lambda: now[0])
    over, *died = first_stack(searcher)
    searcher.on_trial_result("t", {"nets": [net(over, status="ok", done=True)], "done": False})
    searcher.on_trial_complete("t", error=True)
    assert searcher.state[over] == DONE, "it had ended before"
    assert {searcher.state[key] for key in died} == {READY}
    now[0] = 1e6
    for key in died:
        if searcher.state[key] == READY:
            trial, keys = hand_out(searcher, key, key)
            assert keys == [key]
            searcher.on_trial_complete(trial, {"status": "ok", "done": True})
    assert {searcher.state[key] for key in died} == {DONE}


def test_one_that_died_of_itself_is_tried_again_and_then_given_up(plan: Plan) -> None:
    now = [0.0]
    searcher = new_searcher(plan, retries=1, clock=lambda: now[0])
    bad, *others = first_stack(searcher)
    searcher.on_trial_complete(
        "t", {"nets": [net(bad, status="died", error="KeyError: 'x'", done=True), *ends(others)["nets"]], "done": True}
    )
    assert searcher.state[bad] == READY
    now[0] = 1e6
    trial, keys = hand_out(searcher, bad, "again")
    assert keys == [bad]
    searcher.on_trial_complete(trial, {"status": "died", "error": "KeyError: 'x'", "done": True})
    assert searcher.state[bad] == FAILED
    assert searcher.errors[bad] == "KeyError: 'x'"


def test_a_stack_too_large_for_the_memory_is_halved_without_counting_as_an_attempt(plan: Plan) -> None:
    searcher = new_searcher(plan, retries=0)
    keys = first_stack(searcher)
    searcher.on_trial_complete("t", NO_MEMORY)
    assert {searcher.state[key] for key in keys} == {READY}
    sizes = []
    while {READY} & {searcher.state[key] for key in keys}:
        trial, together = hand_out(searcher, next(key for key in keys if searcher.state[key] == READY), f"{sizes}")
        sizes.append(len(together))
        searcher.on_trial_complete(trial, ends(together))
    assert max(sizes) == 2


def test_one_that_has_no_memory_left_beside_the_others_is_tried_beside_fewer(plan: Plan) -> None:
    searcher = new_searcher(plan, retries=0, needs=ask(plan, CPU=1, GPU=1.0))
    one, *others = first_stack(searcher)
    searcher.on_trial_result("t", {"nets": [net(one, **NO_MEMORY)]})
    assert searcher.state[one] == READY, "it had the whole GPU, but not to itself"
    searcher.on_trial_complete("t", ends(others))
    sizes = []
    while searcher.state[one] == READY:
        trial, together = hand_out(searcher, one, f"{sizes}")
        sizes.append(len(together))
        searcher.on_trial_result(trial, {"nets": [net(one, **NO_MEMORY)]})
        searcher.on_trial_complete(trial, ends(key for key in together if key != one))
    assert sizes[-1] == 1
    assert searcher.state[one] == FAILED


def test_lost_trials_are_all_their_jobs(plan: Plan) -> None:
    searcher = new_searcher(plan, retries=1)
    keys = first_stack(searcher)
    searcher.lose_trials()
    assert {searcher.state[key] for key in keys} == {READY}


def test_progress_of_one_forgives_its_own_failures_only(plan: Plan) -> None:
    now = [0.0]
    searcher = new_searcher(plan, retries=1, clock=lambda: now[0])
    one, other, *_ = first_stack(searcher)
    searcher.on_trial_complete("t", error=True)
    for key, state in ((one, READY), (other, FAILED)):
        now[0] += 1e6
        trial, _ = hand_out(searcher, key, key)
        searcher.on_trial_result(trial, {"job_key": one, "step": 1})
        searcher.on_trial_complete(trial, error=True)
        assert searcher.state[key] == state


# --- what others hear of it -------------------------------------------------------------------------------------------
class Told:
    """Stands for the tracker and the display."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def epoch(self, key: str, row: dict[str, Any]) -> None:
        self.events.append(("epoch", key, row["step"], row[schema.TEST_ACCURACY]))

    def done(self, key: str) -> None:
        self.events.append(("done", key))

    def failed(self, key: str, error: str) -> None:
        self.events.append(("failed", key, error))

    def result(self, key: str, row: dict[str, Any]) -> None:
        self.events.append(("shown", key, row.get("hostname")))

    def ended(self, key: str) -> None:
        self.events.append(("over", key))


def told(searcher: PlanSearcher) -> tuple[StudyCallback, Told]:
    callback, hears = StudyCallback(), Told()
    callback.attach(searcher, hears, hears)  # type: ignore[arg-type]
    return callback, hears


def a_trial(config: dict[str, Any], result: dict[str, Any] | None = None, folder: Path | None = None) -> Any:
    return SimpleNamespace(trial_id="t", config=config, local_path=folder, last_result=result, error_file=None)


def test_each_network_has_its_own_epochs_and_end(plan: Plan) -> None:
    searcher = new_searcher(plan)
    config = searcher.suggest("t")
    one, two, three, four = keys_of(config)
    callback, hears = told(searcher)
    callback.on_trial_start(0, [], a_trial(config))
    results = [
        {"nets": [net(one, step=1, test_accuracy=11.0), net(two, step=4, test_accuracy=22.0)]},
        {"nets": [net(one, status="ok", done=True), net(three, status="failed", error="loss is nan", done=True)]},
    ]
    for result in results:
        result |= {"done": False, "hostname": "node"}
        searcher.on_trial_result("t", result)  # in Tune's order
        callback.on_trial_result(0, [], a_trial(config), result)
    last = {**ends([two, four]), "hostname": "node"}
    callback.on_trial_result(0, [], a_trial(config), last)
    searcher.on_trial_complete("t", last)
    assert [each for each in hears.events if each[0] == "epoch"] == [("epoch", one, 1, 11.0), ("epoch", two, 4, 22.0)]
    assert [each for each in hears.events if each[0] in ("done", "failed")] == [
        ("done", one),
        ("failed", three, "loss is nan"),
        ("done", two),
        ("done", four),
    ]
    over = Counter(each[1] for each in hears.events if each[0] == "over")
    assert {key: over[key] for key in keys_of(config)} == dict.fromkeys(keys_of(config), 1)
    assert {each[2] for each in hears.events if each[0] == "shown"} == {"node"}


def test_death_of_a_trial_is_that_of_those_that_had_not_ended(plan: Plan) -> None:
    searcher = new_searcher(plan)
    config = searcher.suggest("t")
    one, *others = keys_of(config)
    callback, hears = told(searcher)
    result = {"nets": [net(one, status="ok", done=True)], "done": False}
    searcher.on_trial_result("t", result)
    callback.on_trial_result(0, [], a_trial(config), result)
    searcher.on_trial_complete("t", error=True)
    assert [each for each in hears.events if each[0] in ("done", "failed")] == [
        ("done", one),
        *(("failed", key, "the trial died") for key in others),
    ]


def test_what_comes_after_the_end_is_nobody_s(plan: Plan) -> None:
    searcher = new_searcher(plan)
    config = searcher.suggest("t")
    callback, hears = told(searcher)
    result = {"nets": [net(key, status="ok", done=True) for key in keys_of(config)], "done": False}
    searcher.on_trial_result("t", result)
    callback.on_trial_result(0, [], a_trial(config), result)
    heard = list(hears.events)
    assert sum(each[1] in keys_of(config) for each in heard) == 2 * 4, "done and over"
    for late in (result, {"status": "out_of_memory", "done": True}):
        searcher.on_trial_result("t", late)
        callback.on_trial_result(0, [], a_trial(config), late)
    searcher.on_trial_complete("t", late)
    assert hears.events == heard
    assert {searcher.state[key] for key in keys_of(config)} == {DONE}


def test_result_of_a_single_job_is_that_job_s() -> None:
    assert by_net({"status": "ok"}, ["key"]) == {"key": {"status": "ok"}}
    assert by_net({"status": "ok"}, []) == {}
