"""Figures that several processes draw are the files that one process would write."""

import functools
import os
import signal
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from analysis.drawing import files, parallel
from analysis.drawing.parallel import write_figures


def figure(height: float) -> Figure:
    drawn = Figure()
    drawn.subplots().plot([0, 1], [0, height])
    return drawn


DRAWINGS = {name: functools.partial(figure, height) for height, name in enumerate(["one", "two", "three", "four"])}


@pytest.mark.parametrize("most", [0, 1, 2, 9])
def test_figures_are_those_of_one_process(tmp_path: Path, most: int) -> None:
    paths = write_figures(DRAWINGS, tmp_path / "ours", most)
    alone = [path for name, draw in DRAWINGS.items() for path in files.write_figure(draw(), name, tmp_path / "alone")]
    assert [path.name for path in paths] == [path.name for path in alone]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in alone]


@pytest.mark.parametrize("most", [1, 2])
def test_an_error_of_a_worker_is_raised_here(tmp_path: Path, most: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        write_figures(DRAWINGS, tmp_path / "file", most)


def test_figures_of_a_worker_that_is_killed_are_drawn_here(tmp_path: Path) -> None:
    parent = os.getpid()

    def draw() -> Figure:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return figure(1)

    assert all(path.exists() for path in write_figures({"one": draw, "two": draw}, tmp_path, 2))


def test_beside_other_threads_nothing_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.threading, "active_count", lambda: 2)
    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda method: pytest.fail("forked"))
    assert all(path.exists() for path in write_figures(DRAWINGS, tmp_path, 2))
