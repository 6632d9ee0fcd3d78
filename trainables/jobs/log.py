"""The log of a job and its time, published with its result or kept in the note on its failure."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator

from trainables.host.redaction import redact_text

MAX_LINES = 2000
"""A log keeps this many of its latest lines, more than any recipe has epochs."""


class JobLog:
    """The log of one job over all its attempts, with times in UTC, and the seconds that they took."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._seconds = 0.0
        self._since: float | None = None
        """When the block of :meth:`capturing` that is now running began; None outside such blocks."""

    @property
    def seconds(self) -> float:
        """The job's own seconds so far, without those that other jobs of the process used."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def lines(self) -> list[str]:
        """The lines so far, oldest first."""
        return list(self._lines)

    def text(self) -> str:
        """Return the log as the content of a text file."""
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, message: str) -> None:
        """Add a message with its credentials redacted; each line starts with the time."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._lines.extend(f"{stamp}  {line}" for line in redact_text(message).splitlines())

    def precede(self, lines: Iterable[str], seconds: float) -> None:
        """Insert the lines of the attempt that this one continues before this one's own, and add its seconds."""
        own = self.lines
        self._lines.clear()
        self._lines.extend([*lines, *own])
        self._seconds += seconds

    @contextlib.contextmanager
    def capturing(self, share: float = 1.0) -> Iterator[None]:
        """Record log messages of level WARNING and above, Python warnings, the traceback of an exception, and time.

        Args:
            share: the job's share of the block's time, in (0, 1]; the rest belongs to other jobs.
        """
        handler = _Handler(self)
        logging.captureWarnings(True)
        logging.getLogger().addHandler(handler)
        self._since = start = time.perf_counter()
        try:
            yield
        except Exception:
            self.write(traceback.format_exc())
            raise
        finally:
            self._since = None
            self._seconds += share * (time.perf_counter() - start)
            logging.getLogger().removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: JobLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(f"{record.levelname.lower()}: {record.getMessage()}".rstrip())
