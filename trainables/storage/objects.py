"""A storage in an object store, through fsspec: S3 and compatible servers, Google Cloud Storage, Azure.

An object appears as a whole when its upload ends. An object is created on the condition that there is none with
``If-None-Match: *``.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from trainables.errors import causes, first_line
from trainables.storage.patience import StorageError

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": ""}
"""Scheme -> the library that fsspec needs for it; all of them can create an object conditionally."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}
"""Library -> the extra of this package that installs it."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 30
"""Time-outs of a request: to connect, and without a byte from the server."""
TRANSFER_SECONDS = 3600.0
"""Time-out of a request whose answer may be large: a file, a list."""
SLOWEST = 2**18
"""Bytes per second, the slowest upload that is waited for. Clients do not notice when the server stops reading."""
_ONCE = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS, "retries": {"total_max_attempts": 1}}
_OPTIONS: dict[str, dict[str, Any]] = {
    # Libraries must not retry: `patiently` does, and retries of retries would multiply.
    "s3fs": {"config_kwargs": _ONCE},
    "adlfs": {"connection_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS},
}
"""Library -> options of its file system."""
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound", "container does not exist")
"""Phrases by which object stores say that the whole bucket is missing, not only the object."""


class ObjectStorage:
    """Objects below one prefix of an existing bucket. Credentials come from the environment, never from the URI.

    Every operation raises :class:`StorageError` if the object store refuses it or does not answer.

    Attributes:
        uri: ``scheme://bucket/prefix``.
    """

    poll_seconds = 3.0
    """Seconds between two looks for a change."""

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
        self._scheme, self._bucket = parts.scheme, parts.netloc.partition("@")[0]
        self._bucket_is_known = parts.scheme == "memory"  # which has none
        self._probe = f".probe-{secrets.token_hex(4)}"

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    # --- single objects -------------------------------------------------------------------------------------------
    def read(self, path: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        content: bytes = self._ask("cat_file", path, seconds=TRANSFER_SECONDS)
        return content

    def exists(self, path: str) -> bool:
        """Return whether there is an object."""
        try:
            self._ask("cat_file", path, start=0, end=1)  # one request, no listing
        except FileNotFoundError:
            return False
        return True

    def write(self, path: str, content: bytes) -> None:
        """Write an object, replacing any that is there."""
        self._ask("pipe_file", path, content, seconds=_upload_seconds(content))

    def create(self, path: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether its content is now the one given."""
        try:
            self._ask("pipe_file", path, content, mode="create", seconds=_upload_seconds(content))
        except FileExistsError:
            # It may be ours, written by a request whose answer was lost.
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == content
            return False
        return True

    def move(self, path: str, to: str) -> None:
        """Copy an object to another path, then remove it; do nothing if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.write(to, self.read(path))
            self.remove(path)

    def remove(self, path: str) -> None:
        """Remove an object; do nothing if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm_file", path)

    # --- prefixes -------------------------------------------------------------------------------------------------
    def fill(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Write the objects (name -> content) below a prefix that nobody else reads or writes yet."""
        for name, content in files.items():
            self.write(f"{directory}/{name}", content)

    def names(self, directory: str) -> Iterator[str]:
        """Yield the paths of all objects below a prefix."""
        yield from (path for path, _ in self.sizes(directory))

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Yield the path and the size in bytes of all objects below a prefix."""
        found: dict[str, Any] = self._ask("find", directory, detail=True, seconds=TRANSFER_SECONDS)
        if not found and not self._bucket_exists():
            raise self._no_bucket()
        for path, info in found.items():
            yield path.lstrip("/").removeprefix(self._root.lstrip("/") + "/"), int(info["size"] or 0)

    def remove_all(self, directory: str) -> None:
        """Remove all objects below a prefix; do nothing if there are none."""
        for path in list(self.names(directory)):
            self.remove(path)

    # --- the storage as a whole -----------------------------------------------------------------------------------
    def check_writable(self) -> None:
        """Create an object, read it back, try to create it again, and remove it.

        Raises:
            StorageError: that is not possible.
        """
        probe, content = self._probe, self._probe.encode()  # the same in each attempt, so that none is left behind
        try:
            self.create(probe, content)
        except StorageError as error:
            # In the middle of a study, the machine's role may answer late; at the start, credentials were never set.
            if type(error.__cause__).__name__ == "NoCredentialsError":
                raise StorageError(str(error), passing=False) from error.__cause__
            raise
        if self.read(probe) != content:
            raise StorageError("it returns other bytes than were written", passing=False)
        if self.create(probe, content + b"2"):
            raise StorageError(
                "it does not support conditional writes (If-None-Match), without which two writers could overwrite "
                "each other",
                passing=False,
            )
        self.remove(probe)

    def _ask(self, request: str, path: str, *values: Any, seconds: float | None = None, **options: Any) -> Any:
        """Make one request and return the answer.

        Args:
            request: name of the file system's method.
            path: its first argument.
            values: its other positional arguments.
            seconds: time-out; by default, that of a request with little content.
            options: its keyword arguments.
        """
        try:
            return self._request(request, self._at(path), *values, seconds=seconds, **options)
        except FileNotFoundError as error:
            said = "\n".join(map(str, causes(error, contexts=True)))
            if any(words in said for words in _NO_BUCKET) or not self._bucket_exists():
                raise self._no_bucket() from error
            raise

    def _request(self, request: str, path: str, *values: Any, seconds: float | None = None, **options: Any) -> Any:
        if self._filesystem.async_impl:  # only these methods take a time-out
            options["timeout"] = CONNECT_SECONDS + SILENCE_SECONDS if seconds is None else seconds
        try:
            return getattr(self._filesystem, request)(path, *values, **options)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # client libraries raise all kinds for time-outs, resets, 5xx and throttling
            reason, passing = first_line(error), not _is_refusal(error)
            kind = f"{type(error).__name__}: " if passing else ""
            raise StorageError(f"storage {self._scheme}://{path}: {kind}{reason}", passing=passing) from error

    def _bucket_exists(self) -> bool:
        """Return whether the bucket exists, as far as a user with permission to read and list objects can tell."""
        if not self._bucket_is_known:
            if self._scheme in ("az", "abfs"):  # a missing container lists as an empty one
                self._bucket_is_known = bool(self._request("exists", self._bucket))
            else:
                with contextlib.suppress(FileNotFoundError):  # listing fails only if the bucket is missing
                    self._request("find", self._at(self._probe))
                    self._bucket_is_known = True
        return self._bucket_is_known

    def _no_bucket(self) -> StorageError:
        return StorageError(f"storage {self.uri}: there is no bucket {self._bucket!r}", passing=False)


def _connect(scheme: str, uri: str) -> tuple[Any, str]:
    import fsspec

    library = LIBRARIES[scheme]
    options = copy.deepcopy(_OPTIONS.get(library, {}))  # libraries modify them
    if library == "gcsfs":  # a plain number would limit the whole transfer
        from aiohttp import ClientTimeout  # a dependency of gcsfs

        options["requests_timeout"] = ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)
    except ImportError as error:
        extra = EXTRAS[library]
        raise ValueError(f"storage {uri!r} needs {library}: pip install -e '.[{extra}]' on every node") from error
    if library == "s3fs":  # the others have no such setting
        filesystem.retries = 1
    return filesystem, root.rstrip("/")


def _upload_seconds(content: bytes) -> float:
    return CONNECT_SECONDS + SILENCE_SECONDS + len(content) / SLOWEST


def _is_refusal(error: Exception) -> bool:
    """Return whether the object store has denied access."""
    status = getattr(error, "code", None) or getattr(error, "status_code", None)  # Google's library, Azure's library
    return isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden:")
