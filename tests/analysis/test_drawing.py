"""Figures that are written by other processes are there in the end, and are those that this one would write."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from analysis.drawing import files, parallel
from analysis.drawing.parallel import Drawing


def figure(height: float) -> Figure:
    drawn = Figure()
    drawn.subplots().plot([0, 1], [0, height])
    return drawn


@pytest.mark.parametrize("most", [0, 1, 2])
def test_figures_are_those_of_one_process(tmp_path: Path, most: int) -> None:
    names = ["one", "two", "three", "four"]
    writers = Drawing(most)
    for height, name in enumerate(names):
        paths = writers.write(figure(height), name, tmp_path / "ours")
        assert paths == files.figure_paths(name, tmp_path / "ours")
    writers.finish()
    for height, name in enumerate(names):
        for path in files.write_figure(figure(height), name, tmp_path / "alone"):
            assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()


def test_an_error_of_another_process_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        writers = Drawing(1)
        writers.write(figure(1), "one", tmp_path / "file")  # raises at once where no process can be forked
        writers.finish()

    with pytest.raises(FileExistsError):
        write()


def test_beside_other_threads_nothing_is_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.threading, "active_count", lambda: 2)
    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda method: pytest.fail("forked"))
    paths = Drawing(2).write(figure(1), "one", tmp_path)
    assert all(path.exists() for path in paths)
