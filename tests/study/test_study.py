"""The command line from end to end: interrupted, continued, repeated, failing, and refusing what makes no sense."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from s3_server import environment
from tiny_study import assert_same_result, assignments, python
from tracked import bring_back, job_of, without
from waiting import HANG_SECONDS, wait_until

from search_spaces import get_space
from study.plan import Plan, make_plan, override
from study.preference import preferences
from study.run import main
from study.sweep import _Sweep
from study.tracking.delivery import Tracker
from study.tracking.labels import recipe_digest
from trainables import schema
from trainables.host.databases import default_tracking_uri
from trainables.host.processes import me
from trainables.storage import patience
from trainables.storage.starts import starts
from trainables.storage.store import Store

SPACE = "digits_quickstart"
TINY = assignments(get_space(SPACE))


def command(folder: Path, *more: str) -> list[str]:
    """Return the arguments of the tiny study with more settings, in a storage directory below `folder`."""
    settings = [f"--set={each}" for each in (*TINY, *more)]
    return ["--space", SPACE, *settings, "--storage", str(folder / "outputs")]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return python("-m", "study.run", *command(folder, *more), cwd=str(folder))


@dataclass
class Outcome:
    """What a run left behind."""

    code: int
    out: str
    err: str
    published: set[str]
    runs: dict[str, tuple[str, str]]
    points: list[tuple[Any, ...]]


def outcome(folder: Path, process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=HANG_SECONDS)
    store = Store(folder / "outputs")
    return Outcome(process.returncode, out, err, store.keys(), runs(store), points(store))


def runs(store: Store) -> dict[str, tuple[str, str]]:
    """Return key -> (run, status); no job has two runs."""
    client = MlflowClient(default_tracking_uri(store.root))
    experiment = client.get_experiment_by_name(SPACE)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    jobs = [run for run in found if schema.TAG_KEY in run.data.tags]
    keyed = {run.data.tags[schema.TAG_KEY]: (run.info.run_id, run.info.status) for run in jobs}
    assert len(keyed) == len(jobs)
    return keyed


def points(store: Store) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store.root / "mlflow.db") as database:
        return sorted(database.execute("SELECT run_uuid, key, step, value, timestamp FROM metrics").fetchall())


def plan_of(*more: str) -> Plan:
    return make_plan(override(get_space(SPACE), (*TINY, *more)))


def interrupt_once_something_is_published(folder: Path, process: subprocess.Popen[str]) -> None:
    store = Store(folder / "outputs")
    wait_until(store.keys, "nothing is published", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to everybody in the foreground


@dataclass
class Story:
    folder: Path
    interrupted: Outcome
    continued: Outcome
    again: Outcome


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One study: interrupted, started again until it is done, and then once more."""
    folder = tmp_path_factory.mktemp("story")
    first = start(folder)
    interrupt_once_something_is_published(folder, first)
    return Story(folder, outcome(folder, first), *(outcome(folder, start(folder)) for _ in range(2)))


def test_interruption_keeps_what_is_published(story: Story) -> None:
    assert story.interrupted.code == 130, story.interrupted
    assert "the same command continues" in story.interrupted.err
    assert "accurac" in story.interrupted.out, "the table, or that there is none yet"
    assert "Traceback" not in story.interrupted.err
    assert 0 < len(story.interrupted.published) < len(story.continued.published)
    assert story.interrupted.published <= story.continued.published
    assert "RUNNING" not in {status for _, status in story.interrupted.runs.values()}


def test_same_command_continues_to_the_end(story: Story, published: Store) -> None:
    plan = plan_of()
    assert story.continued.code == 0, story.continued
    assert plan.jobs.keys() <= story.continued.published
    left = re.search(r"^(\d+) jobs run, (\d+) were published before", story.continued.out, re.MULTILINE)
    assert left is not None
    done, before = map(int, left.groups())
    assert done + before == len(plan.jobs)
    assert before >= len(story.interrupted.published & plan.jobs.keys()) - 2, "a net may lack a state that is needed"
    store = Store(story.folder / "outputs")
    for key in plan.jobs:
        assert_same_result(store, published, key)


def test_tracking_is_complete(story: Story) -> None:
    plan = plan_of()
    assert {key: status for key, (_, status) in story.continued.runs.items()} == dict.fromkeys(plan.jobs, "FINISHED")
    store = Store(story.folder / "outputs")
    for key, (run, _) in story.continued.runs.items():
        document = store.read_json(key, schema.METRICS)
        values = {(name, step): value for run_id, name, step, value, _ in story.continued.points if run_id == run}
        for row in document["history"]:
            assert all(values[name, row["step"]] == row[name] for name in row if name not in ("step", "timestamp"))
        count = sum(len(row) - 2 for row in document["history"])
        count += sum(name not in (document["history"] or [{}])[0] for name in document["final"])
        gaps = {schema.GAP_TO_DENSE, schema.GAP_TO_LTH} & {name for name, _ in values}
        assert len(values) == count + len(gaps)
        assert sum(point[0] == run for point in story.continued.points) == len(values), "no point twice"


def test_prints_a_table_and_what_to_do_next(story: Story) -> None:
    for out in (story.continued.out, story.again.out):
        assert re.search(r"0\.25 +50% +1 ", out)
        assert f"report:  python -m analysis.report --space {SPACE}\n" in out
        assert f"browse:  python -m study.browse --space {SPACE}\n" in out
        assert f"or mlflow ui --backend-store-uri sqlite:///{story.folder}/outputs/mlflow.db, then http://" in out
        assert "\x1b" not in out


def test_finished_study_runs_nothing_and_adds_nothing(story: Story) -> None:
    assert story.again.code == 0
    assert f"0 jobs run, {len(plan_of().jobs)} were published before" in story.again.out
    assert "starting Ray" not in story.again.out
    assert story.again.runs == story.continued.runs
    assert story.again.points == story.continued.points
    assert story.again.published == story.continued.published


def test_each_start_that_had_jobs_to_run_is_kept(story: Story) -> None:
    plan, (first, second) = plan_of(), starts(Store(story.folder / "outputs"), SPACE).values()
    assert first["jobs"].keys() == plan.jobs.keys()
    spaces = [plan.space, *(each.space for each in preferences(plan.space, {}))]
    recipes = {recipe_digest(each) for each in spaces}
    assert first["recipe"] == second["recipe"]
    left = re.search(r"^(\d+) jobs run", story.continued.out, re.MULTILINE)
    assert left is not None
    assert len(second["jobs"]) == int(left[1]), "what was published is not expected again"
    for each in (first, second):
        assert each["command"] == shlex.join(["python", "-m", "study.run", *command(story.folder)])
        assert each["recipe"] in recipes
        assert 0 < max(each["jobs"].values()) <= each["seconds"] <= sum(each["jobs"].values())
    assert first["started"] < first["ended"] < second["started"] < second["ended"]


def test_nothing_is_left_beside_the_results(story: Story) -> None:
    root = story.folder / "outputs"
    assert not list((root / "work").glob("*"))
    store = Store(root)
    files = sum(1 + len(store.manifest(key)["files"]) for key in store.keys())  # noqa: SIM118 - a store is no dict
    assert len(list(store.storage.names("store"))) == files
    assert not (root / "ray").exists(), "Tune's own files are nowhere near the results"


@pytest.mark.slow
def test_a_start_that_is_refused_is_no_start(tmp_path: Path) -> None:
    arguments = [*command(tmp_path), "--cpus-per-trial", "100000"]
    with python("-m", "study.run", *arguments, cwd=str(tmp_path)) as process:
        _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 2
    assert "asks for 100000 CPU, but no node of the cluster has that much" in err
    assert not starts(Store(tmp_path / "outputs"), SPACE)


# --- failures ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A study of two models, one of which cannot stand the learning rate."""
    folder = tmp_path_factory.mktemp("failing")
    return folder, outcome(folder, start(folder, *FAILING))


FAILING = ("model=resnet8,mlp", "lr=20", "method=dense,lth", "epochs=2")


@pytest.mark.slow
def test_failure_is_named_with_what_it_blocked_and_how_to_go_on(failing: tuple[Path, Outcome]) -> None:
    folder, result = failing
    plan = plan_of(*FAILING)
    (failed,) = [k for k, job in plan.jobs.items() if job.config.task.model == "mlp" and job.kind == schema.DENSE]
    blocked = [key for key, job in plan.jobs.items() if job.config.task.model == "mlp" and key != failed]
    assert result.code == 1, result
    message = rf"failed: dense · w0\.25 · A0 \({failed[:12]}\): training loss is nan in epoch \d \(learning rate 20\)"
    assert re.search(rf"{message}; it blocked {len(blocked)} jobs: imp · w0\.25 · ", result.err)
    assert len(blocked) == 5
    assert "retry" not in result.err, "it would fail again"
    retry = re.search(r"these jobs would fail again: fix what the errors name, then run: (.*)", result.err)
    assert retry is not None
    assert "--space digits_quickstart" in retry[1]
    assert f"--storage {folder}/outputs" in retry[1]
    assert all(each in retry[1] for each in FAILING)
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_failure_stops_nothing_else(failing: tuple[Path, Outcome]) -> None:
    result, plan = failing[1], plan_of(*FAILING)
    good = {key for key, job in plan.jobs.items() if job.config.task.model == "resnet8"}
    assert plan.jobs.keys() & result.published == good
    assert f"{len(good)} jobs run" in result.out
    assert "(0/1)" in result.out, "the table shows what is missing"
    assert {key: status for key, (_, status) in result.runs.items() if status == "FINISHED"}.keys() == good


@pytest.mark.slow
def test_failed_run_says_why_and_blocked_jobs_have_none(failing: tuple[Path, Outcome]) -> None:
    folder, result = failing
    ((run, _),) = [each for each in result.runs.values() if each[1] == "FAILED"]
    tags = MlflowClient(default_tracking_uri(folder / "outputs")).get_run(run).data.tags
    assert "training loss is nan" in tags[schema.TAG_ERROR]
    assert len(result.runs) == 1 + 6


# --- requests ---------------------------------------------------------------------------------------------------------
def test_settings_change_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(tmp_path, "sparsity=0.36,0.5", "seeds=0,1", "method=dense,lth"), "--dry-run"]) == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:4] for line in table.splitlines() if re.match(r"  \w+ +\d", line)}
    assert rows == {
        "dense": ["2", "0", "2"],
        "prune": ["8", "0", "8"],  # 36 % is on the way to 50 %
        "sparse": ["4", "0", "4"],
        "all": ["14", "0", "14"],
    }
    assert not (tmp_path / "outputs").exists()


def test_dry_run_knows_what_is_published(published: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(published.root, tmp_path / "outputs")
    assert main([*command(tmp_path), "--dry-run"]) == 0
    assert re.search(r"all +13 +13 +0 +0", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "digits_quikstart"], "did you mean 'digits_quickstart'"),
        (["--space", SPACE, "--set", "sparsty=0.5"], "did you mean 'sparsity'"),
        (["--space", SPACE, "--set", "sparsity=1.5"], "got 1.5"),
        (["--space", SPACE, "--set", "method=lht"], "did you mean 'lth'"),
        (["--space", SPACE, "--set", "epochs"], "key=value"),
        (["--space", SPACE, "--storage", "s3://bucket"], "s3://bucket"),
        (["--space", SPACE, "--tracking-uri", "http://user:secret@127.0.0.1:9"], "cannot be reached"),
        ([], "--list"),
    ],
)
def test_wrong_request_starts_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    for variable, value in environment(9).items():  # a port on which nothing listens
        monkeypatch.setenv(variable, value)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "secret" not in error
    assert not Store(tmp_path / "outputs").keys()
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_result_that_is_removed_meanwhile_is_named_and_the_study_is_not_complete(
    published: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its trials have said, a study is complete when the store holds all that was asked for."""
    shutil.copytree(published.root, tmp_path / "outputs")
    store, plan = Store(tmp_path / "outputs"), plan_of()
    (gone, *_) = [key for key, job in plan.jobs.items() if job.kind == schema.SPARSE]
    begin = Tracker.start

    def begin_and_remove(tracker: Tracker, delay: float) -> None:
        store.remove(gone)
        begin(tracker, delay)

    monkeypatch.setattr(Tracker, "start", begin_and_remove)
    assert main(command(tmp_path)) == 1
    err = capsys.readouterr().err
    assert f"({gone[:12]}) was published but is no longer in the store\n" in err
    assert re.search("^to compute only these again: python -m study.run --space ", err, re.M)


def test_nothing_is_left_of_a_job_whose_node_died_just_after_publishing(
    published: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(published.root, tmp_path / "outputs")
    store, job = Store(tmp_path / "outputs"), job_of(plan_of(), schema.SPARSE)
    without(store, job)

    def run(*_: object) -> None:
        with store.lease(job.key) or pytest.fail("it is free"):
            lease = store.storage.read(f"leases/{job.key}") or b""
        store.storage.write(f"leases/{job.key}", lease.replace(me().encode(), b"node-7:1:1"))
        store.write_checkpoint(job.key, b"of the last epoch")
        bring_back(store, job)

    monkeypatch.setattr(_Sweep, "run", run)
    assert main(command(tmp_path)) == 0
    assert [*store.storage.names("leases"), *store.storage.names("work")] == []
