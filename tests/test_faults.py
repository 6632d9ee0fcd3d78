"""Processes die at any moment, the study does not notice: same bits, same numbers, nothing twice, nothing missing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_study import TIMES, assert_same_result, assignments, python

from search_spaces import get_space
from study.plan import Plan, make_plan, override
from study.tracking import default_tracking_uri
from trainables import schema
from trainables.store import Store

pytestmark = pytest.mark.slow

SPACE = "digits_quickstart"
SETTINGS = assignments(get_space(SPACE), epochs=12, imp_epochs=4, seeds=(0, 1))
MARK = "TEST_OF_FAULTS"
"""Environment variable by which the processes of one study are told from all others on the machine."""
WORKERS = (b"ray::PlannedJob", b"ray::ResourceTrainable")
"""Names of processes that run trials: before the first step, and in one."""
RUN_SECONDS = 180


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(override(get_space(SPACE), SETTINGS))


@dataclass
class Study:
    """One study in a directory of its own, and the processes that belong to it."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Store:
        return Store(self.folder / "outputs")

    def start(self) -> subprocess.Popen[str]:
        settings = [f"--set={each}" for each in SETTINGS]
        arguments = ["--space", SPACE, *settings, "--storage", str(self.store.root)]
        return python("-m", "study.run", *arguments, cwd=str(self.folder), env={MARK: self.mark})

    def processes(self, *prefixes: bytes) -> list[int]:
        """Return the living processes of this study, or those whose command line starts with one of `prefixes`."""
        parents, ours, names = {}, set(), {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state in "ZX":
                    continue
                parents[pid], names[pid] = int(parent), (entry / "cmdline").read_bytes()
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    ours.add(pid)
        # Ray's workers write their name over their environment: they are known by their parents.
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sorted(pid for pid in ours if names[pid].startswith(prefixes or b""))

    def kill_all(self) -> None:
        """Remove whatever is left of this study's processes; those of others are not touched."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> tuple[str, str]:
        """Run to the end undisturbed."""
        process = self.start()
        out, err = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 0, (out, err)
        return out, err


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    each = Study(tmp_path)
    yield each
    each.kill_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The same study in peace."""
    each = Study(tmp_path_factory.mktemp("undisturbed"))
    each.finish()
    yield each
    each.kill_all()


def wait_for_results(study: Study, process: subprocess.Popen[str], count: int) -> bool:
    """Wait until so many results are published; return False if the study has ended before."""
    end = time.monotonic() + RUN_SECONDS
    while len(study.store.keys()) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing is published any more"
        time.sleep(0.02)
    return process.poll() is None


def assert_whole(store: Store) -> None:
    """Every result that is there is complete and passes its checksums."""
    for key in store.keys():  # noqa: SIM118 - a store is no dict
        for name in store.manifest(key)["files"]:
            store.read(key, name)


Row = tuple[object, ...]


def tracked(store: Store) -> tuple[dict[str, str], list[Row], list[Row]]:
    """Return status by job, metric points without times, and params."""
    client = MlflowClient(default_tracking_uri(store.root))
    experiment = client.get_experiment_by_name(SPACE)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = {run.info.run_id: run.data.tags[schema.TAG_KEY] for run in runs}
    assert len(set(keys.values())) == len(keys), "a job has two runs"
    with sqlite3.connect(store.root / "mlflow.db") as database:
        points = database.execute("SELECT run_uuid, key, step, value FROM metrics").fetchall()
    timeless = sorted((keys[run], *rest) for run, *rest in points if rest[0] not in TIMES)
    params = sorted((keys[run.info.run_id], *each) for run in runs for each in run.data.params.items())
    return {keys[run.info.run_id]: run.info.status for run in runs}, timeless, params


def assert_as_if_nothing_had_happened(study: Study, undisturbed: Study, plan: Plan) -> None:
    assert_whole(study.store)
    for key in plan.jobs:
        assert_same_result(study.store, undisturbed.store, key)
    for key in undisturbed.store.keys() - plan.jobs.keys():  # states after some epochs
        assert study.store.read(key, schema.WEIGHTS) == undisturbed.store.read(key, schema.WEIGHTS)
    status, points, params = tracked(study.store)
    expected_status, expected_points, expected_params = tracked(undisturbed.store)
    assert status == expected_status == dict.fromkeys(plan.jobs, "FINISHED")
    assert points == expected_points, "every point once, with the same value"
    assert params == expected_params
    assert not list((study.store.root / "work").glob("*/checkpoint.safetensors"))


def test_driver_killed_again_and_again(study: Study, undisturbed: Study, plan: Plan) -> None:
    luck = random.Random(20)
    kills = 0
    total = len(undisturbed.store.keys())
    for start in range(5):
        process = study.start()
        before = len(study.store.keys())
        if start == 1:  # while Ray is still starting
            time.sleep(luck.uniform(1.0, 4.0))
        elif not wait_for_results(study, process, before + luck.randint(1, total // 5)):
            break
        else:
            time.sleep(luck.uniform(0.0, 0.7))
        process.kill()
        process.communicate()
        kills += 1
        if start % 2:  # otherwise its workers may live on for a while beside the next start
            study.kill_all()
        assert_whole(study.store)
    assert kills >= 4
    study.finish()
    assert_as_if_nothing_had_happened(study, undisturbed, plan)


def kill_a_worker(study: Study, process: subprocess.Popen[str], luck: random.Random) -> bool:
    """Kill one of the study's workers as soon as there is one; say whether it came to that before the study ended."""
    while process.poll() is None:
        if workers := study.processes(*WORKERS):
            with contextlib.suppress(ProcessLookupError):  # it ended between our look and our blow
                os.kill(luck.choice(workers), signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


def test_workers_killed_under_a_running_study(study: Study, undisturbed: Study, plan: Plan) -> None:
    luck = random.Random(3)
    process = study.start()
    total = len(undisturbed.store.keys())
    kills = 0
    for share in (0.1, 0.4, 0.7):
        assert wait_for_results(study, process, int(share * total))
        time.sleep(luck.uniform(0.0, 0.5))
        kills += kill_a_worker(study, process, luck)
    out, err = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, (out, err)
    assert kills == 3
    assert_as_if_nothing_had_happened(study, undisturbed, plan)


def test_parents_damaged_between_two_runs(study: Study, undisturbed: Study, plan: Plan) -> None:
    process = study.start()
    assert wait_for_results(study, process, len(undisturbed.store.keys()) // 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 130, (out, err)
    store = study.store
    parents = {ref.key for job in plan.jobs.values() for _, ref in job.parents} & store.keys()
    assert len(parents) > 3
    for key in sorted(parents)[::2]:
        name = schema.WEIGHTS if schema.WEIGHTS in store.manifest(key)["files"] else schema.PERMUTATION
        path = store.directory(key) / name
        path.write_bytes(path.read_bytes()[:-10])
    study.finish()
    for key in plan.jobs.keys() - parents:
        assert_same_result(store, undisturbed.store, key)
    assert tracked(store) == tracked(undisturbed.store)


def test_nothing_is_running_after_termination(study: Study) -> None:
    process = study.start()
    assert wait_for_results(study, process, 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=RUN_SECONDS)
    end = time.monotonic() + 30
    while study.processes() and time.monotonic() < end:
        time.sleep(0.2)
    assert study.processes() == []
