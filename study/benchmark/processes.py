"""Processes that measure apart from the command that has started them. Torch-free."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


def started(target: Callable[..., None], *arguments: Any) -> tuple[Connection, SpawnProcess]:
    """Start a process that runs ``target(pipe, *arguments)``; return the other end of the pipe, and the process.

    The process ignores Ctrl-C, which a terminal sends to all processes: the caller ends it. It may start processes.
    """
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # now, because starting it would unblock Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits that it is blocked
    try:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *arguments), daemon=False)  # daemons cannot start any
        process.start()
        theirs.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return ours, process
