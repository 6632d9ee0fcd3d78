"""Which versions of the project's code and of libraries a process runs."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from importlib import metadata
from pathlib import Path


@functools.cache
def project_commit() -> str | None:
    """Return the commit of the project's code; None if it does not run from a repository or git cannot read it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # git is missing, or refuses to read the repository
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


@functools.cache
def library_version(name: str) -> str | None:
    """Return the version of a library without importing it; None if it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None
