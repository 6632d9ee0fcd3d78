"""Ray Tune's events, passed on to whoever orders, shows or records the jobs."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from study.searcher import PlanSearcher
from study.states import FAILED
from trainables import schema
from trainables.tune import STATUS_OK, by_net

if TYPE_CHECKING:
    from study.progress import Progress
    from study.tracking import Tracker

_PASSED_ON = ("timestamp", *schema.EPOCH_METRICS, *schema.SYSTEM_METRICS)


class StudyCallback(Callback):  # type: ignore[misc] # ray is untyped
    """Tells the searcher what Tune does not tell it, and the tracker and the display what happens to the jobs.

    Tune pickles callbacks when the Tuner is made, so the live parts are attached afterwards. Nothing here raises or
    waits: an exception in a callback would end the sweep.
    """

    directory: Path | None = None
    """Where Tune keeps the experiment's files on this machine, once a trial has started."""
    _searcher: PlanSearcher | None = None
    _tracker: Tracker | None = None
    _progress: Progress | None = None

    def __init__(self) -> None:
        self._open: dict[str, list[str]] = {}
        """Trial -> keys of its jobs that have not ended."""

    def attach(self, searcher: PlanSearcher, tracker: Tracker | None = None, progress: Progress | None = None) -> None:
        """Connect the parts that live in the driver."""
        self._searcher, self._tracker, self._progress = searcher, tracker, progress

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Tell the searcher that a trial has got its resources."""
        if self._searcher is not None:
            self._searcher.on_trial_start(trial.trial_id)
        if self.directory is None and trial.local_path:
            self.directory = Path(trial.local_path).parents[1]  # .../EXPERIMENT/driver_artifacts/TRIAL

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Pass epochs on, and the ends of those jobs of several that have ended before the others."""
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
        del self._open[trial.trial_id]

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """Note why a trial died, if it was the last attempt at its job."""
        for key in self._keys(trial):
            if self._searcher is not None and self._searcher.state.get(key) == FAILED:
                self._searcher.errors[key] = _reason(trial)
            self.ended(key)
        del self._open[trial.trial_id]

    def _keys(self, trial: Any) -> list[str]:
        """Return the keys of a trial's jobs that have not ended, to be changed in place."""
        if trial.trial_id not in self._open:
            mates = json.loads(trial.config.get("mates", "[]"))
            self._open[trial.trial_id] = [str(each["key"]) for each in (trial.config, *mates)]
        return self._open[trial.trial_id]

    def ended(self, key: str, has_result: bool = False) -> None:
        """Pass on that a trial has ended, and what that means for its job.

        Args:
            key: of the job.
            has_result: whether the job is published now.
        """
        if self._progress is not None:
            self._progress.ended(key)
        if self._tracker is None or self._searcher is None:
            return
        if has_result:
            self._tracker.done(key)
        elif self._searcher.state.get(key) == FAILED:
            self._tracker.failed(key, self._searcher.errors[key])


def _reason(trial: Any) -> str:
    """Return what a trial's exception said, without the trace."""
    with contextlib.suppress(Exception):  # whatever unpickling somebody's exception may raise
        cause = getattr(pickle.loads(Path(trial.pickled_error_file).read_bytes()), "cause", None)
        if isinstance(cause, Exception):
            return f"{type(cause).__name__}: {cause}".splitlines()[0].strip()
    with contextlib.suppress(OSError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8").strip()
        if text:
            return text.splitlines()[-1].strip()
    return "the trial died"
