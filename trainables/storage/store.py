"""The store: key -> artifacts of a result, published atomically and verified on read. Torch-free.

Layout below the storage, a directory or an object store::

    store/<2 hex>/<key>/   manifest.json, and the artifacts that it lists with size and sha256 in the folder of the
                           attempt that published them; never changed once there
    store/.damaged/        results and documents that failed their checks
    work/<key>/            checkpoint of a running job, and why its last attempt failed; removed when it is published
    failed/<key>.json      why a job failed for good, with its log; removed when the job succeeds after all
    leases/<key>           who is computing a key now
    studies/<id>           a lease for each running driver
    data/<digest>.json     facts about a dataset, for machines that lack the data
    fastest/<device>/      choices of ``--fastest``
    starts/<id>.json       what each start of a driver had to compute, with an estimate (trainables.storage.starts)

There is one way to publish. An attempt writes its files to a folder of its own; then it creates the manifest on the
condition that there is none. So a reader sees all of a result or nothing, and of two writers of one key the first
wins. In directories that earlier versions wrote, artifacts lie beside the manifest; they are read all the same.

The store is the only truth about what has been computed: to resume a study is to plan it again and skip what is here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainables.host.places import DEFAULT_STORAGE
from trainables.host.processes import alive
from trainables.schema import MANIFEST, METRICS, PLANE_GRID
from trainables.storage import LocalStorage, StorageError, documents, open_storage
from trainables.storage.documents import Malformed
from trainables.storage.lease import Lease, bury, clear_away, live_leases
from trainables.storage.local import unfinished

__all__ = ["DamagedArtifact", "Lease", "NotPublished", "Result", "StorageError", "Store"]

T = TypeVar("T")

READERS = 16
"""Results that are read from an object store at the same time."""
DAMAGED = "store/.damaged"
"""Where results and documents that failed their checks are moved."""
FACTS_OF_DATA, FASTEST, STARTS = _DOCUMENTS = ("data", "fastest", "starts")
"""Folders of documents that are kept for good."""
_KEY = re.compile(documents.KEY_FORM)
_NAME = re.compile(documents.ARTIFACT_FORM)
_RESULT = re.compile(
    rf"store/([0-9a-f]{{2}})/(?P<key>(?=\1){documents.KEY_FORM})/"
    rf"(?P<file>({documents.ATTEMPT_FORM}/)?{documents.ARTIFACT_FORM})"
)
_CHECKPOINT = re.compile(rf"work/(?P<key>{documents.KEY_FORM})/.+")
_FAILURE = re.compile(rf"failed/(?P<key>{documents.KEY_FORM})\.json")
_EARLIER = re.compile(rf"store/\.tmp/{documents.KEY_FORM}-.+-[0-9a-f]{{8}}/.+")
"""Half-written results of earlier versions."""
_KINDS: dict[str, documents.Kind] = {METRICS: documents.METRICS, PLANE_GRID: documents.PLANE}
"""Name of a JSON artifact -> the kind of its document."""

_log = logging.getLogger(__name__)


class NotPublished(KeyError):
    """Nothing is published under a key."""

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedArtifact(RuntimeError):
    """A published artifact is unreadable or fails its checksum; the result was set aside, its job must run again."""

    def __init__(self, key: str, name: str, reason: str) -> None:
        super().__init__(key, name, reason)
        self.key, self.name, self.reason = key, name, reason

    def __str__(self) -> str:
        return f"artifact {self.name} of {self.key[:12]} is damaged ({self.reason}); set aside, to be computed again"


@dataclass(frozen=True)
class Result:
    """A published result as it was read.

    Attributes:
        manifest: its manifest.
        files: name -> content, verified.
        documents: name -> parsed and checked content of the files that are JSON.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]
    documents: dict[str, dict[str, Any]]


class Store:
    """Results in one storage.

    Every method that touches the storage raises :class:`StorageError` if the storage fails for too long.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        """Remember the location; nothing is read or created.

        Args:
            location: a directory or URI, as ``--storage`` takes it.

        Raises:
            ValueError: a URI of an unknown scheme, without its library, or with credentials in it.
        """
        self.storage = open_storage(location)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.uri == other.uri

    @property
    def uri(self) -> str:
        """The value of ``--storage`` that leads to this store."""
        return self.storage.uri

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory."""
        return isinstance(self.storage, LocalStorage)

    @property
    def beside(self) -> Path:
        """The local folder for files beside the results: that of the store, or the default one for an object store."""
        return self.root if self.is_local else Path(DEFAULT_STORAGE)

    @property
    def root(self) -> Path:
        """The directory of a local store.

        Raises:
            ValueError: the store is an object store.
        """
        if not isinstance(self.storage, LocalStorage):
            raise ValueError(f"{self.uri} is not a directory")
        return self.storage.root

    def check_exists(self) -> None:
        """Raise ValueError unless the directory exists, or the object store holds anything under the URI."""
        if not (self.root.exists() if self.is_local else self.storage.names("")):
            raise ValueError(f"storage {self.uri} does not exist: no study has run there")

    # --- reading ------------------------------------------------------------------------------------------------
    def directory(self, key: str) -> Path:
        """Return the directory of the result of `key` in a local store, whether or not it is published."""
        return self.root / _place(key)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, str)
        return self.storage.read(f"{_place(key)}/{MANIFEST}") is not None

    def keys(self) -> set[str]:
        """Return the keys of all published results, in one sweep over the storage."""
        return published(self.storage.names("store"))

    def manifest(self, key: str) -> dict[str, Any]:
        """Return the manifest of a published result: kind, configuration, parents, files, environment.

        Raises:
            ValueError: `key` is not 64 hex digits (so that no key can point outside the store).
            NotPublished: nothing is published under `key`.
            DamagedArtifact: the manifest cannot be read.
        """
        return self._manifest(key)[0]

    def _all(self, read: Callable[[str], T], keys: Collection[str]) -> tuple[dict[str, T], dict[str, str]]:
        """Return what `read` returns for each published key, and a message for each key with a damaged result.

        An object store answers several requests at the same time.
        """
        damaged: dict[str, str] = {}

        def whole(key: str) -> list[T]:
            try:
                return [read(key)]
            except NotPublished:
                return []
            except DamagedArtifact as error:
                damaged[key] = str(error)
                return []

        with ThreadPoolExecutor(1 if self.is_local else READERS) as pool:
            found = zip(keys, pool.map(whole, keys), strict=True)
            return {key: each for key, several in found for each in several}, damaged

    def _manifest(self, key: str) -> tuple[dict[str, Any], bytes]:
        """Return a verified manifest and its bytes."""
        content = self.storage.read(f"{_place(key)}/{MANIFEST}")
        if content is None:
            raise NotPublished(f"{key[:12]} is not in the store {self.uri}")
        try:
            document = documents.parse(content, documents.MANIFEST)
            if document["key"] != key:
                raise Malformed("manifest of another result")
            if document.pop("checksum", None) not in (None, _checksum(document)):
                raise Malformed("checksum of the manifest")
        except Malformed as error:
            raise self._damaged(key, MANIFEST, str(error), ({}, content)) from error
        return document, content

    def read(self, key: str, name: str) -> bytes:
        """Return the content of one file of a published result, verified against its checksum.

        Raises:
            NotPublished: nothing is published under `key`.
            KeyError: the result has no such file.
            DamagedArtifact: the content is not what was published.
        """
        return self._file(key, name, self._manifest(key))

    def results(self, keys: Collection[str], names: Collection[str] = ()) -> tuple[dict[str, Result], list[str]]:
        """Return many results with those of the named files that they have, and a message for each damaged one.

        Results are read in parallel. Keys that are not published are left out.
        """
        found, damaged = self._all(lambda key: self.result(key, names), keys)
        return found, list(damaged.values())

    def result(self, key: str, names: Collection[str]) -> Result:
        """Return a result with those of the named files that it has; errors as in :meth:`read`."""
        judged = self._manifest(key)
        files = {name: self._file(key, name, judged) for name in names if name in judged[0]["files"]}
        parsed = {name: self._document(key, name, files[name], judged) for name in files if name in _KINDS}
        return Result(judged[0], files, parsed)

    def read_json(self, key: str, name: str) -> dict[str, Any]:
        """Return the checked document in a JSON file of a published result; errors as in :meth:`read`."""
        judged = self._manifest(key)
        return self._document(key, name, self._file(key, name, judged), judged)

    def verify(self, keys: Collection[str]) -> dict[str, str]:
        """Read every file of some results, set damaged results aside, and return a message for each: key -> message."""

        def check(key: str) -> None:
            judged = self._manifest(key)
            for name in judged[0]["files"]:
                self._file(key, name, judged)

        return self._all(check, keys)[1]

    def _file(self, key: str, name: str, judged: tuple[dict[str, Any], bytes]) -> bytes:
        """Return the content of a file of a result, verified against its manifest."""
        manifest, _ = judged
        listed = manifest["files"]
        if name not in listed:
            raise KeyError(f"{key[:12]} has no {name}; it has {', '.join(sorted(listed))}")
        reason = ""
        for _ in range(2):  # a transfer may go wrong once; a file that is wrong twice is damaged in the storage
            content = self.storage.read(f"{_folder(key, manifest)}/{name}")
            if content is None:
                reason = "the file is gone"
            elif hashlib.sha256(content).hexdigest() == listed[name]["sha256"]:
                return content
            else:
                reason = f"checksum of {len(content)} bytes, {listed[name]['bytes']} were published"
        raise self._damaged(key, name, reason, judged)

    def _document(self, key: str, name: str, content: bytes, judged: tuple[dict[str, Any], bytes]) -> dict[str, Any]:
        try:
            return documents.parse(content, _KINDS[name])
        except Malformed as error:  # intact, but not written by this project
            raise self._damaged(key, name, str(error), judged) from error

    def _damaged(self, key: str, name: str, reason: str, judged: tuple[dict[str, Any], bytes]) -> DamagedArtifact:
        """Set a result aside, unless its manifest is no longer the one that was judged; return the error to raise."""
        manifest, content = judged
        aside = f"{DAMAGED}/{key}-{secrets.token_hex(4)}"
        # The manifest comes first: without it the others are no result.
        if self._moved(f"{_place(key)}/{MANIFEST}", content, f"{aside}/{MANIFEST}"):
            for each in manifest.get("files", ()):
                self.storage.move(f"{_folder(key, manifest)}/{each}", f"{aside}/{each}")
        return DamagedArtifact(key, name, reason)

    def _moved(self, path: str, content: bytes, aside: str) -> bool:
        """Move a file aside unless its content has been replaced; return whether it was moved."""
        if self.storage.read(path) != content:
            return False
        self.storage.move(path, aside)
        return True

    def set_aside(self, path: str, content: bytes, reason: str) -> None:
        """Move a file with damaged content out of the way, unless it has been replaced since, and log the reason."""
        aside = f"{DAMAGED}/{path.replace('/', '-')}-{secrets.token_hex(4)}"
        try:
            if self._moved(path, content, aside):
                _log.warning("%s/%s is damaged (%s): set aside as %s", self.uri, path, reason, aside)
        except StorageError as error:  # a reader without write access can do without
            _log.warning("%s/%s is damaged (%s) and cannot be set aside: %s", self.uri, path, reason, error)

    # --- writing ------------------------------------------------------------------------------------------------
    def publish(self, key: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
        """Publish a result in one step.

        Args:
            key: the job's key.
            files: name -> content.
            manifest: what to record beside the list of files.

        Returns:
            Whether this call published it; False if the key already had a result, which then stays.

        Raises:
            ValueError: a file's name is not that of an artifact.
        """
        place, attempt = _place(key), secrets.token_hex(6)
        for name in files:
            if not _NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"artifact names look like weights.safetensors, got {name!r}")
        listed = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        }
        document = {**manifest, "key": key, "files": listed, "attempt": attempt}
        document["checksum"] = _checksum(document)
        content = json.dumps(document, indent=1, sort_keys=True).encode()
        path, ours = f"{place}/{MANIFEST}", False
        if self.storage.read(path) is None:
            self.storage.fill(f"{place}/{attempt}", files)
            ours = self.storage.create(path, content)
        for each in self.storage.names(place):  # the other attempts' files if this one was published, else its own
            if each != path and each.startswith(f"{place}/{attempt}/") != ours and owner(each):
                self.storage.remove(each)
        self.storage.remove(_failure(key))
        return ours

    def remove(self, key: str) -> None:
        """Remove a published result; files in its directory that no study has written stay."""
        place = _place(key)
        self.storage.remove(f"{place}/{MANIFEST}")  # comes first: without it there is no result
        for path in filter(owner, self.storage.names(place)):
            self.storage.remove(path)

    def check_writable(self) -> None:
        """Raise ValueError unless results can be published in the storage; wait for an outage to pass as always."""
        try:
            self.storage.check_writable()
        except StorageError as error:
            reason = getattr(error.__cause__, "strerror", None) if self.is_local else None
            raise ValueError(
                f"storage {self.uri!r} is not writable: {reason or error}; choose another --storage"
            ) from error

    def sweep(self, needed: Container[str], finished: Container[str] = ()) -> None:
        """Remove leases and half-written documents of dead processes, and checkpoints of finished jobs.

        Args:
            needed: keys of the jobs that a study still has to compute. A published dense net is among them if a state
                is missing, to which it is then trained from its checkpoint.
            finished: keys of jobs that have no other output than their result. Once that is published, their leases
                are removed, even if nobody can tell yet that the owner is dead.
        """
        self.forget_damaged_leases()
        for path in (each for folder in _DOCUMENTS for each in self.storage.names(folder)):
            if (half := unfinished(path)) and not alive(half[1]):
                self.storage.remove(path)
        for path in self.storage.names("leases"):
            name = path.removeprefix("leases/")
            if name in finished and name in self:
                self.storage.remove(path)
        computed = self.leases()  # another study may be computing a state that this one does not need
        for path in self.storage.names("work"):
            key = found["key"] if (found := _CHECKPOINT.fullmatch(path)) else None
            if key is not None and key not in needed and key not in computed and key in self:
                self.storage.remove(path)

    # --- work in progress ---------------------------------------------------------------------------------------
    def read_checkpoint(self, key: str) -> bytes | None:
        """Return the checkpoint of a job; None if there is none."""
        return self.storage.read(_checkpoint(key))

    def write_checkpoint(self, key: str, content: bytes) -> None:
        """Replace a job's checkpoint in one step."""
        self.storage.write(_checkpoint(key), content)

    def forget_attempts(self, key: str) -> None:
        """Remove the checkpoint of a job that has ended well, and the notes on attempts that failed."""
        for path in self.storage.names(_checkpoint(key).rpartition("/")[0]):
            self.storage.remove(path)
        self.storage.remove(_failure(key))

    def lease(self, key: str, note: Mapping[str, Any] | None = None) -> Lease | None:
        """Return a lease on computing `key`, with a note for others, or None while another process holds one."""
        _place(key)
        return Lease.acquire(self.storage, f"leases/{key}", note)

    def is_free(self, key: str) -> bool:
        """Return whether no process holds the lease on `key`; remove the lease if its holder is known to be dead.

        A process that asks again and again notices within ``LEASE_SECONDS`` that a holder on another host has died; one
        that asks for the first time may know nothing of it for ``STALE_SECONDS``.
        """
        return clear_away(self.storage, f"leases/{key}")

    def forget_damaged_leases(self) -> bool:
        """Remove damaged leases and registrations and those of dead processes; return whether any was damaged.

        The holder of a damaged one, if alive, puts it back within ``renewal_seconds()``.
        """
        return bury(self.storage, "leases") | bury(self.storage, "studies")

    def leases(self) -> dict[str, dict[str, Any]]:
        """Return who is computing what: key -> ``owner``, ``since`` (seconds since 1970), ``note``."""
        return live_leases(self.storage, "leases")

    # --- failures and studies -----------------------------------------------------------------------------------
    def record_failure(self, key: str, document: Mapping[str, Any]) -> None:
        """Note why a job failed for good; the note is removed when the job succeeds after all."""
        self.storage.write(_failure(key), json.dumps(document, indent=1).encode())

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return the note on a job's failure; None if there is none."""
        return self._note(_failure(key))

    def record_attempt(self, key: str, document: Mapping[str, Any]) -> None:
        """Note why an attempt at a job failed that may be made again; the note is removed with the job's checkpoint."""
        self.storage.write(_attempt(key), json.dumps(document, indent=1).encode())

    def attempt(self, key: str) -> dict[str, Any] | None:
        """Return the note on the last attempt at a job that failed but may be made again; None if there is none."""
        return self._note(_attempt(key))

    def _note(self, path: str) -> dict[str, Any] | None:
        content = self.storage.read(path)
        if content is None:
            return None
        try:
            return documents.parse(content, documents.FAILURE)
        except Malformed as error:
            self.set_aside(path, content, str(error))
            return None

    def failures(self) -> set[str]:
        """Return the keys of the jobs that have a note on their failure."""
        return {found["key"] for path in self.storage.names("failed") if (found := _FAILURE.fullmatch(path))}

    def register_study(self, note: Mapping[str, Any]) -> Lease:
        """Register a running study, with a note for others, until the lease is released or its driver dies."""
        lease = Lease.acquire(self.storage, f"studies/{secrets.token_hex(8)}", note)
        assert lease is not None, "a random name is free"
        return lease

    def has_study(self, name: str) -> bool:
        """Return whether a study of this name is registered here: proof that its driver sees the same storage."""
        return self.storage.read(f"studies/{name}") is not None

    def studies(self) -> list[dict[str, Any]]:
        """Return the studies that are running: ``owner``, ``since`` (seconds since 1970), ``note``."""
        return list(live_leases(self.storage, "studies").values())


def published(paths: Iterable[str]) -> set[str]:
    """Return the keys of the results whose manifests are among some paths."""
    files = map(_RESULT.fullmatch, paths)
    return {found["key"] for found in files if found and found["file"] == MANIFEST}


def owner(path: str) -> str | None:
    """Return the key of the job that a file below ``store``, ``work`` or ``failed`` belongs to.

    Returns:
        "" for files that belong to no result; None for files that the project did not write.
    """
    if path.startswith(f"{DAMAGED}/") or _EARLIER.fullmatch(path):
        return ""
    half = unfinished(path)
    found = [form.fullmatch(half[0] if half else path) for form in (_RESULT, _CHECKPOINT, _FAILURE)]
    return next((each["key"] for each in found if each), None)


def _place(key: str) -> str:
    """Return the path of a result.

    Raises:
        ValueError: `key` is not 64 hex digits (so that no key can point outside the store).
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"a key has 64 hex digits, got {key!r}")
    return f"store/{key[:2]}/{key}"


def _folder(key: str, manifest: Mapping[str, Any]) -> str:
    """Return the path of the folder that holds a result's artifacts; earlier versions put them beside the manifest."""
    attempt = manifest.get("attempt")
    return f"{_place(key)}/{attempt}" if attempt else _place(key)


def _checkpoint(key: str) -> str:
    """Return the path of a checkpoint: that of earlier versions, so that the job's log reports one that they left."""
    _place(key)
    return f"work/{key}/checkpoint.safetensors"


def _attempt(key: str) -> str:
    _place(key)
    return f"work/{key}/failure.json"


def _failure(key: str) -> str:
    _place(key)
    return f"failed/{key}.json"


def _checksum(document: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest, which itself has the checksums of all other files."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
