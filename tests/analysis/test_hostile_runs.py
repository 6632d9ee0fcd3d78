"""What others write to a study's MLflow experiment neither breaks the report nor acts in it."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import hostile_runs as hostile
import pandas as pd
import pytest
import synthetic_runs as synthetic

from analysis import load, summary, write
from analysis.drawing import files
from analysis.figures.table import FIGURES, loader

pytestmark = pytest.mark.slow

FORMULA = re.compile(r"\s*[=+\-@]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write(folder, "hostile")
    return synthetic.tracking_uri(folder)


@pytest.fixture(scope="module")
def written(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    page = write.write_report("hostile", uri, tmp_path_factory.mktemp("report"))
    return {path.name: path for path in page.parent.iterdir()}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_written_as_a_whole(uri: str, written: dict[str, Path], name: str) -> None:
    module = FIGURES[name]
    frame = loader(module)("hostile", uri)
    assert module.table(frame).empty == (f"{name}.svg" not in written)
    assert all(isinstance(note, str) for note in module.notes(frame))


def test_most_figures_have_something_to_show(written: dict[str, Path]) -> None:
    shown = {"rewind.svg", "sparsity.svg", "width.svg", "interpolation.svg", "effects.svg", "controls.svg"}
    assert shown <= set(written)


def test_no_cell_is_a_formula_and_numbers_stay_numbers(written: dict[str, Path]) -> None:
    escaped = 0
    for path in written.values():
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as stream:
                for line in csv.reader(stream):
                    assert all(float(cell) == float(cell) for cell in filter(FORMULA.match, line))
                    escaped += sum(cell.startswith("'=1+1") for cell in line)
    assert escaped
    frame = pd.read_csv(written["runs.csv"])
    assert frame["gap_to_lth"].dtype == float


@pytest.mark.parametrize("cell", ["=1", "+1+1", "-1+1", "-x", "@SUM(1)", "\t=1", "\r=1", " =1", "+", "\n@x"])
def test_texts_that_spreadsheets_compute_get_an_apostrophe(tmp_path: Path, cell: str) -> None:
    files.write_csv(pd.DataFrame({cell: [cell], "number": [-1.5], "text": ["-1.5"]}), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
        shown = "'" + cell.replace("\r", "\n")
        assert list(csv.reader(stream)) == [[shown, "number", "text"], [shown, "-1.5", "-1.5"]]


def test_nothing_of_it_acts_in_the_page(written: dict[str, Path]) -> None:
    page = written["index.html"].read_text(encoding="utf-8")
    assert page.count("<script") == 1, "our own"
    assert "&lt;script" in page
    assert not CONTROL.search(page)
    assert "\N{REPLACEMENT CHARACTER}" in page
    assert "hunter2" not in page


def test_figures_show_names_as_they_are(written: dict[str, Path]) -> None:
    drawn = [path.read_text(encoding="utf-8") for path in written.values() if path.suffix == ".svg"]
    assert any(hostile.MATH in "".join(ElementTree.fromstring(text).itertext()) for text in drawn)
    assert not any("<script" in text for text in drawn)


def test_markdown_and_latex_have_no_markup_of_others(written: dict[str, Path]) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in written.values() if path.suffix in (".md", ".tex")}
    assert any("1+1" in text for text in texts.values())
    for name, text in texts.items():
        if name.endswith(".md"):
            assert not re.search(r"(?<!\\)<\w|\]\(", text), name
        else:
            assert r"\input" not in text
            assert r"\frac" not in text


def test_the_ends_of_lines_in_latex_take_nothing_of_the_next() -> None:
    text = files.latex(pd.DataFrame({"a": ["[x]", "*"]}), caption="", label="")
    assert "{}[x] \\\\\n{}* \\\\" in text


def test_the_report_says_what_was_left_out(uri: str, written: dict[str, Path]) -> None:
    frame = load.runs("hostile", uri)
    said = frame.attrs["left_out"]
    assert sum(line.startswith("run ") for line in said) == 4 * len(hostile.NO_NUMBERS)
    assert any(line.startswith("metric test_accuracy of ") for line in said)
    assert "width: &#x27;wide&#x27; in place of a number" in written["index.html"].read_text(encoding="utf-8")
    assert summary.short_table(frame)
    assert (frame["key"] == "twice").sum() == 1


def test_sound_runs_count_as_they_do_alone(uri: str) -> None:
    frame = load.runs("hostile", uri)
    sound = frame[(frame["model"] == "resnet20") & (frame["method"] == "lth") & (frame["rewind_epoch"] == 10)]
    expected = [synthetic.accuracy("lth", 1.0, 0.95, 10, pair[0]) for pair in synthetic.PAIRS[:2]]
    assert sorted(sound["test_accuracy"].dropna()) == pytest.approx(sorted(expected))
