"""An S3-compatible server in a process of its own, and a connection to it that can be made unreliable."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

from waiting import HANG_SECONDS, wait_until

BUCKET = "results"


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run a server with an empty bucket; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), "the server does not answer", process)
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(bucket, timeout=HANG_SECONDS)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS).close()
    except OSError:
        return False
    return True


def environment(port: int) -> dict[str, str]:
    """Return the environment variables by which a client finds the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Unreliable:
    """A server in front of another that drops every n-th request: half of them before, half after it was carried out.

    Attributes:
        port: where it listens.
        every: a request of so many is dropped; 0 drops none.
        silent: whether to drop all of them for now.
        dropped: how many have been.
    """

    def __init__(self, target: int, every: int) -> None:
        self._target, self.every, self.silent, self.dropped = target, every, False, 0
        self._count = itertools.count(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass on one connection's requests, each on a connection of its own to the server."""
        with client, contextlib.suppress(OSError):
            while request := _message(client):
                number = next(self._count)
                drop = self.silent or (self.every and number % self.every == 0)
                if drop:
                    self.dropped += 1
                    if self.silent or number % (2 * self.every) == 0:
                        return
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    server.sendall(request)
                    answer = _message(server, head=request.startswith(b"HEAD"))
                if drop or answer is None:
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def _message(connection: socket.socket, *, head: bool = False) -> bytes | None:
    """Read one HTTP message; None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    header, _, body = data.partition(b"\r\n\r\n")
    fields = {line.split(b":", 1)[0].lower(): line.split(b":", 1)[1].strip() for line in header.split(b"\r\n")[1:]}
    if fields.get(b"expect", b"").lower() == b"100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        header = b"\r\n".join(line for line in header.split(b"\r\n") if not line.lower().startswith(b"expect"))
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
    length = 0 if head or header.split(b" ")[1] == b"304" else int(fields.get(b"content-length", 0))
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return None
        body += part
    return header + b"\r\n\r\n" + body


def set_environment(port: int) -> None:
    """Let this process find the server."""
    os.environ.update(environment(port))
