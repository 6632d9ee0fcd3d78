"""The callback that passes Ray Tune's events on to the searcher, the display and the tracker."""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune import Callback

from study.scheduling.searcher import PlanSearcher
from study.scheduling.session import place_of
from study.scheduling.states import DONE, FAILED, RUNNING
from trainables import schema
from trainables.tune import STATUS_OK, by_net

if TYPE_CHECKING:
    from study.progress import Progress
    from study.tracking.delivery import Tracker

_PASSED_ON = ("timestamp", *schema.EPOCH_METRICS, *schema.SYSTEM_METRICS)


ROUND_SECONDS: Final = 5.0
"""Seconds between two checks for silent trials."""
GRACE_SECONDS: Final = 60.0
"""Seconds that the driver waits beyond the limit of a trial's own watchdog, which reports where the trial hung."""
STILL_SECONDS: Final = 60.0
"""After this many seconds of silence the driver asks the store for the results: a trial may hang after publishing."""


@dataclass
class _Silence:
    """The silence of a trial.

    Attributes:
        since: monotonic seconds of the trial's last result.
        asked: monotonic seconds of the last question to the store about the trial's jobs; 0 if there was none.
        published: the store's pending answers, one for each job.
    """

    since: float
    asked: float = 0.0
    published: Sequence[Future[bool]] = ()


class Stuck(RuntimeError):
    """No node is left for the trials that Tune holds; the experiment must be restarted."""


class StudyCallback(Callback):  # type: ignore[misc] # ray is untyped
    """Tells the searcher what Tune does not tell it, and reports the jobs' progress to the tracker and the display.

    Tune pickles callbacks when the Tuner is created, so the live parts are attached afterwards. No method waits, and
    none raises except for ``Stuck``: an exception in a callback ends the experiment.
    """

    directory: Path | None = None
    """Directory of the experiment's files on this machine; None until a trial has started."""
    _searcher: PlanSearcher | None = None
    _tracker: Tracker | None = None
    _progress: Progress | None = None

    def __init__(self) -> None:
        self._open: dict[str, list[str]] = {}
        """Id of a trial -> keys of its jobs that have not ended."""
        self._unconfirmed: set[str] = set()
        """Jobs that their trials report as done and that the store has not confirmed yet."""
        self._trials: Sequence[Any] = ()
        self._silences: dict[str, _Silence] = {}
        self._killed: dict[str, str] = {}
        self._round = 0.0

    def attach(
        self,
        searcher: PlanSearcher,
        tracker: Tracker | None = None,
        progress: Progress | None = None,
        *,
        max_silence: float = 0.0,
        published: Callable[[str], Future[bool]] | None = None,
    ) -> None:
        """Connect the parts that live in the driver.

        Args:
            searcher: hands out the jobs.
            tracker: records the jobs in MLflow.
            progress: shows the jobs.
            max_silence: seconds after which a silent trial of one network counts as hung; 0: never.
            published: asks the store for a job's results.
        """
        self._searcher, self._tracker, self._progress = searcher, tracker, progress
        self._max_silence, self._published = max_silence, published
        searcher.deaths = self.death

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Check for silent trials, and for jobs that the store has confirmed since the last call.

        Raises:
            Stuck: no node is left for the trials that Tune holds.
        """
        self._trials = trials
        self.settle()
        if self._searcher is None or time.monotonic() - self._round < ROUND_SECONDS:
            return
        self._round = time.monotonic()
        if self._searcher.is_stuck():
            raise Stuck
        for trial in trials:
            if trial.status in ("PENDING", "RUNNING") and trial.temporary_state.ray_actor is not None:
                self._listen(trial)

    def settle(self) -> None:
        """Tell the tracker which jobs the store has confirmed."""
        for key in list(self._unconfirmed):
            state = self._searcher.state[key] if self._searcher is not None else DONE
            if state != RUNNING:
                self._unconfirmed.discard(key)
            if state == DONE and self._tracker is not None:
                self._tracker.done(key)

    def _listen(self, trial: Any) -> None:
        """Kill a trial that has been silent for too long, or whose jobs are all published."""
        silence = self._silences.setdefault(trial.trial_id, _Silence(time.monotonic()))
        keys, seconds = self._keys(trial), time.monotonic() - silence.since
        if self._max_silence and seconds > len(keys) * self._max_silence + GRACE_SECONDS:
            self._kill(trial, f"nothing was heard of it for {seconds:.0f} s (--max-silence)")
        elif silence.published and all(answer.done() for answer in silence.published):
            answers, silence.published = silence.published, ()
            if all(answer.exception() is None and answer.result() for answer in answers):
                self._kill(trial, f"silent for {seconds:.0f} s, and published")
        elif time.monotonic() - max(silence.since, silence.asked) > STILL_SECONDS and self._published is not None:
            silence.asked, silence.published = time.monotonic(), [self._published(key) for key in keys]

    def _kill(self, trial: Any, reason: str) -> None:
        self._killed[trial.trial_id] = reason
        self._silences.pop(trial.trial_id)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(trial.temporary_state.ray_actor)

    def death(self, trial_id: str) -> dict[str, str]:
        """Return why a trial has died, and its node if the node may be to blame; see ``PlanSearcher.deaths``."""
        trial = next((each for each in reversed(self._trials) if each.trial_id == trial_id), None)
        if trial is None:
            return {}
        error, actor = _error(trial), trial.temporary_state.ray_actor
        actor_id = actor._actor_id.hex() if actor is not None else getattr(error, "actor_id", None)
        node, hostname = place_of(actor_id) if actor_id else ("", "")
        # Other errors come from the network between nodes, or from a lost node.
        at_fault = isinstance(error, ActorDiedError | RayTaskError) and "node has died" not in str(error)
        return {
            "error": self._killed.get(trial_id) or _reason(trial, error),
            "node": node if at_fault or trial_id in self._killed else "",
            "hostname": hostname,
        }

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Tell the searcher that a trial has got its resources."""
        if self._searcher is not None:
            self._searcher.on_trial_start(trial.trial_id)
        if self.directory is None and trial.local_path:
            self.directory = Path(trial.local_path).parents[1]  # .../EXPERIMENT/driver_artifacts/TRIAL

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Pass on epochs, and the ends of jobs whose trial goes on with other jobs."""
        self._silences[trial.trial_id] = _Silence(time.monotonic())
        keys = self._keys(trial)
        for key, row in by_net(result, keys).items():
            self._epoch(key, row)
            if row.get("done") and not result.get("done"):
                keys.remove(key)
                self.ended(key, has_result=row.get("status") == STATUS_OK)

    def _epoch(self, key: str, result: Mapping[str, Any]) -> None:
        if self._progress is not None:
            self._progress.result(key, result)
        if self._tracker is not None and result.get("job_key") == key and "step" in result:
            row = {name: result[name] for name in _PASSED_ON if name in result}
            self._tracker.epoch(key, {"step": result["step"], **row})

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Pass the end of its jobs on; the searcher knows it already."""
        keys, result = self._keys(trial), trial.last_result or {}
        rows = by_net(result, keys)
        for key in keys:
            self.ended(key, has_result=rows.get(key, result).get("status") == STATUS_OK)
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Pass the end of its jobs on; the searcher knows it already."""
        for key in self._keys(trial):
            self.ended(key)
        self._forget(trial)

    def _forget(self, trial: Any) -> None:
        for of_trial in (self._open, self._silences, self._killed):
            of_trial.pop(trial.trial_id, None)

    def _keys(self, trial: Any) -> list[str]:
        """Return the keys of a trial's jobs that have not ended; the caller may change the list in place."""
        if trial.trial_id not in self._open:
            mates = json.loads(trial.config.get("mates", "[]"))
            self._open[trial.trial_id] = [str(each["key"]) for each in (trial.config, *mates)]
        return self._open[trial.trial_id]

    def ended(self, key: str, has_result: bool = False) -> None:
        """Pass on that a job has ended, and how.

        Args:
            key: key of the job.
            has_result: whether the trial reports the job as published.
        """
        if self._progress is not None:
            self._progress.ended(key)
        if self._tracker is None or self._searcher is None:
            return
        if has_result:
            self._unconfirmed.add(key)
            self.settle()
        elif self._searcher.state.get(key) == FAILED:
            self._tracker.failed(key, self._searcher.errors[key])


def _error(trial: Any) -> Exception | None:
    """Return the exception with which Ray reports the death of a trial; None if it cannot be read."""
    with contextlib.suppress(Exception):  # unpickling a foreign exception may raise anything
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error if isinstance(error, Exception) else None
    return None


def _reason(trial: Any, error: Exception | None) -> str:
    """Return the message of a trial's exception, without the traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}".splitlines()[0].strip()
    with contextlib.suppress(OSError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8").strip()
        if text:
            return text.splitlines()[-1].strip()
    return "the trial died"
