"""Where a study stands, read from its store alone."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tracked
from stored import file_of
from tiny_images import write_folders
from tiny_study import flip_bit, tiny_cell, tiny_space

from study import run
from study.known_data import known_facts, remember
from study.plan import Plan, make_plan
from study.scheduling.states import BLOCKED, FAILED, RUNNING, WAITING
from study.status import PUBLISHED, lines, size_in_words, status
from trainables import schema
from trainables.graph import dense_job, match_job, prune_job, target
from trainables.host.processes import host_of, me
from trainables.host.terminal import OK, WRONG_REQUEST
from trainables.storage.store import Store

CELL = tiny_cell()
DENSE_A, DENSE_B, PRUNED = dense_job(CELL, CELL.seed_a), dense_job(CELL, CELL.seed_b), prune_job(CELL, CELL.seed_a)
NAIVE, PERMUTED = target(tiny_cell("naive")), target(CELL)
MATCH = match_job(CELL, CELL.matcher)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space(interpolation_points=3))


def without(store: Store, *keys: str) -> Store:
    for key in keys:
        shutil.rmtree(store.directory(key))
    return store


def test_a_finished_study(plan: Plan, own_copy: Store) -> None:
    found = status(plan, own_copy)
    assert set(found.states.values()) == {PUBLISHED}
    assert found.states.keys() == plan.jobs.keys()
    assert (found.leases, found.failures, found.studies) == ({}, {}, [])
    text = "\n".join(lines(found))
    assert "no study runs on this storage" in text
    assert "left" not in text
    assert "slowest: " in text
    files = [path for path in (own_copy.root / "store").rglob("*") if path.is_file()]
    assert found.bytes["store"] == sum(path.stat().st_size for path in files)
    assert 0 < found.own_bytes <= found.bytes["store"]


def test_nothing_has_been_computed(plan: Plan, tmp_path: Path) -> None:
    found = status(plan, Store(tmp_path))
    assert set(found.states.values()) == {WAITING}
    assert found.seconds_left > 0


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_storage_that_does_not_exist_is_no_empty_study(scheme: str, plan: Plan, tmp_path: Path) -> None:
    location = f"{scheme}bucket{tmp_path}/nothing" if scheme else str(tmp_path / "nothing")
    if scheme:
        Store(f"{scheme}bucket/other").record_failure("0" * 64, {"error": "the bucket is there"})
    with pytest.raises(ValueError, match=r"storage .*/nothing does not exist: no study has run there"):
        status(plan, Store(location))
    assert list(tmp_path.iterdir()) == [], "looking must not create a storage"


def test_what_runs_fails_is_blocked_and_waits(plan: Plan, own_copy: Store) -> None:
    store = without(own_copy, MATCH.key, NAIVE.key, PERMUTED.key, *_connections(plan))
    store.record_failure(MATCH.key, {"error": "ValueError: no match", "at": 1000 * time.time() - 60_000, "log": "..."})
    with (
        store.register_study({"space": "tiny"}),
        store.lease(NAIVE.key, {"step": 2, "epochs": NAIVE.epochs}) or pytest.fail("it is free"),
    ):
        found = status(plan, store)
    states = found.states
    assert (states[MATCH.key], states[PERMUTED.key], states[NAIVE.key]) == (FAILED, BLOCKED, RUNNING)
    assert states[DENSE_A.key] == states[PRUNED.key] == PUBLISHED
    text = "\n".join(lines(found))
    host = host_of(me())
    assert f"running: tiny on {host}" in text
    assert f"epoch 2/{NAIVE.epochs}, on {host} for 0 s" in text
    assert f"({MATCH.key[:12]}) 60 s ago: ValueError: no match" in text
    assert "left with 1 job at a time" in text


def _connections(plan: Plan) -> list[str]:
    return [key for key, job in plan.jobs.items() if job.kind == schema.CONNECT]


def test_the_time_left_counts_the_epochs_of_running_jobs(plan: Plan, own_copy: Store) -> None:
    store, left = without(own_copy, NAIVE.key), []
    for step in (0, 1):
        with store.lease(NAIVE.key, {"step": step}) or pytest.fail("it is free"):
            left.append(status(plan, store).seconds_left)
    assert left[1] == pytest.approx(left[0] * (1 - 1 / NAIVE.epochs))


@pytest.mark.parametrize(("step", "done"), [(0, 0.0), (1, 0.5), (3, 1.0)])
def test_a_net_of_which_an_early_state_is_needed_counts_the_epochs_to_it(
    step: int, done: float, tmp_path: Path
) -> None:
    """Another study may train the same net to its end."""
    plan, store = make_plan(tiny_space(method=("dense", "naive"), rewind_epoch=2)), Store(tmp_path)
    assert plan.closure.outputs[DENSE_B.key] == {2}
    with store.lease(DENSE_B.key, {"step": step, "epochs": DENSE_B.epochs}) or pytest.fail("it is free"):
        found = status(plan, store)
    assert found.done == {DENSE_B.key: done}
    assert f"epoch {step}/{DENSE_B.epochs}, " in "\n".join(lines(found))


def test_hosts_that_get_no_more_jobs_are_named(plan: Plan, own_copy: Store) -> None:
    with own_copy.register_study({"space": "tiny", "out": ["host-a: no data here"]}):
        shown = lines(status(plan, own_copy))
    assert any(line.endswith("; no more jobs for host-a: no data here") for line in shown), shown


def test_a_failed_job_that_runs_again_is_running(plan: Plan, own_copy: Store) -> None:
    store = without(own_copy, NAIVE.key)
    store.record_failure(NAIVE.key, {"error": "it died", "at": 0, "log": ""})
    with store.lease(NAIVE.key) or pytest.fail("it is free"):
        assert status(plan, store).states[NAIVE.key] == RUNNING
    assert status(plan, store).states[NAIVE.key] == FAILED


def test_the_rate_is_that_of_the_last_hour(plan: Plan, own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = without(own_copy, NAIVE.key)
    assert len(status(plan, store).recent) == len(plan.jobs) - 1
    epochs = sum(job.epochs for key, job in plan.jobs.items() if key != NAIVE.key)
    assert f"{len(plan.jobs) - 1} jobs, {epochs} epochs" in "\n".join(lines(status(plan, store)))
    later = time.time() + 3601
    monkeypatch.setattr("study.status.time.time", lambda: later)
    assert status(plan, store).recent == []


def test_damage_is_named(plan: Plan, own_copy: Store) -> None:
    flip_bit(file_of(own_copy, NAIVE.key, schema.MANIFEST), position=20)
    found = status(plan, own_copy)
    assert f"damaged: artifact manifest.json of {NAIVE.key[:12]} is damaged" in "\n".join(lines(found))
    assert found.states[NAIVE.key] == WAITING
    assert NAIVE.key in found.todo


def test_a_job_that_ends_while_the_storage_is_read_does_not_seem_to_wait(
    plan: Plan, own_copy: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Store.leases
    tracked.without(own_copy, NAIVE)

    def leases(self: Store) -> dict[str, dict[str, Any]]:
        found = read(self)
        if NAIVE.key not in self:
            tracked.bring_back(self, NAIVE)
        return found

    monkeypatch.setattr(Store, "leases", leases)
    assert status(plan, own_copy).states[NAIVE.key] == PUBLISHED


@pytest.mark.parametrize("silent", [0, 600])
def test_a_study_without_a_sign_of_life_is_told_from_one_that_runs(plan: Plan, own_copy: Store, silent: int) -> None:
    with own_copy.register_study({"space": "tiny"}):
        (path,) = own_copy.storage.names("studies")
        document = json.loads(own_copy.storage.read(path) or b"")
        own_copy.storage.write(path, json.dumps({**document, "renewed": time.time() - silent}).encode())
        text = "\n".join(lines(status(plan, own_copy)))
    assert ("for 0 s (last sign of life 10 min" in text) == (silent > 0)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--space", "digits_quickstart", "--status", "--storage"]
    assert run.main([*arguments, str(tmp_path / "x")]) == WRONG_REQUEST
    assert capsys.readouterr() == (
        "",
        f"error: storage {tmp_path}/x does not exist: no study has run there\n",
    )
    assert run.main([*arguments, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no study runs on this storage" in out
    assert [line.split() for line in out.splitlines() if line.startswith("  all")] == [
        ["all", "296", "0", "0", "0", "0", "296"]
    ]


def test_the_data_need_not_be_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--space", "mask_controls", "--status", "--storage", str(tmp_path)]
    assert run.main(arguments) == OK
    assert "  all          396" in capsys.readouterr().out
    assert run.main([*arguments, "--data-dir", str(tmp_path)]) == WRONG_REQUEST, "asked for, so looked at"


def test_images_in_folders_are_known_from_the_study_that_has_read_them(tmp_path: Path) -> None:
    space, store = tiny_space(dataset="image_folder", batch_size=2), Store(tmp_path / "outputs")
    images = write_folders(tmp_path / "image_folder")
    there = make_plan(space, str(images))
    look_up = partial(known_facts, store)
    with pytest.raises(ValueError, match="needs --data-dir DIR"):
        make_plan(space, facts_of=look_up)
    remember(there, store)
    assert make_plan(space, facts_of=look_up).jobs.keys() == there.jobs.keys()
    images.rename(tmp_path / "elsewhere")  # as on another machine
    assert make_plan(space, str(images), facts_of=look_up).jobs.keys() == there.jobs.keys()
    with pytest.raises(ValueError, match="another"):
        make_plan(space, str(tmp_path / "another"), facts_of=look_up)
    (file,) = (store.root / "data").iterdir()
    flip_bit(file, 3)
    with pytest.raises(ValueError, match="needs --data-dir DIR"):
        make_plan(space, facts_of=look_up)
    assert not file.exists(), "set aside"


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 kB"), (2_345_678, "2.3 MB"), (7.2e9, "7.2 GB"), (3e15, "3000.0 TB")],
)
def test_sizes_in_words(number: float, words: str) -> None:
    assert size_in_words(number) == words
