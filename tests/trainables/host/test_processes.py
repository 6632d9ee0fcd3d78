"""Whether a process still runs, on systems with and without /proc, and what it may use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainables.host.processes import alive, cores, me, memory


@pytest.mark.parametrize("proc", [True, False])
def test_a_process_is_alive_until_it_ends(proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not proc:  # as on macOS

        def missing(path: Path, **_: str) -> str:
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", missing)
        monkeypatch.setattr(Path, "exists", lambda path: False)
    elif not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    host, _, started = me().rsplit(":", 2)
    assert (started == "unknown") == (not proc)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert alive(me())
    assert not alive(f"{host}:{ended.pid}:{started}")
    assert not alive(f"{host}:{10**30}:{started}"), "as in a damaged lease"
    assert alive(f"another-host:{ended.pid}:{started}")


def test_a_process_of_another_user_is_alive_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", denied)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: Path("/missing").read_bytes())
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert alive(me())


@pytest.mark.parametrize(
    ("file", "content", "limit"),
    [
        ("memory.max", "1000", 1000),
        ("slurm/job_7/memory.max", "1000", 1000),
        ("slurm/memory.max", "1000", 1000),
        ("slurm/job_7/memory.max", "max", None),
        ("memory/memory.limit_in_bytes", "1000", 1000),
        ("other/memory.max", "1000", None),
    ],
)
def test_the_memory_is_the_machines_or_that_of_a_control_group(
    file: str, content: str, limit: int | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slurm/job_7\n")
    machine = memory(tmp_path / "groups", tmp_path / "own")
    assert machine > 2**20
    (tmp_path / "groups" / file).parent.mkdir(parents=True)
    (tmp_path / "groups" / file).write_text(f"{content}\n")
    assert memory(tmp_path / "groups", tmp_path / "own") == (limit or machine)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"slurm/job_7/cpu.max": "200000 100000"}, 2),
        ({"slurm/cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"slurm/job_7/cpu.max": "max 100000"}, 8),
        ({"slurm/job_7/cpu.max": "6400000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"other/cpu.max": "100000 100000"}, 8),
    ],
)
def test_the_cores_are_those_of_the_affinity_or_of_a_control_group(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slurm/job_7\n")
    for file, content in files.items():
        (tmp_path / "groups" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / file).write_text(f"{content}\n")
    assert cores(tmp_path / "groups", tmp_path / "own") == expected
