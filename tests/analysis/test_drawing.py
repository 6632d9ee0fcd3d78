"""Figures fit what they are drawn for, and those that several processes draw are the files of one process."""

import functools
import itertools
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import cells
from analysis.drawing import files, grid, media, parallel, style
from analysis.drawing.parallel import write_figures


def figure(height: float) -> Figure:
    drawn = Figure()
    drawn.subplots().plot([0, 1], [0, height])
    return drawn


DRAWINGS = {name: functools.partial(figure, height) for height, name in enumerate(["one", "two", "three"])}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the drawings, drawn one by one."""
    folder = tmp_path_factory.mktemp("alone")
    return [path for name, draw in DRAWINGS.items() for path in files.write_figure(draw, name, folder)]


@pytest.mark.parametrize("most", [1, 2, 9])
def test_figures_are_those_of_one_process(tmp_path: Path, alone: list[Path], most: int) -> None:
    paths = write_figures(DRAWINGS, tmp_path, most)
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


# --- sizes ------------------------------------------------------------------------------------------------------
PRINTED = media.STYLES["paper"]
MEDIA = [*itertools.chain(*media.STYLES.values()), media.PHONE]


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    """Means in six columns and thirty rows: more than any page is wide or high."""
    lines = [
        {
            "width": width,
            "sparsity": sparsity,
            "rewind_epoch": epoch,
            "row": row,
            "n": 3,
            "mean": 90.0 + epoch,
            "std": 1.0,
        }
        for width in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
        for sparsity in [0.6 + 0.01 * step for step in range(30)]
        for epoch, row in itertools.product((0, 5), ("lth", "naive"))
    ]
    return pd.DataFrame(lines).assign(model="resnet20", dataset="cifar10")


def drawn(numbers: pd.DataFrame) -> tuple[Figure, list[list[grid.Panel]]]:
    return grid.means(
        numbers, cells.CELL, across="width", along="rewind_epoch", scale=style.epoch_axis, y="Test accuracy (%)"
    )


@pytest.mark.parametrize("medium", MEDIA)
def test_a_figure_fits_what_it_is_drawn_for_and_says_what_it_leaves_out(
    medium: media.Medium, numbers: pd.DataFrame
) -> None:
    with media.drawing_for(medium):
        figure, panels = drawn(numbers)
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert medium.least <= width <= medium.width
    assert height <= medium.height + 1e-9
    assert [len(line) for line in panels] == [6] * len(panels)
    assert figure.get_supxlabel() == f"{30 - len(panels)} more rows of panels of lower sparsities left to the table."
    for axes in figure.axes:
        box = axes.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
        assert -0.01 <= box.x0 < box.x1 <= width + 0.01
        assert axes.xaxis.label.get_fontsize() == medium.font
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (3, 2), (4, 1), (4, 2)])
def test_rows_are_lowered_or_set_side_by_side_before_any_is_left_out(
    medium: media.Medium, shape: tuple[int, int], numbers: pd.DataFrame
) -> None:
    columns, rows = shape
    widths, sparsities = sorted(set(numbers["width"]))[:columns], sorted(set(numbers["sparsity"]))[:rows]
    few = numbers[numbers["width"].isin(widths) & numbers["sparsity"].isin(sparsities)]
    with media.drawing_for(medium):
        figure, panels = drawn(few)
        figure.draw_without_rendering()
    shown = [[panel.place["sparsity"] for panel in line] for line in panels]
    assert shown == [[sparsity] * columns for sparsity in sparsities]
    assert all(line[0].leads for line in panels)
    assert figure.get_supxlabel() == ""
    lowest = min(axes.get_window_extent().height / figure.dpi for axes in figure.axes)
    assert lowest > 0.8 * style.LOWEST
    sides = {axes.get_subplotspec().colspan.start: axes.get_xlabel() for axes in figure.axes}  # the last one is lowest
    assert set(sides.values()) == {style.AXES["rewind_epoch"]}


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("entries", [0, 7])
def test_panels_that_are_drawn_fill_the_room_and_have_room_for_their_labels(
    medium: media.Medium, columns: int, entries: int
) -> None:
    with media.drawing_for(medium):
        (figure, drawn), (alone, _) = (style.panels(rows, columns, entries=entries) for rows in (99, 1))
    taken, whole = (each.get_size_inches()[1] - style.LEGEND_HEIGHT for each in (figure, alone))
    lines, of_row = (each.axes[0].get_subplotspec().get_gridspec().nrows for each in (figure, alone))
    left = medium.height - style.LEGEND_HEIGHT - taken
    assert 1 <= len(drawn) < 99
    assert left < of_row * taken / lines, "no room for another row"
    assert columns == 1 or left < 1e-9 or taken / lines == pytest.approx(whole / of_row), "not lowered without need"
    assert entries * medium.font / 72 < taken / lines


@pytest.mark.parametrize("medium", MEDIA)
def test_what_is_left_out_are_the_lowest_sparsities_of_every_place(medium: media.Medium, numbers: pd.DataFrame) -> None:
    both = pd.concat([numbers, numbers.assign(dataset="svhn")])
    with media.drawing_for(medium):
        figure, panels = drawn(both)
    kept = pd.DataFrame([line[0].place for line in panels]).groupby("dataset")["sparsity"]
    for _, sparsities in kept:
        assert sparsities.tolist() == sorted(set(numbers["sparsity"]))[-len(sparsities) :]
    counts = kept.size().tolist()
    if len(panels) > 1:
        assert max(counts) - min(counts) <= 1 < sum(counts)
        assert " of lower sparsities left" in figure.get_supxlabel()
    else:  # a whole data set is left out
        assert figure.get_supxlabel() == "59 more rows of panels left to the table."


def test_figures_for_papers_are_written_at_every_width_with_fonts_that_publishers_accept(tmp_path: Path) -> None:
    with media.drawing_for(*PRINTED):
        paths = files.write_figure(lambda: style.panels(1, 1)[0], "one", tmp_path)
    assert {path.name for path in paths if path.suffix == ".pdf"} == {"one.pdf", "one-5.5in.pdf", "one-3.25in.pdf"}
    for path in paths:
        assert path.name.removeprefix("one") in files.SUFFIXES
    for medium in PRINTED:
        content = (tmp_path / f"one{medium.suffix}.pdf").read_bytes()
        assert f"/MediaBox [ 0 0 {72 * medium.width:g} ".encode() in content
        assert b"/CIDFontType2" in content
        assert b"/Type3" not in content
