"""What a storage can do, whether it is a directory or an object store. Torch-free."""

from __future__ import annotations

import abc
import secrets
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from trainables.storage.patience import StorageError, patiently


class Version(NamedTuple):
    """What a listing says of a file: its size in bytes, and a tag that changes whenever the file is written."""

    size: int
    tag: str


class Storage(abc.ABC):
    """Files below one root; their paths are relative to it, with ``/`` between the parts.

    Files are written atomically: no reader sees half a file, and if two processes create the same path, exactly one
    succeeds. Every operation tries again while the storage fails in a way that may pass (see :func:`patiently`), and
    then raises :class:`StorageError`. Subclasses implement the operations whose names begin with an underscore, each
    as one attempt.

    Attributes:
        uri: the storage, as ``--storage`` takes it.
        poll_seconds: seconds between two looks for a change.
    """

    poll_seconds: ClassVar[float]

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._probe = f".probe-{secrets.token_hex(4)}"

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""
        return patiently(lambda: self._read(path))

    def write(self, path: str, content: bytes) -> None:
        """Write a file, replacing any that is there."""
        patiently(lambda: self._write(path, content))

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether its content is now the one given."""
        return patiently(lambda: self._holds(path, content))

    def fill(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Write the files (name -> content) of a directory that no other process reads or writes yet."""
        patiently(lambda: self._fill(directory, files))

    def move(self, path: str, to: str) -> None:
        """Move a file to another path; do nothing if there is none."""
        patiently(lambda: self._move(path, to))

    def remove(self, path: str) -> None:
        """Remove a file; do nothing if there is none."""
        patiently(lambda: self._remove(path))

    def names(self, directory: str) -> list[str]:
        """Return the paths of all files below a directory, half-written ones included."""
        return patiently(lambda: self._names(directory))

    def sizes(self, directory: str) -> dict[str, int]:
        """Return the size in bytes of every file below a directory, half-written ones included: path -> size."""
        return {path: version.size for path, version in self.versions(directory).items()}

    def versions(self, directory: str) -> dict[str, Version]:
        """Return the version of every file below a directory, half-written ones included: path -> version."""
        return patiently(lambda: self._versions(directory))

    def check_writable(self) -> None:
        """Create a file, read it back, try to create it again, and remove it.

        Raises:
            StorageError: that is not possible.
        """
        patiently(self._check_writable)

    @abc.abstractmethod
    def _read(self, path: str) -> bytes | None: ...

    @abc.abstractmethod
    def _write(self, path: str, content: bytes) -> None: ...

    @abc.abstractmethod
    def _create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether this call wrote it."""

    @abc.abstractmethod
    def _remove(self, path: str) -> None: ...

    @abc.abstractmethod
    def _versions(self, directory: str) -> dict[str, Version]: ...

    def _names(self, directory: str) -> list[str]:
        return list(self._versions(directory))

    def _fill(self, directory: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._write(f"{directory}/{name}", content)

    def _move(self, path: str, to: str) -> None:
        if (content := self._read(path)) is not None:
            self._write(to, content)
            self._remove(path)

    def _holds(self, path: str, content: bytes) -> bool:
        # A file that is there may be ours, created by a request whose answer was lost.
        return self._create(path, content) or self._read(path) == content

    def _check_writable(self) -> None:
        content = self._probe.encode()  # the same in each attempt, so that none is left behind
        self._holds(self._probe, content)
        try:
            if self._read(self._probe) != content:
                raise StorageError("it returns other bytes than were written", passing=False)
            if self._holds(self._probe, content + b"2"):
                raise StorageError(
                    "it does not support conditional writes (If-None-Match), without which two writers could "
                    "overwrite each other",
                    passing=False,
                )
        finally:
            self._remove(self._probe)
