"""Datasets in a bucket: fetched once by a node, the same as from a folder, and never other data than were planned."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from s3_server import BUCKET, environment, s3_server
from test_data import write_cifar10
from test_judged_data import data_of
from tiny_images import spoilt, write_folders
from tiny_study import assert_same_result, assert_same_store, assignments, publish_all, python, tiny_cell, tiny_space
from tiny_study import publish as published
from waiting import HANG_SECONDS

from search_spaces import get_space
from study.known_data import known_facts, remember
from study.plan import make_plan, override
from trainables.data import BY_DEFAULT, bucket, check_dataset, forget, load_dataset
from trainables.data.__main__ import main as data_command
from trainables.errors import HostFault, Verdict, verdict
from trainables.graph import Closure, Ref, target
from trainables.host.terminal import WRONG_REQUEST
from trainables.jobs.publishing import Context
from trainables.storage import Storage, StorageError, open_storage
from trainables.storage.objects import ObjectStorage
from trainables.storage.store import Store

FILES = 24
GIB = 2**30


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node without copies; gives the folder in which it will keep them."""
    monkeypatch.setenv(bucket.FOLDER_VARIABLE, str(tmp_path / "copies"))
    monkeypatch.setattr(bucket, "_held", {})
    monkeypatch.setattr(os, "sync", lambda: None)  # which waits for all other processes of the machine, too
    yield tmp_path / "copies"
    leave()


def leave() -> None:
    """Let go of all datasets, as the end of a process does."""
    forget()
    while bucket._held:
        bucket._held.popitem()[1][0].close()


def upload(folder: Path, to: str = "") -> str:
    """Put a folder into a bucket; return its URI."""
    uri = f"memory://bucket/{uuid.uuid4().hex}"
    for path in filter(Path.is_file, folder.rglob("*")):
        open_storage(uri).write(f"{to}{path.relative_to(folder)}", path.read_bytes())
    return uri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "pictures")


@pytest.fixture
def uri(folder: Path) -> str:
    return upload(folder)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of every object that this process reads."""
    paths: list[str] = []
    original = ObjectStorage._read
    monkeypatch.setattr(ObjectStorage, "_read", lambda storage, path: paths.append(path) or original(storage, path))
    return paths


def copies(node: Path) -> list[Path]:
    return [path for path in node.iterdir() if bucket._COPY.fullmatch(path.name)]


def in_a_process(work: Callable[[], object]) -> multiprocessing.Process:
    """Start a process that sees the buckets in the memory of this one."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process  # type: ignore[return-value]


# --- the same as in a folder ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("below", ["", "image_folder/"])
def test_a_bucket_is_what_the_folder_is(folder: Path, read: list[str], below: str) -> None:
    (folder / "notes.txt").write_text("of no dataset")
    uri, local = upload(folder, below), load_dataset("image_folder", folder)
    facts, remote = check_dataset("image_folder", uri), load_dataset("image_folder", uri)
    assert facts.fingerprint == remote.fingerprint == local.fingerprint
    assert torch.equal(remote.train.images, local.train.images)
    assert torch.equal(remote.test.labels, local.test.labels)
    assert facts.source == f"{uri}/{below}train and test"
    assert len(read) == len(set(read)) == FILES


def test_an_archive_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar10(tmp_path / "archive")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    uri = upload(tmp_path / "archive")
    assert check_dataset("cifar10", uri).fingerprint == ""
    assert check_dataset("cifar10", uri).source == f"{uri}/cifar-10-batches-py"
    assert len(load_dataset("cifar10", uri).train) == len(images["train"])
    open_storage(uri).remove("cifar-10-batches-py/test_batch")
    with pytest.raises(ValueError, match=rf"'cifar10' in {uri} lacks cifar-10-batches-py/test_batch"):
        check_dataset("cifar10", uri)


def test_only_one_folder_to_test_on_is_fetched(folder: Path, read: list[str]) -> None:
    shutil.move(folder / "test", folder / "val")
    (folder / "test").mkdir()  # ImageNet's, without labels
    shutil.copy(folder / "val" / "ant" / "0.png", folder / "test")
    assert check_dataset("image_folder", upload(folder)).source.endswith("train and val")
    assert not any(path.startswith("test/") for path in read)


@pytest.mark.parametrize("name", ["train/../../{}", "train/ant/.{}", "train/ant/{}/", "train//{}"])
def test_names_that_are_no_files_of_a_dataset_stay_in_the_bucket(uri: str, node: Path, name: str) -> None:
    expected, stray = check_dataset("image_folder", uri).fingerprint, uuid.uuid4().hex
    open_storage(uri)._filesystem.store[f"/{uri.removeprefix('memory://')}/{name.format(stray)}"] = next(
        iter(open_storage(uri)._filesystem.store.values())
    )
    assert check_dataset("image_folder", uri).fingerprint == expected
    assert not list(node.parent.rglob(f"*{stray}*"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("memory://bucket/nothing", r"not in memory://bucket/nothing \(which has: nothing\); wanted: "),
        ("s3://me:hidden@bucket/x", "credentials and options are taken from the environment"),
        ("ftp://host/x", "unknown scheme 'ftp'"),
    ],
)
def test_a_place_without_data(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"dataset 'image_folder'.*{message}") as caught:
        check_dataset("image_folder", place)
    assert "hidden" not in str(caught.value)


def test_nothing_is_downloaded_into_a_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command(["--download", "cifar10", "--data-dir", "s3://me:hidden@bucket/x"]) == WRONG_REQUEST
    said = capsys.readouterr().err
    assert "s3://***@bucket/x: download to a directory" in said
    assert "hidden" not in said


def test_files_are_named_as_in_the_bucket(uri: str, node: Path) -> None:
    path = "train/bee/1.png"
    storage = open_storage(uri)
    whole = storage.read(path) or b""
    storage.write(path, whole[:50])
    with pytest.raises(ValueError, match=f"{uri}/{path}: ") as caught:
        check_dataset("image_folder", uri)
    assert str(node) not in str(caught.value)
    storage.write(path, spoilt(whole))  # which only decoding finds
    with pytest.raises(HostFault, match=f"{uri}/{path}: ") as caught:
        data_of(check_dataset("image_folder", uri).fingerprint, uri, node)
    assert str(node) not in str(caught.value)


# --- fetched once -----------------------------------------------------------------------------------------------------
def test_processes_of_a_node_fetch_once(uri: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    count, together = context.Value("i", 0), context.Barrier(3)
    original = ObjectStorage._read

    def counting(storage: Storage, path: str) -> bytes | None:
        with count.get_lock():
            count.value += 1
        return original(storage, path)  # type: ignore[arg-type]

    def look() -> None:
        together.wait(HANG_SECONDS)
        check_dataset("image_folder", uri)

    monkeypatch.setattr(ObjectStorage, "_read", counting)
    processes = [in_a_process(look) for _ in range(3)]
    for process in processes:
        process.join(HANG_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert count.value == FILES
    assert len(copies(node)) == 1


@pytest.mark.parametrize("lost", [0, 3])
def test_a_killed_fetch_goes_on(
    uri: str, node: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(bucket, "_THREADS", 1)

    def fetch() -> None:
        original, left = ObjectStorage._read, iter(range(10))

        def killing(storage: ObjectStorage, path: str) -> bytes | None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(storage, path)

        monkeypatch.setattr(ObjectStorage, "_read", killing)
        check_dataset("image_folder", uri)

    process = in_a_process(fetch)
    process.join(HANG_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    (copy,) = copies(node)
    assert copy.suffix == bucket._PARTIAL
    for path in sorted(copy.rglob("*.png"))[:lost]:
        path.write_bytes(b"")  # as a crash of the machine may leave it
    assert check_dataset("image_folder", uri).train_images == 12
    assert len(read) == FILES - 10 + lost
    assert [copy.suffix for copy in copies(node)] == [""]


def test_half_of_an_object_is_no_object(uri: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ObjectStorage._read
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "_read", lambda storage, path: (original(storage, path) or b"")[:-1])
        with pytest.raises(
            StorageError, match=f"{uri}: objects differ in size from the bucket's listing: test/ant/0.png"
        ):
            check_dataset("image_folder", uri)
    assert [copy.suffix for copy in copies(node)] == [bucket._PARTIAL]
    assert check_dataset("image_folder", uri).train_images == 12


# --- changed ----------------------------------------------------------------------------------------------------------
def test_a_job_refuses_a_bucket_that_has_changed(folder: Path, uri: str, read: list[str], tmp_path: Path) -> None:
    planned, path = check_dataset("image_folder", uri).fingerprint, "train/ant/0.png"
    data_of(planned, uri, tmp_path)
    other = (folder / "train" / "bee" / "1.png").read_bytes()
    open_storage(uri).write(path, other)
    data_of(planned, uri, tmp_path)  # this process has opened the copy of the planned ones
    forget()
    read.clear()
    content = r"12 .*content [0-9a-f]{12}"
    with pytest.raises(ValueError, match=rf"planned {content}, found {content}") as caught:
        data_of(planned, uri, tmp_path)
    assert verdict(caught.value) is Verdict.RECURRING, "other hosts read the same bucket"
    assert planned.partition("-")[2][:12] in str(caught.value)
    assert uri in str(caught.value)
    assert read == [path], "the others are taken from the earlier copy"
    open_storage(uri).write(path, (folder / path).read_bytes())
    assert len(data_of(planned, uri, tmp_path).train_plain) == 1


def test_a_process_that_has_opened_an_earlier_state_looks_again(uri: str, tmp_path: Path, folder: Path) -> None:
    data_of(check_dataset("image_folder", uri).fingerprint, uri, tmp_path)
    open_storage(uri).write("train/ant/0.png", (folder / "train" / "bee" / "1.png").read_bytes())
    data_of(check_dataset("image_folder", uri).fingerprint, uri, tmp_path)


def test_objects_must_not_change_while_they_are_fetched(uri: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, path = open_storage(uri), "train/cow/3.png"
    content = storage.read(path) or b""
    original = ObjectStorage._read

    def writing(each: ObjectStorage, asked: str) -> bytes | None:
        if asked == path:
            storage.write(path, content[:-1] + b"x")
        return original(each, asked)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "_read", writing)
        with pytest.raises(ValueError, match=f"objects in {uri} changed while they were fetched: {path}$"):
            check_dataset("image_folder", uri)
    storage.write(path, content)
    fingerprint = check_dataset("image_folder", uri).fingerprint
    assert {copy.suffix: (copy / path).exists() for copy in copies(node)} == {bucket._PARTIAL: False, "": True}
    assert fingerprint == check_dataset("image_folder", upload(node.parent / "pictures")).fingerprint


# --- bounded ----------------------------------------------------------------------------------------------------------
def allow(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setenv(bucket.LIMIT_VARIABLE, str(size / GIB))


def test_the_least_recently_used_copy_makes_room(
    tmp_path: Path, node: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [upload(write_folders(tmp_path / str(number), per_class=2 + number)) for number in range(3)]
    check_dataset("image_folder", uris[0])
    taken = [bucket._bytes(node)]
    check_dataset("image_folder", uris[1])
    taken.append(bucket._bytes(node) - taken[0])
    leave()
    for number, use in ((0, 200), (1, 100)):  # seconds since 1970: the second one is older
        lock = next(path for path in node.glob("*.lock") if path.name.startswith(bucket._digest(uris[number])[:12]))
        os.utime(lock, (use, use))
    allow(monkeypatch, 2.2 * taken[1])
    check_dataset("image_folder", uris[2])
    left = {copy.name[:12] for copy in copies(node)}
    assert left == {bucket._digest(uris[number])[:12] for number in (0, 2)}
    read.clear()
    check_dataset("image_folder", uris[0])
    assert not read


def test_a_copy_in_use_is_not_removed(tmp_path: Path, node: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("image_folder", uri)
    allow(monkeypatch, 1.2 * bucket._bytes(node))
    other = upload(write_folders(tmp_path / "other"))
    with pytest.raises(ValueError, match=rf"{other} needs [\d,]+ more bytes .* in use have .*{bucket.LIMIT_VARIABLE}"):
        check_dataset("image_folder", other)
    assert len(copies(node)) == 2, "and what was fetched of the other"
    forget()
    assert torch.equal(load_dataset("image_folder", uri).train.images, data.train.images)
    leave()
    assert check_dataset("image_folder", other).train_images == 12
    assert len(copies(node)) == 1


def test_folders_that_are_no_copies_are_not_removed(
    tmp_path: Path, node: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = node / "thesis"
    own.mkdir(parents=True)
    (own / "chapter").write_bytes(bytes(10_000))
    check_dataset("image_folder", uri)
    leave()
    allow(monkeypatch, 1.2 * bucket._bytes(copies(node)[0]))
    check_dataset("image_folder", upload(write_folders(tmp_path / "other")))
    assert (own / "chapter").exists()


def test_a_dataset_that_is_too_large(uri: str, monkeypatch: pytest.MonkeyPatch, read: list[str]) -> None:
    allow(monkeypatch, 1000)
    wanted = rf"{uri} has [\d,]+ bytes; copies in .* may take 1,000: set {bucket.LIMIT_VARIABLE}"
    with pytest.raises(ValueError, match=wanted):
        check_dataset("image_folder", uri)
    with pytest.raises(HostFault, match=wanted):
        data_of("12+12-f00d", uri, Path("outputs"))
    monkeypatch.setenv(bucket.LIMIT_VARIABLE, "much")
    with pytest.raises(ValueError, match=f"{bucket.LIMIT_VARIABLE} must be a number of GiB, got 'much'"):
        check_dataset("image_folder", uri)
    monkeypatch.delenv(bucket.LIMIT_VARIABLE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=999))
    with pytest.raises(ValueError, match=r"more bytes in .*: 999 are free on the disk"):
        check_dataset("image_folder", uri)
    assert not read


# --- studies ----------------------------------------------------------------------------------------------------------
def test_jobs_have_the_keys_and_results_that_a_folder_gives(folder: Path, uri: str, tmp_path: Path) -> None:
    stores = {place: Store(tmp_path / name) for place, name in ((str(folder), "local"), (uri, "remote"))}
    for place, store in stores.items():
        version = check_dataset("image_folder", place).fingerprint
        cell = tiny_cell("naive", model="mlp", dataset="image_folder", data_version=version, batch_size=4)
        published([Ref(target(cell))], Context(store=store, data_dir=place))
    local, remote = stores.values()
    assert target(cell).key in local.keys() == remote.keys()
    for key in Closure([Ref(target(cell))]).jobs.keys() & local.keys():
        assert_same_result(local, remote, key)


def test_a_status_fetches_nothing_that_a_study_has_recorded(uri: str, tmp_path: Path, read: list[str]) -> None:
    space, store = tiny_space(dataset="image_folder", batch_size=2), Store(tmp_path / "outputs")
    plan = make_plan(space, uri)
    remember(plan, store)
    leave()
    shutil.rmtree(tmp_path / "copies")
    read.clear()
    facts = known_facts(store, "image_folder", uri, BY_DEFAULT)
    assert facts.fingerprint == plan.facts["image_folder"].fingerprint
    assert not read
    another = upload(write_folders(tmp_path / "another", per_class=3))
    assert known_facts(store, "image_folder", another, BY_DEFAULT).train_images == 9, "recorded of another bucket"


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")), reason="needs s3fs and moto"
)
def test_a_study_on_a_bucket(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    name = "image_folder_study"
    settings = assignments(get_space(name), model="mlp", dataset="image_folder", batch_size=4)
    words = ["-m", "study.run", "--space", name, *(f"--set={each}" for each in settings)]
    local, remote = Store(tmp_path / "local"), Store(tmp_path / "remote")
    publish_all(make_plan(override(get_space(name), settings), str(folder)), Context(store=local, data_dir=str(folder)))
    with s3_server() as port:
        for variable, value in environment(port).items():
            monkeypatch.setenv(variable, value)
        S3FileSystem.clear_instance_cache()
        uri = f"s3://{BUCKET}/pictures"
        for path in filter(Path.is_file, folder.rglob("*")):
            open_storage(uri).write(str(path.relative_to(folder)), path.read_bytes())
        process = python(*words, "--storage", remote.uri, "--data-dir", uri, cwd=str(tmp_path))
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, (out, err)
        assert "very-secret" not in out + err
        assert f"fetching {FILES} files" in err
    assert_same_store(local, remote)
