"""The launch files of study/cluster, with something filled in where users are to fill in theirs."""

from __future__ import annotations

import re
import socket
from typing import Any

import yaml
from checkout import ROOT

from study.sweep import _ENVIRONMENT

FILES = ROOT / "study" / "cluster"
LAUNCHER = ("aws.yaml", "gcp.yaml")
"""Those for ``ray up``."""
PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)>")
VALUES = {"REGION": "us-east-1", "AMI": "ami-0", "GPU_MEMORY_GIB": "22", "BUCKET_URI": "s3://bucket"}
RAY_SETTINGS = {
    name: _ENVIRONMENT[name]
    for name in ("RAY_memory_monitor_refresh_ms", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
}
"""What must be set before ``ray start``, on every node."""


def filled(name: str, **values: str) -> str:
    """Return the text of a launch file, with a value in the place of every placeholder."""
    values = {**VALUES, **values}
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[1].lower()), (FILES / name).read_text())


def launcher(name: str, **values: str) -> dict[str, Any]:
    """Return what a launch file of Ray says."""
    config: dict[str, Any] = yaml.safe_load(filled(name, **values))
    return config


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
