"""The store: key -> directory of artifacts, published atomically and verified on read. Torch-free.

Layout below the storage directory::

    store/<2 hex>/<key>/   manifest.json and the artifacts it lists with size and sha256; never changed once there
    store/.damaged/        what failed its checksum, set aside
    work/<key>/            a running job's checkpoint; removed when the job is published
    leases/<key>           who is computing a key now

A directory becomes visible under its key by one rename, so a reader sees all of a result or none of it, and of two
writers of one key the first wins. The store is the only truth about what has been computed: resuming a study is
planning it again and skipping what is here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.schema import MANIFEST

_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][a-z0-9_]*\.(json|safetensors)")
LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long belongs to nobody."""


class DamagedArtifact(RuntimeError):
    """A published artifact is unreadable or fails its checksum; it has been set aside, its job must run again."""

    def __init__(self, key: str, name: str, reason: str) -> None:
        super().__init__(key, name, reason)
        self.key, self.name, self.reason = key, name, reason

    def __str__(self) -> str:
        return f"artifact {self.name} of {self.key[:12]} is damaged ({self.reason}); set aside, to be computed again"


class StorageError(RuntimeError):
    """The storage does not take or give files: it is full, away, or does not let us in. Trying again later may help."""


@dataclass(frozen=True)
class Store:
    """Results below one storage directory.

    Attributes:
        root: the storage directory (``--storage``); it is created when something is written.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.abspath(os.path.expanduser(self.root))))

    @property
    def uri(self) -> str:
        """Return what ``--storage`` would be given to reach this store from anywhere that can."""
        return str(self.root)

    # --- reading ------------------------------------------------------------------------------------------------
    def directory(self, key: str) -> Path:
        """Return where the result of `key` is or will be.

        Raises:
            ValueError: `key` is not 64 hex digits (so that no key can point outside the store).
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key has 64 hex digits, got {key!r}")
        return self.root / "store" / key[:2] / key

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, str)
        return (self.directory(key) / MANIFEST).is_file()

    def keys(self) -> set[str]:
        """Return the keys of all published results, in one sweep over the directory."""
        found: set[str] = set()
        for shard in _subdirectories(self.root / "store"):
            if len(shard.name) == 2:
                found.update(
                    entry.name
                    for entry in _subdirectories(Path(shard.path))
                    if _KEY.fullmatch(entry.name) and os.path.isfile(os.path.join(entry.path, MANIFEST))
                )
        return found

    def manifest(self, key: str) -> dict[str, Any]:
        """Return the manifest of a published result: kind, configuration, parents, files, environment.

        Raises:
            KeyError: nothing is published under `key`.
            DamagedArtifact: the manifest cannot be read.
        """
        directory = self.directory(key)
        if not directory.is_dir():
            raise KeyError(f"{key[:12]} is not in the store {self.root}")
        try:
            document = json.loads((directory / MANIFEST).read_bytes())
            if document["key"] != key:
                raise ValueError("manifest of another result")
            if document.pop("checksum", None) not in (None, _checksum(document)):
                raise ValueError("checksum of the manifest")
        except FileNotFoundError as error:
            raise self._damaged(key, MANIFEST, "the file is gone") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, MANIFEST, f"{type(error).__name__}: {error}") from error
        result: dict[str, Any] = document
        return result

    def read(self, key: str, name: str) -> bytes:
        """Return the content of one file of a published result, verified against its checksum.

        Raises:
            KeyError: nothing is published under `key`, or the result has no such file.
            DamagedArtifact: the content is not what was published.
        """
        listed = self.manifest(key)["files"]
        if name not in listed:
            raise KeyError(f"{key[:12]} has no {name}; it has {', '.join(sorted(listed))}")
        try:
            content = (self.directory(key) / name).read_bytes()
        except FileNotFoundError as error:
            raise self._damaged(key, name, "the file is gone") from error
        if hashlib.sha256(content).hexdigest() != listed[name]["sha256"]:
            raise self._damaged(key, name, f"checksum of {len(content)} bytes, {listed[name]['bytes']} were published")
        return content

    def read_json(self, key: str, name: str) -> Any:
        """Return the parsed content of a JSON file of a published result; errors as in :meth:`read`."""
        return json.loads(self.read(key, name))

    def _damaged(self, key: str, name: str, reason: str) -> DamagedArtifact:
        self._set_aside(key)
        return DamagedArtifact(key, name, reason)

    def _set_aside(self, key: str) -> None:
        aside = self.root / "store" / ".damaged" / f"{key}-{secrets.token_hex(4)}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another reader has just set it aside
            os.rename(self.directory(key), aside)

    # --- writing ------------------------------------------------------------------------------------------------
    def publish(self, key: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
        """Publish a result in one step.

        Args:
            key: the job's key.
            files: name -> content.
            manifest: what to record beside the list of files.

        Returns:
            Whether this call published it; False if it was already there, which then stays.
        """
        final = self.directory(key)
        temporary = self.root / "store" / ".tmp" / f"{key}-{_me()}-{secrets.token_hex(4)}"
        temporary.mkdir(parents=True)
        try:
            listed = {}
            for name, content in files.items():
                if not _NAME.fullmatch(name) or name == MANIFEST:
                    raise ValueError(f"artifact names look like weights.safetensors, got {name!r}")
                _write_synced(temporary / name, content)
                listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            document = {**manifest, "key": key, "files": listed}
            document["checksum"] = _checksum(document)
            _write_synced(temporary / MANIFEST, json.dumps(document, indent=1, sort_keys=True).encode())
            _sync(temporary)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(temporary, final)
            except OSError:
                if key in self:
                    return False
                self._set_aside(key)  # if it is there without a manifest, it is no result and in the way
                os.rename(temporary, final)
            _sync(final.parent)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # empty-handed after a rename: it is no longer there

    def check_writable(self) -> None:
        """Raise ValueError unless files can be created below the storage directory."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"storage {str(self.root)!r} is not writable: {error.strerror}; choose another --storage"
            ) from error

    def sweep(self) -> None:
        """Remove half-written results of processes of this host that are dead."""
        for entry in _subdirectories(self.root / "store" / ".tmp"):
            if not _alive(entry.name.split("-", 1)[1].rsplit("-", 1)[0]):
                shutil.rmtree(entry.path, ignore_errors=True)

    # --- work in progress ---------------------------------------------------------------------------------------
    def checkpoint(self, key: str) -> Path:
        """Return the file that holds the checkpoint of a running job, if there is one."""
        self.directory(key)
        return self.root / "work" / key / "checkpoint.safetensors"

    def write_checkpoint(self, key: str, content: bytes) -> None:
        """Replace a job's checkpoint in one step."""
        path = self.checkpoint(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"checkpoint-{_me()}.tmp")
        _write_synced(temporary, content)
        os.replace(temporary, path)

    def drop_checkpoint(self, key: str) -> None:
        """Forget a job's work in progress."""
        shutil.rmtree(self.checkpoint(key).parent, ignore_errors=True)

    def lease(self, key: str) -> Lease | None:
        """Return a lease on computing `key`, or None while somebody else holds one."""
        self.directory(key)
        return Lease.acquire(self.root / "leases" / key)


@dataclass
class Lease:
    """The right to compute one key, renewed by a thread until released; it expires when its owner dies.

    A lease only saves double work. Correctness does not hang on it: publishing is atomic and the first result wins.
    """

    path: Path
    token: str
    _released: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def acquire(cls, path: Path) -> Lease | None:
        """Take the lease if it is free or abandoned, else return None."""
        token = f"{_me()}-{secrets.token_hex(8)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(path, token) and not (_abandon(path) and _create(path, token)):
            return None
        lease = cls(path, token)
        threading.Thread(target=lease._renew, name=f"lease-{path.name[:8]}", daemon=True).start()
        return lease

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 6):
            try:
                if not self._held():
                    return
                os.utime(self.path)
            except FileNotFoundError:
                return

    def _held(self) -> bool:
        """Return whether nobody took us for dead meanwhile; if so, both compute and the first to publish wins."""
        return self.path.read_text(encoding="utf-8") == self.token

    def release(self) -> None:
        """Give the lease back, unless it has meanwhile gone to somebody else."""
        self._released.set()
        with contextlib.suppress(FileNotFoundError):
            if self._held():
                self.path.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _checksum(document: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest, which says of everything else what it must be."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _create(path: Path, token: str) -> bool:
    """Create `path` with `token` in it, unless it exists; it is never seen empty."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(token, encoding="utf-8")
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()


def _abandon(path: Path) -> bool:
    """Remove a lease whose owner is dead or silent; return whether the way is free."""
    try:
        token = path.read_text(encoding="utf-8")
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    if age < LEASE_SECONDS and _alive(token.rsplit("-", 1)[0]):
        return False
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if aside.read_text(encoding="utf-8") != token:  # a new owner came between: put its lease back
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            return False
        return True
    finally:
        aside.unlink()


def _me() -> str:
    """Return host, process and process start, which together name this process for all time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _alive(name: str) -> bool:
    """Return whether the process that :func:`_me` named may still run; of another host nothing is known."""
    try:
        host, pid, started = name.rsplit(":", 2)
    except ValueError:
        return True
    if host != socket.gethostname():
        return True
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return a process's start time as the kernel gives it, or "" if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
        return "alive" if _signalable(pid) else ""  # no /proc (macOS): the start time is unknown
    state, *rest = stat.rsplit(")", 1)[1].split()
    return "" if state in "ZX" else rest[18]


def _signalable(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _subdirectories(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
