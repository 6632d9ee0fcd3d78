"""The command that shows a study in MLflow's pages."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_runs as synthetic
from mlflow import MlflowClient
from tiny_study import python
from waiting import HANG_SECONDS, wait_until

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


def test_a_port_is_busy_if_a_server_has_it_where_browsers_look_first(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with other:
        busy = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {busy} is in use"):
            browse._free(busy)


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage with a study of one dense net."""
    folder = tmp_path / "with a space"
    folder.mkdir()
    synthetic.Recorder(synthetic.with_tables(folder), "study").dense(1.0, 0)
    return folder


def test_a_database_of_another_mlflow_is_refused_with_the_cure_before_a_server_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(browse, "pages")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    assert browse.main(["--space", "study", "--storage", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "an older MLflow made it: back it up, then run `mlflow db upgrade" in err
    assert err.count("\n") == 1


def test_a_deleted_experiment_is_refused_with_the_cure(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(browse, "pages")
    MlflowClient(synthetic.tracking_uri(folder)).delete_experiment("1")
    assert browse.main(["--space", "study", "--storage", str(folder)]) == 2
    assert "mlflow experiments restore --experiment-id 1" in capsys.readouterr().err


def test_only_macos_is_not_trusted_to_know_the_name_under_which_mlflow_opens_no_assistant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert browse._name() == "study.localhost"
    monkeypatch.setattr("sys.platform", "darwin")
    assert browse._name() == "127.0.0.1"


def test_names_that_the_user_has_allowed_stay_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "login.example.org")
    monkeypatch.delenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", raising=False)
    environment = browse._environment()
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"login.example.org", "localhost", "localhost:*", "127.0.0.1:*", "study.localhost:*"} <= set(hosts)
    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].startswith("http://study.localhost,")


@pytest.mark.parametrize("held", [True, False])
def test_what_a_server_says_while_it_starts_is_shown_only_if_it_does_not(
    capsys: pytest.CaptureFixture[str], held: bool
) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as server:
        said = browse._Said(stream)
        server.write(b"starting http://me:secret@host\n")
        wait_until(lambda: len(said._held) == 1)
        said.pass_on(held=held)
        server.write(b"ERROR: later\n")
        server.close()
        said.end()
    assert capsys.readouterr().err == ("starting http://***@host\n" if held else "") + "ERROR: later\n"


@pytest.mark.slow
def test_a_server_that_does_not_start_shows_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(OSError, match="did not start"), browse.pages(synthetic.tracking_uri(folder)):
        pass
    assert "file is not a database" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGHUP])
def test_the_printed_address_answers_and_a_signal_ends_the_server(folder: Path, ending: signal.Signals) -> None:
    with python("-m", "study.browse", "--space", "study", "--storage", str(folder)) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            url = process.stdout.readline().strip()
            found = re.fullmatch(rf"http://(study\.localhost|127\.0\.0\.1):(\d+)/#{re.escape(address('1'))}", url)
            assert found is not None, url
            host, port = found.groups()
            assert process.stderr.readline() == "Ctrl-C ends the server of this page:\n"
            # Under every name that a browser here or at the end of a tunnel has for this machine.
            for name in (f"{host}:{port}", "localhost:6000", f"127.0.0.1:{port}"):
                assert answer(port, {"Host": name, "Origin": f"http://{name}"}) == 200
            assert answer(port, {"Host": "example.org"}) == 403
            assert answer(port, {"Host": f"{host}:{port}", "Origin": "http://example.org"}) == 403
        finally:
            process.send_signal(ending)
            assert process.wait(HANG_SECONDS) == 0
        assert process.stderr.read().count("\n") == 2, "two requests that it has refused"
    with pytest.raises(OSError, match="refused"):
        answer(port, {})


def answer(port: str, headers: dict[str, str]) -> int:
    """Return the status with which a server answers the request by which MLflow's pages list runs."""
    connection = http.client.HTTPConnection(browse.HOST, int(port), timeout=HANG_SECONDS)
    with contextlib.closing(connection):
        content = {"Content-Type": "application/json"}
        body = json.dumps({"experiment_ids": ["1"]})
        connection.request("POST", "/ajax-api/2.0/mlflow/runs/search", body, {**content, **headers})
        return connection.getresponse().status
