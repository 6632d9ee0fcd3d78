"""The storage is in trouble while a study runs on it: full, far away, unreliable, damaged."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, Unreliable, environment, s3_server
from stored import file_of
from studies import Study, assert_as_if_nothing_had_happened, assert_whole, tracked
from tiny_study import assert_same_result, flip_bit
from waiting import HANG_SECONDS, wait_until

from study.plan import Plan
from trainables import schema
from trainables.storage.patience import PATIENCE_VARIABLE
from trainables.storage.store import Store

pytestmark = pytest.mark.slow


# --- full -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(study: Study) -> Iterator[Path]:
    """A file system too small for the study, as its storage."""
    folder = study.folder / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    study.storage = str(folder / "storage")
    study.arguments = ["--tracking-uri", f"sqlite:///{study.database}"]
    yield folder
    study.kill_all()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=500m", str(folder)], check=True)


def test_a_full_disk_ends_the_study_with_a_clear_error(
    study: Study, small_disk: Path, undisturbed: Study, plan_of_studies: Plan
) -> None:
    study.environment = {PATIENCE_VARIABLE: "5"}  # nobody makes room
    process = study.start("--retries", "0")
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, (out, err)
    assert "No space left on device" in out + err
    assert "published results are kept" in out + err
    assert 0 < len(study.store.keys()) < len(undisturbed.store.keys())
    assert_whole(study.store)
    enlarge(small_disk)
    study.environment = {}
    study.finish()
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_a_study_goes_on_when_space_is_back(
    study: Study, small_disk: Path, undisturbed: Study, plan_of_studies: Plan
) -> None:
    process = study.start()
    wait_until(lambda: shutil.disk_usage(small_disk).free <= 150_000, "the disk does not fill up", process)
    time.sleep(5)
    enlarge(small_disk)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, (out, err)
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


# --- in an object store -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    if not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")):
        pytest.skip("needs s3fs and moto")
    with s3_server() as port:
        yield port


@pytest.mark.parametrize("every", [pytest.param(0, marks=pytest.mark.exhaustive), 3])
def test_a_study_in_an_object_store(
    server: int,
    study: Study,
    undisturbed: Study,
    plan_of_studies: Plan,
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real client over a socket; every third request may be dropped, before or after it was carried out."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # whose clients know the line of the test before
    line = Unreliable(server, every=every)
    study.environment = environment(line.port)
    for name, value in study.environment.items():
        monkeypatch.setenv(name, value)
    study.storage = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    out, err = study.finish()
    assert line.dropped > 50 if every else line.dropped == 0
    line.every = 0
    assert "very-secret" not in out + err
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)
    again, _ = study.finish()
    assert f"0 jobs run, {len(plan_of_studies.jobs)} were published before" in again
    line.close()


# --- damaged --------------------------------------------------------------------------------------------------------
def two_of_each_kind(store: Store, plan: Plan) -> dict[str, str]:
    """Return a file of some results: each kind of file is among them twice, one after the other."""
    results: dict[str, list[str]] = {}
    for key in plan.jobs:
        for name in (*store.manifest(key)["files"], schema.MANIFEST):
            results.setdefault(name, []).append(key)
    chosen: dict[str, str] = {}
    for name, keys in sorted(results.items(), key=lambda each: len(each[1])):  # while a rare kind has results left
        first, *_, last = (key for key in keys if key not in chosen)
        chosen |= {first: name, last: name}
    return chosen


def test_damage_in_every_kind_of_file(study: Study, undisturbed: Study, plan_of_studies: Plan) -> None:
    shutil.copytree(undisturbed.folder / "outputs", study.folder / "outputs")
    study.database.unlink()  # which names the other folder; the study is logged anew
    damaged = two_of_each_kind(study.store, plan_of_studies)
    assert {schema.MANIFEST, schema.METRICS, schema.WEIGHTS, schema.MASK, schema.PERMUTATION} <= set(damaged.values())
    for number, (key, name) in enumerate(damaged.items()):
        path = file_of(study.store, key, name)
        if number % 2:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            flip_bit(path, position=path.stat().st_size // 2)
    out, _ = study.finish("--verify")
    for key, name in damaged.items():
        assert f"artifact {name} of {key[:12]} is damaged" in out
    assert f"{len(damaged)} damaged" in out
    assert f"{len(damaged)} jobs run, " in out
    for key in plan_of_studies.jobs:
        assert_same_result(study.store, undisturbed.store, key)
    assert tracked(study.database) == tracked(undisturbed.database)
    aside = {path.split("/")[2].rsplit("-", 1)[0] for path in study.store.storage.names("store/.damaged")}
    assert aside == set(damaged)


def killed_in_the_middle_of_a_job(study: Study) -> list[Path]:
    """Kill the study, as often as it takes, until a job has left a checkpoint; return the checkpoints."""
    pattern = "work/*/checkpoint.safetensors"
    while True:
        process = study.start("--checkpoint-seconds", "0.001")
        while process.poll() is None and not any(study.store.root.glob(pattern)):
            time.sleep(0.01)
        study.kill_all()
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode < 0, ("it ended before it could be killed", out, err)
        if checkpoints := list(study.store.root.glob(pattern)):
            return checkpoints


def test_a_damaged_checkpoint_costs_time_only(study: Study, undisturbed: Study, plan_of_studies: Plan) -> None:
    for path in killed_in_the_middle_of_a_job(study):
        flip_bit(path)
    study.finish()
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)
