"""The one clock of the tests. It tells a hang from a slow machine, and decides nothing else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, Final

HANG_SECONDS: Final = 900.0
"""Whatever a test waits for, and has not happened by then, does not happen: many times what a busy machine needs."""
_now, _sleep = time.monotonic, time.sleep  # tests put others in their place


def wait_until(
    condition: Callable[[], object], what: str = "it does not happen", process: subprocess.Popen[Any] | None = None
) -> None:
    """Return as soon as the condition holds.

    Args:
        condition: looked at again and again.
        what: said of a hang.
        process: without it the condition never holds: it must not end before.
    """
    end = _now() + HANG_SECONDS
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert _now() < end, what
        _sleep(0.02)
