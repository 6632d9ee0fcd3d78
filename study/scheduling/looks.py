"""Questions to the store about jobs, answered in threads, because the searcher must not wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from study.plan import Plan
from trainables.graph import Ref
from trainables.storage.store import READERS, Store

PAUSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each look: a network file system may take a minute to show here what was written elsewhere."""


class Looks:
    """Looks into the store for the results of a plan's jobs."""

    def __init__(self, plan: Plan, store: Store, outputs: dict[str, set[int | None]]) -> None:
        """Start without questions; `outputs` are the ones that the trial of each job publishes, by the job's key."""
        self._plan, self._store, self._outputs = plan, store, outputs
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="looks")

    def stored(self, key: str) -> Future[bool]:
        """Ask whether the store holds a job's results; keep looking for a minute if it does not."""
        return self._ask(self._look, key, PAUSES)

    def published(self, key: str) -> Future[bool]:
        """Ask whether the store holds a job's results now."""
        return self._ask(self._look, key, PAUSES[:1])

    def free(self, key: str) -> Future[bool]:
        """Ask whether no process holds the lease on a job."""
        return self._ask(self._store.is_free, key)

    def _ask(self, question: Callable[..., bool], *about: Any) -> Future[bool]:
        """Return the answer to a question; it is an error if this process may not start the thread that would ask."""
        try:
            return self._pool.submit(question, *about)
        except RuntimeError as error:
            answer = Future[bool]()
            answer.set_exception(error)
            return answer

    def _look(self, key: str, pauses: tuple[float, ...]) -> bool:
        missing = [Ref(self._plan.jobs[key], epoch).key for epoch in self._outputs[key]]
        for pause in pauses:
            time.sleep(pause)
            missing = [each for each in missing if each not in self._store]
            if not missing:
                return True
        return False

    def close(self) -> None:
        """Stop; drop questions whose looks have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
