"""What a sweep that did not go well says at its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from one_node import one_node
from tiny_study import tiny_space

from analysis.drawing.signs import DASH
from study.estimate import Estimates
from study.outcome import NAMED_FAILURES, NAMED_VICTIMS, note_failures, print_results, report_failures, report_missing
from study.plan import Plan, make_plan
from study.scheduling.searcher import PlanSearcher
from study.scheduling.states import DONE, FAILED
from study.tracking.labels import run_name
from trainables import schema
from trainables.storage.store import StorageError, Store

OK = {"status": "ok"}
COMMAND = "python -m study.run --space tiny"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space(sparsity=(0.5, 0.9)))


def new_searcher(plan: Plan) -> PlanSearcher:
    estimates = Estimates(dict.fromkeys(plan.jobs, 1.0), 0)
    return PlanSearcher(plan, plan.closure.todo(set()), estimates, {}, hosts=one_node())


def run_all(plan: Plan, bad: dict[str, str], status: str = "died") -> PlanSearcher:
    """Play a sweep in which the jobs in `bad` fail with these errors."""
    searcher = new_searcher(plan)
    while isinstance(config := searcher.suggest("t"), dict):
        error = bad.get(config["key"])
        searcher.on_trial_complete("t", {"status": status, "error": error} if error else OK)
    return searcher


def name(plan: Plan, key: str) -> str:
    return run_name(plan.jobs[key], plan.cells[key])


def by_kind(plan: Plan) -> str:
    kinds = [job.kind for job in plan.jobs.values()]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def last(plan: Plan, kind: str) -> str:
    return [key for key, job in plan.jobs.items() if job.kind == kind][-1]


def test_a_study_that_went_well_says_nothing(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert not report_failures(plan, run_all(plan, {}), COMMAND)
    assert not report_failures(plan, run_all(plan, {}), COMMAND, ended="Tune stumbled when all was done")
    assert capsys.readouterr().err == ""


def test_failure_is_named_with_its_error_and_its_victims(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    bad = last(plan, schema.PRUNE)
    searcher = run_all(plan, {bad: "loss is nan"})
    victims = [key for key in searcher.state if searcher.state[key] == "blocked"]
    assert 1 < len(victims) <= NAMED_VICTIMS
    assert report_failures(plan, searcher, COMMAND)
    names = ", ".join(name(plan, key) for key in victims)
    assert capsys.readouterr().err.splitlines() == [
        f"failed: {name(plan, bad)} ({bad[:12]}): loss is nan; it blocked {len(victims)} jobs: {names}",
        f"to retry only these: {COMMAND}",
    ]


def test_a_retry_is_offered_only_where_it_can_help(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    bad, other = last(plan, schema.PRUNE), last(plan, schema.MATCH)
    report_failures(plan, run_all(plan, {bad: "lr=90 diverged"}, "failed"), COMMAND)
    closing = capsys.readouterr().err.splitlines()[-1]
    assert closing == f"these jobs would fail again: fix what the errors name, then run: {COMMAND}"
    searcher = run_all(plan, {bad: "lr=90 diverged", other: "the GPU fell off the bus"}, "failed")
    searcher.recurring.discard(other)
    report_failures(plan, searcher, COMMAND)
    assert capsys.readouterr().err.splitlines()[-1] == f"to retry only these: {COMMAND}"


def test_hosts_that_are_out_are_named_but_leave_a_study_complete(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    searcher = run_all(plan, {})
    searcher._hosts.out["f00"] = "host-a: no data here"
    assert not report_failures(plan, searcher, COMMAND)
    assert capsys.readouterr().err == "warning: no more jobs for host-a: no data here\n"


def test_results_that_are_gone_are_named(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    gone = last(plan, schema.SPARSE)
    report_missing(plan, [gone], COMMAND)
    assert capsys.readouterr().err.splitlines() == [
        f"gone: {name(plan, gone)} ({gone[:12]}) was published but is no longer in the store",
        f"to compute only these again: {COMMAND}",
    ]


def test_no_credentials_in_what_is_said(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, store = last(plan, schema.SPARSE), Store(tmp_path)
    searcher = run_all(plan, {bad: "cannot read https://me:secret@host/data"})
    report_failures(plan, searcher, COMMAND)
    note_failures(store, searcher, 1)
    err, note = capsys.readouterr().err, store.failure(bad)
    assert note is not None
    for text in (err, note["error"]):
        assert "host/data" in text
        assert "secret" not in text


def test_of_many_victims_some_are_named(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    bad = next(iter(plan.jobs))
    searcher = run_all(plan, {bad: "loss is nan"})
    victims = sum(state == "blocked" for state in searcher.state.values())
    report_failures(plan, searcher, COMMAND)
    line = capsys.readouterr().err.splitlines()[0]
    assert f"; it blocked {victims} jobs: " in line
    assert line.endswith(f" and {victims - NAMED_VICTIMS} more")
    assert line.count(" · A0") == 1 + NAMED_VICTIMS


def test_each_victim_is_counted_once_under_the_failure_that_it_waited_for(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (last(plan, kind) for kind in (schema.PRUNE, schema.SPARSE))
    searcher = run_all(plan, {first: "nan", second: "inf"})
    report_failures(plan, searcher, COMMAND)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("failed: ") for line in lines) == sum(s == FAILED for s in searcher.state.values())


def test_hundreds_of_failures_are_named_by_their_causes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=tuple(range(NAMED_FAILURES + 30))))
    searcher = run_all(plan, dict.fromkeys(plan.jobs, "no such data"))
    assert report_failures(plan, searcher, COMMAND)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == NAMED_FAILURES + 2
    assert lines[-2] == "failed: 30 more: no such data"


def test_storage_that_is_away_is_the_one_thing_that_is_said(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    searcher = new_searcher(plan)
    searcher.suggest("t")
    searcher.on_trial_complete("t", {"status": "storage", "error": "storage /data: No space left on device"})
    assert report_failures(plan, searcher, COMMAND)
    early, left, command = capsys.readouterr().err.splitlines()
    assert early == "the study ended early: storage /data: No space left on device"
    assert left == f"not run: {len(plan.jobs)} jobs ({by_kind(plan)})"
    assert command == f"to run the remaining jobs (published results are kept): {COMMAND}"


def test_sweep_that_tune_has_ended_says_why(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    searcher = new_searcher(plan)
    assert report_failures(plan, searcher, COMMAND, ended="the head is out of reach")
    assert "the study ended early: the head is out of reach\n" in capsys.readouterr().err


def test_the_table_comes_with_what_the_store_has(own_copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(tiny_space(interpolation_points=3))
    print_results(plan, own_copy)
    whole = capsys.readouterr().out
    assert re.search(r"0\.25 +50% +1( +[\d.±]+ \(\d\)){4} ", whole), whole
    gone = last(plan, schema.SPARSE)
    own_copy.remove(gone)
    print_results(plan, own_copy)
    assert f"{DASH} (0/1)" in capsys.readouterr().out


def test_a_storage_that_cannot_be_read_costs_the_table_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise StorageError("storage https://me:secret@host: gone")

    monkeypatch.setattr(Store, "results", away)
    print_results(plan, Store(tmp_path))
    assert capsys.readouterr().out == "warning: the table of results cannot be made: storage https://***@host: gone\n"


def test_job_whose_process_died_gets_the_note_that_it_could_not_leave(plan: Plan, tmp_path: Path) -> None:
    store, (first, second) = Store(tmp_path), [key for key, job in plan.jobs.items() if job.kind == schema.DENSE]
    store.record_failure(first, {"error": "RuntimeError: of its own", "at": 1, "environment": {}, "log": "epoch 1"})
    searcher = run_all(plan, {first: "of its own", second: "the trial died"})
    note_failures(store, searcher, 7)
    assert store.failures() == {first, second}
    own, noted = store.failure(first), store.failure(second)
    assert own is not None
    assert own["log"] == "epoch 1"
    assert noted is not None
    assert (noted["error"], noted["at"]) == ("the trial died", 7)
    assert all(searcher.state[key] != DONE for key in (first, second))


def test_last_attempt_at_a_failed_job_leaves_its_log(plan: Plan, tmp_path: Path) -> None:
    store, key = Store(tmp_path), last(plan, schema.DENSE)
    store.record_attempt(key, {"error": "RuntimeError: cuDNN error", "at": 1, "environment": {}, "log": "epoch 1"})
    note_failures(store, run_all(plan, {key: "cuDNN error"}), 7)
    assert store.failure(key) == {"error": "cuDNN error", "at": 7, "environment": {}, "log": "epoch 1"}
