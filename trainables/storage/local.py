"""A storage in a local or shared directory (NFS, Lustre). A file becomes visible under its name as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainables.host.places import expanded
from trainables.host.processes import me
from trainables.storage.base import Storage, Version
from trainables.storage.patience import StorageError

_UNFINISHED = re.compile(r"((?:.*/)?(?:[^/]+?\.json|[^/-]+))-([^/]+)-[0-9a-f]{8}\.tmp")
_MISSING = (FileNotFoundError, NotADirectoryError)
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        # Full or over quota: someone may free space.
        *("ENOSPC", "EDQUOT"),
        # Short of a resource that is released again: memory, open files, locks, ports.
        *("ENOMEM", "ENOBUFS", "EMFILE", "ENFILE", "ENOLCK", "EAGAIN", "EBUSY", "EADDRNOTAVAIL"),
        # Another process writes into a directory that is being removed.
        "ENOTEMPTY",
        # Interrupted, for example by a signal or while a client of Lustre or CIFS reconnects.
        *("EINTR", "ERESTART", "ECANCELED", "EINPROGRESS", "EALREADY"),
        # A network file system whose server or daemon is down, restarts, or has failed over to another machine.
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ETIME", "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ENONET", "ENOLINK", "ECOMM", "EPROTO", "EPIPE"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED"),
        # A device or mount that comes back; a ticket that is renewed.
        *("ENODEV", "ENXIO", "EKEYEXPIRED"),
    )
    if hasattr(errno, name)  # some exist on Linux only
)
"""Errors of a file system that may pass while an operation is tried again. The others recur: missing permission, a
read-only mount, a file in place of a directory, a name that is too long, a damaged file system, a missing operation."""


def unfinished(path: str) -> tuple[str, str] | None:
    """Return what a half-written file was to be called and which process was writing it; None for any other file."""
    found = _UNFINISHED.fullmatch(path)
    return (found[1], found[2]) if found else None


class LocalStorage(Storage):
    """Files below one directory, which is created when something is written.

    What an operation has written survives a crash of the machine.

    Attributes:
        root: the directory, absolute.
    """

    poll_seconds = 0.5

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(expanded(root)))
        super().__init__(str(self.root))

    def _read(self, path: str) -> bytes | None:
        with self._translated(path):
            try:
                return (self.root / path).read_bytes()
            except _MISSING:
                return None

    def _write(self, path: str, content: bytes) -> None:
        with self._written(path, content) as temporary:
            os.replace(temporary, self.root / path)

    def _create(self, path: str, content: bytes) -> bool:
        with self._written(path, content) as temporary:
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:
                return False
            return True

    def _move(self, path: str, to: str) -> None:
        # A file is renamed, not copied: a full disk has no space for a copy, and a damaged file may be unreadable.
        with self._translated(path), contextlib.suppress(FileNotFoundError):
            _make((self.root / to).parent)
            os.replace(self.root / path, self.root / to)
        self._remove_empty(path)

    def _remove(self, path: str) -> None:
        file = self.root / path
        with self._translated(path), contextlib.suppress(*_MISSING):
            file.unlink()
        self._remove_empty(path)

    def _remove_empty(self, path: str) -> None:
        """Remove the directories above a path that are empty, but not those at the top."""
        with contextlib.suppress(OSError):  # a directory that is not empty stays
            for above in Path(path).parents[:-2]:
                (self.root / above).rmdir()

    def _fill(self, directory: str, files: Mapping[str, bytes]) -> None:
        folder = self.root / directory
        with self._translated(directory):
            try:
                _make(folder)
                for name, content in files.items():
                    _write_synced(folder / name, content)
                _sync(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # on a full disk, half a result would keep others out
                raise

    def _names(self, directory: str) -> list[str]:
        names = []
        with self._translated(directory):
            try:
                with os.scandir(self.root / directory) as found:
                    entries = list(found)
            except FileNotFoundError:
                return []
            for entry in entries:
                path = os.path.join(directory, entry.name)
                # os.walk would take a directory for a file if the file system failed at this moment.
                names += self._names(path) if entry.is_dir(follow_symlinks=False) else [path]
        return names

    def _versions(self, directory: str) -> dict[str, Version]:
        versions = {}
        for path in self._names(directory):
            with self._translated(path), contextlib.suppress(*_MISSING):
                state = os.stat(self.root / path)
                versions[path] = Version(state.st_size, f"{state.st_mtime_ns} {state.st_ctime_ns}")
        return versions

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Raise StorageError for errors of the file system."""
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"storage {self.root / path}: its directory was removed while it was written") from error
        except OSError as error:
            passing = error.errno in _PASSING
            raise StorageError(f"storage {self.root / path}: {error.strerror or error}", passing=passing) from error

    @contextlib.contextmanager
    def _written(self, path: str, content: bytes) -> Iterator[Path]:
        """Give the content as a temporary file beside its destination; remove it afterwards."""
        target = self.root / path
        temporary = target.with_name(f"{target.name}-{me()}-{secrets.token_hex(4)}.tmp")
        with self._translated(path):
            try:
                _make(target.parent)
                _write_synced(temporary, content)
                yield temporary
                _sync(target.parent)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()


def _make(directory: Path) -> None:
    """Create a directory and its parents, unless they are there, so that their names survive a crash of the machine."""
    try:
        directory.mkdir()
    except FileNotFoundError:
        _make(directory.parent)
        _make(directory)
    except OSError:  # a server may deny access to the parent before it says that the directory exists
        if not directory.is_dir():
            raise
    else:
        _sync(directory.parent)


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
