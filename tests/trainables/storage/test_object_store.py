"""The store in an object store: in memory for the protocol, and on a real S3 client over a socket."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, Unreliable, environment, s3_server
from stored import location
from tiny_study import assert_same_result, publish, tiny_cell
from waiting import HANG_SECONDS, wait_until

from trainables import schema
from trainables.graph import Closure, Ref, target
from trainables.jobs.publishing import Context
from trainables.schema import MANIFEST, METRICS, WEIGHTS
from trainables.storage import lease as lease_module
from trainables.storage import patience
from trainables.storage.objects import LIBRARIES, ObjectStorage
from trainables.storage.store import DamagedArtifact, Lease, NotPublished, StorageError, Store

KEY = hashlib.sha256(b"a result among objects").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()
FILES = {WEIGHTS: bytes(range(256)) * 8, METRICS: b'{"final": {"test_accuracy": 91.5}}'}

s3 = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")), reason="needs s3fs and moto"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(params=["memory", pytest.param("s3", marks=s3)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind."""
    if request.param == "memory":
        return Store(f"memory://bucket/{uuid.uuid4().hex}")
    for name, value in environment(request.getfixturevalue("server")).items():
        monkeypatch.setenv(name, value)
    return fresh_s3()


def fresh_s3() -> Store:
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # whose clients know another server
    return Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


# --- the same as in a directory ---------------------------------------------------------------------------------------
def test_what_was_published_is_read(store: Store) -> None:
    assert KEY not in store
    assert store.keys() == set()
    with pytest.raises(NotPublished, match=f"{KEY[:12]} is not in the store"):
        store.read(KEY, WEIGHTS)
    assert store.publish(KEY, FILES, {"kind": "dense"})
    assert KEY in store
    assert OTHER not in store
    assert store.keys() == {KEY}
    assert {name: store.read(KEY, name) for name in FILES} == FILES
    assert store.manifest(KEY)["kind"] == "dense"
    assert not store.publish(KEY, {WEIGHTS: b"another"}, {"kind": "sparse"})
    assert {name: store.read(KEY, name) for name in FILES} == FILES
    assert sorted(path.rsplit("/", 1)[1] for path in store.storage.names("store")) == sorted((*FILES, MANIFEST))


def test_a_result_without_its_manifest_is_none(store: Store) -> None:
    killed = f"store/{KEY[:2]}/{KEY}/{'01' * 6}/{WEIGHTS}"
    store.storage.write(killed, b"of an attempt that was killed")
    assert KEY not in store
    assert store.keys() == set()
    assert store.publish(KEY, FILES, {})
    assert store.read(KEY, WEIGHTS) == FILES[WEIGHTS]
    assert store.storage.read(killed) is None


def test_of_two_writers_one_wins_as_a_whole(store: Store) -> None:
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]
    won: dict[str, list[bool]] = {}
    both = threading.Barrier(2)

    def write(name: str) -> None:
        mine = Store(store.uri)
        won[name] = []
        for key in keys:
            both.wait(HANG_SECONDS)
            won[name].append(mine.publish(key, {WEIGHTS: name.encode() * 5000}, {"by": name}))

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    for index, key in enumerate(keys):
        winner = store.manifest(key)["by"]
        assert store.read(key, WEIGHTS) == winner.encode() * 5000
        if store.uri.startswith("s3"):  # objects in memory are not created conditionally, only nearly so
            assert [name for name in "ab" if won[name][index]] == [winner]
            assert len(list(store.storage.names(f"store/{key[:2]}/{key}"))) == 2, "the loser's files are gone"


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
    "truncated": lambda content: content[: len(content) // 2],
    "gone": lambda content: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_damage_is_found_out_and_set_aside(store: Store, name: str, damage: str) -> None:
    store.publish(KEY, FILES, {"kind": "dense"})
    path = location(store, KEY, name)
    content = DAMAGES[damage](store.storage.read(path))
    if content is None:
        store.storage.remove(path)
    else:
        store.storage.write(path, content)
    # Without its manifest a result is not known to have been one.
    expected = NotPublished if (name, damage) == (MANIFEST, "gone") else DamagedArtifact
    with pytest.raises(expected):
        store.read(KEY, WEIGHTS)
    assert KEY not in store
    assert any(KEY in path for path in store.storage.names("store/.damaged")) == (expected is DamagedArtifact)
    assert store.publish(KEY, FILES, {"kind": "again"})
    assert {each: store.read(KEY, each) for each in FILES} == FILES
    assert store.keys() == {KEY}


def test_files_of_another_attempt_are_not_set_aside(store: Store) -> None:
    store.publish(KEY, FILES, {})
    other = f"store/{KEY[:2]}/{KEY}/{'01' * 6}/{WEIGHTS}"
    store.storage.write(other, b"of a writer that is at work")
    store.storage.write(location(store, KEY, WEIGHTS), b"damaged")
    with pytest.raises(DamagedArtifact):
        store.read(KEY, WEIGHTS)
    assert list(store.storage.names(f"store/{KEY[:2]}")) == [other]


def test_checkpoints_and_failures(store: Store) -> None:
    assert store.read_checkpoint(KEY) is None
    store.write_checkpoint(KEY, b"one")
    store.write_checkpoint(KEY, b"two")
    assert store.read_checkpoint(KEY) == b"two"
    store.forget_attempts(KEY)
    store.forget_attempts(KEY)
    assert store.read_checkpoint(KEY) is None
    store.record_failure(KEY, {"error": "nan"})
    assert (store.failures(), store.failure(KEY), store.failure(OTHER)) == ({KEY}, {"error": "nan"}, None)
    store.publish(KEY, FILES, {})
    assert store.failures() == set()


def test_a_lease_is_given_to_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.6)
    lease = store.lease(KEY, {"step": 1})
    assert lease is not None
    assert Store(store.uri).lease(KEY) is None
    lease.note = {"step": 2}
    wait_until(lambda: store.leases()[KEY]["note"] == {"step": 2}, "it is not renewed")
    lease.release()
    with store.lease(KEY) or pytest.fail("it was released"):
        pass
    assert list(store.storage.names("leases")) == []


def test_an_abandoned_lease_goes_to_one(store: Store) -> None:
    silent = {"token": "t", "owner": "another-host:1:1", "since": 0.0, "renewed": 0.0, "note": {}}
    store.storage.write(f"leases/{KEY}", json.dumps(silent).encode())
    stores = [Store(store.uri) for _ in range(5)]
    leases: list[Lease | None] = []
    threads = [threading.Thread(target=lambda each=each: leases.append(each.lease(KEY))) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert len(leases) == 5
    if store.uri.startswith("s3"):  # see above
        assert sum(lease is not None for lease in leases) == 1
    assert sum(store.storage.sizes("leases").values()) > 0
    for lease in filter(None, leases):
        lease.release()


def test_a_storage_that_can_be_written_is_left_empty(store: Store) -> None:
    store.check_writable()
    assert list(store.storage.names("")) == []


def test_a_listing_tells_versions_of_a_file_apart(store: Store) -> None:
    storage = store.storage
    storage.write("a/1", b"one")
    storage.write("a/2", b"two")
    before = storage.versions("a")
    assert {path: version.size for path, version in before.items()} == storage.sizes("a") == {"a/1": 3, "a/2": 3}
    assert storage.versions("a") == before
    storage.write("a/1", b"eno")
    after = storage.versions("a")
    assert after["a/1"].size == before["a/1"].size
    assert after["a/1"].tag != before["a/1"].tag
    assert after["a/2"] == before["a/2"]


# --- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", r"unknown scheme 'ftp'; known are s3, gs, "),
        ("s3://key:secret@bucket/x", "credentials and options are taken from the environment"),
        ("s3://bucket/x?secret=secret", "credentials and options are taken from the environment"),
        ("s3:///x", "which bucket"),
    ],
)
def test_uri_that_cannot_be_used(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Store(uri)
    assert "secret" not in str(caught.value)


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"storage 'gs://bucket/x' needs gcsfs: pip install -e '.\[gcs\]'"):
        Store("gs://bucket/x")


def test_every_scheme_has_a_library_that_fsspec_knows() -> None:
    from fsspec.registry import known_implementations

    for scheme, library in LIBRARIES.items():
        assert known_implementations[scheme]["class"].startswith(library or "fsspec.implementations.memory")


def test_a_store_without_conditional_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://bucket/careless")
    pipe = store.storage._filesystem.pipe_file
    monkeypatch.setattr(store.storage._filesystem, "pipe_file", lambda path, value, mode="": pipe(path, value))
    with pytest.raises(ValueError, match="does not support conditional writes"):
        store.check_writable()
    assert store.storage.names("") == []


def test_a_store_that_alters_what_is_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://bucket/altering")
    monkeypatch.setattr(ObjectStorage, "_read", lambda storage, path: b"something else")
    with pytest.raises(ValueError, match="returns other bytes than were written"):
        store.check_writable()
    assert store.storage.names("") == []


def test_a_local_uri_is_a_directory(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}/x") == Store(tmp_path / "x")
    assert Store(f"file://{tmp_path}/x").root == tmp_path / "x"
    assert Store(f"file://{tmp_path}/a%20b%3Fc").root == tmp_path / "a b?c", "as analysis reads it"


# --- a connection that cannot be relied on -------------------------------------------------------------------------
@pytest.fixture
def line(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unreliable]:
    unreliable = Unreliable(server, every=0)
    for name, value in environment(unreliable.port).items():
        monkeypatch.setenv(name, value)
    yield unreliable
    unreliable.close()


@pytest.mark.parametrize("_", [pytest.param(None, marks=s3)])
def test_every_third_request_dropped(
    line: Unreliable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _: None
) -> None:
    """A whole study's jobs are computed over such a line, with the results of one in a directory."""
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    line.every = 3
    store, root = fresh_s3(), target(tiny_cell("naive"))
    publish([Ref(root)], Context(store=store, checkpoint_seconds=0.0))
    assert line.dropped > 20
    line.every = 0
    local = Store(tmp_path / "local")
    publish([Ref(root)], Context(store=local))
    assert store.keys() == local.keys()
    for key in Closure([Ref(root)]).jobs.keys() & local.keys():
        assert_same_result(store, local, key)
    assert list(store.storage.names("leases")) == []
    assert list(store.storage.names("work")) == []
    manifests = [path for path in store.storage.names("store") if path.endswith(MANIFEST)]
    listed = sum(1 + len(store.manifest(key)["files"]) for key in store.keys())  # noqa: SIM118 - a store is no dict
    assert len(manifests) == len(store.keys())
    assert len(list(store.storage.names("store"))) == listed, "nothing is left of attempts whose answer was lost"


@pytest.mark.parametrize("_", [pytest.param(None, marks=s3)])
def test_a_server_that_is_away(line: Unreliable, monkeypatch: pytest.MonkeyPatch, _: None) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 2.0)
    store = fresh_s3()
    store.publish(KEY, FILES, {})
    line.silent = True
    with pytest.raises(StorageError, match=f"storage {store.uri}/store/") as caught:
        store.publish(OTHER, FILES, {})
    assert "very-secret" not in str(caught.value)
    with pytest.raises(StorageError):
        store.read(KEY, WEIGHTS)
    with pytest.raises(ValueError, match="is not writable"):
        store.check_writable()
    line.silent = False
    assert store.read(KEY, WEIGHTS) == FILES[WEIGHTS]
    assert store.publish(OTHER, FILES, {})


@pytest.mark.parametrize("_", [pytest.param(None, marks=s3)])
def test_a_bucket_that_is_not_there(server: int, monkeypatch: pytest.MonkeyPatch, _: None) -> None:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    fresh_s3()
    with pytest.raises(ValueError, match=r"storage 's3://no-such-bucket/x' is not writable: .*; choose another"):
        Store("s3://no-such-bucket/x").check_writable()


@pytest.mark.parametrize("_", [pytest.param(None, marks=s3)])
def test_a_bucket_that_is_deleted_in_the_middle_of_a_study(monkeypatch: pytest.MonkeyPatch, _: None) -> None:
    with s3_server() as port:
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        storage = fresh_s3().storage
        storage.write("a/file", b"content")
        assert storage.names("another") == []
        storage.remove("a/file")
        assert storage.read("a/file") is None
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="DELETE")
        urllib.request.urlopen(request, timeout=HANG_SECONDS)
        operations: list[Callable[[], object]] = [
            lambda: storage.read("a/file"),
            lambda: storage.write("a/file", b""),
            lambda: storage.create("a/file", b""),
            lambda: storage.names("a"),
            lambda: storage.remove("a/file"),
        ]
        for operation in operations:
            with pytest.raises(StorageError, match=f"there is no bucket '{BUCKET}'"):
                operation()


def test_schema_names_are_artifact_names() -> None:
    store = Store("memory://bucket/names")
    names = (schema.METRICS, schema.WEIGHTS, schema.MASK, schema.PERMUTATION, schema.LOGITS, schema.LOG)
    store.publish(KEY, dict.fromkeys(names, b"x"), {})
    assert set(store.manifest(KEY)["files"]) == set(names)
