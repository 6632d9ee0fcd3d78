"""The order of work: a Ray Tune search algorithm that hands out a job when its parents are published."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from study.estimate import Estimates
from study.plan import Plan
from trainables.tune import STATUS_OK

WAITING, READY, RUNNING, DONE, FAILED, BLOCKED = "waiting", "ready", "running", "done", "failed", "blocked"


class PlanSearcher(Searcher):  # type: ignore[misc] # ray is untyped
    """Suggests the jobs of a plan, the longest remaining chain first.

    It is total: whatever Tune reports, ``suggest`` and ``on_trial_complete`` do not raise, because an exception here
    would end the sweep. When nothing is ready and nothing runs, it is finished: a plan with failed jobs ends too.
    """

    def __init__(
        self,
        plan: Plan,
        todo: Mapping[str, set[int | None]],
        estimates: Estimates,
        surroundings: Mapping[str, Any],
        retries: int = 0,
    ) -> None:
        """Prepare the order.

        Args:
            plan: the graph.
            todo: what has to be computed, from ``plan.closure.todo(published)``.
            estimates: decides which of the ready jobs goes first.
            surroundings: config entries that every trial gets (storage, data_dir, ...).
            retries: attempts at a job after one that died. They are trials of their own: Tune itself gives up at once
                on a trial whose process dies before it has begun, as one does that was kept for reuse.
        """
        super().__init__()
        self.plan = plan
        self.todo = {key: sorted(outputs, key=lambda epoch: (epoch is None, epoch)) for key, outputs in todo.items()}
        self.state = dict.fromkeys(self.todo, WAITING)
        self.errors: dict[str, str] = {}
        """Key of a failed job -> its error; of a blocked job -> key of the failed job that it waited for."""
        self.counts: Counter[tuple[str, str]] = Counter((plan.jobs[key].kind, WAITING) for key in self.todo)
        self._surroundings = dict(surroundings)
        self._attempts_left = dict.fromkeys(self.todo, retries)
        self._children: dict[str, list[str]] = {key: [] for key in self.todo}
        self._open_parents: dict[str, int] = {}
        for key in self.todo:
            parents = {ref.job.key for _, ref in plan.jobs[key].parents} & self.todo.keys()
            self._open_parents[key] = len(parents)
            for parent in parents:
                self._children[parent].append(key)
        self._urgency = self._longest_chains(estimates)
        self._ready: list[tuple[float, int, str]] = []
        self._trials: dict[str, str] = {}
        self._number = {key: number for number, key in enumerate(self.todo)}
        for key, count in self._open_parents.items():
            if not count:
                self._release(key)

    def _longest_chains(self, estimates: Estimates) -> dict[str, float]:
        """Return for each job the seconds from its start to the end of the longest chain below it."""
        chains: dict[str, float] = {}
        for key in reversed(self.todo):  # children come after their parents
            below = max((chains[child] for child in self._children[key]), default=0.0)
            chains[key] = estimates.seconds[key] + below
        return chains

    def _move(self, key: str, state: str) -> None:
        kind = self.plan.jobs[key].kind
        self.counts[kind, self.state[key]] -= 1
        self.counts[kind, state] += 1
        self.state[key] = state

    def _release(self, key: str) -> None:
        self._move(key, READY)
        heapq.heappush(self._ready, (-self._urgency[key], self._number[key], key))

    # --- Ray Tune's side --------------------------------------------------------------------------------------------
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of the most urgent ready job; None while jobs run; FINISHED when nothing can follow."""
        if self._ready:
            key = heapq.heappop(self._ready)[2]
            self._move(key, RUNNING)
            self._trials[trial_id] = key
            cell = json.dumps(asdict(self.plan.cells[key]))
            return {**self._surroundings, "cell": cell, "key": key, "outputs": self.todo[key]}
        if self._trials:
            return None
        return Searcher.FINISHED  # type: ignore[no-any-return]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release the children of a finished job, or the job itself once more, or block a failed one's descendants."""
        key = self._trials.pop(trial_id, None)
        if key is None:
            return
        if not error and result is not None and result.get("status") == STATUS_OK:
            self._move(key, DONE)
            for child in self._children[key]:
                self._open_parents[child] -= 1
                if not self._open_parents[child] and self.state[child] == WAITING:
                    self._release(child)
            return
        if error and self._attempts_left[key]:
            self._attempts_left[key] -= 1
            self._release(key)
            return
        self._move(key, FAILED)
        self.errors.setdefault(key, str((result or {}).get("error") or "the trial died"))
        blocked = list(self._children[key])
        while blocked:
            child = blocked.pop()
            if self.state[child] == WAITING:
                self._move(child, BLOCKED)
                self.errors[child] = key
                blocked.extend(self._children[child])

    def key_of(self, trial_id: str) -> str | None:
        """Return the key of the job that a live trial runs."""
        return self._trials.get(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store knows what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a new run plans again."""
