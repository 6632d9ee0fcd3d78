"""The command line: a wrong request ends with one line that helps, exit code 2, and nothing on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT

from search_spaces import SPACES, get_space
from study import fastest
from study.options import Options, parse_options
from study.plan import make_plan, override
from study.run import main
from study.scheduling.address import ClusterError
from study.tracking.destination import check_tracking
from trainables.config import DETERMINISTIC_ON_CPU
from trainables.graph import Ref
from trainables.host.databases import default_tracking_uri
from trainables.host.redaction import redact
from trainables.host.terminal import OK, WRONG_REQUEST
from trainables.schema import METRICS, SECONDS, STAGES
from trainables.storage import patience
from trainables.storage.store import Store
from trainables.training.engines import CPU

SPACE = ["--space", "digits_quickstart"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Be in an empty directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is away in these tests comes back."""
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the sweep by a function that only notes its arguments."""
    calls: list[dict[str, Any]] = []

    def run_sweep(plan: object, uri: str, store: object, options: Options, command: str) -> int:
        calls.append({"plan": plan, "uri": uri, "store": store, "options": options, "command": command})
        return OK

    monkeypatch.setattr("study.run.run_sweep", run_sweep)
    return calls


# --- wrong requests ---------------------------------------------------------------------------------------------------
WRONG: dict[str, tuple[list[str], str]] = {
    "no space": ([], r"which space\? --space NAME; python -m study.run --list shows them"),
    "unknown space": (
        ["--space", "digit_quickstart"],
        r"unknown search space 'digit_quickstart' \(did you mean 'digits_quickstart'\?\); known: .*digits_quickstart",
    ),
    "unknown key": (
        [*SPACE, "--set", "sparsty=0.5"],
        r"unknown key of --set 'sparsty' .*did you mean 'sparsity'\?.*known: ",
    ),
    "no assignment": ([*SPACE, "--set", "epochs"], r"--set takes key=value, got 'epochs'"),
    "bad value": ([*SPACE, "--set", "epochs=many"], r"epochs must be a whole number, got 'many'"),
    "sparsity": ([*SPACE, "--set", "sparsity=0.9,1"], r"sparsity must be a number in \[0, 1\), got 1.0"),
    "width": ([*SPACE, "--set", "width=0"], r"width must be a number in \[0.25, 32\], got 0.0"),
    "fraction of a channel": ([*SPACE, "--set", "width=0.3"], r"width 0.3 .*nearest: 0.25 and 0.3125"),
    "rewind": (
        [*SPACE, "--set", "epochs=20", "--set", "rewind_epoch=0,20"],
        r"rewind_epoch must be a whole number in \[0, epochs\) with epochs=20, got 20",
    ),
    "learning rate": ([*SPACE, "--set", "lr=-1"], r"lr must be a number in \(0, 100\], got -1.0"),
    "unknown method": ([*SPACE, "--set", "method=permutd"], r"unknown method 'permutd'.*'permuted'.*known: dense, "),
    "unknown matcher": ([*SPACE, "--set", "matcher=weights"], r"unknown matcher 'weights'.*'weight'.*known: "),
    "unknown model": ([*SPACE, "--set", "model=resnet21"], r"unknown model 'resnet21'.*'resnet20'.*known: "),
    "option of another model": (
        [*SPACE, "--set", "model=vgg11", "--set", "shortcut=conv1x1"],
        r"model 'vgg11' has no option 'shortcut'; its options: none",
    ),
    "unknown dataset": (
        [*SPACE, "--set", "dataset=cifar1"],
        r"unknown dataset 'cifar1' \(did you mean 'cifar10'\?\); known: digits, ",
    ),
    "no data directory": (
        [*SPACE, "--set", "dataset=cifar10"],
        r"'cifar10' needs --data-dir DIR.*python -m trainables.data --download cifar10 --data-dir DIR",
    ),
    "empty data directory": ([*SPACE, "--set", "dataset=svhn", "--data-dir", "/nowhere"], r"svhn.*/nowhere"),
    "storage below a file": ([*SPACE, "--storage", __file__ + "/store"], r"storage '.*/store' is not writable: "),
    "storage is a file": (
        [*SPACE, "--storage", __file__],
        r"storage '.*' is not writable: .*; choose another --storage",
    ),
    "storage of an unknown kind": (
        [*SPACE, "--storage", "ftp://host/x"],
        r"storage 'ftp://host/x': unknown scheme 'ftp'; known are s3, gs, ",
    ),
    "password in the storage": (
        [*SPACE, "--storage", "s3://id:secret@bucket/x"],
        r"storage 's3://bucket/x': credentials and options are taken from the environment",
    ),
    "address of a client": (
        [*SPACE, "--address", "ray://head:10001"],
        r"--address ray://... is for clients.*ray job submit",
    ),
    "address without a port": ([*SPACE, "--address", "head"], r"--address takes auto or host:port, got 'head'"),
    "unreachable tracking server": (
        [*SPACE, "--tracking-uri", "http://127.0.0.1:9"],
        r"tracking server http://127.0.0.1:9 cannot be reached: .*refused.*; bring it back .* or record elsewhere, in "
        "mlflow.db without --tracking-uri",
    ),
    "tracking server with a broken address": (
        [*SPACE, "--tracking-uri", "http://localhost:port"],
        r"tracking server http://localhost:port cannot be reached: ",
    ),
    "tracking in a directory": (
        [*SPACE, "--tracking-uri", "./mlruns"],
        r"tracking URI './mlruns' is a directory; use sqlite:///./mlruns/mlflow.db",
    ),
    "tracking in the directory of a file URI": (
        [*SPACE, "--tracking-uri", "file:///mlruns"],
        r"use sqlite:////mlruns/",
    ),
    "tracking database is a directory": ([*SPACE, "--tracking-uri", "sqlite:////"], r"sqlite:////.* is a directory"),
    "tracking database below a file": (
        [*SPACE, "--tracking-uri", f"sqlite:///{__file__}/mlflow.db"],
        r"tracking database .* is not writable",
    ),
}


@pytest.mark.parametrize("request_", WRONG)
def test_a_wrong_request_ends_at_once_with_one_line(
    request_: str, folder: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = WRONG[request_]
    assert main(arguments) == WRONG_REQUEST == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"error: [^\n]+\n\Z", err), "the message must be one line"
    assert re.search(message, err), err
    assert started == []
    assert list(folder.iterdir()) == [], "a wrong request must not leave anything on disk"


@pytest.mark.parametrize("request_", [name for name, (arguments, _) in WRONG.items() if "tracking" not in name])
def test_a_dry_run_refuses_what_the_run_would_refuse(
    request_: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if request_.startswith("storage") and "bucket" not in request_:
        return  # a dry run writes nothing, so it need not be able to
    arguments, message = WRONG[request_]
    assert main([*arguments, "--dry-run"]) == WRONG_REQUEST
    assert re.search(message, capsys.readouterr().err)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["a file", "below a file", "too long"])
@pytest.mark.parametrize("mode", ["--dry-run", "--status", "--clean", "--verify"])
def test_a_path_that_the_system_refuses_is_a_wrong_request(
    what: str, mode: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    storage = {"a file": "file", "below a file": "file/x", "too long": "x" * 5000}[what]
    assert main([*SPACE, mode, "--storage", storage]) == WRONG_REQUEST
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-concurrent", "0"], "must be above 0, got 0"),
        (["--max-concurrent", "1.5"], "invalid whole number value: '1.5'"),
        (["--cpus-per-trial", "0"], "must be above 0, got 0"),
        (["--gpus-per-trial", "-1"], "must be within 0 and 1, got -1: --set workers=N gives a trial N GPUs"),
        (["--gpus-per-trial", "1.5"], "must be within 0 and 1, got 1.5: --set workers=N gives a trial N GPUs"),
        (["--gpu-memory", "0"], "must be above 0, got 0"),
        (["--on", "8H100"], "takes NUMBERxCARD, such as 8xH100 or 8xH100+16xA100-40GB, got '8H100'"),
        (["--on", "8xH10"], "unknown card 'H10' (did you mean 'H100'?); known: "),
        (["--checkpoint-seconds", "-1"], "must be at least 0, got -1"),
        (["--max-silence", "-1"], "must be at least 0, got -1"),
        (["--gpus-per-trial", "half"], "invalid number value: 'half'"),
        (["--retries", "-1"], "must be at least 0, got -1"),
        (["--nets-per-trial", "0"], "must be above 0, got 0"),
        (["--checkpoint-seconds", "nan"], "must be a finite number, 0 or at least 0.0001, got nan"),
        (["--max-silence", "nan"], "must be a finite number, 0 or at least 0.0001, got nan"),
        (["--cpus-per-trial", "inf"], "must be a finite number, 0 or at least 0.0001, got inf"),
        (["--cpus-per-trial", "1e-9"], "must be a finite number, 0 or at least 0.0001, got 1e-09"),
        (["--gpu-memory", "1e400"], "must be a finite number, 0 or at least 0.0001, got inf"),
        (["--storage", ""], "must not be empty"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["--dat", "images"], "unrecognized arguments: --dat images"),
    ],
)
def test_a_wrong_flag_is_refused_likewise(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*SPACE, *arguments])
    assert caught.value.code == WRONG_REQUEST
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_the_process_itself_ends_with_the_code_and_no_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "study.run", *SPACE, "--set", "sparsity=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == WRONG_REQUEST
    assert answer.stderr == "error: sparsity must be a number in [0, 1), got 2.0\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retries": -1}, "--retries must be at least 0, got -1"),
        (
            {"gpus_per_trial": 1.5},
            "--gpus-per-trial must be within 0 and 1, got 1.5: --set workers=N gives a trial N GPUs",
        ),
        ({"storage": " "}, "--storage must not be empty"),
        (
            {"verify": True, "status": True},
            "--verify reads every file of each result, --dry-run and --status read little",
        ),
        ({"space": None}, "which space"),
        ({"on": "8xH100"}, "--on needs --dry-run"),
        ({"on": "8xH100", "dry_run": True, "gpu_memory": 80.0}, "leave out --gpu-memory"),
    ],
)
def test_options_are_checked_however_they_are_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**{"space": "digits_quickstart", **values})


@pytest.mark.parametrize("mode", [[], ["--dry-run"], ["--address", "10.0.0.1:6379"]])
def test_workers_that_would_share_a_gpu_are_refused_before_ray_starts(
    mode: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*SPACE, "--set", "workers=2", "--set", "graphs=false", "--gpus-per-trial", "0.5"]
    assert main([*asked, *mode]) == WRONG_REQUEST
    out, err = capsys.readouterr()
    assert err == "error: each of 2 workers needs a whole GPU or none, got --gpus-per-trial 0.5\n"
    assert "starting Ray" not in out


def test_every_option_has_a_flag_whose_default_is_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(SPACE, "study.run", "") == Options(space="digits_quickstart")
    with pytest.raises(SystemExit):
        parse_options(["--help"], "study.run", "")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Options):
        flag = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"^  {flag}\b", shown, re.M), f"{flag} is not in the help"


def test_options_survive_the_way_through_a_command_line() -> None:
    options = Options(space="digits_quickstart", set=("width=1", "seeds=0,1"), gpus_per_trial=0.5, fastest=True)
    words = options.arguments(("space", "set", "gpus_per_trial", "storage"))
    assert parse_options([*words, "--fastest"], "study.run", "") == options
    assert not any("storage" in word for word in words), "what was not given is not repeated"


def test_a_dry_run_on_machines_says_how_long_they_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {}
    for on in ("1xH100", "2xH100+1xT4", "2xcpu"):
        assert main([*SPACE, "--dry-run", "--on", on]) == OK
        lines[on] = capsys.readouterr().out.splitlines()[-2:]
    for on, (line, basis) in lines.items():
        assert line.startswith(f"on {on}: about ")
        assert "no schedule takes less than" in line
        assert ("GPU-hours" in line) == ("by arithmetic, not measured" in basis) == ("cpu" not in on)
        assert ("core-hours" in line) == ("a first guess for one core" in basis) == ("cpu" in on)
    assert list(folder.iterdir()) == []


def test_a_dry_run_on_machines_plans_for_their_cards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        assert main([*SPACE, "--dry-run", *arguments]) == OK
        return capsys.readouterr().out

    assert "precision=tf32" in shown("--on", "8xA100-40GB")
    on_older = shown("--on", "8xA100-40GB+1xT4")
    assert "precision=tf32" not in on_older
    assert "graphs=true" in on_older
    beside = shown("--on", "8xA100-40GB", "--gpus-per-trial", "0")
    assert "by arithmetic, not measured" not in beside
    assert "a first guess for one core" in beside


@pytest.mark.parametrize("place", [["--on", "4xcpu"], ["--on", "1xH100", "--gpus-per-trial", "0"], []])
def test_a_plan_for_cpus_refuses_the_switch_that_only_gpus_have(
    place: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fastest, "device_of_trials", lambda *_: CPU)
    asked = [*SPACE, "--dry-run", "--set", "deterministic=true"]
    assert main([*asked, *place]) == WRONG_REQUEST
    assert DETERMINISTIC_ON_CPU in capsys.readouterr().err
    assert main([*asked, "--on", "1xH100"]) == OK


# --- right requests ---------------------------------------------------------------------------------------------------
def test_a_right_request_reaches_the_sweep(folder: Path, started: list[dict[str, Any]]) -> None:
    given = ["seeds=7", "kernels=dense"]
    assert main([*SPACE, "--set", given[0], "--set", given[1], "--data-dir", "data"]) == OK
    (call,) = started
    assert call["plan"].space == override(get_space("digits_quickstart"), given)
    assert call["store"] == Store(folder / "outputs")
    assert call["uri"] == f"sqlite:///{folder}/outputs/mlflow.db"
    assert call["options"].data_dir == str(folder / "data")


def test_what_trials_get_reaches_the_sweep(folder: Path, started: list[dict[str, Any]]) -> None:
    flags = ["--gpus-per-trial", "0.25", "--gpu-memory", "16", "--checkpoint-seconds", "0", "--max-silence", "0.5"]
    assert main(SPACE) == main([*SPACE, *flags, "--address", "auto"]) == OK
    default, asked = (call["options"] for call in started)
    names = ("address", "gpus_per_trial", "gpu_memory", "checkpoint_seconds", "max_silence")
    assert [getattr(default, name) for name in names] == [None, None, None, 30.0, 12.0]
    assert [getattr(asked, name) for name in names] == ["auto", 0.25, 16.0, 0.0, 0.5]


def test_the_command_to_retry_is_the_one_that_was_given(folder: Path, started: list[dict[str, Any]]) -> None:
    assert main([*SPACE, "--storage", "my results"]) == OK
    assert started[0]["command"] == "python -m study.run --space digits_quickstart --storage 'my results'"
    assert started[0]["uri"] == f"sqlite:///{folder}/my results/mlflow.db"


def test_a_cluster_that_cannot_do_it_is_a_wrong_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_sweep(*_: object) -> int:
        raise ClusterError("a trial asks for 8 GPUs, the whole cluster has 0")

    monkeypatch.setattr("study.run.run_sweep", run_sweep)
    assert main(SPACE) == WRONG_REQUEST
    assert capsys.readouterr().err == "error: a trial asks for 8 GPUs, the whole cluster has 0\n"


def test_an_interrupt_has_the_code_of_an_interrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_sweep(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("study.run.run_sweep", run_sweep)
    assert main(SPACE) == 130
    assert "the same command continues" in capsys.readouterr().err


# --- listing ----------------------------------------------------------------------------------------------------------
def test_the_list_has_every_space_with_its_question(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[name, space.question] for name, space in SPACES.items()]
    assert list(folder.iterdir()) == []
    assert main(["--list", "--storage", "foo://nowhere"]) == OK, "the list needs no storage"


# --- dry run ----------------------------------------------------------------------------------------------------------
def table(out: str) -> dict[str, list[str]]:
    """Return the rows of the printed plan: kind -> total, published, to run, epochs, time in words."""
    header, *rows = out.splitlines()[1:]
    assert header.split() == ["job", "total", "published", "to", "run", "epochs", "est.", "time"]
    cut = (row.split(maxsplit=5) for row in rows)
    return {kind: numbers for kind, *numbers in cut if kind in (*STAGES, "all")}


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*SPACE, "--dry-run", *arguments]) == OK
    return capsys.readouterr().out


def test_a_dry_run_counts_the_jobs_and_creates_nothing(
    folder: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = dry_run(capsys)
    plan = make_plan(get_space("digits_quickstart"))
    rows = table(out)
    assert rows.keys() == {job.kind for job in plan.jobs.values()} | {"all"}
    for kind in rows.keys() - {"all"}:
        jobs = [job for job in plan.jobs.values() if job.kind == kind]
        assert rows[kind][:4] == [str(len(jobs)), "0", str(len(jobs)), f"{sum(job.epochs for job in jobs):,}"]
    assert rows["all"][:4] == [str(len(plan.jobs)), "0", str(len(plan.jobs)), f"{plan.epochs:,}"]
    assert all(re.fullmatch(r"\d+ s|\d+ min( \d+ s)?|\d+ h \d+ min|\d+ d \d+ h", row[4]) for row in rows.values())
    assert out.startswith("digits_quickstart: ")
    assert f"{plan.requests} cells; sharing trains {plan.epochs:,} epochs instead of {plan.separate_epochs:,}" in out
    assert "a first guess" in out
    assert list(folder.iterdir()) == []
    assert started == []


def test_a_dry_run_tells_what_is_published(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, store = make_plan(get_space("digits_quickstart")), Store(folder / "there")
    metrics = {METRICS: json.dumps({"history": [], "final": {SECONDS: 10.0}}).encode()}
    dense = [job for job in plan.jobs.values() if job.kind == "dense"][:2]
    for job in dense:
        for epoch in (None, *get_space("digits_quickstart").rewind_epoch):
            store.publish(Ref(job, epoch).key, metrics, {})
    out = dry_run(capsys, "--storage", "there")
    total = sum(job.kind == "dense" for job in plan.jobs.values())
    assert table(out)["dense"][:3] == [str(total), "2", str(total - 2)]
    assert "from 2 published jobs" in out


def test_a_dry_run_of_a_finished_study_has_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "method=dense", "--set", "seeds=0", "--set", "width=1"]
    plan = make_plan(override(get_space("digits_quickstart"), settings[1::2]))
    for key in plan.jobs:
        Store(folder / "outputs").publish(key, {METRICS: b'{"history": [], "final": {"seconds": 1.0}}'}, {})
    out = dry_run(capsys, *settings)
    assert table(out)["all"][:5] == ["1", "1", "0", "0", "0 s"]
    assert "trials at a time" not in out


@pytest.mark.parametrize("flags", [["--dry-run"], ["--list"], ["--dry-run", "--fastest"]], ids=str)
def test_planning_imports_nothing_heavy(flags: list[str], folder: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['run', '--space', 'digits_quickstart', *{flags}]\n"
        "try:\n    runpy.run_module('study.run', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'numpy', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    assert answer.stdout.splitlines()[-1] == "[]", "a plan is printed at once: import these where they are used"


# --- tracking stores --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """Serve `status` to every request; the list has the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{serving.server_port}", asked
        finally:
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 401, 404])  # who it lets in is not for this check to decide
@pytest.mark.parametrize("access", ["", "user:secret@"])
def test_a_server_that_answers_is_good_enough(status: int, access: str) -> None:
    with server(status) as (address, asked):
        check_tracking(f"http://{access}{address}/")
    assert asked == ["/health"]


def test_a_server_that_does_not_speak_http_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ValueError, match="cannot be reached"):
            check_tracking(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


def test_a_silent_server_is_given_up_in_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(ValueError, match="cannot be reached"):
        check_tracking(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.1)


def test_a_password_is_never_shown(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main([*SPACE, "--tracking-uri", "http://user:secret@127.0.0.1:9"]) == WRONG_REQUEST
    err = capsys.readouterr().err
    assert "http://***@127.0.0.1:9" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/path", "http://***@host:5000/path"),
        ("http://user@host/", "http://***@host/"),
        ("postgresql://user:se@cret@host/db?password=secret", "postgresql://***@host/db"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_what_is_shown_of_a_uri(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_a_database_may_lie_in_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    check_tracking(default_tracking_uri(tmp_path / "new" / "storage"))
    check_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


# --- kernels that this machine has to compile -------------------------------------------------------------------------
KERNELS = ["--space=digits_quickstart", "--set=kernels=sparse"]


def test_sparse_kernels_without_a_compiler_are_refused_before_anything_starts(
    folder: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(KERNELS) == WRONG_REQUEST
    assert "needs a C++ compiler, one of g++, clang++" in capsys.readouterr().err
    assert not started
    assert main([*KERNELS, "--dry-run"]) == OK
    assert main([*KERNELS, "--address=cluster:6379"]) == OK, "what the nodes of a cluster have is not known here"


def test_what_is_not_sparse_enough_needs_no_compiler(
    folder: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main([*KERNELS, "--set=sparsity=0.5"]) == OK
    assert started
