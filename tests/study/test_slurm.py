"""The Slurm job, with scripts in the place of Slurm's commands that run everything on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_files import FILES, RAY_SETTINGS
from studies import MARK, SPACE, Study
from tiny_study import assignments
from waiting import HANG_SECONDS

from search_spaces import get_space

SRUN = """#!/usr/bin/env bash
count=1
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do [[ $1 != --nodes=* ]] || count=${1#--nodes=}; shift; done
trap 'kill -TERM $(jobs -p) 2>/dev/null' TERM
for ((node = 0; node < count; node++)); do "$@" & done
while [ -n "$(jobs -pr)" ]; do wait; done
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "$CALLS"
"""
RAY = """#!/usr/bin/env bash
case "$*" in
  health-check*) exec grep -q 'begin of head' "$CALLS" ;;
  *--head*) role=head ;;
  *) role=worker ;;
esac
trap 'echo "end of $role" >> "$CALLS"; kill $!; exit 0' TERM
[ $role = worker ] || env | grep ^RAY_ > "$CALLS.env"
echo "begin of $role" >> "$CALLS"
[ $role = head ] || echo > "$CALLS.worker"
read -r _ < "$CALLS.never" & wait
"""
PYTHON = """#!/usr/bin/env bash
trap 'echo "end of driver" >> "$CALLS"; kill $!; exit 130' TERM
echo "python $*" >> "$CALLS"
read -r _ < "$CALLS.worker"
echo 'driver runs'
[ -z "${DRIVER_STATUS:-}" ] || exit "$DRIVER_STATUS"
read -r _ < "$CALLS.never" & wait
"""


class Slurm:
    """Slurm's commands as scripts that run everything on this machine, and a list of what was called."""

    def __init__(self, folder: Path, **commands: str) -> None:
        self.calls_file = folder / "calls"
        os.mkfifo(f"{self.calls_file}.worker")
        os.mkfifo(f"{self.calls_file}.never")  # nobody ever writes to it: who reads it waits for a signal
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **commands}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.job, self.jobs = 100_000 + os.getpid(), list[subprocess.Popen[str]]()
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
            "HEAD_ADDRESS": "127.0.0.1",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            ["bash", str(FILES / "slurm.sh"), *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.jobs.append(job)
        return job

    def close(self) -> None:
        """End what a job has left."""
        for job in self.jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.communicate(timeout=HANG_SECONDS)

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path, ray=RAY, python=PYTHON)
    yield slurm
    slurm.close()


@pytest.mark.parametrize("status", [0, 1])
def test_slurm_job_from_head_to_tear_down(slurm: Slurm, status: int) -> None:
    job = slurm.start("--space", SPACE, DRIVER_STATUS=str(status))
    out, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == status, out
    calls = slurm.calls()
    head, worker, cleanup = [call for call in calls if call.startswith("srun")]
    port = 20_000 + slurm.job % 10_000
    assert " ".join(head.split()[1:6]) == "--nodes=1 --ntasks=1 --relative=0 ray start"
    assert f" --head --node-ip-address=127.0.0.1 --port={port} " in head
    assert "--nodes=1 --ntasks=1 --relative=1 --no-kill" in worker
    assert worker.endswith(f"--num-cpus=1 --min-worker-port=0 --max-worker-port=0 --address=127.0.0.1:{port}")
    assert cleanup.endswith(f"--nodes=2 --ntasks=2 rm -rf /tmp/ray-{slurm.job}")
    driver = f"python -m study.run --address 127.0.0.1:{port} --space {SPACE}"
    for order in (
        [head, "begin of head", worker, "begin of worker", "end of worker", cleanup],
        ["begin of head", driver, "end of head", cleanup],
    ):
        assert sorted(order, key=calls.index) == order
    assert not [call for call in calls if "requeue" in call]


def test_nodes_of_a_slurm_job_know_the_settings_and_a_secret(slurm: Slurm, tmp_path: Path) -> None:
    secrets, calls = set(), list[str]()
    for _ in range(2):
        slurm.calls_file.write_text("")  # or the second job would take the first one's head for its own
        slurm.start(DRIVER_STATUS="0").communicate(timeout=HANG_SECONDS)
        calls += slurm.calls()
        variables = dict(line.split("=", 1) for line in Path(f"{slurm.calls_file}.env").read_text().splitlines())
        assert RAY_SETTINGS.items() <= variables.items()
        assert variables["RAY_AUTH_MODE"] == "token"
        assert re.fullmatch("[0-9a-f]{64}", variables["RAY_AUTH_TOKEN"])
        secrets.add(variables["RAY_AUTH_TOKEN"])
    assert len(secrets) == 2
    assert not any(secret in call for secret in secrets for call in calls), "all can see command lines"


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_job_that_is_to_stop(slurm: Slurm, number: signal.Signals, again: bool) -> None:
    """At the end of its time it goes back into the queue; one that was cancelled does not."""
    job = slurm.start("--space", SPACE)
    assert job.stdout is not None
    assert job.stdout.readline() == "driver runs\n"
    job.send_signal(number)
    out, _ = job.communicate(timeout=HANG_SECONDS)
    calls = slurm.calls()
    order = ["end of driver", "end of head", *([f"scontrol requeue {slurm.job}"] if again else [])]
    assert sorted(order, key=calls.index) == order, out
    assert calls[-1].startswith("scontrol" if again else "srun")
    assert job.returncode == 130


def test_slurm_job_whose_head_does_not_start(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, ray="#!/bin/sh\nexit 3\n", python=PYTHON)  # nothing of this one can be left
    job = slurm.start("--space", SPACE)
    job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 1
    assert not [call for call in slurm.calls() if call.startswith("python")]
    assert slurm.calls()[-1].endswith(f"rm -rf /tmp/ray-{slurm.job}")


@pytest.mark.slow
def test_sweep_in_a_slurm_job_of_two_nodes(tmp_path: Path) -> None:
    """Real Ray on two nodes of this machine, and a real study; Slurm is what is not."""
    slurm = Slurm(tmp_path)
    study = Study(tmp_path)
    settings = [f"--set={each}" for each in assignments(get_space(SPACE))]
    job = slurm.start("--space", SPACE, *settings, "--storage", str(tmp_path / "outputs"), **{MARK: study.mark})
    try:
        out, _ = job.communicate(timeout=HANG_SECONDS)
        assert job.returncode == 0, out
        assert "0 were published before" in out
        assert sum("ray start" in call for call in slurm.calls()) == 2
        assert not study.processes(), "nothing is left running"
        assert not Path(f"/tmp/ray-{slurm.job}").exists()
    finally:
        study.kill_all()
        shutil.rmtree(f"/tmp/ray-{slurm.job}", ignore_errors=True)
