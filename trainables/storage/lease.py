"""Leases: the right to compute something, held by one process at a time until it dies. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.host.processes import alive, me
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.local import unfinished
from trainables.storage.patience import StorageError, patiently

if TYPE_CHECKING:
    from trainables.storage import Storage

LEASE_SECONDS = 60.0
"""A lease has expired if an observer's own clock has seen it unchanged for this long."""
STALE_SECONDS = 15 * LEASE_SECONDS
"""A lease has also expired if its own timestamp is older than this; the clocks of two hosts differ by less."""

_LEASE = re.compile(rf"[0-9a-f]{{16}}|{documents.KEY_FORM}")
"""Name of a lease: the id of a study, or the key of a job."""
_CLAIM = re.compile(rf"({_LEASE.pattern})\.[0-9a-f]{{16}}")
"""Name of a claim on an abandoned lease."""

_log = logging.getLogger(__name__)

_held: set[str] = set()
"""Tokens of the leases that this process holds or is about to take."""
_observed: dict[tuple[str, str], tuple[str, float]] = {}
"""Leases of others as last seen: (storage, path) -> digest of the content, monotonic time of the last change."""


@dataclass
class Lease:
    """A file that names the holder, renewed by a thread until released; it expires when its owner dies.

    Leases only avoid duplicate work. Correctness does not depend on them: publishing is atomic, the first result wins.

    Attributes:
        storage: where the file is.
        path: the file.
        note: information for others on the work; changes are written when the lease is next renewed.
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
        _held.add(lease._token)  # first, or another thread could find the file and consider it abandoned
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
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def _content(self) -> bytes:
        document = {"token": self._token, "owner": me(), "since": self._since, "renewed": time.time()}
        return json.dumps({**document, "note": self.note}).encode()

    def _keep(self) -> None:
        """Renew the lease until it is released; then remove it, if the storage was out of reach at that moment."""
        while not self._released.wait(renewal_seconds()):
            # While the storage is out of reach, no other process can take the lease, either.
            with contextlib.suppress(StorageError), self._writing:
                if self._released.is_set():
                    break
                found = self._found()
                if isinstance(found, dict) and found["token"] != self._token:
                    return
                if found is None:
                    self.storage.create(self.path, self._content())  # unless another process takes it at this moment
                else:
                    self.storage.write(self.path, self._content())
        # Later than that, the lease has expired anyway.
        with contextlib.suppress(StorageError):
            patiently(self._remove, LEASE_SECONDS)

    def _found(self) -> dict[str, Any] | Malformed | None:
        """Return the content of the lease's file, None if it is gone. A file that is damaged or gone is written again.

        If the token is not ours, another process has taken over the lease. Then both compute, and the first to publish
        wins.
        """
        try:
            return _parsed(self.storage.read(self.path))
        except FileNotFoundError:
            return None

    def _remove(self) -> None:
        """Remove the lease's file once, unless it belongs to another process by now."""
        with self._writing:
            if self._removed:
                return
            found = self._found()
            if isinstance(found, Malformed) or (found and found["token"] == self._token):
                self.storage.remove(self.path)
            self._removed = True

    def release(self) -> None:
        """Give the lease back, unless another process has taken it over.

        If the storage is out of reach, the lease is free for this process at once, and for others when it is back.
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
    """Return whether the owner of a lease is known to be dead or has not renewed it for too long.

    The clocks of other hosts may be minutes off. Unless the timestamp is obviously old, the time without renewal counts
    from when this process first saw the content.
    """
    document = _parsed(content)
    # A damaged lease can only be judged by whether its holder, if alive, writes it again.
    if isinstance(document, dict) and (
        not alive(document["owner"])
        or time.time() - document["renewed"] > STALE_SECONDS
        # Ours but not held: the answer to the request that created or removed it was lost.
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

    Damaged ones are left out with a warning; their holders write them again.
    """
    found = {}
    for name, path, content in _all(storage, directory, _LEASE):
        document = _parsed(content)
        if isinstance(document, Malformed):
            _log.warning("lease %s/%s is damaged (%s): it is ignored", storage.uri, path, document)
        elif not is_abandoned(storage, path, content):
            found[name] = document
    return found


def bury(storage: Storage, directory: str) -> bool:
    """Remove the leases below a directory that are damaged or whose owners are known to be dead.

    Returns:
        Whether there was a damaged one. If its holder is alive, it is back after :func:`renewal_seconds`.
    """
    damaged = False
    for _, path, content in _all(storage, directory, _LEASE):
        document = _parsed(content)
        if isinstance(document, Malformed):
            _log.warning("lease %s/%s is damaged (%s): removed", storage.uri, path, document)
            storage.remove(path)
            damaged = True
        else:
            _clear_away(storage, path, content)
    for _, path, content in _all(storage, directory, _CLAIM):
        if isinstance(_parsed(content), Malformed) or is_abandoned(storage, path, content):
            storage.remove(path)
    for path in list(storage.names(directory)):
        half = unfinished(path.removeprefix(f"{directory}/"))
        if half and _LEASE.fullmatch(half[0]) and not alive(half[1]):
            storage.remove(path)
    return damaged


def _all(storage: Storage, directory: str, form: re.Pattern[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, path and content of the files below a directory whose names have a form."""
    for path in list(storage.names(directory)):
        name = path.removeprefix(f"{directory}/")
        if form.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                yield name, path, storage.read(path)


def renewal_seconds() -> float:
    """Return the seconds after which a holder renews its lease, and writes it again if it is damaged or gone."""
    return LEASE_SECONDS / 6


def _clear_away(storage: Storage, path: str, content: bytes) -> bool:
    """Remove an abandoned lease; return whether there is none any more."""
    try:
        seen = storage.read(path)
    except FileNotFoundError:
        return True
    if not is_abandoned(storage, path, seen):
        return False
    # Only one of several processes that find an abandoned lease may remove it: one that comes late would remove the
    # lease of the next owner.
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
    """Return a lease's document, or the error if it is damaged."""
    try:
        return documents.parse(content, documents.LEASE)
    except Malformed as error:
        return error
