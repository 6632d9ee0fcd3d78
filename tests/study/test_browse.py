"""The command that shows a study in MLflow's pages."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import synthetic_runs as synthetic
from waiting import HANG_SECONDS

from study import browse
from study.tracking.views import address


def test_a_study_that_was_not_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert browse.main(["--space", "nothing", "--storage", str(tmp_path)]) == 2
    assert "run the study first" in capsys.readouterr().err


def test_a_busy_port_is_named_if_it_was_asked_for_and_avoided_if_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind((browse.HOST, 0))
        other.listen()
        busy = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {busy} is not free"):
            browse._free(busy)
        monkeypatch.setattr(browse, "PORT", busy)
        assert browse._free(None) not in (busy, 0)


def test_the_pages_of_a_server_need_no_other_server() -> None:
    with browse.pages("http://tracking:5000/") as base:
        assert base == "http://tracking:5000"


@pytest.mark.slow
def test_the_printed_address_answers_and_an_interrupt_ends_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    synthetic.Recorder(synthetic.with_tables(folder), "study").dense(1.0, 0)
    program = [sys.executable, "-m", "study.browse", "--space", "study", "--storage", str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            found = re.fullmatch(rf"(http://127\.0\.0\.1:\d+)/#{re.escape(address('1'))}", url)
            assert found is not None, url
            assert urllib.request.urlopen(f"{found[1]}/health", timeout=HANG_SECONDS).status == 200
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(HANG_SECONDS) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{found[1]}/health", timeout=HANG_SECONDS)
