"""A storage in an object store, through fsspec: S3 and what speaks its protocol, Google Cloud Storage, Azure.

An object appears as a whole when its upload ends, but there is no rename and no directory. A result is therefore
published by its manifest alone: the other files lie in a folder that belongs to the one attempt that wrote them, and
the manifest, which names the folder, is created on the condition that there is none (``If-None-Match: *``).
"""

from __future__ import annotations

import contextlib
import secrets
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from trainables.storage.errors import StorageError

T = TypeVar("T")

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": ""}
"""Scheme -> the library that fsspec needs for it; each of them can create an object conditionally."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}
"""Library -> extra of this package that installs it."""
_OPTIONS: dict[str, dict[str, Any]] = {
    # A connection that hangs must fail, to be tried again. Repeating is up to `patiently`.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}},
}


class ObjectStorage:
    """Objects below one prefix of an existing bucket. Credentials come from the environment, never from the URI.

    Every operation raises :class:`StorageError` if the store refuses it or does not answer.

    Attributes:
        uri: ``scheme://bucket/prefix``.
    """

    poll_seconds = 3.0
    """How often it is worth looking for a change."""

    def __init__(self, uri: str) -> None:
        parts = urllib.parse.urlsplit(uri)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in LIBRARIES:
            raise ValueError(f"storage {shown!r}: unknown scheme {parts.scheme!r}; known are {', '.join(LIBRARIES)}")
        if ("@" in parts.netloc and parts.scheme not in ("abfs",)) or parts.query or parts.fragment:
            raise ValueError(f"storage {shown!r}: credentials and options are taken from the environment, not the URI")
        if not parts.netloc:
            raise ValueError(f"storage {shown!r}: which bucket? {parts.scheme}://BUCKET/PREFIX")
        self.uri = uri.rstrip("/")
        self._filesystem, self._root = _connect(parts.scheme, self.uri)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    # --- single objects -------------------------------------------------------------------------------------------
    def read(self, path: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is none.
        """
        content: bytes = self._ask(path, lambda: self._filesystem.cat_file(self._at(path)))
        return content

    def exists(self, path: str) -> bool:
        """Return whether there is an object."""
        try:
            self._ask(
                path, lambda: self._filesystem.cat_file(self._at(path), start=0, end=1)
            )  # one request, no listing
        except FileNotFoundError:
            return False
        return True

    def write(self, path: str, content: bytes) -> None:
        """Write an object, in place of the one that may be there."""
        self._ask(path, lambda: self._filesystem.pipe_file(self._at(path), content))

    def create(self, path: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether its content is now the one given."""
        try:
            self._ask(path, lambda: self._filesystem.pipe_file(self._at(path), content, mode="create"))
        except FileExistsError:
            # Perhaps our own, written by an attempt whose answer was lost.
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == content
            return False
        return True

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(path, lambda: self._filesystem.rm_file(self._at(path)))

    # --- prefixes -------------------------------------------------------------------------------------------------
    def names(self, directory: str) -> Iterator[str]:
        """Yield the paths of all objects below a prefix."""
        yield from (path for path, _ in self.sizes(directory))

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Yield the path and the bytes of all objects below a prefix."""
        found: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            found = self._ask(directory, lambda: self._filesystem.find(self._at(directory), detail=True))
        for path, info in found.items():
            yield path.lstrip("/").removeprefix(self._root.lstrip("/") + "/"), int(info["size"] or 0)

    def holds(self, directory: str) -> bool:
        """Return False: there are no directories, a result without a manifest is none."""
        del directory
        return False

    def new_attempt(self) -> str:
        """Return the name of a folder for the files of a result in the making."""
        return secrets.token_hex(6)

    def publish(self, directory: str, files: Mapping[str, bytes], last: str) -> bool:
        """Let a set of objects become valid at once, unless it has been.

        Args:
            directory: its prefix.
            files: path within the prefix -> content; all but the last in a folder of this attempt's own.
            last: the object that makes the others valid.

        Returns:
            Whether it is these that are valid now.
        """
        if self.exists(f"{directory}/{last}"):
            return False
        attempt = {name: content for name, content in files.items() if name != last}
        for name, content in attempt.items():
            self.write(f"{directory}/{name}", content)
        if self.create(f"{directory}/{last}", files[last]):
            return True
        for name in attempt:
            self.remove(f"{directory}/{name}")
        return False

    def move(self, directory: str, to: str, attempt: str = "") -> None:
        """Move a result out of the way; nothing happens if another process has just done so.

        Args:
            directory: its prefix.
            to: another prefix.
            attempt: the folder that its manifest names; those of other attempts stay.
        """
        # The manifest first, before anything that it lists: it is what makes the result one.
        manifests = [path for path in self.names(directory) if path.count("/") == directory.count("/") + 1]
        folder = list(self.names(f"{directory}/{attempt}")) if attempt else []
        for path in (*manifests, *folder):
            with contextlib.suppress(FileNotFoundError):
                self.write(f"{to}/{path.removeprefix(directory + '/')}", self.read(path))
                self.remove(path)

    def remove_all(self, directory: str) -> None:
        """Remove all objects below a prefix; nothing happens if there are none."""
        for path in sorted(self.names(directory), key=lambda path: path.count("/")):  # manifests first
            self.remove(path)

    # --- the storage as a whole -----------------------------------------------------------------------------------
    def check_writable(self) -> None:
        """Raise ValueError unless objects can be written, read back unchanged, and created conditionally."""
        probe, content = f".probe-{secrets.token_hex(4)}", secrets.token_bytes(16)
        try:
            self.create(probe, content)
            if self.read(probe) != content:
                raise ValueError(f"storage {self.uri!r} returns other bytes than were written")
            if self.create(probe, content + b"2"):
                raise ValueError(
                    f"storage {self.uri!r} does not support conditional writes (If-None-Match), without which two "
                    "writers could overwrite each other"
                )
            self.remove(probe)
        except (StorageError, FileNotFoundError) as error:
            raise ValueError(f"storage {self.uri!r} is not writable: {error}; choose another --storage") from error

    def sweep(self, directory: str) -> None:
        """Do nothing: what an attempt has left unfinished is found by ``study.run --clean``."""

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise StorageError(f"storage {self.uri}/{path}: {_first_line(error)}", passing=False) from error
        except Exception as error:  # whatever a client library can throw: time-outs, resets, 5xx, slow-downs
            raise StorageError(f"storage {self.uri}/{path}: {type(error).__name__}: {_first_line(error)}") from error


def _connect(scheme: str, uri: str) -> tuple[Any, str]:
    import fsspec

    library = LIBRARIES[scheme]
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    except ImportError as error:
        extra = EXTRAS[library]
        raise ValueError(f"storage {uri!r} needs {library}: pip install -e '.[{extra}]' on every node") from error
    return filesystem, root.rstrip("/")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
