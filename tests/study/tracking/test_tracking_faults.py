"""A tracking server that goes away, a database new to several drivers, drivers that die: nothing lost or doubled."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from studies import SETTINGS, SPACE, Study
from tiny_study import python
from waiting import HANG_SECONDS, wait_until

from search_spaces import get_space
from study.plan import Plan, make_plan, override
from trainables import schema
from trainables.storage.store import Store

# --- what is there in the end ---------------------------------------------------------------------------------------
Points = Counter[tuple[str, str, int, float]]
"""Key of the job, name, step and value of a metric -> how many times it is there."""


def expected(store: Store, plan: Plan) -> Points:
    """Return what the results of a plan without gaps say."""
    points: Points = Counter()
    for key, job in plan.jobs.items():
        document = store.read_json(key, schema.METRICS)
        by_epoch = {name for row in document["history"] for name in row}
        points.update(
            (key, name, row["step"], value)
            for row in document["history"]
            for name, value in row.items()
            if name not in ("step", "timestamp")
        )
        points.update((key, name, job.epochs, v) for name, v in document["final"].items() if name not in by_epoch)
    return points


def recorded(database: Path) -> tuple[dict[str, list[str]], Points]:
    """Return the status of the runs by job, and the metric points of all runs."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(
            "SELECT t.value, r.run_uuid, r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
            "WHERE t.key = ? AND r.lifecycle_stage = 'active'",
            (schema.TAG_KEY,),
        ).fetchall()
        rows = connection.execute("SELECT run_uuid, key, step, value FROM metrics").fetchall()
    keys = {run: key for key, run, _ in runs}
    status: dict[str, list[str]] = {}
    for key, _, state in runs:
        status.setdefault(key, []).append(state)
    return status, Counter((keys[run], *rest) for run, *rest in rows if run in keys)


def assert_all_is_there_once(database: Path, store: Store, plan: Plan) -> None:
    status, points = recorded(database)
    assert status == {key: ["FINISHED"] for key in plan.jobs}
    assert points == expected(store, plan)


# --- a server that goes away ----------------------------------------------------------------------------------------
@dataclass
class Server:
    """``mlflow server`` on a port of its own, which it keeps when it is started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "server.db"

    def start(self) -> None:
        arguments = ["--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--backend-store-uri", f"sqlite:///{self.database}"]
        arguments += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # a dozen processes of no use here
            )
        wait_until(self.answers, "the server does not come up")

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=HANG_SECONDS):
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        each = Server(tmp_path, free.getsockname()[1])
    each.start()
    yield each
    each.kill()


@dataclass
class Sweep:
    """A study of so many dense nets, some at a time, which wait for nobody."""

    study: Study
    plan: Plan
    trials: int

    @classmethod
    def of(cls, folder: Path, server: Server, *, nets: int, epochs: int, trials: int) -> Sweep:
        chosen = ["method=dense", f"seeds={','.join(map(str, range(nets)))}", f"epochs={epochs}"]
        plan = make_plan(override(get_space(SPACE), [*SETTINGS, *chosen]))
        options = ["--tracking-uri", server.uri, "--max-concurrent", str(trials), "--cpus-per-trial", "0.25"]
        return cls(Study(folder, arguments=[*(f"--set={each}" for each in chosen), *options]), plan, trials)

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for an end with an exit code; return what was said."""
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, (out, err)
        return out + err


@pytest.fixture
def sweep(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    each = Sweep.of(tmp_path, server, **request.param)
    yield each
    each.study.kill_all()


@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param({"nets": 6, "epochs": 100, "trials": 4}, marks=pytest.mark.slow),
        pytest.param({"nets": 12, "epochs": 100, "trials": 8}, marks=pytest.mark.exhaustive),
    ],
    indirect=True,
)
def test_server_that_is_stopped_during_a_sweep(sweep: Sweep, server: Server) -> None:
    study, plan = sweep.study, sweep.plan
    process = study.start()
    wait_until(lambda: len(study.store.leases()) >= sweep.trials, "not all trials run at once", process)
    wait_until(lambda: recorded(server.database)[0], "nothing is tracked", process)
    server.kill()
    published = len(study.store.keys())
    assert published < len(plan.jobs) - 1
    wait_until(lambda: len(study.store.keys()) > published, "nothing is published any more", process)
    server.start()
    said = sweep.finish(process)
    assert f"{len(plan.jobs)} jobs run" in said
    assert "failed" not in said
    assert "warning" not in said
    assert_all_is_there_once(server.database, study.store, plan)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [{"nets": 6, "epochs": 10, "trials": 2}], indirect=True)
def test_server_that_does_not_come_back_before_the_end(sweep: Sweep, server: Server) -> None:
    study, plan = sweep.study, sweep.plan
    process = study.start()
    wait_until(study.store.keys, "nothing is published", process)
    server.kill()
    said = sweep.finish(process, code=1)
    assert "warning: not everything reached" in said
    assert re.search(rf"; \d+ of {len(plan.jobs)} runs are missing: dense", said)
    server.start()
    said = sweep.finish(study.start())
    assert "0 jobs run" in said
    assert "warning" not in said
    assert_all_is_there_once(server.database, study.store, plan)


# --- several drivers, without a sweep -------------------------------------------------------------------------------
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tiny_study import tiny_space
from study.plan import make_plan
from study.tracking import delivery
from study.tracking.delivery import Tracker
from trainables.storage.store import Store

storage, uri, patience, number, fate, creation, *signs = sys.argv[1:]
delivery.CLOSING_PATIENCE = float(patience)  # nothing is away here
create, done, tables = MlflowClient.create_run, 0, 0

def die():
    Path(storage, f"dying-{number}").touch()
    time.sleep(0.5)  # the next driver is at work by then
    os.kill(os.getpid(), signal.SIGKILL)

def create_and_die(self, *args, **kwargs):
    global done
    done += 1
    if fate == "before" and done == int(creation):
        die()
    run = create(self, *args, **kwargs)
    if fate == "after" and done == int(creation):
        die()
    return run

MlflowClient.create_run = create_and_die

@event.listens_for(Engine, "after_cursor_execute")
def make_table_and_die(connection, cursor, statement, *_):
    global tables
    tables += "CREATE TABLE" in statement
    if fate == "tables" and tables == int(creation):
        die()

plan = make_plan(tiny_space(interpolation_points=3))
tracker = Tracker(plan, Store(storage), uri, fresh=set(plan.jobs))
Path(storage, f"ready-{number}").touch()
while not all(Path(storage, sign).exists() for sign in signs):
    time.sleep(0.01)
tracker.start()
delivered = tracker.close(float(patience))
print(tracker.behind)
sys.exit(0 if delivered else 1)
"""


def run_drivers(store: Store, uri: str, drivers: Sequence[tuple[str, int, Sequence[str]]]) -> list[int]:
    """Let several drivers log the same results; return how they ended.

    Args:
        store: the results.
        uri: where to log.
        drivers: of each, whether it dies ``before`` or ``after`` it creates a run, while it makes ``tables``, or
            ``lives``; which creation that is, from 1; and the signs that it waits for.
    """
    command = ["-c", DRIVER, store.uri, uri, str(HANG_SECONDS)]
    processes = [
        python(*command, str(number), fate, str(creation), *signs)
        for number, (fate, creation, signs) in enumerate(drivers)
    ]
    try:
        said = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, -signal.SIGKILL}, said
    return codes


ALL_READY = ("ready-0", "ready-1", "ready-2")
ONE_AFTER_THE_OTHER = (("after", 3, ALL_READY), ("before", 2, ["dying-0"]), ("lives", 0, ["dying-1"]))
"""Each driver takes over while the one before is creating a run, in the middle of which it dies."""


def assert_one_finished_run_of_each(database: Path, jobs: int) -> None:
    status, points = recorded(database)
    assert list(status.values()) == [["FINISHED"]] * jobs
    assert set(points.values()) == {1}


@pytest.mark.slow
def test_database_that_is_new_to_several_drivers(own_copy: Store, tmp_path: Path) -> None:
    database = tmp_path / "new" / "mlflow.db"
    codes = run_drivers(own_copy, f"sqlite:///{database}", [("lives", 0, ALL_READY)] * 3)
    assert codes == [0, 0, 0]
    assert_one_finished_run_of_each(database, 13)


@pytest.mark.slow
def test_drivers_killed_while_they_make_the_tables(own_copy: Store, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    killed = [("tables", 1, ["ready-0"]), ("tables", 40, ["dying-0"]), ("tables", 70, ["dying-1"])]
    codes = run_drivers(own_copy, f"sqlite:///{database}", [*killed, ("lives", 0, ["dying-2"])])
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert_one_finished_run_of_each(database, 13)
    assert not list(tmp_path.glob("mlflow.db.new*"))


@pytest.mark.slow
def test_drivers_killed_while_they_create_runs_beside_others(own_copy: Store, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    codes = run_drivers(own_copy, f"sqlite:///{database}", ONE_AFTER_THE_OTHER)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert_one_finished_run_of_each(database, 13)
    assert list(own_copy.storage.names("leases")) == []


@pytest.mark.slow
def test_drivers_killed_while_they_create_runs_on_a_server(own_copy: Store, server: Server) -> None:
    codes = run_drivers(own_copy, server.uri, ONE_AFTER_THE_OTHER)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert_one_finished_run_of_each(server.database, 13)
