"""Figures written to files beside whatever else there is to do: that takes half of a large report's time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.drawing import files
from trainables.host.processes import cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = tuple["Figure", str, Path]


class Drawing:
    """Writes figures in processes of their own, as many as there are cores.

    Where processes cannot be forked - on another system, or beside other threads, whose locks a fork might take along -
    each figure is written at once.
    """

    def __init__(self, most: int | None = None) -> None:
        """Prepare.

        Args:
            most: processes at the same time; by default one for every core.
        """
        self._most = cores() if most is None else most
        self._running: list[tuple[BaseProcess, Task]] = []

    def write(self, figure: Figure, name: str, out: Path) -> list[Path]:
        """Begin to write a figure, and return its paths, where it is after :meth:`finish`."""
        while self._running and len(self._running) >= self._most:
            self._await_first()
        task = figure, name, out
        if not self._forks():
            return files.write_figure(*task)
        process = multiprocessing.get_context("fork").Process(target=_write, args=task)
        process.start()
        self._running.append((process, task))
        return files.figure_paths(name, out)

    def finish(self) -> None:
        """Wait until all figures are written.

        Raises:
            OSError: the folder does not take one.
        """
        while self._running:
            self._await_first()

    def _forks(self) -> bool:
        # Elsewhere, what is forked may hang in a system's library.
        return self._most > 0 and sys.platform == "linux" and threading.active_count() == 1

    def _await_first(self) -> None:
        process, task = self._running.pop(0)
        process.join()
        if process.exitcode:
            files.write_figure(*task)  # fails likewise, and can tell why; or it was that process's bad luck


def _write(*task: Any) -> None:
    try:
        files.write_figure(*task)
    except BaseException:  # to be told by the process that waits for this one
        os._exit(1)
