"""Events on their way to the tracking server: on disk until they have arrived, whoever dies in between.

An outbox is a file of one JSON document per line. The first line says up to which byte the events have been delivered.
The file is locked while its driver lives: the next one takes over the files whose locks are free, whatever host their
drivers died on. It is removed when everything in it has been delivered. Nothing is forced to the disk: that would stall
the sweep, and what a power cut may cost are the last seconds before it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainables.storage import documents
from trainables.storage.documents import Malformed

Event = dict[str, Any]

_HEADER = '{{"outbox": 1, "delivered": {:>15d}}}\n'
_START = len(_HEADER.format(0))
_READ = 65536
"""Bytes that are read at a time."""

_log = logging.getLogger(__name__)


class Outbox:
    """A queue in a file with any number of writers, all threads of one process, and one reader.

    While the file cannot be written - the disk is full - events wait in memory, and are written when it can be again.
    """

    def __init__(self, folder: Path, address: str) -> None:
        """Prepare; the file is made when there is something to write.

        Args:
            folder: where the outboxes of all drivers lie; it need not exist.
            address: what the events are for; it holds no secret. Only an outbox of the same address adopts them.
        """
        self._path = folder / f"{_prefix(address)}{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
        self._file: int | None = None
        self._changed = threading.Condition()
        self._unwritten: deque[bytes] = deque()
        self._chunk = b""
        self._size = self._delivered = self.position = _START
        """Bytes; `position` is behind the event that was read last."""
        self._finished = self._closed = False
        self.problem: str | None = None
        """Why events wait in memory, while they do."""

    @classmethod
    def abandoned(cls, folder: Path, address: str) -> Iterator[Outbox]:
        """Yield the outboxes of drivers that are dead, oldest first; nobody else gets them until they are closed."""
        for path in sorted(folder.glob(f"{_prefix(address)}*.jsonl")):
            if (file := _lock(path)) is not None:
                box = cls(folder, address)
                box._adopt(path, file)
                yield box

    def _adopt(self, path: Path, file: int) -> None:
        self._path, self._file, self._finished = path, file, True
        self._size = max(_START, os.fstat(file).st_size)
        try:
            delivered = documents.parse(os.pread(file, _START, 0), documents.OUTBOX)["delivered"]
        except Malformed as error:
            _log.warning("outbox %s has a damaged head (%s): all of it is delivered, again perhaps", path, error)
            delivered = _START  # delivering it all again adds nothing
        self._delivered = min(max(_START, delivered), self._size)

    # --- the writers' side ------------------------------------------------------------------------------------------
    def put(self, event: Mapping[str, Any]) -> None:
        """Add an event; nothing is raised, and nobody is waited for."""
        line = json.dumps(event, default=str, separators=(",", ":")).encode() + b"\n"
        with self._changed:
            self._unwritten.append(line)
            self._write()
            self._changed.notify()

    def _write(self) -> None:
        try:
            while self._unwritten and not self._closed:
                if self._file is None:
                    self._file = _create(self._path)
                # Where the last whole line ends: half a line, the disk being full, is written over.
                if os.pwrite(self._file, self._unwritten[0], self._size) < len(self._unwritten[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._size += len(self._unwritten.popleft())
            self.problem = None
        except OSError as error:
            self.problem = f"outbox {self._path.parent}: {error.strerror}; what is not delivered is in memory only"

    def finish(self) -> None:
        """Say that no more events will come."""
        with self._changed:
            self._finished = True
            self._changed.notify()

    # --- the reader's side ------------------------------------------------------------------------------------------
    @property
    def exhausted(self) -> bool:
        """Whether every event has been read and no more will come."""
        with self._changed:
            return self._finished and not self._waiting()

    @property
    def delivered_before(self) -> int:
        """Up to which position the events have been delivered, as far as is known."""
        return self._delivered

    def _waiting(self) -> bool:
        return self.position < self._size or bool(self._unwritten)

    def get(self, timeout: float | None = None) -> Event | None:
        """Return the next event, waiting for it `timeout` seconds at most (None: for ever); None if none comes.

        Raises:
            OSError: the file cannot be read; asking again reads the same event.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting() or self._finished, timeout)
            while self._waiting():
                line = self._next_line()
                try:
                    return documents.parse(line, documents.EVENT)
                except Malformed as error:
                    self.leave_out(str(error))
            return None

    def leave_out(self, reason: str) -> None:
        """Say that a line is no event that could be delivered."""
        _log.warning("outbox %s: a line that is no event is left out: %s", self._path, reason)

    def _next_line(self) -> bytes:
        if self.position == self._size:
            line = self._unwritten.popleft()
            self.problem = self.problem if self._unwritten else None
            return line
        assert self._file is not None, "something was written"
        while b"\n" not in self._chunk:
            start = self.position + len(self._chunk)
            more = os.pread(self._file, min(_READ, self._size - start), start)
            if not more:  # its driver was killed in the middle of a line
                line, self._chunk, self._size = self._chunk, b"", self.position
                return line
            self._chunk += more
        line, _, self._chunk = self._chunk.partition(b"\n")
        self.position += len(line) + 1
        return line

    def delivered(self, position: int) -> None:
        """Note that whatever lies before `position` has arrived."""
        if position > self._delivered and self._file is not None:
            self._delivered = position
            with contextlib.suppress(OSError):  # it would only be delivered once more, which adds nothing
                os.pwrite(self._file, _HEADER.format(position).encode(), 0)

    def close(self) -> None:
        """Give the file free for the next driver, or remove it if everything in it has been delivered."""
        with self._changed:
            self._closed = True
            if self._file is not None:
                if self._delivered >= self._size and not self._unwritten:
                    self._path.unlink(missing_ok=True)
                os.close(self._file)
                self._file = None


def _prefix(address: str) -> str:
    return f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-"


def _create(path: Path) -> int:
    """Return a new file that nobody ever sees unlocked or without its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody adopts it, and it is delivered by us
            fcntl.flock(file, fcntl.LOCK_EX)
        header = _HEADER.format(_START).encode()
        if os.pwrite(file, header, 0) < len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(temporary, path)
    except BaseException:
        os.close(file)
        temporary.unlink(missing_ok=True)
        raise
    return file


def _lock(path: Path) -> int | None:
    """Open the file of a dead driver and lock it; None if its driver lives or somebody else was first."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("outbox %s cannot be opened: %s", path, error.strerror)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:  # else it was delivered and removed between the two calls
            return file
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            _log.warning("outbox %s cannot be locked: %s", path, error.strerror)
    os.close(file)
    return None
