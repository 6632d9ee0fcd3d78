"""Studies of a minute or two, run as users run them: in processes of their own, which tests may kill."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiny_study import TIMES, assert_same_result, assignments, python
from waiting import HANG_SECONDS, wait_until

from search_spaces import get_space
from study.plan import Plan, make_plan, override
from trainables import schema
from trainables.host.databases import default_tracking_uri
from trainables.storage.store import Store

SPACE = "digits_quickstart"
SETTINGS = assignments(get_space(SPACE), epochs=12, imp_epochs=4, seeds=(0, 1))
MARK = "TEST_OF_FAULTS"
"""Environment variable by which the processes of one study are told from all others on the machine."""
WORKERS = (b"ray::PlannedJob", b"ray::ResourceTrainable")
"""Names of processes that run trials: before the first step, and in one."""


def planned(*more: str) -> Plan:
    """Return the plan of the study, with more settings."""
    return make_plan(override(get_space(SPACE), [*SETTINGS, *more]))


@dataclass
class Study:
    """One study in a directory of its own, and the processes that belong to it.

    Attributes:
        folder: working directory; the tracking database is in its ``outputs``.
        storage: what ``--storage`` is given; ``outputs`` by default.
        arguments: more of the command line.
        environment: more environment variables.
        prefix: command that runs the driver elsewhere.
    """

    folder: Path
    storage: str = ""
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Store:
        return Store(self.storage or self.folder / "outputs")

    @property
    def database(self) -> Path:
        return self.folder / "outputs" / "mlflow.db"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        settings = [f"--set={each}" for each in SETTINGS]
        command = ["-m", "study.run", "--space", SPACE, *settings, "--storage", self.store.uri]
        environment = {**self.environment, MARK: self.mark}
        return python(*command, *self.arguments, *arguments, cwd=str(self.folder), env=environment, prefix=self.prefix)

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

    def finish(self, *arguments: str) -> tuple[str, str]:
        """Run to the end undisturbed."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, (out, err)
        return out, err


def wait_for_results(study: Study, process: subprocess.Popen[str], count: int) -> bool:
    """Wait until so many results are published; return False if the study has ended before."""
    wait_until(lambda: process.poll() is not None or len(study.store.keys()) >= count, "nothing is published any more")
    return process.poll() is None


def assert_whole(store: Store) -> None:
    """Every result that is there is complete and passes its checksums."""
    for key in store.keys():  # noqa: SIM118 - a store is no dict
        for name in store.manifest(key)["files"]:
            store.read(key, name)


Row = tuple[object, ...]


def tracked(database: Path) -> tuple[dict[str, str], list[Row], list[Row]]:
    """Return status by job, metric points without times, and params."""
    from mlflow import MlflowClient  # which takes seconds that most tests do not need to spend

    client = MlflowClient(default_tracking_uri(database.parent))
    experiment = client.get_experiment_by_name(SPACE)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    runs = [run for run in found if schema.TAG_KEY in run.data.tags]
    keys = {run.info.run_id: run.data.tags[schema.TAG_KEY] for run in runs}
    assert len(set(keys.values())) == len(keys), "a job has two runs"
    with sqlite3.connect(database) as connection:
        points = connection.execute("SELECT run_uuid, key, step, value FROM metrics").fetchall()
    timeless = sorted((keys[run], *rest) for run, *rest in points if run in keys and rest[0] not in TIMES)
    params = sorted((keys[run.info.run_id], *each) for run in runs for each in run.data.params.items())
    return {keys[run.info.run_id]: run.info.status for run in runs}, timeless, params


def assert_as_if_nothing_had_happened(study: Study, undisturbed: Study, plan: Plan) -> None:
    assert_whole(study.store)
    for key in plan.jobs:
        assert_same_result(study.store, undisturbed.store, key)
    for key in undisturbed.store.keys() - plan.jobs.keys():  # states after some epochs
        assert study.store.read(key, schema.WEIGHTS) == undisturbed.store.read(key, schema.WEIGHTS)
    status, points, params = tracked(study.database)
    expected_status, expected_points, expected_params = tracked(undisturbed.database)
    assert status == expected_status == dict.fromkeys(plan.jobs, "FINISHED")
    assert points == expected_points, "every point once, with the same value"
    assert params == expected_params
    left = [
        path for directory in ("work", "leases", "failed", "studies") for path in study.store.storage.names(directory)
    ]
    assert left == []


def kill_a_worker(study: Study, process: subprocess.Popen[str], luck: random.Random) -> bool:
    """Kill one of the study's workers as soon as there is one; say whether it came to that before the study ended."""
    while process.poll() is None:
        if workers := study.processes(*WORKERS):
            with contextlib.suppress(ProcessLookupError):  # it ended between our look and our blow
                os.kill(luck.choice(workers), signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False
