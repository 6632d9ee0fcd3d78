"""The store: key -> artifacts of a result, published atomically and verified on read. Torch-free.

Layout below the storage, a directory or an object store::

    store/<2 hex>/<key>/   manifest.json and the artifacts it lists with size and sha256; never changed once there
    store/.damaged/        what failed its checksum, or is not what its place says, set aside
    work/<key>/            a running job's checkpoint; removed when the job is published
    failed/<key>.json      why a job failed for good, with its log; removed when the job is published after all
    leases/<key>           who is computing a key now
    studies/<id>           a lease of each driver that is running

A result becomes visible under its key all at once, so a reader sees all of a result or none of it, and of two
writers of one key the first wins. The store is the only truth about what has been computed: resuming a study is
planning it again and skipping what is here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainables.schema import MANIFEST, METRICS, PLANE_GRID
from trainables.storage import LocalStorage, StorageError, documents, open_storage, patiently
from trainables.storage.documents import Malformed
from trainables.storage.lease import Lease, bury, live_leases

__all__ = ["DamagedArtifact", "Lease", "NotPublished", "Result", "StorageError", "Store"]

T = TypeVar("T")

READERS = 16
"""Requests to an object store at the same time, where many results are looked at."""
DAMAGED = "store/.damaged"
"""Where what is set aside lies."""
_KEY = re.compile(documents.KEY_FORM)
_NAME = re.compile(documents.ARTIFACT_FORM)
_RESULT = re.compile(rf"store/([0-9a-f]{{2}})/((?=\1){documents.KEY_FORM})/(.+)")
_CHECKPOINT = re.compile(rf"work/({documents.KEY_FORM})/.+")
_FAILURE = re.compile(rf"failed/({documents.KEY_FORM})\.json")
_UNFINISHED = re.compile(rf"failed/({documents.KEY_FORM})\.json-.+\.tmp")
"""What a process was writing when it was killed."""
_KINDS = {METRICS: documents.METRICS, PLANE_GRID: documents.PLANE}
"""Name of a JSON file of a result -> what it is checked for."""

_log = logging.getLogger(__name__)


class NotPublished(KeyError):
    """Nothing is published under a key."""

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedArtifact(RuntimeError):
    """A published artifact is unreadable or fails its checksum; it has been set aside, its job must run again."""

    def __init__(self, key: str, name: str, reason: str) -> None:
        super().__init__(key, name, reason)
        self.key, self.name, self.reason = key, name, reason

    def __str__(self) -> str:
        return f"artifact {self.name} of {self.key[:12]} is damaged ({self.reason}); set aside, to be computed again"


@dataclass(frozen=True)
class Result:
    """A published result as it was read.

    Attributes:
        manifest: what it says of itself.
        files: name -> content, verified.
        documents: name -> what the files that are JSON say, checked.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]
    documents: dict[str, dict[str, Any]]


class Store:
    """Results in one storage.

    Whatever touches the storage raises :class:`StorageError` if that does not take or give files, after having tried
    again for a while (see :func:`trainables.storage.patiently`).
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        """Prepare; nothing is read or created.

        Args:
            location: a directory or URI, as ``--storage`` takes it.

        Raises:
            ValueError: a URI of an unknown scheme, without its library, or with credentials in it.
        """
        self.storage = open_storage(location)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def uri(self) -> str:
        """What ``--storage`` would be given to reach this store from anywhere that can."""
        return self.storage.uri

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory."""
        return isinstance(self.storage, LocalStorage)

    @property
    def root(self) -> Path:
        """The directory of a store that is one.

        Raises:
            ValueError: it is an object store.
        """
        if not isinstance(self.storage, LocalStorage):
            raise ValueError(f"{self.uri} is not a directory")
        return self.storage.root

    def check_exists(self) -> None:
        """Raise ValueError unless the directory exists, or the object store holds anything under the URI."""
        if not (self.root.exists() if self.is_local else any(patiently(lambda: list(self.storage.names(""))))):
            raise ValueError(f"storage {self.uri} does not exist: no study has run there")

    # --- reading ------------------------------------------------------------------------------------------------
    def directory(self, key: str) -> Path:
        """Return where the result of `key` is or will be, in a store that is a directory; errors as for a key."""
        return self.root / _place(key)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, str)
        path = f"{_place(key)}/{MANIFEST}"
        return patiently(lambda: self.storage.exists(path))

    def keys(self) -> set[str]:
        """Return the keys of all published results, in one sweep over the storage."""
        return {key for key, path in patiently(lambda: list(self._results())) if path == MANIFEST}

    def _results(self) -> Iterator[tuple[str, str]]:
        """Yield (key, path within the result) of every file of a result."""
        for path in self.storage.names("store"):
            if found := _RESULT.fullmatch(path):
                yield found[2], found[3]

    def manifest(self, key: str) -> dict[str, Any]:
        """Return the manifest of a published result: kind, configuration, parents, files, environment.

        Raises:
            ValueError: `key` is not 64 hex digits (so that no key can point outside the store).
            NotPublished: nothing is published under `key`.
            DamagedArtifact: the manifest cannot be read.
        """
        return self._manifest(key)[0]

    def manifests(self, keys: Collection[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the manifests of many results, read side by side, and a line on each that was found damaged.

        What is not published is left out.
        """
        return self._all(self.manifest, keys)

    def _all(self, read: Callable[[str], T], keys: Collection[str]) -> tuple[dict[str, T], list[str]]:
        """Return what is read of each key that is published, and a line on each that was found damaged."""
        damaged: list[str] = []

        def whole(key: str) -> T | None:
            try:
                return read(key)
            except NotPublished:
                return None
            except DamagedArtifact as error:
                damaged.append(str(error))
                return None

        found = zip(keys, self._side_by_side(whole, keys), strict=True)
        return {key: each for key, each in found if each is not None}, damaged

    def _side_by_side(self, read: Callable[[str], T], keys: Collection[str]) -> list[T]:
        """Return what is read of each key; requests to an object store wait for their answers together."""
        with ThreadPoolExecutor(1 if self.is_local else READERS) as pool:
            return list(pool.map(read, keys))

    def _manifest(self, key: str) -> tuple[dict[str, Any], bytes]:
        """Return a manifest, verified, and its bytes."""
        place = _place(key)
        try:
            content = patiently(lambda: self.storage.read(f"{place}/{MANIFEST}"))
        except FileNotFoundError as error:
            if not patiently(lambda: self.storage.holds(place)):
                raise NotPublished(f"{key[:12]} is not in the store {self.uri}") from error
            raise self._damaged(key, MANIFEST, "the file is gone", None) from error
        try:
            document = documents.parse(content, documents.MANIFEST)
            if document["key"] != key:
                raise Malformed("manifest of another result")
            if document.pop("checksum", None) not in (None, _checksum(document)):
                raise Malformed("checksum of the manifest")
        except Malformed as error:
            raise self._damaged(key, MANIFEST, str(error), content) from error
        return document, content

    def read(self, key: str, name: str) -> bytes:
        """Return the content of one file of a published result, verified against its checksum.

        Raises:
            NotPublished: nothing is published under `key`.
            KeyError: the result has no such file.
            DamagedArtifact: the content is not what was published.
        """
        manifest, judged = self._manifest(key)
        return self._file(key, name, manifest, judged)

    def results(self, keys: Collection[str], names: Collection[str]) -> tuple[dict[str, Result], list[str]]:
        """Return many results, read side by side and each document once, and a line on each that was found damaged.

        Args:
            keys: of the results; what is not published is left out.
            names: the files to read, of those that have them.
        """
        return self._all(lambda key: self.result(key, names), keys)

    def result(self, key: str, names: Collection[str]) -> Result:
        """Return the manifest of a result and those of some files that it has; errors as in :meth:`read`."""
        manifest, judged = self._manifest(key)
        files = {name: self._file(key, name, manifest, judged) for name in names if name in manifest["files"]}
        parsed = {name: self._document(key, name, files[name], judged) for name in files if name in _KINDS}
        return Result(manifest, files, parsed)

    def _file(self, key: str, name: str, manifest: Mapping[str, Any], judged: bytes) -> bytes:
        """Return the content of a file of a result, verified against its manifest."""
        listed = manifest["files"]
        if name not in listed:
            raise KeyError(f"{key[:12]} has no {name}; it has {', '.join(sorted(listed))}")
        path = "/".join(filter(None, (_place(key), manifest.get("attempt"), name)))
        reason = ""
        for _ in range(2):  # a transfer may go wrong once; what is wrong twice is wrong where it lies
            try:
                content = patiently(lambda: self.storage.read(path))
            except FileNotFoundError:
                reason = "the file is gone"
                continue
            if hashlib.sha256(content).hexdigest() == listed[name]["sha256"]:
                return content
            reason = f"checksum of {len(content)} bytes, {listed[name]['bytes']} were published"
        raise self._damaged(key, name, reason, judged)

    def verify(self, keys: Collection[str]) -> dict[str, str]:
        """Read every file of some results; set aside those with a damaged one, and return a line on each by its key."""

        def check(key: str) -> str | None:
            try:
                for name in self.manifest(key)["files"]:
                    self.read(key, name)
            except NotPublished:
                return None
            except DamagedArtifact as error:
                return str(error)
            return None

        return {key: line for key, line in zip(keys, self._side_by_side(check, keys), strict=True) if line}

    def read_json(self, key: str, name: str) -> dict[str, Any]:
        """Return the document in a JSON file of a published result, checked; errors as in :meth:`read`."""
        manifest, judged = self._manifest(key)
        return self._document(key, name, self._file(key, name, manifest, judged), judged)

    def _document(self, key: str, name: str, content: bytes, judged: bytes) -> dict[str, Any]:
        try:
            return documents.parse(content, _KINDS[name])
        except Malformed as error:  # published by something that is not of this project
            raise self._damaged(key, name, str(error), judged) from error

    def _damaged(self, key: str, name: str, reason: str, judged: bytes | None) -> DamagedArtifact:
        """Set a result aside, unless it is no longer the one that was judged, and return the error to raise."""
        place = _place(key)

        def set_aside() -> None:
            try:
                found: bytes | None = self.storage.read(f"{place}/{MANIFEST}")
            except FileNotFoundError:
                found = None
            if found == judged:  # otherwise it has been computed again since
                whole = found is not None and name != MANIFEST
                attempt = documents.parse(found, documents.MANIFEST).get("attempt", "") if found and whole else ""
                self.storage.move(place, f"{DAMAGED}/{key}-{secrets.token_hex(4)}", attempt)

        patiently(set_aside)
        return DamagedArtifact(key, name, reason)

    # --- writing ------------------------------------------------------------------------------------------------
    def publish(self, key: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
        """Publish a result in one step.

        Args:
            key: the job's key.
            files: name -> content.
            manifest: what to record beside the list of files.

        Returns:
            Whether this call published it; False if it was already there, which then stays.

        Raises:
            ValueError: a file's name is not that of an artifact.
        """
        place, attempt = _place(key), self.storage.new_attempt()
        for name in files:
            if not _NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"artifact names look like weights.safetensors, got {name!r}")
        listed = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        }
        document = {**manifest, "key": key, "files": listed, **({"attempt": attempt} if attempt else {})}
        document["checksum"] = _checksum(document)
        placed = {"/".join(filter(None, (attempt, name))): content for name, content in files.items()}
        placed[MANIFEST] = json.dumps(document, indent=1, sort_keys=True).encode()
        published = patiently(lambda: self.storage.publish(place, placed, MANIFEST))
        patiently(lambda: self.storage.remove(_failure(key)))
        return published

    def remove(self, key: str) -> None:
        """Remove a published result."""
        place = _place(key)
        patiently(lambda: self.storage.remove(f"{place}/{MANIFEST}"))  # first: what has none is no result
        patiently(lambda: self.storage.remove_all(place))

    def check_writable(self) -> None:
        """Raise ValueError unless results can be published in the storage; an outage is waited for as anywhere else."""
        try:
            patiently(self.storage.check_writable)
        except (StorageError, FileNotFoundError) as error:
            reason = getattr(error.__cause__, "strerror", None) if self.is_local else None
            raise ValueError(
                f"storage {self.uri!r} is not writable: {reason or error}; choose another --storage"
            ) from error

    def sweep(self) -> None:
        """Remove what the dead have left: half-written results, leases, checkpoints of what is published after all."""
        patiently(lambda: self.storage.sweep("store"))
        self.forget_damaged_leases()
        for path in patiently(lambda: list(self.storage.names("work"))):
            if (found := _CHECKPOINT.fullmatch(path)) and found[1] in self:
                self.drop_checkpoint(found[1])

    # --- work in progress ---------------------------------------------------------------------------------------
    def read_checkpoint(self, key: str) -> bytes | None:
        """Return the checkpoint of a running job; None if there is none."""
        path = _checkpoint(key)
        try:
            return patiently(lambda: self.storage.read(path))
        except FileNotFoundError:
            return None

    def write_checkpoint(self, key: str, content: bytes) -> None:
        """Replace a job's checkpoint in one step."""
        path = _checkpoint(key)
        patiently(lambda: self.storage.write(path, content))

    def drop_checkpoint(self, key: str) -> None:
        """Forget a job's work in progress."""
        directory = _checkpoint(key).rpartition("/")[0]
        patiently(lambda: self.storage.remove_all(directory))

    def lease(self, key: str, note: Mapping[str, Any] | None = None) -> Lease | None:
        """Return a lease on computing `key`, or None while somebody else holds one.

        Args:
            key: 64 hex digits.
            note: what others may want to know of the work.
        """
        _place(key)
        return patiently(lambda: Lease.acquire(self.storage, f"leases/{key}", note))

    def forget_damaged_leases(self) -> bool:
        """Remove leases and registrations that are damaged or of the dead; return whether any was damaged.

        Who holds one that was damaged puts it back within ``renewal_seconds()``.
        """
        damaged = [patiently(lambda each=each: bury(self.storage, each)) for each in ("leases", "studies")]  # type: ignore[misc]
        return any(damaged)

    def leases(self) -> dict[str, dict[str, Any]]:
        """Return who is computing what: key -> ``owner``, ``since`` (seconds since 1970), ``note``."""
        return patiently(lambda: live_leases(self.storage, "leases"))

    # --- failures and studies -----------------------------------------------------------------------------------
    def record_failure(self, key: str, document: Mapping[str, Any]) -> None:
        """Note why a job failed for good; it is forgotten when the job is published after all."""
        path, content = _failure(key), json.dumps(document, indent=1).encode()
        patiently(lambda: self.storage.write(path, content))

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return what was noted of a job's failure; None if nothing was."""
        path = _failure(key)
        try:
            content = patiently(lambda: self.storage.read(path))
        except FileNotFoundError:
            return None
        try:
            return documents.parse(content, documents.FAILURE)
        except Malformed as error:
            self.set_aside(path, content, str(error))
            return None

    def set_aside(self, path: str, content: bytes, reason: str) -> None:
        """Move a file that is damaged out of the way, unless it has been replaced since, and say so.

        Args:
            path: of the file.
            content: that was found in it.
            reason: what is wrong with it.
        """
        aside = f"{DAMAGED}/{path.replace('/', '-')}-{secrets.token_hex(4)}"
        try:
            self.storage.write(aside, content)
            if self.storage.read(path) == content:
                self.storage.remove(path)
        except FileNotFoundError:
            self.storage.remove(aside)  # another process was first
        except StorageError as error:  # who only looks may not be allowed to, and can do without
            _log.warning("%s/%s is damaged (%s) and cannot be set aside: %s", self.uri, path, reason, error)
        else:
            _log.warning("%s/%s is damaged (%s): set aside as %s", self.uri, path, reason, aside)

    def failures(self) -> set[str]:
        """Return the keys of the jobs whose failure is noted."""
        names = patiently(lambda: list(self.storage.names("failed")))
        return {found[1] for name in names if (found := _FAILURE.fullmatch(name))}

    def register_study(self, note: Mapping[str, Any]) -> Lease:
        """Say that a study runs on this store, until the lease is released or its driver dies.

        Args:
            note: what others may want to know of the study.
        """
        lease = patiently(lambda: Lease.acquire(self.storage, f"studies/{secrets.token_hex(8)}", note))
        assert lease is not None, "a name of our own is free"
        return lease

    def has_study(self, name: str) -> bool:
        """Return whether a study is registered: the proof that this is the storage that its driver sees.

        Args:
            name: what follows ``studies/`` in the path of the registration.
        """
        return patiently(lambda: self.storage.exists(f"studies/{name}"))

    def studies(self) -> list[dict[str, Any]]:
        """Return the studies that are running: ``owner``, ``since`` (seconds since 1970), ``note``."""
        return list(patiently(lambda: live_leases(self.storage, "studies")).values())


def owner(path: str) -> str | None:
    """Return the key of the job that a file below ``store``, ``work`` or ``failed`` belongs to.

    Returns:
        "" for what has been set aside; None for a file that no study has put there.
    """
    if path.startswith(f"{DAMAGED}/"):
        return ""
    if found := _RESULT.fullmatch(path):
        return found[2]
    found = _CHECKPOINT.fullmatch(path) or _FAILURE.fullmatch(path) or _UNFINISHED.fullmatch(path)
    return found[1] if found else None


def _place(key: str) -> str:
    """Return the path of a result.

    Raises:
        ValueError: `key` is not 64 hex digits (so that no key can point outside the store).
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"a key has 64 hex digits, got {key!r}")
    return f"store/{key[:2]}/{key}"


def _checkpoint(key: str) -> str:
    _place(key)
    return f"work/{key}/checkpoint.safetensors"


def _failure(key: str) -> str:
    _place(key)
    return f"failed/{key}.json"


def _checksum(document: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest, which says of everything else what it must be."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
