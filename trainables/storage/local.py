"""A storage in a local or shared directory (NFS, Lustre). A file becomes visible under its name as a whole."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainables.host.places import expanded
from trainables.host.processes import me
from trainables.storage.patience import StorageError

_UNFINISHED = re.compile(r"((?:.*/)?[^/-]+)-([^/]+)-[0-9a-f]{8}\.tmp")


def unfinished(path: str) -> tuple[str, str] | None:
    """Return what a half-written file was to be called and which process was writing it; None for any other file."""
    found = _UNFINISHED.fullmatch(path)
    return (found[1], found[2]) if found else None


class LocalStorage:
    """Files below one directory, which is created when something is written.

    What an operation has written survives a crash of the machine. Every operation raises :class:`StorageError` if the
    file system refuses it.

    Attributes:
        root: the directory, absolute.
    """

    poll_seconds = 0.5
    """Seconds between two looks for a change."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(expanded(root)))

    @property
    def uri(self) -> str:
        """The directory, as ``--storage`` takes it."""
        return str(self.root)

    # --- single files ---------------------------------------------------------------------------------------------
    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._translated(path):
            return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        """Return whether there is a file."""
        with self._translated(path):
            try:
                return stat.S_ISREG(os.stat(self.root / path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def write(self, path: str, content: bytes) -> None:
        """Write a file, replacing any that is there."""
        with self._written(path, content) as temporary:
            os.replace(temporary, self.root / path)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether this call wrote it."""
        with self._written(path, content) as temporary:
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:  # on NFS it may be ours, linked by a request whose answer was lost
                with contextlib.suppress(FileNotFoundError):
                    return os.path.samefile(temporary, self.root / path)
                return False
            return True

    def move(self, path: str, to: str) -> None:
        """Rename a file; do nothing if there is none."""
        with self._translated(path), contextlib.suppress(FileNotFoundError):
            _make((self.root / to).parent)
            os.replace(self.root / path, self.root / to)

    def remove(self, path: str) -> None:
        """Remove a file; do nothing if there is none."""
        with self._translated(path), contextlib.suppress(FileNotFoundError):
            (self.root / path).unlink()

    # --- directories ----------------------------------------------------------------------------------------------
    def fill(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Write the files (name -> content) of a directory that nobody else reads or writes yet."""
        folder = self.root / directory
        with self._translated(directory, missing="it was removed while it was written"):
            try:
                _make(folder)
                for name, content in files.items():
                    _write_synced(folder / name, content)
                _sync(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # on a full disk, half a result would keep others out
                raise

    def names(self, directory: str) -> Iterator[str]:
        """Yield the paths of all files below a directory, half-written ones included."""
        yield from (path for path, _ in self._entries(directory))

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Yield the path and the size in bytes of all files below a directory, half-written ones included."""
        for path, entry in self._entries(directory):
            with contextlib.suppress(FileNotFoundError):
                with self._translated(path):
                    size = entry.stat().st_size
                yield path, size

    def _entries(self, directory: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            with self._translated(directory), os.scandir(self.root / directory) as found:
                entries = list(found)
        except FileNotFoundError:
            return
        for entry in entries:
            path = f"{directory}/{entry.name}" if directory else entry.name
            with self._translated(path):
                is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory:
                yield from self._entries(path)
            else:
                yield path, entry

    def remove_all(self, directory: str) -> None:
        """Remove a directory and everything in it; do nothing if there is none."""
        with self._translated(directory), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / directory)

    # --- the storage as a whole -----------------------------------------------------------------------------------
    def check_writable(self) -> None:
        """Create a file in the directory, and remove it.

        Raises:
            StorageError: that is not possible.
        """
        probe = f".probe-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"written")
        finally:
            self.remove(probe)

    @contextlib.contextmanager
    def _translated(self, path: str, *, missing: str = "") -> Iterator[None]:
        """Raise StorageError for errors of the file system; also for a missing file if `missing` explains it."""
        try:
            yield
        except FileNotFoundError as error:
            if missing:
                raise StorageError(f"storage {self.root / path}: {missing}") from error
            raise
        except OSError as error:
            raise StorageError.of(error, str(self.root / path)) from error

    @contextlib.contextmanager
    def _written(self, path: str, content: bytes) -> Iterator[Path]:
        """Give the content as a temporary file beside its destination; remove it afterwards."""
        target = self.root / path
        temporary = target.with_name(f"{target.name}-{me()}-{secrets.token_hex(4)}.tmp")
        with self._translated(path, missing="its directory was removed while it was written"):
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
