"""One Ray Tune experiment over the jobs that a searcher hands out, restarted if Tune gives up on it.

Import this module after the environment has been set, because Tune reads parts of it on import.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, Final

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from study.scheduling.callback import StudyCallback
from study.scheduling.searcher import PlanSearcher
from study.scheduling.session import Cluster
from study.scheduling.states import DONE
from trainables.errors import causes
from trainables.host.redaction import redact_text
from trainables.tune import PlannedJob

NODE_LABEL: Final = "ray.io/node-id"
"""A label that Ray gives to each node."""
RESTARTS: Final = 3
"""How often in a row the Tune experiment is restarted although no job finished in between."""


class _Order(Searcher):  # type: ignore[misc] # ray is untyped
    """The search algorithm that Tune asks: it passes everything on to a :class:`PlanSearcher`."""

    def __init__(self, searcher: PlanSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of a trial; None if none may start now."""
        return self._searcher.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on an epoch."""
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on the end of a trial."""
        self._searcher.on_trial_complete(trial_id, result, error)

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its searcher into a file that nothing reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store holds what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a new run plans again."""


def run_trials(
    cluster: Cluster,
    searcher: PlanSearcher,
    attach: Callable[[StudyCallback], None],
    name: str,
    trainable: type[tune.Trainable] = PlannedJob,
) -> str | None:
    """Run trials until the searcher has none left.

    Tune raises on events that it does not expect, such as a process killed by Ray's memory monitor or a node lost at
    the wrong moment. All running trials are then lost, but published results and checkpoints are not, so the experiment
    is restarted.

    Args:
        cluster: the Ray on which trials run.
        searcher: hands out the jobs, and knows the outcome of each afterwards.
        attach: called with the callback of each experiment; connects it to the tracker and the display.
        name: name of the experiment, for the names of files.
        trainable: computes a job.

    Returns:
        The reason if the trials ended early, else None.
    """
    for logger in ("ray", "ray.tune.analysis.experiment_analysis"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # the summary at the end names failures by job
    left = RESTARTS
    while True:
        done = _done(searcher)
        callback = StudyCallback()
        try:
            tuner = _tuner(
                cluster, searcher, callback, f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", trainable
            )
            attach(callback)  # only now: Tune has pickled the callback when the tuner was created
            tuner.fit()
            return None
        except Exception as error:
            if searcher.is_stuck():
                searcher.take_back()
                continue
            reason = _in_words(error)
        finally:
            if callback.directory is not None:
                shutil.rmtree(callback.directory, ignore_errors=True)
        searcher.lose_trials()
        left = RESTARTS if _done(searcher) > done else left - 1
        if left < 0 or not cluster.comes_back():
            return reason


def _tuner(
    cluster: Cluster, searcher: PlanSearcher, callback: StudyCallback, name: str, trainable: type[tune.Trainable]
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(trainable, _request),
        tune_config=tune.TuneConfig(
            search_alg=_Order(searcher),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"{trial.trial_id}",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(cluster.scratch),
            verbose=0,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher makes further attempts
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _request(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that a trial requests, on any node except the avoided ones: a bundle for each worker."""
    avoided, workers = config.get("avoided"), config["workers"]
    where = {"bundle_label_selector": [{NODE_LABEL: f"!in({','.join(avoided)})"}] * workers} if avoided else {}
    strategy = "STRICT_PACK" if config.get("together") else "PACK"
    return tune.PlacementGroupFactory([config["resources"]] * workers, strategy=strategy, **where)


def _done(searcher: PlanSearcher) -> int:
    return sum(state == DONE for state in searcher.state.values())


def _in_words(error: BaseException) -> str:
    """Return the last line of Tune's error, without the quoted tracebacks; a hint if the memory monitor caused it."""
    if any(isinstance(cause, OutOfMemoryError) for cause in causes(error, contexts=True)):
        return (
            "Ray's memory monitor has killed a trial, which Tune does not survive; "
            "set RAY_memory_monitor_refresh_ms=0 before ray start, on all nodes"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact_text(f"Ray Tune has ended: {lines[-1] if lines else type(error).__name__}")
