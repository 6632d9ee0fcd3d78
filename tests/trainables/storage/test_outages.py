"""Storages that are away for a while, for good, or say nothing: what each operation makes of it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import importlib.util
import inspect
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.asyn
import pytest
from s3_server import BUCKET, environment
from waiting import HANG_SECONDS

from study.clean import surplus
from trainables.schema import MANIFEST, METRICS
from trainables.storage import LocalStorage, local, objects, patience
from trainables.storage.objects import ObjectStorage
from trainables.storage.patience import StorageError, announced, patiently
from trainables.storage.store import Store

KEY = hashlib.sha256(b"a result in an outage").hexdigest()
PLACE = f"store/{KEY[:2]}/{KEY}"

METRICS_FILE = b'{"history": [], "final": {}}'
VALUES: dict[str, Any] = {
    "path": f"{PLACE}/{METRICS}",
    "content": b"{}",
    "directory": PLACE,
    "files": {METRICS: METRICS_FILE, MANIFEST: b"{}"},
    "to": f"store/.damaged/{KEY}-0/{METRICS}",
    "key": KEY,
    "keys": [KEY],
    "name": METRICS,
    "names": [METRICS],
    "manifest": {"kind": "dense"},
    "note": {},
    "needed": [],
    "finished": [KEY],
    "document": {"error": "nan"},
    "reason": "torn",
}
"""Name of a parameter -> what operations are given for it; an operation with another one has to be added here."""


def operations(kind: type, **other: Any) -> dict[str, Callable[[Any], Any]]:
    """Return everything that a storage or store is asked for: name -> what does it, to the end."""

    def call(name: str, taken: list[str]) -> Callable[[Any], Any]:
        def done(storage: Any) -> Any:
            answer = getattr(storage, name)(**{each: {**VALUES, **other}[each] for each in taken})
            return list(answer) if inspect.isgenerator(answer) else answer

        return done

    return {
        name: call(name, [each for each in inspect.signature(function).parameters if each != "self"])
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


# --- which errors pass ------------------------------------------------------------------------------------------------
COME_AGAIN = """
    EPERM ENOENT ESRCH E2BIG ENOEXEC EBADF ECHILD EACCES EFAULT ENOTBLK EEXIST EXDEV ENOTDIR EISDIR EINVAL
    ENOTTY ETXTBSY EFBIG ESPIPE EROFS EMLINK EDOM ERANGE EDEADLK EDEADLOCK ENAMETOOLONG ENOSYS ELOOP
    ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC
    EBADSLT EBFONT ENOSTR ENODATA ENOSR ENOPKG EADV ESRMNT EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD
    EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE
    EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP ENOTSUP EPFNOSUPPORT EAFNOSUPPORT
    EADDRINUSE EISCONN ETOOMANYREFS EUCLEAN ENOTNAM ENAVAIL EISNAM ENOMEDIUM EMEDIUMTYPE ENOKEY EKEYREVOKED
    EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON EREMOTE ENOTCAPABLE EQFULL
"""
"""What was asked is wrong or not allowed, the file system is damaged, or no file system says it."""
PASS = """
    ENOSPC EDQUOT EIO ESTALE ETIMEDOUT EAGAIN EBUSY ENOTCONN EHOSTDOWN EREMOTEIO ECONNRESET ESHUTDOWN
    ECONNABORTED ECONNREFUSED EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET EPIPE ENOLCK ENFILE EMFILE ENOMEM
    EINTR ENOTEMPTY
"""


def code(name: str) -> int:
    value: int = getattr(errno, name)
    return value


def test_every_error_of_the_system_passes_or_comes_again() -> None:
    lasting = {getattr(errno, name) for name in COME_AGAIN.split() if hasattr(errno, name)}
    assert not local._PASSING & lasting
    unsorted = set(errno.errorcode) - local._PASSING - lasting
    assert not unsorted, [errno.errorcode[each] for each in unsorted]
    assert {code(name) for name in PASS.split()} <= local._PASSING


# --- a directory --------------------------------------------------------------------------------------------------
def break_files(patch: pytest.MonkeyPatch, root: Path, number: int) -> None:
    """Let each call to the file system fail that is about a directory, or a file that has been opened."""

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(place: Any = ".", *more: Any, **named: Any) -> Any:
            if not isinstance(place, int) and not str(os.fspath(place)).startswith(str(root)):
                return function(place, *more, **named)
            raise OSError(number, os.strerror(number))

        return call

    for name in (
        "stat",
        "lstat",
        "open",
        "mkdir",
        "scandir",
        "listdir",
        "replace",
        "rename",
        "link",
        "unlink",
        "fsync",
    ):
        patch.setattr(os, name, failing(getattr(os, name)))
    patch.setattr(io, "open", failing(io.open))


LOCAL, OBJECTS = operations(LocalStorage), operations(ObjectStorage)


def test_both_kinds_of_storage_have_the_same_operations() -> None:
    assert LOCAL.keys() == OBJECTS.keys()


@pytest.mark.parametrize("operation", LOCAL)
def test_an_error_of_the_file_system_is_one_of_the_storage(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    storage = LocalStorage(tmp_path)
    storage.fill(PLACE, VALUES["files"])
    for number in set(errno.errorcode) - {errno.ENOENT, errno.EEXIST, errno.ENOTDIR}:
        with monkeypatch.context() as patch:
            break_files(patch, tmp_path, number)
            with pytest.raises(StorageError) as caught:
                LOCAL[operation](storage)
        assert os.strerror(number) in str(caught.value)
        assert caught.value.passing == (number in local._PASSING), errno.errorcode[number]


# --- an object store ------------------------------------------------------------------------------------------------
class Failing:
    """A file system of fsspec whose every method raises the same."""

    async_impl = False

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise self.error

        return fail


class Status(Exception):
    """An error as Google's library raises it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"status {number}")
        self.code = number


@pytest.mark.parametrize("operation", OBJECTS)
@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError(), True),
        (Status(503), True),
        (PermissionError("Access Denied"), False),
        (Status(403), False),
        (OSError("Forbidden: https://storage.example/b/x"), False),
    ],
    ids=str,
)
def test_an_error_of_the_library_is_one_of_the_storage(
    operation: str, error: Exception, passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    storage = ObjectStorage("memory://bucket/x")
    storage._filesystem = Failing(error)
    with pytest.raises(StorageError, match=r"storage memory://.*bucket/x") as caught:
        OBJECTS[operation](storage)
    assert caught.value.passing == passing


@pytest.mark.parametrize("operation", OBJECTS)
@pytest.mark.parametrize(("scheme", "deleted"), [("s3", 0), ("gs", 0), ("az", 0), ("s3", 1), ("gs", 1), ("az", 1)])
def test_a_bucket_that_is_missing_does_not_read_as_empty(operation: str, scheme: str, deleted: int) -> None:
    """As the libraries behave: S3's and Azure's say so, Google's only raises, Azure's finds nothing.

    A bucket that is deleted in the middle of a study was known before.
    """
    if deleted and scheme == "gs" and operation in ("read", "move", "remove"):
        pytest.skip("the answer is that of a bucket without the object")
    said = {"s3": "The specified bucket does not exist", "gs": "", "az": "ErrorCode:ContainerNotFound"}
    storage = ObjectStorage("memory://bucket/x")
    storage._scheme, storage._bucket_is_known = scheme, bool(deleted)
    storage._filesystem = away = Failing(FileNotFoundError(said[scheme]))
    if scheme == "az":
        away.find = lambda *_, **__: {}  # type: ignore[attr-defined]
        away.exists = lambda *_, **__: False  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="there is no bucket 'bucket'") as caught:
        OBJECTS[operation](storage)
    assert not caught.value.passing


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """A server that takes connections and says nothing; the connections."""
    if not importlib.util.find_spec("s3fs"):
        pytest.skip("needs s3fs")
    listener, connections = socket.create_server(("127.0.0.1", 0)), []
    for name, value in environment(listener.getsockname()[1]).items():
        monkeypatch.setenv(name, value)
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # whose clients know another server

    def accept() -> None:
        while True:
            try:
                connections.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield connections
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(HANG_SECONDS)
    for each in connections:
        each.close()


def test_a_server_that_says_nothing_is_asked_once_by_each_attempt(
    silence: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(objects._ONCE, "read_timeout", 0.3)
    monkeypatch.setattr(objects, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(objects, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    storage = ObjectStorage(f"s3://{BUCKET}/x")
    for operation in OBJECTS.values():
        with pytest.raises(StorageError) as caught:
            operation(storage)
        assert caught.value.passing
    assert 0 < len(silence) <= len(OBJECTS)


class Endless:
    """A file system whose library waits for an answer for ever."""

    async_impl = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        loop = fsspec.asyn.get_loop()
        return lambda *_, timeout, **__: fsspec.asyn.sync(loop, asyncio.sleep, 10 * HANG_SECONDS, timeout=timeout)


@pytest.mark.parametrize("operation", OBJECTS)
def test_a_request_ends_even_if_its_library_waits_for_ever(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("SILENCE_SECONDS", "CONNECT_SECONDS", "TRANSFER_SECONDS"):
        monkeypatch.setattr(objects, bound, 0.01)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    storage = ObjectStorage("memory://bucket/x")
    storage._filesystem = Endless()
    with pytest.raises(StorageError, match="Timeout") as caught:
        OBJECTS[operation](storage)
    assert caught.value.passing


def test_options_that_keep_requests_from_hanging_and_repeating() -> None:
    assert objects._ONCE["retries"] == {"total_max_attempts": 1}
    assert objects.SILENCE_SECONDS < patience.PATIENCE_SECONDS
    assert objects._OPTIONS["adlfs"]["read_timeout"] == objects._ONCE["read_timeout"] == objects.SILENCE_SECONDS


# --- patience -------------------------------------------------------------------------------------------------------
def fail_first(storage: Any) -> None:
    """Let each kind of attempt at an operation of a storage fail the first time, and then work."""

    def failing_first(attempt: Callable[..., Any]) -> Callable[..., Any]:
        failures = iter([StorageError("storage x: Stale file handle")])

        def call(*values: Any) -> Any:
            if failure := next(failures, None):
                raise failure
            return attempt(*values)

        return call

    for name in ("_read", "_write", "_create", "_remove", "_move", "_fill", "_names", "_versions"):
        setattr(storage, name, failing_first(getattr(storage, name)))


STORE = operations(Store, files={METRICS: METRICS_FILE})
del STORE["directory"]  # which only names one


@pytest.mark.parametrize("location", ["directory", "memory"])
@pytest.mark.parametrize("operation", [*STORE, "__contains__"])
def test_whatever_touches_the_storage_is_tried_again(
    operation: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)
    store = Store(tmp_path if location == "directory" else f"memory://bucket/{tmp_path.name}-{operation}")
    store.publish(KEY, {METRICS: METRICS_FILE}, {"kind": "dense"})
    store.record_failure(KEY, {})
    flaky = Store(store.uri)
    fail_first(flaky.storage)
    done = STORE.get(operation, lambda each: KEY in each)(flaky)
    if hasattr(done, "release"):
        done.release()


def test_a_result_is_not_missing_because_its_directory_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory on a network file system whose handles are stale as trials begin."""
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)
    store, asked, original = Store(tmp_path), [], io.open

    def stale(path: Any, *more: Any, **named: Any) -> Any:
        if str(path).startswith(str(tmp_path)):
            asked.append(path)
            if len(asked) < 3:
                raise OSError(errno.ESTALE, "Stale file handle")
        return original(path, *more, **named)

    monkeypatch.setattr(io, "open", stale)
    assert KEY not in store
    assert len(asked) == 3


class StaleOnce:
    """A directory's entry that cannot be looked at the first time."""

    def __init__(self, entry: os.DirEntry[str], looked_at: set[str]) -> None:
        self.entry, self.name, self.looked_at = entry, entry.name, looked_at

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        if self.entry.path not in self.looked_at:
            self.looked_at.add(self.entry.path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return self.entry.is_dir(follow_symlinks=follow_symlinks)


def test_a_directory_that_cannot_be_looked_at_is_not_listed_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looked_at, scandir = Store(tmp_path), set[str](), os.scandir
    store.publish(KEY, {METRICS: METRICS_FILE}, {})
    expected = sorted(store.storage.names("store"))

    class Stale:
        """What os.scandir returns."""

        def __init__(self, path: Any) -> None:
            with scandir(path) as found:
                self.entries = iter([StaleOnce(entry, looked_at) for entry in found])

        def __enter__(self) -> Iterator[StaleOnce]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

        def __next__(self) -> StaleOnce:
            return next(self.entries)

    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(os, "scandir", Stale)
    assert sorted(store.storage.names("store")) == expected
    looked_at.clear()
    assert store.keys() == {KEY}
    looked_at.clear()
    assert list(surplus(store, [], []).results.values()) == [[KEY]]


@pytest.mark.parametrize(("given", "seconds"), [("0", 0.0), ("7.5", 7.5), ("86400", 86400.0), (None, 120.0)])
def test_the_user_may_set_the_patience(monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: float) -> None:
    made: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", made.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(made))
    if given is not None:
        monkeypatch.setenv(patience.PATIENCE_VARIABLE, given)

    def away() -> None:
        raise StorageError("storage x: away")

    with pytest.raises(StorageError):
        patiently(away)
    assert seconds / 3 <= sum(made) <= seconds


@pytest.mark.parametrize("given", ["", "soon", "-1", "nan", "inf", "86401"])
def test_a_patience_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(patience.PATIENCE_VARIABLE, given)
    with pytest.raises(
        ValueError,
        match=rf"{patience.PATIENCE_VARIABLE} must be a number.*, got",
    ):
        patiently(lambda: None)


def test_what_is_waited_for_is_said_once_by_each_operation() -> None:
    said: list[str] = []
    attempts = iter([StorageError("storage x: away"), StorageError("storage x: away"), None])

    def action() -> str:
        if error := next(attempts):
            raise error
        return "done"

    with pytest.MonkeyPatch.context() as patch, announced(said.append):
        patch.setattr(patience, "FIRST_PAUSE", 0.0)
        assert patiently(action) == "done"
    assert said == ["storage x: away; trying again for 120 s"]
    assert patience._announce is None
