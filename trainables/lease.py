"""The right to compute something, held by one process at a time and lost by a process that dies. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.processes import alive, me
from trainables.storage.errors import StorageError

if TYPE_CHECKING:
    from trainables.storage import Storage

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long, as its observer's own clock counts, belongs to nobody."""
STALE_SECONDS = 15 * LEASE_SECONDS
"""A lease that says itself that it was renewed so long ago belongs to nobody; clocks of two hosts differ by less."""

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

    @classmethod
    def acquire(cls, storage: Storage, path: str, note: Mapping[str, Any] | None = None) -> Lease | None:
        """Take the lease if it is free or abandoned, else return None.

        Raises:
            StorageError: the storage does not answer.
        """
        lease = cls(storage, path, dict(note or {}))
        if not storage.create(path, lease._content()) and not (
            _clear_away(storage, path, lease._content()) and storage.create(path, lease._content())
        ):
            return None
        threading.Thread(target=lease._renew, name=f"lease-{path.rsplit('/', 1)[-1][:8]}", daemon=True).start()
        return lease

    def _content(self) -> bytes:
        document = {"token": self._token, "owner": me(), "since": self._since, "renewed": time.time()}
        return json.dumps({**document, "note": self.note}).encode()

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 6):
            # A storage that is away for the moment lets nobody else in, either.
            with contextlib.suppress(StorageError), self._writing:
                if self._released.is_set() or not self._held():
                    return
                self.storage.write(self.path, self._content())

    def _held(self) -> bool:
        """Return whether nobody took us for dead meanwhile; if so, both compute and the first to publish wins."""
        try:
            return _parsed(self.storage.read(self.path)).get("token") == self._token
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lease back, unless it has meanwhile gone to somebody else."""
        self._released.set()
        # If the storage is away, the lease expires by itself.
        with contextlib.suppress(StorageError), self._writing:
            if self._held():
                self.storage.remove(self.path)

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
    if not alive(str(document.get("owner", ""))):
        return True
    renewed = document.get("renewed")
    if isinstance(renewed, int | float) and time.time() - renewed > STALE_SECONDS:
        return True
    digest, now = hashlib.sha256(content).hexdigest(), time.monotonic()
    seen, since = _observed.get((storage.uri, path), ("", now))
    if seen != digest:
        _observed[storage.uri, path] = digest, now
        return False
    return now - since > LEASE_SECONDS


def live_leases(storage: Storage, directory: str) -> dict[str, dict[str, Any]]:
    """Return the leases below a directory whose owners are not known to be dead: name -> content."""
    found = {}
    for path in list(storage.names(directory)):
        name = path.rsplit("/", 1)[-1]
        with contextlib.suppress(FileNotFoundError):
            content = storage.read(path)
            if "." not in name and not is_abandoned(storage, path, content):
                found[name] = _parsed(content)
    return found


def bury(storage: Storage, directory: str) -> None:
    """Remove the leases below a directory whose owners are known to be dead."""
    for path in list(storage.names(directory)):
        with contextlib.suppress(FileNotFoundError):
            content = storage.read(path)
            if "." in path.rsplit("/", 1)[-1]:  # a claim
                if is_abandoned(storage, path, content):
                    storage.remove(path)
            else:
                _clear_away(storage, path, content)


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


def _parsed(content: bytes) -> dict[str, Any]:
    """Return a lease's document; empty if it is unreadable, which leaves it to expire."""
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
