"""The callback that passes Ray Tune's events on to the searcher, the display and the tracker."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune import Callback

from study.scheduling.searcher import PlanSearcher, Trial
from study.scheduling.session import place_of
from study.scheduling.states import DONE, FAILED, RUNNING
from trainables import schema
from trainables.trial_results import STATUS_OK, by_net

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


class Stuck(RuntimeError):
    """No node is left for the trials that Tune holds; the experiment must be restarted."""


class StudyCallback(Callback):  # type: ignore[misc] # ray is untyped
    """Tells the searcher what Tune does not tell it, and reports the jobs' progress to the tracker and the display.

    Tune pickles callbacks when the Tuner is created, so the live parts are attached afterwards. No method waits, and
    none raises except for ``Stuck``: an exception in a callback ends the experiment.
    """

    directory: Path | None = None
    """Directory of the experiment's files on this machine; None until a trial has started."""
    _searcher: PlanSearcher
    _tracker: Tracker | None
    _progress: Progress | None
    _trials: Sequence[Any] = ()
    _round = 0.0

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
            max_silence: seconds after which a silent trial counts as hung, however many networks it trains; 0: never.
            published: asks the store for a job's results.
        """
        self._searcher, self._tracker, self._progress = searcher, tracker, progress
        self._max_silence, self._published = max_silence, published
        searcher.deaths, searcher.moved = self._death, self._moved

    def _moved(self, key: str, state: str) -> None:
        """Pass on that a job has stopped running, and how it ended; see ``PlanSearcher.moved``."""
        if self._progress is not None and state != RUNNING:
            self._progress.ended(key)
        if self._tracker is not None and state == DONE:
            self._tracker.done(key)
        if self._tracker is not None and state == FAILED:
            self._tracker.failed(key, self._searcher.errors[key])

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        """Check for silent trials.

        Raises:
            Stuck: no node is left for the trials that Tune holds.
        """
        self._trials = trials
        if time.monotonic() - self._round < ROUND_SECONDS:
            return
        self._round = time.monotonic()
        if self._searcher.is_stuck():
            raise Stuck
        for each in trials:
            its = self._searcher.trials.get(each.trial_id)
            if its is not None and each.temporary_state.ray_actor is not None:
                self._listen(its, each.temporary_state.ray_actor)

    def _listen(self, trial: Trial, actor: Any) -> None:
        """Kill a trial that has been silent for too long, or whose jobs are all published."""
        now, reason = time.monotonic(), ""
        trial.heard = trial.heard or now
        seconds = now - trial.heard
        if self._max_silence and seconds > self._max_silence + GRACE_SECONDS:
            reason = f"nothing was heard of it for {seconds:.0f} s (--max-silence)"
        elif trial.answers and all(answer.done() for answer in trial.answers):
            answers, trial.answers = trial.answers, []
            if all(answer.exception() is None and answer.result() for answer in answers):
                reason, trial.published = f"silent for {seconds:.0f} s, and published", True
        elif now - max(trial.heard, trial.asked_store) > STILL_SECONDS and self._published is not None:
            trial.asked_store, trial.answers = now, [self._published(key) for key in trial.keys]
        if reason:
            trial.killed, trial.heard = reason, now
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)

    def _death(self, trial_id: str) -> dict[str, str]:
        """Return why a trial has died, and its node if the node may be to blame; see ``PlanSearcher.deaths``.

        A trial that was killed because all its jobs are published has succeeded.
        """
        trial = next((each for each in reversed(self._trials) if each.trial_id == trial_id), None)
        if trial is None:
            return {}
        error, actor, its = _error(trial), trial.temporary_state.ray_actor, self._searcher.trials.get(trial_id)
        killed = its.killed if its is not None else ""
        actor_id = actor._actor_id.hex() if actor is not None else getattr(error, "actor_id", None)
        node, hostname = place_of(actor_id) if actor_id else ("", "")
        # Other errors come from the network between nodes, or from a lost node.
        at_fault = isinstance(error, ActorDiedError | RayTaskError) and "node has died" not in str(error)
        return {
            **({"status": STATUS_OK} if its is not None and its.published else {}),
            "error": killed or _reason(trial, error),
            "node": node if at_fault or killed else "",
            "hostname": hostname,
        }

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Tell the searcher that a trial has got its resources."""
        self._searcher.on_trial_start(trial.trial_id)
        if self.directory is None and trial.local_path:
            self.directory = Path(trial.local_path).parents[1]  # .../EXPERIMENT/driver_artifacts/TRIAL

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Pass on epochs."""
        its = self._searcher.trials.get(trial.trial_id)
        if its is None:
            return
        its.heard, its.answers = time.monotonic(), []
        for key, row in by_net(result, its.keys).items():
            if self._progress is not None:
                self._progress.result(key, row)
            if self._tracker is not None and row.get("job_key") == key and "step" in row:
                metrics = {name: row[name] for name in _PASSED_ON if name in row}
                self._tracker.epoch(key, {"step": row["step"], **metrics})


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
