"""Trials that are silent: the driver ends those that have hung, and those with nothing more to do, and no others."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from study.scheduling import callback as callback_module
from study.scheduling.callback import GRACE_SECONDS, ROUND_SECONDS, STILL_SECONDS, StudyCallback
from study.scheduling.searcher import Trial
from trainables.trial_results import STATUS_DIED, STATUS_OK

HOUR = 3600.0


class Watch:
    """A driver with one trial of two networks, whose clock a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, published: set[str], max_silence: float) -> None:
        self.now, self.killed = 1000.0, list[Any]()
        monkeypatch.setattr(callback_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        self.trial: Any = SimpleNamespace(
            trial_id="t",
            temporary_state=SimpleNamespace(ray_actor="its actor"),
            pickled_error_file=None,
            error_file=None,
        )
        self.asked: list[str] = []

        def ask(key: str) -> Future[bool]:
            self.asked.append(key)
            future: Future[bool] = Future()
            future.set_result(key in published)
            return future

        self.its = its = Trial("t", ["one", "two"], {"CPU": 1.0}, frozenset(), since=0.0)
        searcher: Any = SimpleNamespace(is_stuck=lambda: False, trials={"t": its})
        self.callback = StudyCallback()
        self.callback.attach(searcher, max_silence=max_silence, published=ask)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / ROUND_SECONDS)):
            self.now += ROUND_SECONDS
            self.callback.on_step_begin(0, [self.trial])


def test_trial_is_killed_when_its_patience_and_some_more_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, set(), HOUR)
    watch.wait(HOUR)
    assert watch.killed == [], "its own watchdog comes first"
    watch.wait(GRACE_SECONDS + 2 * ROUND_SECONDS)
    assert watch.killed == ["its actor"]


def test_trial_that_says_something_now_and_then_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, set(), HOUR)
    for _ in range(3):
        watch.wait(0.75 * HOUR)
        watch.callback.on_trial_result(0, [], watch.trial, {"nets": []})
    assert watch.killed == []


def test_no_patience_is_endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, set(), 0.0)
    watch.wait(10 * HOUR)
    assert watch.killed == []


@pytest.mark.parametrize(("published", "killed"), [({"one"}, []), ({"two"}, []), ({"one", "two"}, ["its actor"])])
def test_silent_trial_is_killed_when_all_its_jobs_are_published(
    monkeypatch: pytest.MonkeyPatch, published: set[str], killed: list[str]
) -> None:
    watch = Watch(monkeypatch, published, HOUR)
    watch.wait(STILL_SECONDS)
    assert watch.asked == []
    watch.wait(3 * ROUND_SECONDS)
    assert watch.killed == killed
    monkeypatch.setattr(callback_module, "place_of", lambda actor: ("node", "host"))
    watch.trial.temporary_state.ray_actor = None
    watch.callback._trials = [watch.trial]
    died = {"status": STATUS_DIED, **watch.callback._searcher.deaths("t")}
    assert died["status"] == (STATUS_OK if killed else STATUS_DIED), "what is published has succeeded"


def test_store_is_asked_once_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, set(), HOUR)
    watch.wait(10 * STILL_SECONDS)
    assert 2 <= len(watch.asked) <= 2 * 10
