"""The pictures of the documentation, and the script that takes them."""

import importlib.util
import io
import shutil

import pictures
import pytest
import synthetic_runs as synthetic
import synthetic_spaces
from checkout import ROOT
from PIL import Image, ImageDraw

from search_spaces import SPACES
from study.tracking.cell_runs import CellRuns
from study.tracking.experiment import Experiment
from trainables.storage.store import Store

IMAGES = sorted((ROOT / "docs" / "images").iterdir())
PROGRAM = next(filter(None, map(shutil.which, pictures.BROWSERS)), None)
BROWSES = PROGRAM is not None and importlib.util.find_spec("playwright") is not None


def shots(tmp_path):
    """All that is taken of a study."""
    return [*pictures.of_report(tmp_path / "a report.html"), *pictures.of_mlflow("http://127.0.0.1:5000", "7", "abc")]


def test_the_pictures_are_those_that_the_script_takes_and_small(tmp_path):
    assert {image.stem for image in IMAGES} == {shot.name for shot in shots(tmp_path)}
    assert all(image.stat().st_size <= 120_000 for image in IMAGES)
    assert all(Image.open(image).width <= pictures.MOST_PIXELS for image in IMAGES)


def test_pictures_are_small_and_keep_the_colours_of_thin_lines():
    image = Image.new("RGB", (2400, 1000), "white")
    draw = ImageDraw.Draw(image)
    for x in range(0, 2400, 3):  # many greys, as antialiased text has them
        draw.line([(x, 0), (x, 900)], fill=(x % 200,) * 3)
    draw.rectangle([0, 950, 40, 960], fill="#009E73")
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    small = Image.open(io.BytesIO(pictures.shrunk(stream.getvalue())))
    assert (small.mode, small.size) == ("P", (1200, 500))
    red, green, blue = small.convert("RGB").getpixel((10, 477))
    assert abs(red - 0x00) + abs(green - 0x9E) + abs(blue - 0x73) < 40


def test_without_a_browser_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert pictures.main(["--space", "study", "--storage", str(tmp_path), "--out", str(tmp_path / "images")]) == 2
    assert capsys.readouterr().err == "error: no browser: name a Chromium by --browser\n"
    assert not (tmp_path / "images").exists()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSES, reason="needs playwright and Chromium")
def test_pictures_of_a_study(tmp_path):
    space, uri = SPACES["ensemble_diversity"], synthetic.tracking_uri(tmp_path)
    plan = synthetic_spaces.write_space(tmp_path, space)
    experiment = Experiment(space, Store(str(tmp_path)), uri)
    experiment.open()
    CellRuns(plan, uri, "python -m study.run").update(experiment)
    made = pictures.write_pictures(space.name, uri, tmp_path / "images", PROGRAM)
    assert [path.stem for path in made] == [shot.name for shot in shots(tmp_path)]
    sizes = {path.stem: Image.open(path).size for path in made}
    assert sizes["report"][0] == sizes["mlflow-charts"][0] == 1200
    assert sizes["report-phone"] == (780, 1688)
    for path in made:
        assert len(Image.open(path).convert("RGB").getcolors(1 << 20)) > 20, f"{path.name} shows nothing"
