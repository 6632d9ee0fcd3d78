"""The right to compute something, held by one process at a time and lost by a process that dies. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.host.processes import alive, me
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.errors import StorageError, patiently

if TYPE_CHECKING:
    from trainables.storage import Storage

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long, as its observer's own clock counts, belongs to nobody."""
STALE_SECONDS = 15 * LEASE_SECONDS
"""A lease that says itself that it was renewed so long ago belongs to nobody; clocks of two hosts differ by less."""

_LEASE = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")
"""Name of a lease: that of a study, or of a job."""
_CLAIM = re.compile(rf"({_LEASE.pattern})\.[0-9a-f]{{16}}")
"""Name of a claim on an abandoned lease."""
_UNFINISHED = re.compile(rf"({_LEASE.pattern})-(.+)-[0-9a-f]{{8}}\.tmp")
"""Name of the file that a process writes before it becomes a lease."""

_log = logging.getLogger(__name__)

_held: set[str] = set()
"""Tokens of the leases that this process holds, or is about to take."""
_observed: dict[tuple[str, str], tuple[str, float]] = {}
"""What this process has seen of others' leases: (storage, path) -> digest of the content, monotonic time since when."""


@dataclass
class Lease:
    """A file that says who holds what, rewritten by a thread until released; it expires when its owner dies.

    A lease only saves double work. Correctness does not hang on it: publishing is atomic and the first result wins.

    Attributes:
        storage: where the file is.
        path: the file.
        note: what others may want to know of the work; changes reach the file when the lease is next renewed.
    """

    storage: Storage
    path: str
    note: dict[str, Any] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _since: float = field(default_factory=time.time)
    _released: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _removed: bool = False

    @classmethod
    def acquire(cls, storage: Storage, path: str, note: Mapping[str, Any] | None = None) -> Lease | None:
        """Take the lease if it is free or abandoned, else return None.

        Raises:
            StorageError: the storage does not answer.
        """
        lease = cls(storage, path, dict(note or {}))
        _held.add(lease._token)  # before another thread can find the file and take it for left behind
        taken = False
        try:
            taken = storage.create(path, lease._content()) or (
                _clear_away(storage, path, lease._content()) and storage.create(path, lease._content())
            )
        finally:
            if not taken:
                _held.discard(lease._token)
        if not taken:
            return None
        threading.Thread(target=lease._keep, name=f"lease-{lease.name[:8]}", daemon=True).start()
        return lease

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rsplit("/", 1)[-1]

    def _content(self) -> bytes:
        document = {"token": self._token, "owner": me(), "since": self._since, "renewed": time.time()}
        return json.dumps({**document, "note": self.note}).encode()

    def _keep(self) -> None:
        """Renew the lease until it is released; if the storage was away at that moment, remove it when it is back."""
        while not self._released.wait(renewal_seconds()):
            # A storage that is away for the moment lets nobody else in, either.
            with contextlib.suppress(StorageError), self._writing:
                if self._released.is_set():
                    break
                found = self._found()
                if isinstance(found, dict) and found["token"] != self._token:
                    return
                if found is None:
                    self.storage.create(self.path, self._content())  # unless somebody else takes it at this moment
                else:
                    self.storage.write(self.path, self._content())
        # After that, it expires by itself.
        with contextlib.suppress(StorageError):
            patiently(self._remove, LEASE_SECONDS)

    def _found(self) -> dict[str, Any] | Malformed | None:
        """Return what is in the lease's file, None if it is gone; both of that its holder mends.

        A token of another process says that it took us for dead. Then both compute, and the first to publish wins.
        """
        try:
            return _parsed(self.storage.read(self.path))
        except FileNotFoundError:
            return None

    def _remove(self) -> None:
        """Remove the lease's file, unless that has been done, or it is meanwhile somebody else's."""
        with self._writing:
            if self._removed:
                return
            found = self._found()
            if isinstance(found, Malformed) or (found and found["token"] == self._token):
                self.storage.remove(self.path)
            self._removed = True

    def release(self) -> None:
        """Give the lease back, unless it has meanwhile gone to somebody else.

        If the storage is away, the lease is free for this process all the same, and for others when it is back.
        """
        _held.discard(self._token)
        self._released.set()
        with contextlib.suppress(StorageError):
            self._remove()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_abandoned(storage: Storage, path: str, content: bytes) -> bool:
    """Return whether the owner of a lease is known to be dead or has been silent for too long.

    Clocks of other hosts are not trusted to the minute: silence is counted from the first time that this process saw
    the content, except if it is obviously old.
    """
    document = _parsed(content)
    # Of a damaged one nothing is known but whether its holder, if it has one, mends it.
    if isinstance(document, dict) and (
        not alive(document["owner"])
        or time.time() - document["renewed"] > STALE_SECONDS
        # Ours, but not held: the answer to its creation, or its removal, was lost.
        or (document["owner"] == me() and document["token"] not in _held)
    ):
        return True
    digest, now = hashlib.sha256(content).hexdigest(), time.monotonic()
    seen, since = _observed.get((storage.uri, path), ("", now))
    if seen != digest:
        _observed[storage.uri, path] = digest, now
        return False
    return now - since > LEASE_SECONDS


def live_leases(storage: Storage, directory: str) -> dict[str, dict[str, Any]]:
    """Return the leases below a directory whose owners are not known to be dead: name -> content.

    Damaged ones are named and left out: their holders mend them.
    """
    found = {}
    for path in list(storage.names(directory)):
        name = path.removeprefix(f"{directory}/")
        with contextlib.suppress(FileNotFoundError):
            if _LEASE.fullmatch(name):
                content = storage.read(path)
                document = _parsed(content)
                if isinstance(document, Malformed):
                    _log.warning("lease %s/%s is damaged (%s): it counts as nobody's", storage.uri, path, document)
                elif not is_abandoned(storage, path, content):
                    found[name] = document
    return found


def bury(storage: Storage, directory: str) -> bool:
    """Remove the leases below a directory that are damaged or whose owners are known to be dead.

    Returns:
        Whether there was a damaged one. If somebody holds it, it is back after :func:`renewal_seconds`.
    """
    damaged = False
    for path in list(storage.names(directory)):
        name = path.removeprefix(f"{directory}/")
        with contextlib.suppress(FileNotFoundError):
            if _LEASE.fullmatch(name):
                content = storage.read(path)
                document = _parsed(content)
                if isinstance(document, Malformed):
                    _log.warning("lease %s/%s is damaged (%s): removed", storage.uri, path, document)
                    storage.remove(path)
                    damaged = True
                else:
                    _clear_away(storage, path, content)
            elif _CLAIM.fullmatch(name):
                content = storage.read(path)
                if isinstance(_parsed(content), Malformed) or is_abandoned(storage, path, content):
                    storage.remove(path)
            elif (made := _UNFINISHED.fullmatch(name)) and not alive(made[2]):
                storage.remove(path)
    return damaged


def renewal_seconds() -> float:
    """Return how often a holder looks at its lease, renews it, and mends it if it is damaged or gone."""
    return LEASE_SECONDS / 6


def _clear_away(storage: Storage, path: str, content: bytes) -> bool:
    """Remove an abandoned lease; return whether the way is free."""
    try:
        seen = storage.read(path)
    except FileNotFoundError:
        return True
    if not is_abandoned(storage, path, seen):
        return False
    # Of several that find the same corpse one may bury it: who comes late must not remove the lease of the next owner.
    claim = f"{path}.{hashlib.sha256(seen).hexdigest()[:16]}"
    if not storage.create(claim, content):
        with contextlib.suppress(FileNotFoundError):
            if is_abandoned(storage, claim, storage.read(claim)):
                storage.remove(claim)
        return False
    try:
        if storage.read(path) != seen:
            return False
        storage.remove(path)
    except FileNotFoundError:
        pass
    finally:
        storage.remove(claim)
    return True


def _parsed(content: bytes) -> dict[str, Any] | Malformed:
    """Return a lease's document, or what is wrong with it."""
    try:
        return documents.parse(content, documents.LEASE)
    except Malformed as error:
        return error
