"""The log of a job, published with its result or kept in the note on its failure."""

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
    """The log of one job over all its attempts, with times in UTC."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

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

    def precede(self, lines: Iterable[str]) -> None:
        """Insert the lines of the attempt that this one continues before this one's own lines."""
        own = self.lines
        self._lines.clear()
        self._lines.extend([*lines, *own])

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Record log messages of level WARNING and above, Python warnings, and the traceback of an exception."""
        handler = _Handler(self)
        logging.captureWarnings(True)
        logging.getLogger().addHandler(handler)
        try:
            yield
        except Exception:
            self.write(traceback.format_exc())
            raise
        finally:
            logging.getLogger().removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: JobLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(f"{record.levelname.lower()}: {record.getMessage()}".rstrip())
