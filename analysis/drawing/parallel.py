"""Figures drawn and written by several processes, because that is most of the work of a large report."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.drawing import files
from trainables.host.processes import cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = Mapping[str, Callable[[], "Figure"]]
_inherited: Drawings = {}
"""In a worker: what it may be asked to draw. Forking hands it over without pickling."""


def write_figures(drawings: Drawings, out: Path, most: int | None = None) -> list[Path]:
    """Draw figures, write them as :func:`analysis.drawing.files.write_figure` does, and return the paths.

    Workers are forked. Where that is unsafe - on another system than Linux, or beside other threads, whose locks a fork
    would copy - this process does all the work.

    Args:
        drawings: name -> function that draws the figure.
        out: folder to write to.
        most: number of workers, at most; by default one per core.

    Raises:
        OSError: a file cannot be written.
    """
    workers = min(cores() if most is None else most, len(drawings))
    if workers > 1 and sys.platform == "linux" and threading.active_count() == 1:
        fork = multiprocessing.get_context("fork")
        # If a worker is killed, for want of memory perhaps, one figure after the other may still succeed.
        with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(workers, fork, _inherit, (drawings,)) as pool:
            written = [pool.submit(_write, name, out) for name in drawings]
            return [path for paths in written for path in paths.result()]
    return [path for name, draw in drawings.items() for path in files.write_figure(draw, name, out)]


def _inherit(drawings: Drawings) -> None:
    global _inherited
    _inherited = drawings


def _write(name: str, out: Path) -> list[Path]:
    return files.write_figure(_inherited[name], name, out)
