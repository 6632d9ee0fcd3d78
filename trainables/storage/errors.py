"""What can go wrong with a storage, and how long to put up with it."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long one operation is tried again before its job gives up; the study may then try the job again, elsewhere."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds between two attempts; they double from the first to the longest."""

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})
"""Errors of a file system that somebody may put right meanwhile: full, over quota, a network file system away."""


class StorageError(RuntimeError):
    """The storage does not take or give files: it is full, away, or does not let us in.

    Attributes:
        passing: whether trying again later may help.
    """

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing

    @classmethod
    def of(cls, error: OSError, where: str) -> StorageError:
        """Return the error that stands for one of the operating system's."""
        return cls(f"storage {where}: {error.strerror or error}", passing=error.errno in _PASSING)


def patiently(action: Callable[[], T], patience: float | None = None) -> T:
    """Do something with a storage, again and again with exponential back-off while it fails in a way that may pass.

    Args:
        action: what to do; doing it twice must not differ from doing it once.
        patience: seconds after which to give up; ``PATIENCE_SECONDS`` by default.

    Raises:
        StorageError: it failed for longer than that, or in a way that does not pass.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    pause = FIRST_PAUSE
    while True:
        # Not in step with all the others that the same outage has stopped.
        this_pause = pause * random.uniform(0.75, 1.25)
        try:
            return action()
        except StorageError as error:
            if not error.passing or time.monotonic() + this_pause > deadline:
                raise
        time.sleep(this_pause)
        pause = min(2 * pause, LONGEST_PAUSE)
