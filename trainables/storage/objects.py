"""A storage in an object store, through fsspec: S3 and compatible servers, Google Cloud Storage, Azure.

An object appears as a whole when its upload ends. Creating one is conditional: it fails if the object exists
(``If-None-Match: *`` on S3).
"""

from __future__ import annotations

import contextlib
import copy
import urllib.parse
from collections.abc import Mapping
from typing import Any

from trainables.errors import causes, first_line
from trainables.storage.base import Storage, Version
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

_TAGS = ("ETag", "etag", "md5Hash", "last_modified", "created")
"""Fields of a listing that identify an object's version, most reliable first: of s3fs; of gcsfs and, where it passes it
on, adlfs; of gcsfs; of adlfs; of objects in memory."""


class ObjectStorage(Storage):
    """Objects below one prefix of an existing bucket. Credentials come from the environment, never from the URI."""

    poll_seconds = 3.0

    def __init__(self, uri: str) -> None:
        parts = urllib.parse.urlsplit(uri)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in LIBRARIES:
            raise ValueError(f"storage {shown!r}: unknown scheme {parts.scheme!r}; known are {', '.join(LIBRARIES)}")
        if ("@" in parts.netloc and parts.scheme not in ("abfs",)) or parts.query or parts.fragment:
            raise ValueError(f"storage {shown!r}: credentials and options are taken from the environment, not the URI")
        if not parts.netloc:
            raise ValueError(f"storage {shown!r}: which bucket? {parts.scheme}://BUCKET/PREFIX")
        super().__init__(uri.rstrip("/"))
        self._filesystem, self._root = _connect(parts.scheme, self.uri)
        self._scheme, self._bucket = parts.scheme, parts.netloc.partition("@")[0]
        self._bucket_is_known = parts.scheme == "memory"  # which has none

    def _read(self, path: str) -> bytes | None:
        try:
            content: bytes = self._ask("cat_file", path, seconds=TRANSFER_SECONDS)
        except FileNotFoundError:
            return None
        return content

    def _write(self, path: str, content: bytes) -> None:
        self._ask("pipe_file", path, content, seconds=_upload_seconds(content))

    def _create(self, path: str, content: bytes) -> bool:
        try:
            self._ask("pipe_file", path, content, mode="create", seconds=_upload_seconds(content))
        except FileExistsError:
            return False
        return True

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm_file", path)

    def _versions(self, directory: str) -> dict[str, Version]:
        found: dict[str, Any] = self._ask("find", directory, detail=True, seconds=TRANSFER_SECONDS)
        if not found:
            if self._scheme in ("az", "abfs"):  # a container that was deleted lists as an empty one
                self._bucket_is_known = False
            self._check_bucket()
        start = self._root.lstrip("/") + "/"
        return {
            path.lstrip("/").removeprefix(start): Version(int(info["size"] or 0), _tag(info))
            for path, info in found.items()
        }

    def _check_writable(self) -> None:
        try:
            super()._check_writable()
        except StorageError as error:
            # In the middle of a study, the machine's role may answer late; at the start, credentials were never set.
            if type(error.__cause__).__name__ == "NoCredentialsError":
                raise StorageError(str(error), passing=False) from error.__cause__
            raise

    def _ask(self, request: str, path: str, *values: Any, seconds: float | None = None, **options: Any) -> Any:
        """Call a method of the file system; by default, with the time-out of a request with little content."""
        try:
            return self._request(request, f"{self._root}/{path}", *values, seconds=seconds, **options)
        except FileNotFoundError as error:
            needs_object = request in ("cat_file", "rm_file")
            said = "\n".join(map(str, causes(error, contexts=True)))
            if not needs_object or any(phrase in said for phrase in _NO_BUCKET):
                self._bucket_is_known = False  # it may have been deleted in the middle of a study
            self._check_bucket(error)
            if needs_object:
                raise
            raise StorageError(f"storage {self.uri}/{path}: {first_line(error)}") from error

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

    def _check_bucket(self, cause: Exception | None = None) -> None:
        """Raise StorageError if the bucket is missing, as far as a user who may read and list objects can tell."""
        if self._bucket_is_known:
            return
        with contextlib.suppress(FileNotFoundError):  # listing fails only if the bucket is missing
            if self._scheme in ("az", "abfs"):  # see _versions
                self._bucket_is_known = bool(self._request("exists", self._bucket))
            else:
                self._request("find", f"{self._root}/{self._probe}")
                self._bucket_is_known = True
        if not self._bucket_is_known:
            raise StorageError(f"storage {self.uri}: there is no bucket {self._bucket!r}", passing=False) from cause


def _tag(info: Mapping[str, Any]) -> str:
    return next((str(info[name]) for name in _TAGS if info.get(name)), "")


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
