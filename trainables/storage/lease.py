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
from typing import Any

from trainables.host.processes import alive, me
from trainables.storage import documents
from trainables.storage.base import Storage
from trainables.storage.documents import Malformed
from trainables.storage.local import unfinished
from trainables.storage.patience import StorageError

LEASE_SECONDS = 60.0
"""A lease has expired if an observer's own clock has seen it unchanged for this long."""
STALE_SECONDS = 15 * LEASE_SECONDS
"""A lease has also expired if its own timestamp is older than this; the clocks of two hosts differ by less."""
RELEASE_SECONDS = 10.0
"""Longest wait for the removal of a released lease, which goes on afterwards."""

_LEASE = re.compile(rf"[0-9a-f]{{16}}|{documents.KEY_FORM}")
"""Name of a lease: the id of a study, or the key of a job."""
_ANY = re.compile(rf"({_LEASE.pattern})(\.[0-9a-f]{{16}})*")
"""Name of a lease, or of a lease on the removal of an abandoned one."""

_log = logging.getLogger(__name__)

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

    def __post_init__(self) -> None:
        self._keeper = threading.Thread(target=self._keep, name=f"lease-{self.name[:8]}", daemon=True)

    @classmethod
    def acquire(cls, storage: Storage, path: str, note: Mapping[str, Any] | None = None) -> Lease | None:
        """Take the lease if it is free or abandoned, else return None.

        Raises:
            StorageError: the storage does not answer.
        """
        lease = cls(storage, path, dict(note or {}))
        content = lease._content()
        with _heeding_outages(storage, path):
            created = storage.create(path, content)
        if not (created or (clear_away(storage, path) and storage.create(path, content))):
            return None
        lease._keeper.start()
        return lease

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def _content(self) -> bytes:
        document = {"token": self._token, "owner": me(), "since": self._since, "renewed": time.time()}
        return json.dumps({**document, "note": self.note}).encode()

    def _keep(self) -> None:
        """Renew the lease until it is released, then remove it; stop once another process has taken it over."""
        while not self._released.wait(renewal_seconds()):
            # While the storage is out of reach, no other process can take the lease, either.
            with contextlib.suppress(StorageError):
                found = self.storage.read(self.path)
                if found is None:
                    self.storage.create(self.path, self._content())  # unless another process takes it at this moment
                elif self._is_lost(found):
                    return
                else:
                    self.storage.write(self.path, self._content())
        with contextlib.suppress(StorageError):  # if that fails, the lease expires
            found = self.storage.read(self.path)
            if found is not None and not self._is_lost(found):
                self.storage.remove(self.path)

    def _is_lost(self, content: bytes) -> bool:
        """Return whether another process has taken over the lease. Then both compute, and the first to publish wins."""
        found = _parsed(content)
        return found is not None and found["token"] != self._token

    def release(self) -> None:
        """Give the lease back, unless another process has taken it over.

        If the storage is out of reach, the lease is free when the storage is back.
        """
        self._released.set()
        self._keeper.join(RELEASE_SECONDS)

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
    if document and (not alive(document["owner"]) or time.time() - document["renewed"] > STALE_SECONDS):
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
    for path in storage.names(directory):
        name = path.removeprefix(f"{directory}/")
        if not _LEASE.fullmatch(name) or (content := storage.read(path)) is None:
            continue
        if (document := _parsed(content)) is None:
            _log.warning("lease %s/%s is damaged: it is ignored", storage.uri, path)
        elif not is_abandoned(storage, path, content):
            found[name] = document
    return found


def bury(storage: Storage, directory: str) -> bool:
    """Remove the leases below a directory that are damaged or whose owners are known to be dead.

    Returns:
        Whether there was a damaged one. If its holder is alive, it is back after :func:`renewal_seconds`.
    """
    damaged = False
    for path in storage.names(directory):
        name = path.removeprefix(f"{directory}/")
        if half := unfinished(name):
            if _ANY.fullmatch(half[0]) and not alive(half[1]):
                storage.remove(path)
        elif not _ANY.fullmatch(name) or (content := storage.read(path)) is None:
            continue
        elif _parsed(content) is None:
            _log.warning("lease %s/%s is damaged: removed", storage.uri, path)
            storage.remove(path)
            damaged = True
        else:
            clear_away(storage, path)
    return damaged


def renewal_seconds() -> float:
    """Return the seconds after which a holder renews its lease, and writes it again if it is damaged or gone."""
    return LEASE_SECONDS / 6


@contextlib.contextmanager
def _heeding_outages(storage: Storage, path: str) -> Iterator[None]:
    """Forget when a lease was first seen if the storage does not answer at once: its holder could not renew it then."""
    asked, answered = time.monotonic(), False
    try:
        yield
        answered = time.monotonic() - asked <= renewal_seconds()
    finally:
        if not answered:
            _observed.pop((storage.uri, path), None)


def clear_away(storage: Storage, path: str) -> bool:
    """Remove an abandoned lease; return whether there is none any more.

    Raises:
        StorageError: the storage does not answer.
    """
    with _heeding_outages(storage, path):
        seen = storage.read(path)
    if seen is None:
        return True
    if not is_abandoned(storage, path, seen):
        return False
    # Only one of several processes that find an abandoned lease may remove it: one that comes late would remove the
    # lease of the next owner. So they compete for a lease on the removal.
    claim = Lease.acquire(storage, f"{path}.{hashlib.sha256(seen).hexdigest()[:16]}")
    if claim is None:
        return False
    with claim:
        found = storage.read(path)
        if found == seen:
            storage.remove(path)
    return found in (seen, None)


def _parsed(content: bytes) -> dict[str, Any] | None:
    """Return a lease's document; None if it is damaged."""
    try:
        return documents.parse(content, documents.LEASE)
    except Malformed:
        return None
