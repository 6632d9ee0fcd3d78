"""Whether a process still runs, on systems with and without /proc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainables.host.processes import alive, me


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
