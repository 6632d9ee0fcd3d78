"""A storage in a local or shared directory (NFS, Lustre): files become visible by a rename."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from trainables.host.places import expanded
from trainables.host.processes import alive, me
from trainables.storage.errors import StorageError

TEMPORARY = ".tmp"
"""Directory of what is being written; beside its destination, so that a rename stays within one file system."""
_UNFINISHED = re.compile(r"[^-]*-(.+)-[0-9a-f]{8}")
"""Name of what is being written: of the destination, of its writer, and a random number."""


class LocalStorage:
    """Files below one directory, which is created when something is written.

    Every operation raises :class:`StorageError` if the file system refuses it.

    Attributes:
        root: the directory, absolute.
    """

    poll_seconds = 0.5
    """How often it is worth looking for a change."""

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
            FileNotFoundError: there is none.
        """
        with self._translated(path):
            return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        """Return whether there is a file."""
        return self._is(stat.S_ISREG, path)

    def write(self, path: str, content: bytes) -> None:
        """Write a file, in place of the one that may be there."""
        with self._written(path, content, synced=True) as temporary:
            os.replace(temporary, self.root / path)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether this call wrote it."""
        # Not synced: what is created so are leases, which no crash of the machine outlives.
        with self._written(path, content, synced=False) as temporary:
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:
                return False
            return True

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with self._translated(path), contextlib.suppress(FileNotFoundError):
            (self.root / path).unlink()

    # --- directories ----------------------------------------------------------------------------------------------
    def names(self, directory: str) -> Iterator[str]:
        """Yield the paths of all files below a directory, except temporary ones."""
        yield from (path for path, _ in self._entries(directory))

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Yield the path and the bytes of all files below a directory, except temporary ones."""
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
            path = f"{directory}/{entry.name}"
            with self._translated(path):
                is_file = not entry.is_dir(follow_symlinks=False)
            if is_file:
                yield path, entry
            elif entry.name != TEMPORARY:
                yield from self._entries(path)

    def holds(self, directory: str) -> bool:
        """Return whether there is a directory."""
        return self._is(stat.S_ISDIR, directory)

    def _is(self, kind: Callable[[int], bool], path: str) -> bool:
        with self._translated(path):
            try:
                return kind(os.stat(self.root / path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def new_attempt(self) -> str:
        """Return the name of a folder for the files of a result in the making: none, a rename publishes them."""
        return ""

    def publish(self, directory: str, files: Mapping[str, bytes], last: str) -> bool:
        """Let a directory of files appear at once, unless it is there.

        Args:
            directory: its path.
            files: path within the directory -> content.
            last: name of the file without which a directory is none, and is replaced.

        Returns:
            Whether this call published it.
        """
        final = self.root / directory
        temporary = self.root / directory.split("/")[0] / TEMPORARY / f"{final.name}-{me()}-{secrets.token_hex(4)}"
        with self._translated(directory):
            try:
                temporary.mkdir(parents=True)
                for name, content in files.items():
                    _write_synced(temporary / name, content)
                _sync(temporary)
                final.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(temporary, final)
                except OSError:
                    if self.exists(f"{directory}/{last}"):
                        return False
                    self.move(directory, f"{directory.split('/')[0]}/.damaged/{final.name}-{secrets.token_hex(4)}")
                    os.rename(temporary, final)
                _sync(final.parent)
                return True
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # empty-handed after a rename: it is no longer there

    def move(self, directory: str, to: str, attempt: str = "") -> None:
        """Move a directory out of the way; nothing happens if another process has just done so."""
        del attempt  # every file of a result lies in its directory
        with self._translated(directory), contextlib.suppress(FileNotFoundError):
            if self.holds(directory):
                (self.root / to).parent.mkdir(parents=True, exist_ok=True)
                os.rename(self.root / directory, self.root / to)

    def remove_all(self, directory: str) -> None:
        """Remove a directory with everything in it; nothing happens if there is none."""
        with self._translated(directory), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / directory)

    # --- the storage as a whole -----------------------------------------------------------------------------------
    def check_writable(self) -> None:
        """Create a file in the directory, and remove it.

        Raises:
            StorageError: that is not possible.
        """
        with self._translated(""):
            self.root.mkdir(parents=True, exist_ok=True)
        probe = f".probe-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"written")
        finally:
            self.remove(probe)

    def sweep(self, directory: str) -> None:
        """Remove what processes of this host that are dead have left half written below a top-level directory."""
        with self._translated(directory), contextlib.suppress(FileNotFoundError):
            for entry in os.listdir(self.root / directory / TEMPORARY):
                if (made := _UNFINISHED.fullmatch(entry)) and not alive(made[1]):
                    shutil.rmtree(self.root / directory / TEMPORARY / entry, ignore_errors=True)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError.of(error, str(self.root / path)) from error

    @contextlib.contextmanager
    def _written(self, path: str, content: bytes, *, synced: bool) -> Iterator[Path]:
        """Give the content as a temporary file beside its destination, and remove it afterwards."""
        target = self.root / path
        temporary = target.with_name(f"{target.name}-{me()}-{secrets.token_hex(4)}.tmp")
        with self._translated(path):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if synced:
                    _write_synced(temporary, content)
                else:
                    temporary.write_bytes(content)
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()


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
