"""The command that shows a study in MLflow's pages."""

from __future__ import annotations

import contextlib
import http.server
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_runs as synthetic
from tiny_study import python
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
        with pytest.raises(OSError, match=f"port {busy} is in use"):
            browse._free(busy)
        monkeypatch.setattr(browse, "PORT", busy)
        assert browse._free(None) not in (busy, 0)


def test_the_pages_of_a_server_need_no_other_server() -> None:
    with browse.pages("http://tracking:5000/") as base:
        assert base == "http://tracking:5000"


def ended_after(checks: int) -> Any:
    """Return the process of a server that ends after some time, because it cannot listen."""
    codes = iter([None] * checks)
    return SimpleNamespace(poll=lambda: next(codes, 1))


@contextlib.contextmanager
def answering(token: str) -> Iterator[int]:
    """Serve answers with a token, and yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header(browse.TOKEN, token)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((browse.HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_another_server_on_the_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # which would answer in the server's place
        monkeypatch.setenv(proxy, "http://127.0.0.1:1")
    with answering("ours") as port:
        browse._await(ended_after(1), port, "ours")
        with pytest.raises(browse._PortTaken, match=f"taken port {port}"):
            browse._await(ended_after(2), port, "another")
    with pytest.raises(OSError, match="did not start"):
        browse._await(ended_after(2), port, "ours")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_out_of_bounds_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        browse.main(["--space", "digits_quickstart", "--port", port])
    assert ended.value.code == 2
    assert f"from 1 to 65535, got '{port}'" in capsys.readouterr().err


def test_a_port_that_is_taken_meanwhile_is_avoided_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    @contextlib.contextmanager
    def server(_: str, port: int) -> Iterator[str]:
        tried.append(port)
        if len(tried) == 1:
            raise browse._PortTaken("taken")
        yield f"http://{browse.HOST}:{port}"

    monkeypatch.setattr(browse, "_server", server)
    with browse.pages("sqlite:///mlflow.db") as base:
        assert base.endswith(f":{tried[1]}")
    tried.clear()
    with pytest.raises(browse._PortTaken), browse.pages("sqlite:///mlflow.db", browse._free(0)):
        pass
    assert len(tried) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGHUP])
def test_the_printed_address_answers_and_a_signal_ends_the_server(tmp_path: Path, ending: signal.Signals) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    synthetic.Recorder(synthetic.with_tables(folder), "study").dense(1.0, 0)
    with python("-m", "study.browse", "--space", "study", "--storage", str(folder)) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            found = re.fullmatch(rf"(http://127\.0\.0\.1:\d+)/#{re.escape(address('1'))}", url)
            assert found is not None, url
            assert urllib.request.urlopen(f"{found[1]}/health", timeout=HANG_SECONDS).status == 200
        finally:
            process.send_signal(ending)
            assert process.wait(HANG_SECONDS) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{found[1]}/health", timeout=HANG_SECONDS)
