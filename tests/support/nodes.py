"""A Ray cluster of several nodes on one machine, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from waiting import HANG_SECONDS, wait_until

PORT = 6379
SETTINGS = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A node that is gone is noticed after 5 s instead of 30.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # A request that waits for such a node, and with it all that follow, fails after 10 s instead of minutes.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
"""As the launch files set it before ``ray start``, on every node; and impatience."""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""What nodes and drivers must know to talk to each other."""


class Nodes:
    """A bridge with a namespace for every node: node 0 is the head, without CPUs for trials.

    Attributes:
        folder: for Ray's temporary files.
        environment: of all nodes.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, {**os.environ, **SETTINGS, **TOKEN, **environment}
        self._name = f"r{secrets.token_hex(3)}"
        self._network = f"10.{77 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
        self._namespaces: list[str] = []
        _ip("link", "add", f"{self._name}b", "type", "bridge")
        _ip("link", "set", f"{self._name}b", "up")

    @property
    def address(self) -> str:
        """Where drivers find the cluster."""
        return f"{self._network}.1:{PORT}"

    def add(self, cpus: int, without: Path | None = None) -> int:
        """Start a node; return its number.

        Args:
            cpus: for trials.
            without: a directory that is an empty one there.
        """
        number = len(self._namespaces)
        namespace, link = f"{self._name}n{number}", f"{self._name}v{number}"
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", f"{self._name}b", "up")
        own = f"{self._network}.{number + 1}"
        for command in (["addr", "add", f"{own}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", namespace, *command)
        _ip("-n", namespace, "link", "set", "lo", "up")
        role = [f"--address={self.address}"] if number else ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if not number:
            role += [f"--temp-dir={self.folder}"]
        ray = str(Path(sys.executable).with_name("ray"))
        start = [ray, "start", *role, f"--node-ip-address={own}", f"--num-cpus={cpus}", "--num-gpus=0"]
        if without is not None:  # in the mount namespace that the node's processes share with nobody else
            start = ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(without), *start]
        started = subprocess.run(
            self.command(number, *start),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert started.returncode == 0, (started.stdout, started.stderr)
        return number

    def command(self, node: int, *command: str) -> list[str]:
        """Return the command that runs another on a node."""
        return ["ip", "netns", "exec", self._namespaces[node], *command]

    def processes(self, node: int) -> list[int]:
        """Return the processes on a node."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._namespaces[node]], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def kill_ray(self, node: int) -> None:
        """Kill Ray's own processes on a node and nothing else."""
        for pid in self.processes(node):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"study.run" not in command:
                    os.kill(pid, signal.SIGKILL)

    def kill(self, node: int) -> None:
        """Take a node's power away."""
        _ip("-n", self._namespaces[node], "link", "set", "eth0", "down")
        wait_until(lambda: not self._killed(node), "its processes live on")

    def _killed(self, node: int) -> list[int]:
        """Kill what is running on a node; return what that was."""
        processes = self.processes(node)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return processes

    def close(self) -> None:
        """Remove everything."""
        for number, namespace in enumerate(self._namespaces):
            self.kill(number)
            _ip("netns", "del", namespace)
        _ip("link", "del", f"{self._name}b")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def nodes(folder: Path, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """Give an empty cluster, and remove it afterwards; skip the test where network namespaces cannot be made."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("needs root and iproute2 to make network namespaces")
    try:
        cluster = Nodes(folder, environment)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        yield cluster
    finally:
        cluster.close()
