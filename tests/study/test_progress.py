"""What a person reads while a study runs."""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Callable

import pytest
from one_node import one_node
from tiny_study import tiny_space
from waiting import wait_until

from study import progress as module
from study.estimate import Estimates
from study.plan import Plan, make_plan
from study.progress import Progress
from study.scheduling.searcher import PlanSearcher
from study.scheduling.states import DONE
from study.tracking.labels import name_in
from trainables import schema
from trainables.host.clock import duration

OK = {"status": "ok"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(stream: io.StringIO) -> str:
    """Return what was written without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space())


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of displays; the time that a test itself takes is none on it."""
    each = Clock()
    monkeypatch.setattr(module.time, "monotonic", each)
    return each


def new_progress(
    plan: Plan, slots: Callable[[], int] = lambda: 1, stream: io.StringIO | None = None
) -> tuple[PlanSearcher, Progress]:
    """Return searcher and display of a study whose jobs all take ten seconds."""
    estimates = Estimates(dict.fromkeys(plan.jobs, 10.0), 0)
    searcher = PlanSearcher(plan, plan.closure.todo(set()), estimates, {}, hosts=one_node())
    searcher.slots = slots  # type: ignore[method-assign]
    return searcher, Progress(plan, searcher, estimates, stream or io.StringIO())


def finish(searcher: PlanSearcher, count: int, error: bool = False) -> None:
    for _ in range(count):
        assert isinstance(searcher.suggest("trial"), dict)
        searcher.on_trial_complete("trial", None if error else OK, error=error)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (48, "48 s"),
        (89.4, "89 s"),
        (185, "3 min 5 s"),
        (599.4, "9 min 59 s"),
        (42 * 60, "42 min"),
        (89.4 * 60, "89 min"),
        (200 * 60, "3 h 20 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_first_comparison_of_methods_is_printed_once_it_is_complete(plan: Plan) -> None:
    stream = io.StringIO()
    searcher, progress = new_progress(plan, stream=stream)
    sparse = [key for key, job in plan.jobs.items() if job.kind == schema.SPARSE]
    assert {plan.cells[key].method for key in sparse} == {"lth", "naive", "permuted"}
    for number, key in enumerate(sparse, 1):
        assert "first result" not in stream.getvalue()
        progress.result(key, {"epoch": 1, schema.TEST_ACCURACY: 90.0 + number})
        searcher.state[key] = DONE
        progress.ended(key)
    (line,) = stream.getvalue().splitlines()
    for number, key in enumerate(sparse, 1):
        assert f"{name_in(plan, key)} {90 + number}.0 %" in line


def test_line_at_the_start_and_at_the_end(plan: Plan) -> None:
    searcher, progress = new_progress(plan)
    jobs = "dense 0/2, prune 0/4, match 0/1, sparse 0/3"
    total = f"done: {jobs}, epochs 0/{plan.epochs}; 0 running, 10 waiting; about 100 s left"
    assert progress.line().strip() == "0 s  " + total.replace("100 s", "1 min 40 s")
    finish(searcher, 10)
    jobs = f"dense 2/2, prune 4/4, match 1/1, sparse 3/3, epochs {plan.epochs}/{plan.epochs}"
    assert progress.line().strip() == f"0 s  done: {jobs}; 0 running, 0 waiting"
    assert progress.seconds_left() is None


def test_epochs_that_nobody_needs_are_not_counted() -> None:
    plan = make_plan(tiny_space(method=("dense", "naive"), rewind_epoch=1))
    searcher, progress = new_progress(plan)
    assert f"epochs 0/{plan.epochs};" in progress.line()
    assert plan.epochs < sum(job.epochs for job in plan.jobs.values()), "net B trains up to its rewind epoch"
    finish(searcher, len(plan.jobs))
    assert f"epochs {plan.epochs}/{plan.epochs};" in progress.line()


def test_line_counts_running_failed_and_blocked(plan: Plan) -> None:
    searcher, progress = new_progress(plan)
    first = searcher.suggest("first")
    assert isinstance(first, dict)
    assert "; 0 running, 10 waiting; about" in progress.line(), "Ray has no room for it yet"
    searcher.on_trial_start("first")
    assert "; 1 running, 9 waiting; about" in progress.line()
    searcher.on_trial_complete("first", None, error=True)
    blocked = sum(state == "blocked" for state in searcher.state.values())
    assert blocked >= 4
    assert f"; 0 running, {9 - blocked} waiting, 1 failed, {blocked} blocked" in progress.line()


def test_estimate_of_what_is_left_is_the_estimates_until_something_is_measured(plan: Plan) -> None:
    searcher, progress = new_progress(plan)
    assert progress.seconds_left() == pytest.approx(100.0)
    finish(searcher, 3)
    assert progress.seconds_left() == pytest.approx(70.0), "no result has been seen: nothing to correct it by"


def test_longest_chain_limits_how_much_more_slots_help(plan: Plan) -> None:
    _, progress = new_progress(plan, slots=lambda: 100)
    assert progress.seconds_left() == pytest.approx(10.0 * (1 + 4 + 1)), "a dense net, four rounds, a sparse net"


@pytest.mark.parametrize("speed", [0.1, 1.0, 10.0])
def test_estimate_follows_the_pace(plan: Plan, clock: Clock, speed: float) -> None:
    searcher, progress = new_progress(plan)
    key = next(iter(plan.jobs))
    progress.result(key, {"epoch": 1})
    finish(searcher, 5)
    clock.now += 50.0 * speed
    assert progress.seconds_left() == pytest.approx(50.0 * speed, rel=0.01)


@pytest.mark.parametrize("first", [1, 3])
def test_estimate_follows_the_pace_of_epochs_before_a_job_ends(clock: Clock, first: int) -> None:
    """An epoch takes ten seconds, not the estimated one. What an earlier start did before the first epoch was free."""
    plan = make_plan(tiny_space(epochs=10, method=("dense",), seeds=(0, 1)))
    searcher, progress = new_progress(plan)
    config = searcher.suggest("t")
    assert isinstance(config, dict)
    searcher.on_trial_start("t")
    for epoch in range(first, 6):
        progress.result(config["key"], {"epoch": epoch})
    assert (len(plan.jobs), plan.epochs) == (2, 20)
    assert "epochs 5/20; 1 running, 1 waiting" in progress.line()
    clock.now += 10.0 * (6 - first)
    assert progress.seconds_left() == pytest.approx(150.0, rel=0.01)


def test_a_job_that_waits_or_starts_again_loses_no_epochs(clock: Clock) -> None:
    plan = make_plan(tiny_space(epochs=10, method=("dense",)))
    searcher, progress = new_progress(plan)
    config = searcher.suggest("t")
    assert isinstance(config, dict)
    searcher.on_trial_start("t")
    for epoch in (0, 5, 0):  # it waits for a lease, goes on from a checkpoint, and waits again after an interruption
        progress.result(config["key"], {"epoch": epoch})
    assert f"epochs 5/{plan.epochs}; 1 running" in progress.line()
    clock.now += 10.0
    assert progress.seconds_left() == pytest.approx(50.0, rel=0.01), "one epoch took ten seconds"
    progress.result(config["key"], {"epoch": 1})  # its checkpoint was lost
    assert f"epochs 1/{plan.epochs}; 1 running" in progress.line()
    left = progress.seconds_left()
    assert left is not None
    assert left > 0


def test_estimate_knows_of_slots_that_come_and_go(plan: Plan, clock: Clock) -> None:
    slots = [4]
    searcher, progress = new_progress(plan, lambda: slots[0])
    progress.result(next(iter(plan.jobs)), {"epoch": 1})
    finish(searcher, 5)
    clock.now += 12.5  # 4 slots: 50 slot seconds for 50 estimated ones
    progress.seconds_left()
    slots[0] = 1
    assert progress.seconds_left() == pytest.approx(50.0, rel=0.01), "at the same pace per slot, on one of them"


def test_line_says_when_there_are_no_machines(plan: Plan, clock: Clock) -> None:
    searcher, progress = new_progress(plan)
    searcher.suggest("t")
    assert "waiting for machines" not in progress.line()
    clock.now += 40
    assert progress.line().endswith("; waiting for machines for 40 s")
    searcher.on_trial_start("t")
    assert "waiting for machines" not in progress.line()


def test_line_counts_what_is_not_run(plan: Plan) -> None:
    searcher, progress = new_progress(plan)
    searcher.suggest("t")
    searcher.on_trial_complete("t", {"status": "storage", "error": "no space left on device"})
    assert progress.line().strip().endswith("0 running, 0 waiting, 10 not run")
    assert progress.seconds_left() is None


def test_failure_takes_its_time_out_of_the_estimate(plan: Plan) -> None:
    searcher, progress = new_progress(plan)
    finish(searcher, 1, error=True)
    left = [key for key, state in searcher.state.items() if state in ("waiting", "ready")]
    assert progress.seconds_left() == pytest.approx(10.0 * len(left))


def test_plain_output_is_lines_without_escapes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.02)
    stream = io.StringIO()
    searcher, progress = new_progress(plan, stream=stream)
    with progress.shown():
        finish(searcher, 5)
        progress.result(next(iter(plan.jobs)), {"epoch": 1, schema.TEST_ACCURACY: 50.0})
        wait_until(lambda: "\n" in stream.getvalue(), "no line is written")
        finish(searcher, 5)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert all(re.match(r" +\d+ s  done: ", line) for line in lines)
    jobs = f"dense 2/2, prune 4/4, match 1/1, sparse 3/3, epochs {plan.epochs}/{plan.epochs}"
    assert lines[-1].endswith(f"done: {jobs}; 0 running, 0 waiting")
    assert all(first != second for first, second in itertools.pairwise(lines)), "nothing is said twice"


def test_terminal_shows_running_jobs_by_name(plan: Plan) -> None:
    stream = Terminal()
    searcher, progress = new_progress(plan, stream=stream)
    config = searcher.suggest("t")
    assert isinstance(config, dict)
    with progress.shown():
        progress.result(config["key"], {"epoch": 2, schema.TEST_ACCURACY: 71.25, "hostname": "worker-3.cluster.local"})
        wait_until(lambda: re.search(r"dense · w0\.25 · A0 +worker-3 +epoch 2/3 +71\.2 %", plain(stream)))
        progress.ended(config["key"])
    assert re.search(r"prune +━* +0 +0 +4 +0 +4", plain(stream))


def test_terminal_shows_what_ended_last_if_it_ended_well(plan: Plan) -> None:
    stream = Terminal()
    searcher, progress = new_progress(plan, stream=stream)
    keys = []
    for trial, accuracy in (("good", 71.25), ("bad", 12.5)):
        config = searcher.suggest(trial)
        assert isinstance(config, dict)
        keys.append(config["key"])
        progress.result(config["key"], {"epoch": 3, schema.TEST_ACCURACY: accuracy})
        searcher.on_trial_complete(trial, OK if trial == "good" else None, error=trial == "bad")
        progress.ended(config["key"])
    with progress.shown():
        wait_until(lambda: re.search(r"dense · .* done +71\.2 %", plain(stream)))
    assert "12.5 %" not in plain(stream)


def test_display_survives_the_driver_changing_states_beside_it(plan: Plan) -> None:
    failures: list[BaseException] = []
    looks: list[None] = []
    stop = threading.Event()
    searcher, progress = new_progress(plan)

    def look() -> None:
        while not stop.is_set():
            try:
                progress.line()
                progress._table()
                looks.append(None)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    while thread.is_alive() and len(looks) < 100:
        searcher.suggest("t")
        searcher.on_trial_start("t")
        searcher.on_trial_complete("t", OK)
    stop.set()
    thread.join()
    assert failures == []
