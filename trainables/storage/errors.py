"""What can go wrong with a storage, and how long to put up with it."""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long one operation is tried again before its job gives up; the study may then try the job again, elsewhere."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds between two attempts; they double from the first to the longest."""

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        # Full, over quota: somebody makes room.
        *("ENOSPC", "EDQUOT"),
        # This process or machine is short of something that it gets back: memory, open files, locks, ports.
        *("ENOMEM", "ENOBUFS", "EMFILE", "ENFILE", "ENOLCK", "EAGAIN", "EBUSY", "EADDRNOTAVAIL"),
        # Cut off in the middle, as by a signal or while a client of Lustre or CIFS connects again.
        *("EINTR", "ERESTART", "ECANCELED", "EINPROGRESS", "EALREADY"),
        # A network file system whose server or daemon is away, restarts, or has failed over to another machine.
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ETIME", "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ENONET", "ENOLINK", "ECOMM", "EPROTO", "EPIPE"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED"),
        # A device or a mount that comes back; a ticket that is renewed.
        *("ENODEV", "ENXIO", "EKEYEXPIRED"),
    )
    if hasattr(errno, name)  # some are Linux's own
)
"""Errors of a file system that may pass while an operation is tried again. Others come again: no right to do it, a
read-only mount, a file where a directory should be, a name too long, a damaged file system, an operation it lacks."""

_announce: Callable[[str], None] | None = None
"""What says that something is waited for, where a person watches."""


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
    patience = PATIENCE_SECONDS if patience is None else patience
    deadline = time.monotonic() + patience
    pause, said = FIRST_PAUSE, False
    while True:
        # Not in step with all the others that the same outage has stopped.
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
    """Say what is waited for while storages are tried again, in any thread.

    Args:
        say: is called with a line when an operation has failed for the first time.
    """
    global _announce
    before, _announce = _announce, say
    try:
        yield
    finally:
        _announce = before
