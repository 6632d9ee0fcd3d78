"""Ray Tune's events, passed on to whoever shows or records them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from study.searcher import FAILED, PlanSearcher
from trainables import schema

if TYPE_CHECKING:
    from study.progress import Progress
    from study.tracking import Tracker

_PASSED_ON = ("timestamp", *schema.EPOCH_METRICS)


class StudyCallback(Callback):  # type: ignore[misc] # ray is untyped
    """Tells the tracker and the progress display what happens to the jobs.

    Tune pickles callbacks when the Tuner is made, so the live parts are attached afterwards. Nothing here raises or
    waits: an exception in a callback would end the sweep.
    """

    _searcher: PlanSearcher | None = None

    def attach(self, searcher: PlanSearcher, tracker: Tracker, progress: Progress) -> None:
        """Connect the parts that live in the driver."""
        self._searcher, self._tracker, self._progress = searcher, tracker, progress

    def _key(self, trial: Any) -> str:
        return str(trial.config["key"])

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Pass an epoch on."""
        key = self._key(trial)
        self._progress.result(key, result)
        if result.get("job_key") == key and "step" in result:
            row = {name: result[name] for name in _PASSED_ON if name in result}
            self._tracker.epoch(key, {"step": result["step"], **row})

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Pass the end of a job on."""
        key, result = self._key(trial), trial.last_result or {}
        self._progress.ended(key)
        if result.get("error"):
            self._tracker.failed(key, str(result["error"]))
        else:
            self._tracker.done(key)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Note why a trial died, if it was the last attempt at its job."""
        key = self._key(trial)
        self._progress.ended(key)
        if self._searcher is None or self._searcher.state.get(key) != FAILED:
            return
        self._searcher.errors[key] = error = _last_line(trial)
        self._tracker.failed(key, error)


def _last_line(trial: Any) -> str:
    """Return what a trial's exception said, without the trace."""
    with contextlib.suppress(OSError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8").strip()
        if text:
            return text.splitlines()[-1].strip()
    return "the trial died"
