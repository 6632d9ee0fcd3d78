"""The store: results appear as a whole or not at all, damage is found out, and work is not done twice."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from stored import file_of, location
from waiting import HANG_SECONDS, wait_until

from study import clean
from study.clean import surplus
from trainables.host.processes import me
from trainables.schema import MANIFEST, METRICS, WEIGHTS
from trainables.storage import LocalStorage, local, patience
from trainables.storage import lease as lease_module
from trainables.storage.lease import LEASE_SECONDS, STALE_SECONDS, clear_away
from trainables.storage.store import DamagedArtifact, Lease, NotPublished, StorageError, Store


def key_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


KEY = key_of("a result")
FILES = {WEIGHTS: bytes(range(256)) * 8, METRICS: b'{"history": [], "final": {"test_accuracy": 91.5}}'}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage")


@pytest.fixture
def full(store: Store) -> Store:
    assert store.publish(KEY, FILES, {"kind": "dense"})
    return store


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that runs a program, with its arguments in `argv`, in a process of its own."""
    running: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: object) -> subprocess.Popen[str]:
        prelude = "import os, signal, sys, time\nfrom pathlib import Path\nfrom trainables.storage.store import Store\n"
        prelude += f"argv, patience = sys.argv[1:], {HANG_SECONDS}\n"
        process = subprocess.Popen(
            [sys.executable, "-c", prelude + program, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate(timeout=HANG_SECONDS)


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- publishing and reading -----------------------------------------------------------------------------------------
def test_what_was_published_is_read(full: Store) -> None:
    assert KEY in full
    assert full.keys() == {KEY}
    assert {name: full.read(KEY, name) for name in FILES} == FILES
    assert full.read_json(KEY, METRICS) == {"history": [], "final": {"test_accuracy": 91.5}}


def test_the_manifest_lists_every_file_with_size_and_checksum(full: Store) -> None:
    manifest = full.manifest(KEY)
    assert (manifest["key"], manifest["kind"]) == (KEY, "dense")
    expected = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert manifest["files"] == expected
    listed = {location(full, KEY, name) for name in (*FILES, MANIFEST)}
    assert {*full.storage.names(f"store/{KEY[:2]}/{KEY}")} == listed


def test_the_first_result_stays(full: Store) -> None:
    assert not full.publish(KEY, {WEIGHTS: b"another"}, {"kind": "sparse"})
    assert full.read(KEY, WEIGHTS) == FILES[WEIGHTS]
    assert full.manifest(KEY)["kind"] == "dense"


def test_an_empty_store_contains_nothing(store: Store) -> None:
    assert KEY not in store
    assert store.keys() == set()
    with pytest.raises(NotPublished, match=rf"{KEY[:12]} is not in the store"):
        store.manifest(KEY)
    with pytest.raises(NotPublished, match=rf"{KEY[:12]} is not in the store"):
        store.read(KEY, WEIGHTS)
    assert not store.root.exists(), "looking into a store must not create it"


def test_a_file_that_a_result_does_not_have_is_no_damage(full: Store) -> None:
    with pytest.raises(KeyError, match=rf"{KEY[:12]} has no mask.safetensors; it has metrics.json, weights"):
        full.read(KEY, "mask.safetensors")
    assert KEY in full


def test_nothing_is_left_behind_by_publishing(full: Store) -> None:
    before = {*full.root.rglob("*")}
    full.publish(KEY, FILES, {})
    with pytest.raises(ValueError, match="artifact names"):
        full.publish(key_of(2), {"../escape.json": b""}, {})
    assert {*full.root.rglob("*")} == before
    assert full.keys() == {KEY}


def test_a_directory_of_a_user_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store(Path("~/results")).root == tmp_path / "results"
    monkeypatch.chdir(tmp_path)
    assert Store(Path("results")) == Store(tmp_path / "results")


@pytest.mark.parametrize("key", ["", "..", "a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, KEY + "\n", KEY[:-1] + "/"])
def test_a_key_cannot_point_outside(store: Store, key: str) -> None:
    accesses: list[Callable[[], object]] = [
        lambda: key in store,
        lambda: store.manifest(key),
        lambda: store.read(key, WEIGHTS),
        lambda: store.publish(key, {}, {}),
        lambda: store.read_checkpoint(key),
        lambda: store.write_checkpoint(key, b""),
        lambda: store.forget_attempts(key),
        lambda: store.lease(key),
        lambda: store.record_failure(key, {}),
        lambda: store.failure(key),
    ]
    for access in accesses:
        with pytest.raises(ValueError, match="a key has 64 hex digits"):
            access()
    assert not store.root.exists()


@pytest.mark.parametrize(
    "name",
    ["../weights.json", "/etc/weights.json", "weights", "weights.pt", "Weights.json", ".json", "a\n.json", MANIFEST],
)
def test_an_artifact_is_a_plain_file_of_a_known_format(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match=r"artifact names look like weights.safetensors"):
        store.publish(KEY, {**FILES, name: b""}, {})
    assert KEY not in store


@pytest.mark.parametrize("below", ["file", "file/storage"])
def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ValueError, match=r"is not writable: .*; choose another --storage") as caught:
        Store(tmp_path / below).check_writable()
    assert str(tmp_path / below) in str(caught.value)


def test_a_storage_that_can_be_written_is_left_empty(store: Store) -> None:
    store.check_writable()
    assert list(store.root.iterdir()) == []


# --- damage -----------------------------------------------------------------------------------------------------------
def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, -1, 7),
    "truncated": halve,
    "empty": empty,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_damage_is_found_out_and_set_aside(full: Store, name: str, damage: str) -> None:
    DAMAGES[damage](file_of(full, KEY, name))
    if (name, damage) != (MANIFEST, "gone"):  # without its manifest there is no result
        with pytest.raises(DamagedArtifact, match=rf"artifact {name} of {KEY[:12]} is damaged .*; set aside") as caught:
            full.read(KEY, WEIGHTS)
        assert (caught.value.key, caught.value.name) == (KEY, name)
        (aside,) = (full.root / "store" / ".damaged").iterdir()
        assert aside.name.startswith(KEY)
    assert KEY not in full
    assert full.keys() == set()
    with pytest.raises(NotPublished):
        full.read(KEY, WEIGHTS)


def test_what_was_damaged_can_be_published_again(full: Store) -> None:
    halve(file_of(full, KEY, WEIGHTS))
    with pytest.raises(DamagedArtifact):
        full.read(KEY, WEIGHTS)
    assert full.publish(KEY, FILES, {})
    assert full.read(KEY, WEIGHTS) == FILES[WEIGHTS]


def test_damage_is_set_aside_on_a_full_disk(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is a file that cannot be read."""
    halve(file_of(full, KEY, METRICS))
    expected = {path.name: path.read_bytes() for path in full.directory(KEY).rglob("*.*")}
    unreadable, read = file_of(full, KEY, WEIGHTS), Path.read_bytes

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_in_part(path: Path) -> bytes:
        if path == unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    with monkeypatch.context() as disk:
        disk.setattr(local, "_write_synced", no_space)
        disk.setattr(Path, "read_bytes", read_in_part)
        with pytest.raises(DamagedArtifact):
            full.read(KEY, METRICS)
    assert KEY not in full
    (aside,) = (full.root / "store" / ".damaged").iterdir()
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == expected
    full.storage.move(f"store/{KEY}", "store/elsewhere")  # which does not exist


def test_remains_without_a_manifest_are_no_result_and_are_removed(full: Store) -> None:
    stray = full.directory(KEY) / ".DS_Store"
    stray.touch()
    file_of(full, KEY, MANIFEST).unlink()
    assert KEY not in full
    assert full.publish(KEY, {WEIGHTS: b"anew"}, {})
    assert full.read(KEY, WEIGHTS) == b"anew"
    expected = {file_of(full, KEY, WEIGHTS), file_of(full, KEY, MANIFEST), stray}
    assert {path for path in full.directory(KEY).rglob("*") if path.is_file()} == expected


def test_one_damaged_file_does_not_take_the_others_with_it_unread(full: Store) -> None:
    flip(file_of(full, KEY, WEIGHTS), 100)
    assert full.read(KEY, METRICS) == FILES[METRICS]


def test_the_manifest_of_another_result_is_damage(full: Store) -> None:
    other = key_of("another")
    full.directory(other).parent.mkdir(exist_ok=True)
    shutil.copytree(full.directory(KEY), full.directory(other))
    with pytest.raises(DamagedArtifact, match="manifest of another result"):
        full.read(other, WEIGHTS)
    assert full.keys() == {KEY}


def test_no_flipped_bit_of_a_manifest_changes_what_is_read(full: Store) -> None:
    original = (file_of(full, KEY, MANIFEST)).read_bytes()
    for position in range(0, len(original), 7):  # 7 and 8 share no divisor: every bit has its turn
        full.publish(KEY, FILES, {"kind": "dense"})
        manifest = full.manifest(KEY)
        flip(file_of(full, KEY, MANIFEST), position, position % 8)
        try:
            read = full.manifest(KEY)
        except DamagedArtifact:
            assert KEY not in full
        else:  # white space, or the name of the checksum itself
            assert read.items() >= manifest.items()


def test_two_readers_of_one_damaged_result_both_learn_of_it(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    halve(file_of(full, KEY, WEIGHTS))
    judged = full._manifest(KEY)
    # Both have read the manifest before one of them sets the result aside.
    monkeypatch.setattr(Store, "_manifest", lambda _store, _key: judged)
    for _ in range(2):
        with pytest.raises(DamagedArtifact):
            full.read(KEY, WEIGHTS)


def test_what_was_computed_again_meanwhile_is_not_set_aside(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    halve(file_of(full, KEY, WEIGHTS))
    judged = full._manifest(KEY)
    with pytest.raises(DamagedArtifact):
        full.read(KEY, WEIGHTS)
    full.publish(KEY, {WEIGHTS: b"anew"}, {"kind": "dense", "finished": 2})
    with monkeypatch.context() as late:
        late.setattr(Store, "_manifest", lambda _store, _key: judged)
        with pytest.raises(DamagedArtifact):
            full.read(KEY, WEIGHTS)
    assert full.read(KEY, WEIGHTS) == b"anew"


def test_a_transfer_that_went_wrong_once_is_no_damage(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read, faults = LocalStorage.read, iter([b"cut off"])
    monkeypatch.setattr(
        LocalStorage,
        "read",
        lambda storage, path: read(storage, path) if path.endswith(MANIFEST) else next(faults, read(storage, path)),
    )
    assert full.read(KEY, WEIGHTS) == FILES[WEIGHTS]
    assert next(faults, None) is None, "it did go wrong"


# --- several processes ----------------------------------------------------------------------------------------------
WATCHER = """
store = Store(Path(argv[0]))
print("ready", flush=True)
for key in argv[1:]:
    deadline = time.monotonic() + patience
    while not os.path.exists(store.directory(key) / "manifest.json"):
        assert time.monotonic() < deadline
    files = store.manifest(key)["files"]
    assert len(files) == 20
    assert key in store and key in store.keys()
    assert all(len(store.read(key, name)) == 1000 for name in files)
print("saw all", flush=True)
"""


def test_a_reader_never_sees_half_a_result(store: Store, start: Callable[..., subprocess.Popen[str]]) -> None:
    keys = [key_of(number) for number in range(15)]
    watcher = start(WATCHER, store.root, *keys)
    assert line(watcher) == "ready"
    for key in keys:
        store.publish(key, {f"part_{number}.json": b"x" * 1000 for number in range(20)}, {})
    assert line(watcher) == "saw all"


WRITER = """
store, me, keys = Store(Path(argv[0])), argv[1], argv[2:]
print("ready", flush=True)
sys.stdin.readline()
print(*(int(store.publish(key, {"weights.safetensors": me.encode() * 5000}, {"by": me})) for key in keys), flush=True)
"""


def test_of_two_writers_one_wins_as_a_whole(store: Store, start: Callable[..., subprocess.Popen[str]]) -> None:
    keys = [key_of(number) for number in range(30)]
    writers = {name: start(WRITER, store.root, name, *keys) for name in ("a", "b")}
    assert [line(writer) for writer in writers.values()] == ["ready", "ready"]
    for writer in writers.values():
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = {name: line(writer).split() for name, writer in writers.items()}
    for index, key in enumerate(keys):
        winners = [name for name in writers if won[name][index] == "1"]
        assert len(winners) == 1
        assert store.manifest(key)["by"] == winners[0]
        assert store.read(key, WEIGHTS) == winners[0].encode() * 5000


KILLED_AT_EACH_CALL = """
calls = ("mkdir", "open", "fsync", "link", "unlink", "scandir", "rmdir")
number, status = 0, -1
while status:
    number += 1
    child = os.fork()
    if not child:
        left = number
        def counting(call):
            def counted(*arguments, **named):
                global left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)
            return counted
        for name in calls:
            setattr(os, name, counting(getattr(os, name)))
        store = Store(Path(argv[0]) / str(number))
        store.publish(argv[1], {"weights.safetensors": b"half" * 1000, "log.txt": b"x"}, {})
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(number, flush=True)
"""


def test_a_process_killed_at_any_moment_publishes_all_or_nothing(
    store: Store, start: Callable[..., subprocess.Popen[str]]
) -> None:
    last, outcomes = int(line(start(KILLED_AT_EACH_CALL, store.root, KEY))), []
    for number in range(1, last + 1):
        each = Store(store.root / str(number))
        outcomes.append(KEY in each)
        assert each.verify([KEY]) == {}
        assert each.publish(KEY, FILES, {}) == (not outcomes[-1])
        listed = {location(each, KEY, name) for name in (*each.manifest(KEY)["files"], MANIFEST)}
        if not outcomes[-1]:
            assert {*each.storage.names("store")} == listed, "the next to publish removes what was left"
        found = surplus(each, [], [])
        assert {*each.storage.names("store")} == listed | {*found.leftovers}
        assert not found.strange
    assert outcomes == sorted(outcomes)
    assert 10 < outcomes.count(False) < last, "killed before the manifest was there, and after"


def test_a_result_survives_a_crash_of_the_machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and directory entry was synced before the manifest, and the manifest before publishing ends."""
    synced, unsynced, fsync, link, mkdir = set[str](), set[str](), os.fsync, os.link, os.mkdir

    def opened(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def noting_fsync(descriptor: int) -> None:
        synced.add(opened(descriptor))
        unsynced.discard(opened(descriptor))
        fsync(descriptor)

    def noting_mkdir(path: Any, *more: Any) -> None:
        mkdir(path, *more)
        unsynced.add(str(Path(path).parent))

    def checking_link(temporary: Path, target: Path) -> None:
        if target.name == MANIFEST:
            folders = [path for path in target.parent.iterdir() if path.is_dir()]
            assert synced >= {str(path) for folder in folders for path in (folder, *folder.iterdir())}
            assert synced >= {str(temporary)}
            assert not unsynced
        link(temporary, target)
        unsynced.add(str(target.parent))

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "mkdir", noting_mkdir)
    monkeypatch.setattr(os, "link", checking_link)
    assert store.publish(KEY, FILES, {})
    assert store.storage.create("fastest/cpu/resnet20-x1.json", b"{}")
    store.write_checkpoint(KEY, b"state")
    assert not unsynced


# --- what earlier versions wrote ------------------------------------------------------------------------------------
@pytest.fixture
def earlier(store: Store) -> Store:
    """A store with a result and a half-written result as earlier versions left them: no folders for attempts."""
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in FILES.items()
    }
    document: dict[str, Any] = {"kind": "dense", "key": KEY, "files": listed}
    document["checksum"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    store.storage.fill(f"store/{KEY[:2]}/{KEY}", {**FILES, MANIFEST: json.dumps(document).encode()})
    store.storage.fill(f"store/.tmp/{KEY}-{me()}-0123abcd", {WEIGHTS: b"half"})
    return store


def test_results_of_earlier_versions_are_found_and_read(earlier: Store) -> None:
    assert KEY in earlier
    assert earlier.keys() == {KEY}
    assert {name: earlier.read(KEY, name) for name in FILES} == FILES
    assert earlier.verify([KEY]) == {}
    assert not earlier.publish(KEY, {WEIGHTS: b"another"}, {})
    assert earlier.result(KEY, [WEIGHTS]).files == {WEIGHTS: FILES[WEIGHTS]}


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_damaged_results_of_earlier_versions_are_replaced(earlier: Store, name: str) -> None:
    halve(earlier.directory(KEY) / name)
    with pytest.raises(DamagedArtifact):
        earlier.read(KEY, WEIGHTS)
    assert KEY not in earlier
    assert earlier.publish(KEY, {WEIGHTS: b"anew"}, {})
    assert earlier.read(KEY, WEIGHTS) == b"anew"
    assert {*earlier.storage.names(f"store/{KEY[:2]}")} == {
        location(earlier, KEY, each) for each in (WEIGHTS, MANIFEST)
    }


def test_what_earlier_versions_left_is_cleaned(earlier: Store) -> None:
    half = f"store/.tmp/{KEY}-{me()}-0123abcd/{WEIGHTS}"
    attempt = f"store/{KEY[:2]}/{KEY}/{'01' * 6}/{WEIGHTS}"
    earlier.storage.write(attempt, b"of a process that was killed")
    found = surplus(earlier, [], ["?"])
    assert {*found.leftovers} == {half, attempt}
    assert not found.strange
    clean.remove(earlier, found)
    assert {name: earlier.read(KEY, name) for name in FILES} == FILES
    clean.remove(earlier, surplus(earlier, [], []))
    assert {*earlier.storage.names("store")} == set()


# --- sweeping -------------------------------------------------------------------------------------------------------
def test_sweeping_removes_leases_of_the_dead_and_what_is_left_of_published_jobs(
    full: Store, start: Callable[..., subprocess.Popen[str]]
) -> None:
    other, dead = key_of("other"), "store.lease(argv[1]); store.register_study({}); os.kill(os.getpid(), 9)"
    start(f"store = Store(Path(argv[0])); {dead}", full.root, key_of("dead")).wait(HANG_SECONDS)
    full.write_checkpoint(KEY, b"its job was killed just after it was published")
    full.write_checkpoint(other, b"work in progress")
    with full.lease(other) or pytest.fail("it is free"):
        assert len([*full.storage.names("leases"), *full.storage.names("studies")]) == 3
        full.sweep(set())
        assert [*full.storage.names("leases"), *full.storage.names("studies")] == [f"leases/{other}"]
    assert [*full.storage.names("work")] == [f"work/{other}/checkpoint.safetensors"]


@pytest.mark.parametrize("needed", [True, False])
def test_sweeping_keeps_what_a_published_net_needs_that_is_trained_to_a_further_state(
    full: Store, needed: bool
) -> None:
    full.write_checkpoint(KEY, b"on its way to the state")
    with full.lease(KEY) or pytest.fail("it is free") as lease:
        full.sweep({KEY} if needed else set())
        assert [*full.storage.names("leases")] == [lease.path]
        assert full.read_checkpoint(KEY) is not None, "another study may need the state"
    full.sweep({KEY} if needed else set())
    assert (full.read_checkpoint(KEY) is not None) is needed


@pytest.mark.parametrize(
    "path",
    [
        f"starts/{'ab' * 6}.json",
        f"data/{'ab' * 6}.json",
        "fastest/cpu/resnet20-x1-given.json",
        f"leases/{KEY}",
        f"leases/{KEY}.{'ab' * 8}",
        f"studies/{'ab' * 8}",
    ],
)
def test_sweeping_removes_what_dead_processes_left_half_written(full: Store, path: str) -> None:
    host, number, _ = me().rsplit(":", 2)
    dead, writing = f"{path}-{host}:{number}:1-0123abcd.tmp", f"{path}-{me()}-0123abcd.tmp"
    others = f"{path}-another-host:1:1-0123abcd.tmp"
    for each in (dead, writing, others):
        full.storage.write(each, b"half")
    full.sweep(set())
    assert sorted(full.storage.names(path.split("/")[0])) == sorted([writing, others])


def test_sweeping_passes_over_what_is_of_no_study(full: Store) -> None:
    strays = {f"{folder}/{name}" for folder in ("store", "work", "leases") for name in (".DS_Store", "a-b/c")}
    for path in strays:
        full.storage.write(path, b"of a file manager")
    full.sweep(set())
    assert all(full.storage.read(path) for path in strays)
    assert full.read(KEY, WEIGHTS) == FILES[WEIGHTS]


@pytest.mark.parametrize("content", ["", "garbage", "[]", "{}", '{"owner": 3}', "[" * 100_000])
@pytest.mark.parametrize("name", [f"leases/{KEY}", f"studies/{'ab' * 8}"])
def test_sweeping_removes_damaged_leases(full: Store, name: str, content: str) -> None:
    full.storage.write(name, content.encode())
    assert (full.leases(), full.studies()) == ({}, [])
    full.sweep(set())
    assert full.storage.read(name) is None


def test_sweeping_an_empty_store_does_nothing(store: Store) -> None:
    store.sweep(set())
    assert not store.root.exists()


# --- checkpoints ----------------------------------------------------------------------------------------------------
def test_a_checkpoint_is_replaced_and_dropped(store: Store) -> None:
    assert store.read_checkpoint(KEY) is None
    store.write_checkpoint(KEY, b"one")
    store.write_checkpoint(KEY, b"two")
    assert store.read_checkpoint(KEY) == b"two"
    store.forget_attempts(KEY)
    store.forget_attempts(KEY)
    assert store.read_checkpoint(KEY) is None
    assert list((store.root / "work").iterdir()) == []
    assert KEY not in store


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_who_is_killed_while_saving_leaves_the_last_checkpoint(
    store: Store, start: Callable[..., subprocess.Popen[str]], call: str
) -> None:
    store.write_checkpoint(KEY, b"the last one")
    program = f"os.{call} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    program += "Store(Path(argv[0])).write_checkpoint(argv[1], b'a new one')"
    assert start(program, store.root, KEY).wait(HANG_SECONDS) == -signal.SIGKILL
    assert store.read_checkpoint(KEY) == b"the last one"


# --- leases -----------------------------------------------------------------------------------------------------------
HOLDER = """
lease = Store(Path(argv[0])).lease(argv[1])
print("held" if lease else "refused", flush=True)
if lease:
    sys.stdin.readline()
    lease.release()
    print("released", flush=True)
"""
ELSEWHERE = "another-host:1:1"


def lease_file(store: Store, owner: str, age: float = 0.0) -> Path:
    """Write a lease that its owner says to have renewed so many seconds ago."""
    path = store.root / "leases" / KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    renewed = time.time() - age
    path.write_text(json.dumps({"token": "abcd", "owner": owner, "since": 0, "renewed": renewed, "note": {}}))
    return path


def give_back(lease: Lease | None) -> None:
    assert lease is not None, "the lease was not to be had"
    lease.release()


def test_a_lease_is_given_to_one_at_a_time(store: Store) -> None:
    lease = store.lease(KEY)
    assert lease is not None
    assert store.lease(KEY) is None
    give_back(store.lease(key_of("another")))
    lease.release()
    with store.lease(KEY) or pytest.fail("a released lease is free"):
        assert store.lease(KEY) is None
    assert list((store.root / "leases").iterdir()) == []


def test_a_lease_excludes_other_processes(store: Store, start: Callable[..., subprocess.Popen[str]]) -> None:
    holder = start(HOLDER, store.root, KEY)
    assert line(holder) == "held"
    assert store.lease(KEY) is None
    assert line(start(HOLDER, store.root, KEY)) == "refused"
    assert holder.stdin is not None
    holder.stdin.write("release\n")
    holder.stdin.flush()
    assert line(holder) == "released"
    give_back(store.lease(KEY))


def test_of_many_that_want_a_lease_one_gets_it(store: Store, start: Callable[..., subprocess.Popen[str]]) -> None:
    lease_file(store, ELSEWHERE, age=10_000)  # an abandoned lease, which only one may take over
    answers = [line(process) for process in [start(HOLDER, store.root, KEY) for _ in range(6)]]
    assert sorted(answers) == ["held"] + ["refused"] * 5
    assert [path.name for path in (store.root / "leases").iterdir()] == [KEY], "claims are cleared away"


def test_the_lease_of_a_killed_process_is_free_at_once(
    store: Store, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEASE_SECONDS", "STALE_SECONDS"):
        monkeypatch.setattr(lease_module, name, 2 * HANG_SECONDS)  # nobody waits for it to expire
    holder = start(HOLDER, store.root, KEY)
    assert line(holder) == "held"
    holder.send_signal(signal.SIGKILL)  # and not waited for: even a zombie is dead
    taken: list[Lease | None] = []
    wait_until(lambda: bool(taken.append(store.lease(KEY)) or taken[-1]))
    give_back(taken[-1])


def test_the_number_of_a_dead_process_may_be_given_to_another(store: Store) -> None:
    name, number, _ = me().rsplit(":", 2)
    lease_file(store, f"{name}:{number}:1")  # this very process, but started at another time
    give_back(store.lease(KEY))


def test_the_lease_of_another_host_expires_when_it_is_obviously_old(store: Store) -> None:
    lease_file(store, ELSEWHERE, age=STALE_SECONDS - 10)
    assert store.lease(KEY) is None
    lease_file(store, ELSEWHERE, age=STALE_SECONDS + 1)
    give_back(store.lease(KEY))


@pytest.mark.parametrize("ahead", [-600.0, 0.0, 3600.0])
def test_the_lease_of_another_host_expires_when_it_stands_still(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now = time.monotonic()
    lease_file(store, ELSEWHERE, age=-ahead)  # its clock is no guide
    assert store.lease(KEY) is None
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now + LEASE_SECONDS - 1)
    assert store.lease(KEY) is None
    lease_file(store, ELSEWHERE, age=1 - ahead)  # renewed
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now + LEASE_SECONDS + 2)
    assert store.lease(KEY) is None
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now + 2 * LEASE_SECONDS + 4)
    give_back(store.lease(KEY))


def test_who_keeps_asking_frees_the_lease_of_a_dead_host_for_all(
    store: Store, monkeypatch: pytest.MonkeyPatch, start: Callable[..., subprocess.Popen[str]]
) -> None:
    now = time.monotonic()
    assert store.is_free(KEY), "nobody has ever held it"
    lease_file(store, ELSEWHERE)
    assert not store.is_free(KEY)
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now + LEASE_SECONDS + 1)
    assert line(start(HOLDER, store.root, KEY)) == "refused", "a new process has not watched it long enough"
    assert store.is_free(KEY)
    assert line(start(HOLDER, store.root, KEY)) == "held"
    assert not store.is_free(KEY)


class Interrupted(LocalStorage):
    """A storage that answers only after an outage, or not at all."""

    outage: Callable[[], None] = staticmethod(lambda: None)

    def _read(self, path: str) -> bytes | None:
        self.outage()
        return super()._read(path)


@pytest.mark.parametrize("answers", [True, False])
def test_an_outage_of_the_storage_does_not_count_against_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    storage, now, path = Interrupted(tmp_path), [time.monotonic()], f"leases/{KEY}"
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
    lease_file(Store(tmp_path), ELSEWHERE)
    assert not clear_away(storage, path)

    def outage() -> None:
        now[0] += LEASE_SECONDS + 1
        if not answers:
            raise StorageError("away")

    monkeypatch.setattr(storage, "outage", outage)
    with nullcontext() if answers else pytest.raises(StorageError):
        assert not clear_away(storage, path), "its holder could not renew it, either"
    monkeypatch.setattr(storage, "outage", lambda: None)
    assert not clear_away(storage, path)
    now[0] += LEASE_SECONDS + 1
    assert clear_away(storage, path)


@pytest.mark.parametrize("content", ["", "garbage", "[]", '{"owner": 3}', '{"owner": "host-without-numbers"}'])
def test_an_unreadable_lease_expires_when_it_stands_still(
    store: Store, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    lease_file(store, ELSEWHERE).write_text(content)
    assert store.lease(KEY) is None
    later = time.monotonic() + LEASE_SECONDS + 1
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: later)
    give_back(store.lease(KEY))


def test_a_lease_is_renewed_while_it_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    with store.lease(KEY, {"epoch": 1}) or pytest.fail("nobody holds it") as lease:
        first = store.leases()[KEY]
        assert first["note"] == {"epoch": 1}
        lease.note = {"epoch": 2}
        wait_until(lambda: store.leases()[KEY]["note"] == {"epoch": 2})
        assert store.leases()[KEY]["renewed"] > first["renewed"]
        assert store.leases()[KEY]["since"] == first["since"]


def test_a_lease_that_was_taken_a_moment_ago_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lease_file(store, ELSEWHERE, age=10_000)
    create = LocalStorage.create

    def late(storage: LocalStorage, name: str, content: bytes) -> bool:
        created = create(storage, name, content)
        if name.startswith(f"leases/{KEY}.") and created:  # between our look and our grip
            lease_file(store, "third-host:1:1")
        return created

    monkeypatch.setattr(LocalStorage, "create", late)
    assert store.lease(KEY) is None
    assert json.loads(path.read_text())["owner"] == "third-host:1:1"


class Overtaking(LocalStorage):
    """A storage in which another process takes the lease on KEY just after this one has seen that it is gone."""

    def _read(self, path: str) -> bytes | None:
        content = super()._read(path)
        if content is None and path == f"leases/{KEY}":
            lease_file(Store(self.root), "third-host:1:1")
        return content


def test_a_lease_that_is_taken_as_an_abandoned_one_disappears_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, create = Overtaking(tmp_path), LocalStorage.create
    path = lease_file(Store(tmp_path), ELSEWHERE, age=10_000)

    def late(storage: LocalStorage, name: str, content: bytes) -> bool:
        if name.startswith(f"leases/{KEY}."):  # another process has cleared it away
            path.unlink()
        return create(storage, name, content)

    monkeypatch.setattr(LocalStorage, "create", late)
    assert Lease.acquire(storage, f"leases/{KEY}") is None
    assert json.loads(path.read_text())["owner"] == "third-host:1:1"


@pytest.mark.parametrize("lease_seconds", [0.3, 2 * HANG_SECONDS], ids=["renewing", "releasing"])
def test_a_holder_whose_lease_is_gone_leaves_that_of_the_next_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lease_seconds: float
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", lease_seconds)
    path = tmp_path / "leases" / KEY
    with Lease.acquire(Overtaking(tmp_path), f"leases/{KEY}") or pytest.fail("nobody holds it"):
        path.unlink()
        if lease_seconds < 1:
            wait_until(lambda: not renewing(), "it is still kept alive")
    assert json.loads(path.read_text())["owner"] == "third-host:1:1"


def test_who_dies_while_clearing_a_lease_away_blocks_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lease_file(store, ELSEWHERE, age=10_000)
    claim = path.with_name(f"{KEY}.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    claim.write_bytes(path.read_bytes())  # of a process that is long dead, too
    give_back(store.lease(KEY))
    assert list(path.parent.iterdir()) == [], "claims are cleared away, too"


def renewing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"lease-{KEY[:8]}"]


def test_a_lease_that_went_to_somebody_else_stays_theirs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    lease = store.lease(KEY)
    assert lease is not None
    lease._token = "an older one"  # as after a long sleep of the machine, in which another has taken it over
    content = lease_file(store, ELSEWHERE).read_bytes()
    wait_until(lambda: not renewing())  # the old owner no longer keeps it alive
    lease.release()
    assert (store.root / "leases" / KEY).read_bytes() == content


def test_a_released_lease_is_not_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    lease = store.lease(KEY)
    assert lease is not None
    lease.release()
    lease.release()
    wait_until(lambda: not renewing())
    assert not (store.root / "leases" / KEY).exists()


class Losing(LocalStorage):
    """A storage that carries out requests of one kind and loses the answers, or does not carry them out at all."""

    def __init__(self, root: Path, request: str, answers: int, *, done: bool) -> None:
        super().__init__(root)
        method, self.left = getattr(self, f"_{request}"), answers

        def lossy(*args: Any) -> Any:
            if self.left == 0:
                return method(*args)
            self.left -= 1
            if done:
                method(*args)
            raise StorageError("no answer")

        setattr(self, f"_{request}", lossy)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("request_name", ["create", "remove", "read"])
def test_an_answer_that_was_lost_does_not_lock_out_the_process_that_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_name: str, done: bool
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    storage = Losing(tmp_path, request_name, 1, done=done)
    for _ in range(3):
        give_back(Lease.acquire(storage, f"leases/{KEY}"))
    assert storage.left == 0


def test_a_link_whose_answer_was_lost_is_ones_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, a link may be made and reported as existing, if the server restarts before it answers."""
    link = os.link

    def forgetful(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", forgetful)
    assert store.publish(KEY, FILES, {"kind": "dense"})
    assert store.read(KEY, METRICS) == FILES[METRICS]


def test_a_directory_that_exists_is_writable_though_its_parent_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server may deny access to the parent before it says that the directory exists."""
    store.root.mkdir(parents=True)
    make = os.mkdir

    def denied(path: Path, *more: Any) -> None:
        if Path(path) == store.root:
            raise PermissionError(errno.EACCES, "Permission denied")
        make(path, *more)

    monkeypatch.setattr(os, "mkdir", denied)
    assert store.publish(KEY, FILES, {"kind": "dense"})


def test_a_lease_that_could_not_be_removed_is_removed_when_the_storage_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RELEASE_SECONDS", 0.0)
    storage = Losing(tmp_path, "remove", 2, done=False)
    give_back(Lease.acquire(storage, f"leases/{KEY}"))
    assert storage.read(f"leases/{KEY}") is not None, "its holder does not wait for the storage"
    wait_until(lambda: storage.read(f"leases/{KEY}") is None, "other processes would wait for its expiry")
    assert storage.left == 0


def test_who_works_on_what_is_visible(store: Store, start: Callable[..., subprocess.Popen[str]]) -> None:
    assert store.leases() == {}
    assert store.studies() == []
    with store.lease(KEY, {"kind": "dense"}) or pytest.fail("nobody holds it"):
        (lease,) = store.leases().items()
    assert (lease[0], lease[1]["owner"], lease[1]["note"]) == (KEY, me(), {"kind": "dense"})
    with store.register_study({"space": "digits"}), store.register_study({"space": "cifar"}):
        assert sorted(study["note"]["space"] for study in store.studies()) == ["cifar", "digits"]
    assert store.studies() == []
    program = "lease = Store(Path(argv[0])).register_study({})\nprint('on', flush=True)\nos.kill(os.getpid(), 9)"
    start(program, store.root).wait(HANG_SECONDS)
    assert store.studies() == [], "its driver is dead"


# --- failures -------------------------------------------------------------------------------------------------------
def test_a_failure_is_noted_until_the_result_is_there(store: Store) -> None:
    assert store.failure(KEY) is None
    assert store.failures() == set()
    store.record_failure(KEY, {"error": "Diverged: nan", "log": "epoch 1"})
    assert store.failures() == {KEY}
    assert store.failure(KEY) == {"error": "Diverged: nan", "log": "epoch 1"}
    assert KEY not in store
    store.publish(KEY, FILES, {})
    assert store.failures() == set()
    store.record_failure(KEY, {"error": "while it was trained to a further state"})
    store.forget_attempts(KEY)
    assert store.failures() == set()


# --- a storage in trouble -------------------------------------------------------------------------------------------
@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let time pass by itself; return the pauses that were made."""
    made: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", made.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(made))
    return made


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO])
def test_trouble_that_passes_is_waited_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, pauses: list[float], number: int
) -> None:
    fsync, trouble = os.fsync, iter(range(5))

    def failing(descriptor: int) -> None:
        if next(trouble, None) is not None:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert store.publish(KEY, FILES, {})
    assert store.read(KEY, WEIGHTS) == FILES[WEIGHTS]
    assert len([*store.storage.names("store")]) == len(FILES) + 1
    assert len(pauses) == 5
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses)), "longer each time"


@pytest.mark.parametrize(("early", "late"), [(0.75, 0.75), (1.25, 1.25), (0.75, 1.25)])
def test_trouble_that_lasts_is_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch, pauses: list[float], early: float, late: float
) -> None:
    # However the pauses are drawn: where the last of them is a long one, it must not outlast the patience either.
    monkeypatch.setattr(patience.random, "uniform", lambda *_: early if len(pauses) < 6 else late)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for action in (lambda: store.publish(KEY, FILES, {}), lambda: store.write_checkpoint(KEY, b"state")):
        pauses.clear()
        with pytest.raises(StorageError, match=rf"storage {store.root}/.*: No space left on device"):
            action()
        assert patience.PATIENCE_SECONDS / 2 < sum(pauses) <= patience.PATIENCE_SECONDS
    assert KEY not in store
    assert not [path for path in store.root.rglob("*") if path.is_file()], "nothing half-written is left"


def test_trouble_that_no_waiting_cures_is_reported_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def refused(_: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(StorageError, match="Permission denied"):
        store.publish(KEY, FILES, {})
    assert pauses == []


def test_a_manifest_is_readable_for_people(full: Store) -> None:
    text = (file_of(full, KEY, MANIFEST)).read_text(encoding="utf-8")
    assert json.loads(text)["files"].keys() == FILES.keys()
    assert re.search(r"\n +\"kind\": \"dense\"", text)
