"""Tracking URIs: which ones are refused before anything starts, and with what advice."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.metadata
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study.tracking.destination import check_tracking
from trainables.storage import patience


@pytest.fixture
def server() -> Iterator[int]:
    """A web server that answers any request; returns its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd.server_address[1]
    httpd.shutdown()
    httpd.server_close()


def test_a_server_that_answers_is_good_with_and_without_a_password(server: int) -> None:
    check_tracking(f"http://127.0.0.1:{server}/")
    check_tracking(f"http://user:secret@127.0.0.1:{server}")


def answering(answers: list[tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let servers give these answers, one after the other; return a list that fills with what was asked for."""
    asked: list[str] = []

    def urlopen(request: Any, timeout: float) -> Any:
        asked.append(request.full_url)
        code, document = answers.pop(0)
        if code >= 400:
            raise urllib.error.HTTPError(request.full_url, code, "no", http.client.HTTPMessage(), None)
        return contextlib.closing(io.BytesIO(json.dumps(document).encode()))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)
    return asked


def test_a_server_that_starts_again_is_waited_for_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering([(502, {}), (503, {}), (200, {}), (500, {}), (404, {})], monkeypatch)
    said: list[str] = []
    with patience.announced(said.append):
        check_tracking("http://user:secret@tracking.example", "space")
    assert len(asked) == 5
    assert said[0].startswith(
        "tracking server http://***@tracking.example cannot be reached: it answers 502; trying again"
    )


def test_an_experiment_deleted_on_a_server_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = {"experiment_id": "7", "lifecycle_stage": "deleted"}
    answering([(200, {}), (200, {"experiment": experiment})], monkeypatch)
    with pytest.raises(ValueError, match="mlflow experiments restore --experiment-id 7") as caught:
        check_tracking("http://tracking.example", "space")
    assert "mlflow gc" not in str(caught.value), "it takes the server's own database"


def test_a_server_that_is_not_there_is_an_error_without_the_password(
    server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"http://\*\*\*@127.0.0.1:9 cannot be reached") as raised:
        check_tracking("http://user:secret@127.0.0.1:9", timeout=2)
    assert "secret" not in str(raised.value)


def test_directories_are_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(ValueError, match=f"use sqlite:///{tmp_path}/mlflow.db"):
            check_tracking(uri)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="not writable"):
        check_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")
    check_tracking(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert not (tmp_path / "new").exists(), "only looked at"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://x", "unknown tracking scheme 'foo'; known: sqlite, postgresql, mysql, mssql, http, https, databricks"),
        ("sqlit:///x/mlflow.db", r"unknown tracking scheme 'sqlit' \(did you mean 'sqlite'\?\); known: sqlite, "),
        ("postgres://me:secret@host/db", r"unknown tracking scheme 'postgres' \(did you mean 'postgresql'\?\)"),
        ("postgresql+nosuch://me:secret@host/db", "postgresql.nosuch://.*@host/db: the Python package.* 'nosuch'"),
        ("localhost:5000", "has no scheme; a server is http://localhost:5000"),
        ("sqlite://mlflow.db", "names no file; write sqlite:///DIRECTORY/mlflow.db"),
        ("me_too:secret@host", "is a directory"),
    ],
)
def test_addresses_that_mlflow_does_not_know_are_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_tracking(uri)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "sqlite+pysqlite:///{}/mlflow.db?timeout=30"])
def test_addresses_that_mlflow_knows_are_not(uri: str, tmp_path: Path) -> None:
    check_tracking(uri.format(tmp_path))


def test_plugins_of_mlflow_bring_schemes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = importlib.metadata.EntryPoint("arn", "plugin:store", "mlflow.tracking_store")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [plugin] if group == plugin.group else [])
    check_tracking("arn:aws:sagemaker:eu-west-1:1:mlflow-tracking-server/x")
    with pytest.raises(ValueError, match="databricks, arn"):
        check_tracking("foo://x")
