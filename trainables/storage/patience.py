"""Errors of a storage, and how long an operation is tried again before its error counts. Torch-free."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from trainables.checks import from_environment

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long an operation is tried again before its job gives up; the study may then try the job again, elsewhere."""
PATIENCE_VARIABLE: Final = "STUDY_STORAGE_PATIENCE"
"""Environment variable that replaces ``PATIENCE_SECONDS``: longer where the file server takes ten minutes to fail over,
shorter where nobody will free disk space. Like credentials, it is set on every node."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds between two attempts; the pause doubles from the first to the longest."""

_announce: Callable[[str], None] | None = None
"""Shows a person that an operation is being tried again."""


class StorageError(RuntimeError):
    """The storage cannot be read or written: it is full, out of reach, or denies access.

    Attributes:
        passing: whether trying again later may help.
    """

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


def default_patience() -> float:
    """Return the seconds for which operations are tried again.

    Raises:
        ValueError: the environment variable does not hold a number from 0 to a day.
    """
    given = from_environment(PATIENCE_VARIABLE, "[0, 86400]", "seconds")
    return PATIENCE_SECONDS if given is None else given


def patiently(action: Callable[[], T], patience: float | None = None) -> T:
    """Do something with a storage; while it fails in a way that may pass, try again with exponential back-off.

    Args:
        action: what to do; it must be idempotent.
        patience: seconds after which to give up; :func:`default_patience` by default.

    Raises:
        StorageError: it failed for longer than that, or in a way that does not pass.
    """
    patience = default_patience() if patience is None else patience
    deadline = time.monotonic() + patience
    pause, said = FIRST_PAUSE, False
    while True:
        # Random, so that the processes stopped by the same outage do not all come back at once.
        this_pause = pause * random.uniform(0.75, 1.25)
        try:
            return action()
        except StorageError as error:
            if not error.passing or time.monotonic() + this_pause > deadline:
                raise
            if _announce is not None and not said:
                _announce(f"{error}; trying again for {patience:.0f} s")
                said = True
        time.sleep(this_pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@contextlib.contextmanager
def announced(say: Callable[[str], None]) -> Iterator[None]:
    """Call `say` with a line when an operation fails for the first time and is tried again, in any thread."""
    global _announce
    before, _announce = _announce, say
    try:
        yield
    finally:
        _announce = before
