"""A study in MLflow's pages: ``python -m study.browse --space digits_quickstart``.

The command starts MLflow's server on the study's database, prints the address of the study's saved view once the server
answers, and ends the server on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import IO

from analysis import command, sources
from study.tracking.views import address
from trainables.host import terminal
from trainables.host.databases import is_server, refusal, sqlite_file, sqlite_uri
from trainables.host.redaction import redact, redact_text

HOST, PORT, LAST_PORT = "127.0.0.1", 5000, 65_535
"""Where MLflow's server listens by default."""
NAME = "study.localhost"
"""Name of this machine in the address of the pages. Under ``localhost`` and the loopback addresses themselves, MLflow's
pages open an assistant over a quarter of the window at a reader's first visit, and no option keeps them from it.
Browsers take every name that ends in ``.localhost`` for the loopback address (RFC 6761), without asking anyone."""
HOSTS = ("localhost", HOST, "[[]::1]", NAME)
"""Patterns of names under which the server answers: MLflow's own, which a forwarded port has, and ours."""
STARTING = 90.0
"""Seconds that the server may take to start."""
TOKEN = "X-Study-Browse"
"""Header by which the answers of the started server are told from those of another one on its port."""


class _PortTaken(OSError):
    """Another server has taken the port since it was found to be free."""


@contextlib.contextmanager
def pages(tracking_uri: str, port: int | None = None) -> Iterator[str]:
    """Yield the address of MLflow's pages; a server is started unless the URI is that of one.

    Args:
        tracking_uri: what the pages show.
        port: where a new server listens; None: on MLflow's usual port if that is free, else on any free one.

    Raises:
        OSError: the port is not free, or the server does not start.
    """
    if is_server(tracking_uri):
        yield tracking_uri.rstrip("/")
        return
    database = sqlite_file(tracking_uri)
    uri = sqlite_uri(database) if database else tracking_uri  # absolute: the server runs in a folder of its own
    with contextlib.ExitStack() as stack:
        try:
            base = stack.enter_context(_server(uri, _free(port)))
        except _PortTaken:
            if port is not None:
                raise
            base = stack.enter_context(_server(uri, _free(0)))
        yield base


@contextlib.contextmanager
def _server(uri: str, port: int) -> Iterator[str]:
    """Start MLflow's server, yield its address once it answers, and end it."""
    token = secrets.token_hex(8)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    server += ["--host", HOST, "--port", str(port), "--uvicorn-opts", f"--log-level=error --header {TOKEN}:{token}"]
    with tempfile.TemporaryDirectory(prefix="mlflow-") as folder:  # the server writes to its working directory
        process = subprocess.Popen(
            server,
            cwd=folder,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stderr is not None
        said = _Said(process.stderr)
        try:
            _await(process, port, token)
            said.pass_on(held=False)  # notes on how MLflow is set up, and warnings about its own code
            yield f"http://{_name()}:{port}"
        except OSError:
            said.pass_on()
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            said.end()


def _environment() -> dict[str, str]:
    """Return the environment of the server. Versions of MLflow without these settings ignore them."""
    ours = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": [f"{host}{port}" for host in HOSTS for port in ("", ":*")],
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": [f"http://{NAME}{port}" for port in ("", ":*")],
    }
    allowed = {name: ",".join([*filter(None, [os.environ.get(name)]), *values]) for name, values in ours.items()}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return {**os.environ, **allowed, **quiet}


def _name() -> str:
    """Return the name of this machine in the address of the pages."""
    return HOST if sys.platform == "darwin" else NAME  # Safari asks macOS, which may not know the name


class _Said:
    """What a server writes to its standard error: held back until it is known whether the server has started."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Begin to read the stream, so that the server never waits for a reader."""
        self._stream, self._held, self._lock = stream, list[str](), threading.Lock()
        self._passes = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def pass_on(self, *, held: bool = True) -> None:
        """Print from now on what the server writes, without passwords, and what was held back, or else drop that."""
        with self._lock:
            if held:
                print(*self._held, sep="", end="", file=sys.stderr, flush=True)
            self._held.clear()
            self._passes = True

    def end(self) -> None:
        """Wait for the end of the stream, which comes when the server has ended."""
        self._reader.join()
        self._stream.close()

    def _read(self) -> None:
        for line in self._stream:
            text = redact_text(line.decode(errors="replace"))
            with self._lock:
                if self._passes:
                    print(text, end="", file=sys.stderr, flush=True)
                else:
                    self._held.append(text)


def _free(port: int | None) -> int:
    """Return a free port: the given one, or else the usual one or any."""
    for wanted in (PORT, 0) if port is None else (port,):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((HOST, wanted))
            found = int(probe.getsockname()[1])
            if not _taken_in_ipv6(found):
                return found
    raise OSError(f"port {port} is in use: choose another one, or leave out --port")


def _taken_in_ipv6(port: int) -> bool:
    """Return whether another server listens on a port at ::1, where a browser may look for ``NAME`` first."""
    with contextlib.suppress(OSError), socket.create_connection(("::1", port), timeout=1):
        return True
    return False


def _await(process: subprocess.Popen[bytes], port: int, token: str) -> None:
    """Wait until the server answers with its token; raise OSError if it ends, or does not answer in time."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's server
    end, taken = time.monotonic() + STARTING, False
    while process.poll() is None and time.monotonic() < end:
        try:
            with direct.open(f"http://{HOST}:{port}/health", timeout=5) as answer:
                if answer.headers.get(TOKEN) == token:
                    return
            taken = True
        except (urllib.error.HTTPError, http.client.HTTPException):
            taken = True
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.2)
    if taken:
        raise _PortTaken(f"another server has taken port {port}: try again, or name another port")
    raise OSError("MLflow's server did not start")


@terminal.command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    parser = command.parser("browse", "Show a study in MLflow's pages until Ctrl-C.", out=None)
    parser.prog = "python -m study.browse"
    parser.add_argument("--port", type=_port, metavar="N", help=f"where to listen (default: {PORT}, or a free one)")
    options = parser.parse_args(arguments)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # the server ends with this process
        if signal.getsignal(ending) != signal.SIG_IGN:  # as under nohup
            signal.signal(ending, signal.default_int_handler)
    return command.guarded(options, _show)


def _port(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= LAST_PORT:
        return int(text)
    raise argparse.ArgumentTypeError(f"a port is a number from 1 to {LAST_PORT}, got {text!r}")


def _show(options: argparse.Namespace) -> None:
    uri = command.tracking_uri(options)
    if problem := refusal(uri, ""):  # before MLflow's server, which would end with a traceback
        raise sources.AnalysisError(f"neither study.run nor MLflow can use {redact(uri)}: {problem}")
    experiment = sources.source(uri).experiment(options.space)
    with pages(uri, options.port) as base, contextlib.suppress(KeyboardInterrupt):
        ours = base != uri.rstrip("/")
        if ours:
            print("Ctrl-C ends the server of this page:", file=sys.stderr, flush=True)
        print(f"{redact(base)}/#{address(experiment.id)}", flush=True)
        if ours:
            signal.pause()


if __name__ == "__main__":
    sys.exit(main())
