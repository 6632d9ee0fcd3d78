"""A storage in an object store, through fsspec: S3 and what speaks its protocol, Google Cloud Storage, Azure.

An object appears as a whole when its upload ends, but there is no rename and no directory. A result is therefore
published by its manifest alone: the other files lie in a folder that belongs to the one attempt that wrote them, and
the manifest, which names the folder, is created on the condition that there is none (``If-None-Match: *``).
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from trainables.storage.errors import StorageError

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": ""}
"""Scheme -> the library that fsspec needs for it; each of them can create an object conditionally."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}
"""Library -> extra of this package that installs it."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 30
"""How long a connection may take to come about, and how long it may be silent: then the request has failed."""
TRANSFER_SECONDS = 3600.0
"""How long an answer may take that may be of any length: a large file, a long list."""
SLOWEST = 2**18
"""Bytes per second that an upload makes at least. Its silence goes unnoticed by a client that waits to be let in."""
_ONCE = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS, "retries": {"total_max_attempts": 1}}
_OPTIONS: dict[str, dict[str, Any]] = {
    # A request is made once and fails if nobody answers. Repeating it is up to `patiently`: repetitions multiply.
    "s3fs": {"config_kwargs": _ONCE},
    "adlfs": {"connection_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS},
}
"""Library -> options of its file system."""
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound", "container does not exist")
"""What the answers of object stores say if not only the object is missing."""


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
        self._scheme, self._bucket = parts.scheme, parts.netloc.partition("@")[0]
        self._bucket_is_known = parts.scheme == "memory"  # which has none
        self._probe = f".probe-{secrets.token_hex(4)}"

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    # --- single objects -------------------------------------------------------------------------------------------
    def read(self, path: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is none.
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
        """Write an object, in place of the one that may be there."""
        self._ask("pipe_file", path, content, seconds=_upload_seconds(content))

    def create(self, path: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether its content is now the one given."""
        try:
            self._ask("pipe_file", path, content, mode="create", seconds=_upload_seconds(content))
        except FileExistsError:
            # Perhaps our own, written by an attempt whose answer was lost.
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == content
            return False
        return True

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm_file", path)

    # --- prefixes -------------------------------------------------------------------------------------------------
    def names(self, directory: str) -> Iterator[str]:
        """Yield the paths of all objects below a prefix."""
        yield from (path for path, _ in self.sizes(directory))

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Yield the path and the bytes of all objects below a prefix."""
        found: dict[str, Any] = self._ask("find", directory, detail=True, seconds=TRANSFER_SECONDS)
        if not found and not self._bucket_exists():
            raise self._no_bucket()
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
        """Write an object, read it back unchanged, and create it conditionally; it is removed again.

        Raises:
            StorageError: that is not possible.
        """
        probe, content = self._probe, self._probe.encode()  # the same at each attempt, so that no other is left behind
        try:
            self.create(probe, content)
        except StorageError as error:
            # A machine's role may be late to answer in the middle of a study; at its start nobody has set any.
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

    def sweep(self, directory: str) -> None:
        """Do nothing: what an attempt has left unfinished is found by ``study.run --clean``."""

    def _ask(self, request: str, path: str, *values: Any, seconds: float | None = None, **options: Any) -> Any:
        """Make one request and return the answer.

        Args:
            request: name of the file system's method.
            path: what it is about.
            values: what else the method takes.
            seconds: how long it may take; by default that of a request without much content.
            options: what else the method takes by name.
        """
        try:
            return self._request(request, self._at(path), *values, seconds=seconds, **options)
        except FileNotFoundError as error:
            if any(words in str(each) for each in _chain(error) for words in _NO_BUCKET) or not self._bucket_exists():
                raise self._no_bucket() from error
            raise

    def _request(self, request: str, path: str, *values: Any, seconds: float | None = None, **options: Any) -> Any:
        if self._filesystem.async_impl:  # whose methods are waited for here, by fsspec
            options["timeout"] = CONNECT_SECONDS + SILENCE_SECONDS if seconds is None else seconds
        try:
            return getattr(self._filesystem, request)(path, *values, **options)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # whatever a client library can throw: time-outs, resets, 5xx, slow-downs
            reason, passing = _first_line(error), not _is_refusal(error)
            kind = f"{type(error).__name__}: " if passing else ""
            raise StorageError(f"storage {self._scheme}://{path}: {kind}{reason}", passing=passing) from error

    def _bucket_exists(self) -> bool:
        """Return whether the bucket is there, as far as can be told by those who may read and list its objects."""
        if not self._bucket_is_known:
            if self._scheme in ("az", "abfs"):  # which list nothing where there is nothing
                self._bucket_is_known = bool(self._request("exists", self._bucket))
            else:
                with contextlib.suppress(FileNotFoundError):  # a list is only missing with its bucket
                    self._request("find", self._at(self._probe))
                    self._bucket_is_known = True
        return self._bucket_is_known

    def _no_bucket(self) -> StorageError:
        return StorageError(f"storage {self.uri}: there is no bucket {self._bucket!r}", passing=False)


def _connect(scheme: str, uri: str) -> tuple[Any, str]:
    import fsspec

    library = LIBRARIES[scheme]
    options = copy.deepcopy(_OPTIONS.get(library, {}))  # libraries add to them
    if library == "gcsfs":  # a number would bound a transfer as a whole
        from aiohttp import ClientTimeout  # of gcsfs

        options["requests_timeout"] = ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)
    except ImportError as error:
        extra = EXTRAS[library]
        raise ValueError(f"storage {uri!r} needs {library}: pip install -e '.[{extra}]' on every node") from error
    # Repeating is up to `patiently`: repetitions of repetitions multiply. The other libraries do not let us say so.
    if library == "s3fs":
        filesystem.retries = 1
    return filesystem, root.rstrip("/")


def _upload_seconds(content: bytes) -> float:
    return CONNECT_SECONDS + SILENCE_SECONDS + len(content) / SLOWEST


def _is_refusal(error: Exception) -> bool:
    """Return whether the store has answered that it does not let us in."""
    status = getattr(error, "code", None) or getattr(error, "status_code", None)  # of Google's library, of Azure's
    return isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden:")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
