"""Nodes that are broken get no more jobs: found out by the order of work, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from one_node import ask_by_width
from tiny_study import tiny_space

from study.estimate import Estimates
from study.plan import Plan, make_plan
from study.scheduling import searcher as searcher_module
from study.scheduling.cards import CARDS, GIB
from study.scheduling.hosts import FAILURES, Hosts, Node
from study.scheduling.placement import Need
from study.scheduling.searcher import FIRST_PAUSE, LONGEST_PAUSE, NO_MORE_TRIALS, PlanSearcher
from study.scheduling.states import DONE, FAILED, NOT_RUN, RUNNING
from trainables.storage.patience import PATIENCE_SECONDS
from trainables.storage.store import StorageError

CPUS = {"CPU": 4.0}
GPUS = {"CPU": 4.0, "GPU": 1.0}
OK = {"status": "ok"}
BROKEN = {"status": "host", "error": "no data here"}
DIED = {"status": "died", "error": "illegal memory access"}
AWAY = {"status": "storage", "error": "storage /data: Stale file handle"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space(method=("dense",), seeds=(0, 1, 2, 3), epochs=2))


class Cluster:
    """Nodes that tests may add or remove, and an order of work over them that plays Ray Tune, one trial at a time."""

    def __init__(self, plan: Plan, nodes: Mapping[str, Mapping[str, float]], **options: Any) -> None:
        self.nodes = {each: Node(f"host-{each}", dict(has)) for each, has in nodes.items()}
        self.hosts, self.lines, self.now = Hosts(lambda: self.nodes), list[str](), 0.0
        self.searcher = PlanSearcher(
            plan,
            plan.closure.todo(set()),
            Estimates(dict.fromkeys(plan.jobs, 1.0), 0),
            {},
            hosts=self.hosts,
            **{"say": self.lines.append, "clock": lambda: self.now, "retries": 3, **options},
        )
        self.deaths: dict[str, dict[str, str]] = {}
        self.searcher.deaths = lambda trial_id: self.deaths[trial_id]
        self.trials = 0
        self.places: list[tuple[str, str]] = []

    def suggest(self) -> tuple[str, dict[str, Any]] | None:
        """Take the next trial, after whatever pause it needs; None at the end."""
        while True:
            self.trials += 1
            config = self.searcher.suggest(f"t{self.trials}")
            if isinstance(config, dict):
                return f"t{self.trials}", config
            if config == NO_MORE_TRIALS:
                return None
            self.now += FIRST_PAUSE
            assert self.now < 100 * LONGEST_PAUSE, "nothing is handed out any more"

    def end(self, trial_id: str, node: str, result: Mapping[str, Any]) -> None:
        """End a trial on a node: a death is an error of Tune's, everything else a result."""
        whole = {**result, "node": node, "hostname": f"host-{node}"}
        self.searcher.on_trial_start(trial_id)
        if result["status"] == "died":
            self.deaths[trial_id] = whole
            self.searcher.on_trial_complete(trial_id, error=True)
        else:
            self.searcher.on_trial_complete(trial_id, whole)

    def run(self, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        """Run to the end on nodes of which each does the same with all jobs; the first that is allowed is free."""
        while (found := self.suggest()) is not None:
            trial_id, config = found
            node = next(each for each in outcomes if each in self.nodes and each not in config.get("avoided", ()))
            self.places.append((node, config["key"]))
            self.end(trial_id, node, outcomes[node])

    def states(self) -> set[str]:
        return set(self.searcher.state.values())


# --- several workers --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shared() -> Plan:
    """Jobs of which each has six workers."""
    return make_plan(tiny_space(method=("dense",), seeds=(0, 1), epochs=2, workers=6))


def test_a_trial_has_a_request_for_each_worker_on_one_node_where_it_fits(shared: Plan) -> None:
    asked = {}
    for number, nodes in enumerate(({"a": CPUS, "b": CPUS}, {"a": {"CPU": 8.0}})):
        found = Cluster(shared, nodes).suggest()
        assert found is not None
        config = found[1]
        asked[number] = config["workers"], config["resources"], config["together"]
    assert asked == {0: (6, {"CPU": 1.0}, False), 1: (6, {"CPU": 1.0}, True)}


def test_workers_are_counted_as_what_they_take(shared: Plan) -> None:
    cluster = Cluster(shared, {"a": CPUS, "b": CPUS}, ahead=0)
    trial = cluster.searcher.suggest("first")
    assert isinstance(trial, dict)
    assert cluster.searcher.slots() == 1
    assert cluster.searcher.suggest("second") is None, "two of eight CPUs are left"


def test_a_trial_makes_do_with_the_workers_that_are_left_only_if_it_may(shared: Plan) -> None:
    for elastic, left in ((True, 4), (False, 6)):
        cluster = Cluster(shared, {"a": CPUS, "b": CPUS}, elastic=elastic)
        found = cluster.suggest()
        assert found is not None
        assert found[1]["workers"] == 6
        del cluster.nodes["b"]
        cluster.end(found[0], "a", DIED)
        again = [cluster.suggest(), cluster.suggest()]
        assert [each and each[1]["workers"] for each in again] == [left, left]
        cluster.nodes["b"] = Node("host-b", CPUS)
        assert cluster.searcher.is_stuck() is False


def test_trials_that_wait_for_lost_workers_are_taken_back_if_they_may_be_smaller(shared: Plan) -> None:
    for elastic in (True, False):
        cluster = Cluster(shared, {"a": CPUS, "b": CPUS}, elastic=elastic)
        assert cluster.suggest() is not None
        del cluster.nodes["b"]
        assert cluster.searcher.is_stuck() is elastic


# --- a broken node ----------------------------------------------------------------------------------------------------
def test_node_that_refuses_gets_no_more_jobs_and_costs_none_an_attempt(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=0)
    cluster.run({"a": BROKEN, "b": OK})
    assert cluster.states() == {DONE}, cluster.searcher.errors
    assert [node for node, _ in cluster.places].count("a") == 1
    assert cluster.searcher.outs() == ["host-a: no data here"]
    assert cluster.lines[0] == "no more jobs for host-a: no data here"
    assert len(cluster.lines) == 2
    assert cluster.lines[1].endswith("no data here (on host-a); goes to another host, this attempt does not count")


def test_node_where_different_jobs_die_gets_no_more_and_they_are_not_charged(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=1)
    cluster.run({"a": DIED, "b": OK})
    assert cluster.states() == {DONE}, cluster.searcher.errors
    tried = [key for node, key in cluster.places if node == "a"]
    assert len(tried) == len(set(tried)) == FAILURES, "a further attempt is made elsewhere"
    assert "no more jobs for host-a: illegal memory access" in cluster.lines
    assert not any(cluster.searcher._vain.values())


def test_one_job_that_dies_everywhere_is_not_the_nodes_fault(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=3)
    bad = next(iter(plan.jobs))
    while (found := cluster.suggest()) is not None:
        trial_id, config = found
        node = next(each for each in ("a", "b") if each not in config.get("avoided", ()))
        cluster.end(trial_id, node, DIED if config["key"] == bad else OK)
    assert cluster.searcher.state[bad] == FAILED
    assert cluster.searcher.outs() == []
    assert sum(line.startswith("again: ") for line in cluster.lines) == 3, "every further attempt is a line"


@pytest.mark.parametrize(("trials", "jobs"), [(1, 10 * FAILURES), (10 * FAILURES, 1), (FAILURES, FAILURES)])
def test_a_node_is_out_after_several_trials_of_several_jobs(trials: int, jobs: int) -> None:
    hosts = Hosts(lambda: {"a": Node("host-a", CPUS), "b": Node("host-b", CPUS)})
    for number in range(max(trials, jobs)):
        out = hosts.failed("a", f"trial {number % trials}", f"job {number % jobs}", "died", surely=False)
    assert out == (min(trials, jobs) >= FAILURES), (
        "one death of a process is one event, however many networks it trains"
    )
    assert bool(hosts.out) == out


def test_what_works_in_between_clears_a_node() -> None:
    hosts = Hosts(lambda: {"a": Node("host-a", CPUS), "b": Node("host-b", CPUS)})
    for number in range(10 * FAILURES):
        assert not hosts.failed("a", f"trial {number}", f"job {number}", "died", surely=False)
        if (number + 1) % (FAILURES - 1) == 0:
            hosts.worked("a")
    assert not hosts.out


def test_attempts_that_trained_an_epoch_there_do_not_speak_against_a_node(plan: Plan) -> None:
    """As when somebody kills processes: all die, but none because the node cannot compute."""
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=3)
    for _ in range(FAILURES + 1):
        found = cluster.suggest()
        assert found is not None
        row = {"job_key": found[1]["key"], "step": 1, "epoch": 1, "node": "a"}
        cluster.searcher.on_trial_result(found[0], row)
        cluster.end(found[0], "a", DIED)
    assert cluster.searcher.outs() == []


def test_only_node_is_kept_as_long_as_jobs_only_die_there(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS}, retries=1)
    cluster.run({"a": DIED})
    assert cluster.states() == {FAILED}
    assert cluster.searcher.outs() == []


def test_head_without_cpus_is_no_other_node(plan: Plan) -> None:
    cluster = Cluster(plan, {"head": {"CPU": 0.0}, "a": CPUS}, retries=1)
    cluster.run({"a": DIED})
    assert cluster.searcher.outs() == []
    assert cluster.states() == {FAILED}


@pytest.mark.parametrize("nodes", [["a"], ["a", "b"], ["a", "b", "head"]])
def test_study_ends_when_no_host_is_left_and_says_so(plan: Plan, nodes: list[str]) -> None:
    cluster = Cluster(plan, {each: {"CPU": 0.0} if each == "head" else CPUS for each in nodes})
    cluster.run({"a": BROKEN, "b": BROKEN})
    assert cluster.states() == {NOT_RUN}
    assert cluster.searcher.halted is not None
    assert cluster.searcher.halted.startswith("no host is left; no more jobs for host-a: no data here")
    assert len(cluster.places) == len(set(nodes) - {"head"})


def test_jobs_that_fit_only_nodes_that_are_out_fail_and_the_others_go_on() -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=(0, 1), epochs=2, width=(0.25, 0.5)))
    needs = ask_by_width(plan, Need(cpus=4.0), Need(cpus=4.0, share=1.0))
    cluster = Cluster(plan, {"gpu": GPUS, "cpu": CPUS}, needs=needs)
    cluster.run({"gpu": BROKEN, "cpu": OK})
    for key, job in plan.jobs.items():
        assert cluster.searcher.state[key] == (FAILED if job.config.task.width == 0.5 else DONE)
    errors = set(cluster.searcher.errors.values())
    assert errors == {"no remaining host can run it; no more jobs for host-gpu: no data here"}


def test_a_cluster_that_may_grow_waits_for_a_node_that_is_not_out() -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=(0, 1), epochs=2))
    for grows_again in (True, False):
        nodes = {"out": CPUS, "lost": CPUS, "other": {"CPU": 1.0}}
        cluster = Cluster(plan, nodes, needs=ask_by_width(plan, *2 * [Need(cpus=4.0)]), ahead_in_growth=9)
        trial_id, _ = cluster.suggest() or ("", {})
        cluster.end(trial_id, "out", BROKEN)
        del cluster.nodes["lost"]
        for _ in range(5):
            cluster.now += LONGEST_PAUSE
            assert cluster.searcher.suggest("nowhere") is None
        assert FAILED not in cluster.states(), "its replacement may come"
        if grows_again:
            cluster.nodes["new"] = Node("host-new", CPUS)
        cluster.run({"new": OK})
        assert cluster.states() == {DONE if grows_again else FAILED}


def test_a_trial_that_waits_for_a_machine_keeps_no_smaller_one_from_starting() -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=(0,), epochs=2, width=(0.25, 0.5)))
    needs = ask_by_width(plan, Need(cpus=8.0), Need(cpus=1.0))
    cluster = Cluster(plan, {"large": {"CPU": 8.0}, "small": CPUS}, needs=needs, ahead=9)
    first = cluster.searcher.suggest("first")
    assert isinstance(first, dict)
    assert first["resources"] == {"CPU": 8.0}
    cluster.now += 2 * searcher_module.STARVING_SECONDS
    assert cluster.searcher.suggest("second") is None, "it would take what the larger one waits for"
    del cluster.nodes["large"]
    assert isinstance(cluster.searcher.suggest("third"), dict)


def test_a_trial_that_fits_no_node_of_its_kind_of_gpu_goes_to_another(plan: Plan) -> None:
    needs = ask_by_width(plan, *2 * [Need(cpus=16.0, share=None, memory=GIB)])
    cluster = Cluster(plan, {}, needs=needs, expected=CARDS["H100"])
    cluster.nodes = {
        "few CPUs": Node("host-a", {"CPU": 8.0, "GPU": 1.0}, CARDS["H100"]),
        "many CPUs": Node("host-b", {"CPU": 64.0, "GPU": 1.0}, CARDS["L4"]),
    }
    for _ in plan.jobs:
        found = cluster.suggest()
        assert found is not None
        assert cluster.hosts.fit(found[1]["resources"], found[1].get("avoided", ()))
    assert not cluster.searcher.is_stuck()


def test_trials_that_would_wait_again_are_not_taken_back(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, max_concurrent=1)
    trial_id, _ = cluster.suggest() or ("", {})
    cluster.end(trial_id, "a", BROKEN)
    assert cluster.suggest() is not None
    del cluster.nodes["b"]
    assert not cluster.searcher.is_stuck(), "Tune would be restarted for ever"


def test_node_that_comes_back_repaired_gets_jobs_again(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, max_concurrent=1)
    trial_id, _ = cluster.suggest() or ("", {})
    cluster.end(trial_id, "a", BROKEN)
    del cluster.nodes["a"], cluster.nodes["b"]
    cluster.nodes["a2"] = Node("host-a", CPUS)
    cluster.run({"a2": OK})
    assert cluster.states() == {DONE}


def test_what_a_node_that_is_out_has_is_no_room(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": GPUS})
    assert cluster.hosts.room() == {"CPU": 8.0, "GPU": 1.0}
    cluster.hosts.failed("a", "trial", "job", "no data", surely=True)
    assert cluster.hosts.room() == GPUS


def test_trials_that_may_run_nowhere_any_more_are_taken_back(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, max_concurrent=1)
    trial_id, config = cluster.suggest() or ("", {})
    cluster.end(trial_id, "a", DIED)
    other: dict[str, Any] = {}
    while config["key"] != other.get("key"):
        if other:
            cluster.end(trial_id, "b", OK)
        trial_id, other = cluster.suggest() or ("", {})
    assert other["avoided"] == ["a"]
    assert not cluster.searcher.is_stuck()
    del cluster.nodes["b"]
    assert cluster.searcher.is_stuck(), "it waits for a node other than the only one that is left"
    cluster.searcher.take_back()
    cluster.run({"a": OK})
    assert cluster.states() == {DONE}


def test_why_a_node_is_out_is_said_without_credentials() -> None:
    hosts = Hosts(lambda: {"a": Node("host-a", CPUS)})
    hosts.failed("a", "trial", "job", "cannot read https://me:secret@server/data", surely=True)
    (out,) = hosts.out.values()
    assert "server/data" in out
    assert "secret" not in out


# --- a node without the storage ---------------------------------------------------------------------------------------
def test_node_that_does_not_reach_the_storage_halts_no_study_and_gets_no_more_jobs(plan: Plan) -> None:
    cluster = Cluster(plan, dict.fromkeys("abcdefghij", CPUS), retries=3)
    cluster.run({"a": AWAY, "b": OK})
    assert cluster.states() == {DONE}, cluster.searcher.halted
    tried = [key for node, key in cluster.places if node == "a"]
    assert len(tried) == len(set(tried)), "a further attempt is made elsewhere"
    assert cluster.lines[0].startswith("again: ")
    assert "Stale file handle (on host-a); attempt 1 of 3 more" in cluster.lines[0]


def test_only_what_other_nodes_publish_meanwhile_speaks_against_a_node_without_the_storage(plan: Plan) -> None:
    for publishing, out in ((True, ["host-a: storage /data: Stale file handle"]), (False, [])):
        cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=9)
        found = [cluster.suggest() for _ in plan.jobs]
        for number, each in enumerate(found):
            assert each is not None
            works = publishing and number == 0
            cluster.end(each[0], "b" if works else "a", OK if works else AWAY)
        assert cluster.searcher.outs() == out, "all nodes may suffer the same outage"


def test_result_from_before_an_outage_speaks_against_no_node(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, retries=9)
    found = [cluster.suggest() for _ in plan.jobs]
    for number, each in enumerate(found):
        assert each is not None
        cluster.end(each[0], "b" if number == 0 else "a", AWAY if number else OK)
        cluster.now += PATIENCE_SECONDS
    assert cluster.searcher.outs() == []


@pytest.mark.parametrize("nodes", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_storage_that_two_nodes_or_the_only_one_do_not_reach_halts_the_study(plan: Plan, nodes: list[str]) -> None:
    cluster = Cluster(plan, dict.fromkeys(nodes, CPUS), retries=0, max_concurrent=1)
    cluster.run(dict.fromkeys(nodes, AWAY))
    assert cluster.searcher.halted == AWAY["error"]
    assert cluster.states() == {NOT_RUN}
    assert len({node for node, _ in cluster.places}) == min(2, len(nodes))


def test_driver_that_does_not_reach_the_storage_blames_no_node(plan: Plan) -> None:
    away = StorageError("storage /data: Stale file handle")
    cluster = Cluster(plan, {"a": CPUS, "b": CPUS}, stored=lambda key: answered(away), retries=1)
    cluster.run({"a": OK, "b": OK})
    assert {node for node, _ in cluster.places} == {"a"}
    assert (cluster.searcher.outs(), cluster.searcher.halted) == ([], str(away))


# --- what the store holds ---------------------------------------------------------------------------------------------
def answered(answer: bool | Exception) -> Future[bool]:
    future: Future[bool] = Future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    return future


def test_job_is_done_for_its_children_only_when_the_store_holds_it() -> None:
    plan = make_plan(tiny_space(method=("lth",), epochs=2))
    waiting: list[Future[bool]] = []

    def ask(key: str) -> Future[bool]:
        waiting.append(Future())
        return waiting[-1]

    cluster = Cluster(plan, {"a": CPUS}, stored=ask)
    trial_id, config = cluster.suggest() or ("", {})
    cluster.end(trial_id, "a", OK)
    assert cluster.searcher.state[config["key"]] == RUNNING
    assert cluster.searcher.suggest("later") is None, "neither its children nor the end"
    waiting[0].set_result(True)
    assert isinstance(cluster.searcher.suggest("then"), dict)
    assert cluster.searcher.state[config["key"]] == DONE


def test_job_whose_result_the_store_does_not_hold_is_tried_again_and_fails(plan: Plan) -> None:
    cluster = Cluster(plan, {"a": CPUS}, stored=lambda key: answered(False), retries=1)
    cluster.run({"a": OK})
    assert cluster.states() == {FAILED}
    assert set(cluster.searcher.errors.values()) == {"its trial has published it, but the store does not hold it"}
    assert len(cluster.places) == 2 * len(plan.jobs)


def test_store_that_does_not_answer_is_the_storage_s_fault(plan: Plan) -> None:
    away = StorageError("storage /data: Stale file handle")
    cluster = Cluster(plan, {"a": CPUS}, stored=lambda key: answered(away), retries=1, max_concurrent=1)
    cluster.run({"a": OK})
    assert cluster.states() == {NOT_RUN}
    assert cluster.searcher.halted == str(away)


def test_answers_that_come_late_are_not_waited_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher_module, "LOOK_SECONDS", 0.0)
    asked: dict[str, Future[bool]] = {}
    cluster = Cluster(plan, {"a": CPUS}, stored=lambda key: asked.setdefault(key, Future()))
    for _ in plan.jobs:
        trial_id, _config = cluster.suggest() or ("", {})
        cluster.end(trial_id, "a", OK)
    assert cluster.searcher.suggest("end") is None
    for future in asked.values():
        future.set_result(True)
    assert cluster.searcher.suggest("end") == NO_MORE_TRIALS
    assert cluster.states() == {DONE}
