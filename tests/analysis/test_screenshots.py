"""Pictures of the report and of MLflow's pages: how they are taken, with a stand-in for the browser, and with one."""

import io
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_runs as synthetic
import synthetic_spaces
from mlflow import MlflowClient
from PIL import Image, ImageDraw

from analysis import devtools, screenshots
from analysis.devtools import Browser, end_group, find_browser
from analysis.load import AnalysisError
from search_spaces import SPACES
from study.tracking.views import experiment_tags

STAND_IN = """#!{python}
import json, os, sys
requests, answers = os.fdopen(3, "rb"), os.fdopen(4, "wb")
text = b""
while (byte := requests.read(1)):
    if byte != b"\\0":
        text += byte
        continue
    asked = json.loads(text)
    text = b""
    if asked["method"] == "Browser.crash":
        sys.exit(1)
    answers.write(json.dumps({{"method": "Some.event", "params": {{}}}}).encode() + b"\\0")
    answer = {{"id": asked["id"], "result": {{"asked": asked, "arguments": sys.argv}}}}
    if asked["method"] == "No.such":
        answer = {{"id": asked["id"], "error": {{"message": "'No.such' wasn't found"}}}}
    answers.write(json.dumps(answer).encode() + b"\\0")
    answers.flush()
"""


@pytest.fixture
def stand_in(tmp_path):
    """A program that answers as a browser does, with what it was asked."""
    path = tmp_path / "chromium"
    path.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


# --- the browser ----------------------------------------------------------------------------------------------------
def test_browser_is_the_first_that_is_installed_or_the_one_named(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() == find_browser("chromium") == find_browser(stand_in) == stand_in
    with pytest.raises(AnalysisError, match="no browser 'firefox'"):
        find_browser("firefox")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(AnalysisError, match=r"none of chromium.* is installed; .*--browser"):
        find_browser()


def test_no_browser_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert screenshots.main(["--space", "study", "--storage", str(tmp_path), "--out", str(tmp_path / "images")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no browser")
    assert error.count("\n") == 1
    assert not (tmp_path / "images").exists()


def test_answers_are_told_from_events_and_refusals(stand_in):
    with Browser(stand_in) as browser:
        first = browser.ask("Target.createTarget", url="about:blank")["asked"]
        second = browser.ask("Page.navigate", "session", url="é")["asked"]
        assert (first["method"], first["params"], "sessionId" in first) == (
            "Target.createTarget",
            {"url": "about:blank"},
            False,
        )
        assert (second["sessionId"], second["params"]) == ("session", {"url": "é"})
        with pytest.raises(AnalysisError, match=r"refuses No\.such: 'No\.such' wasn't found"):
            browser.ask("No.such")


def test_browser_reaches_no_host_but_those_named(stand_in):
    with Browser(stand_in, hosts=("127.0.0.1",)) as browser:
        arguments = browser.ask("Any.thing")["arguments"]
    assert "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1" in arguments


def test_browser_that_ends_is_an_error_and_leaves_nothing_behind(stand_in):
    with Browser(stand_in) as browser:
        profile = next(a for a in browser.ask("Any.thing")["arguments"] if a.startswith("--user-data-dir="))
        assert Path(profile.partition("=")[2]).is_dir()
        with pytest.raises(AnalysisError, match="the browser has ended"):
            browser.ask("Browser.crash")
    assert not Path(profile.partition("=")[2]).exists()


def test_browser_that_hangs_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "chromium"
    path.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(devtools, "PATIENCE", 0.1)
    with pytest.raises(AnalysisError, match=r"did not answer in 0\.1 s"), Browser(str(path)) as browser:
        browser.ask("Any.thing")
    assert browser._process.returncode is not None


def test_a_group_ends_with_all_that_it_has_started():
    stubborn = "trap '' TERM; sleep 60 & echo $!; wait; wait"  # the child takes over that it does not heed
    process = subprocess.Popen(["sh", "-c", stubborn], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        assert int(process.stdout.readline()) > 0
        end_group(process, patience=0.1)
        assert process.returncode == -signal.SIGKILL
        assert process.stdout.read() == ""  # nobody has it open any more


# --- pictures -------------------------------------------------------------------------------------------------------
def test_pictures_are_of_the_study_alone(tmp_path):
    page = tmp_path / "a study" / "index.html"
    assert {shot.address.partition("#")[0] for shot in screenshots.of_report(page)} == {page.as_uri()}
    shots = screenshots.of_mlflow("http://127.0.0.1:5000", "7", "abc", view=True)
    assert all(shot.address.startswith("http://127.0.0.1:5000/#/experiments/7/runs") for shot in shots)
    assert ["viewStateShareKey" in shot.address for shot in shots] == [True, True, False]
    without = screenshots.of_mlflow("http://127.0.0.1:5000", "7", "abc", view=False)
    assert not any("viewStateShareKey" in shot.address for shot in without)
    names = [shot.name for shot in [*screenshots.of_report(page), *shots]]
    assert len(set(names)) == len(names)


def test_pictures_are_small_and_keep_the_colours_of_thin_lines():
    image = Image.new("RGB", (2400, 1000), "white")
    draw = ImageDraw.Draw(image)
    for x in range(0, 2400, 3):  # as antialiased text has them, many greys
        draw.line([(x, 0), (x, 900)], fill=(x % 200,) * 3)
    draw.rectangle([0, 950, 40, 960], fill="#009E73")
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    small = Image.open(io.BytesIO(screenshots.shrunk(stream.getvalue())))
    assert small.mode == "P"
    assert small.size == (1200, 500)
    red, green, blue = small.convert("RGB").getpixel((10, 477))
    assert abs(red - 0x00) + abs(green - 0x9E) + abs(blue - 0x73) < 40


def test_pictures_of_the_readme_are_there_and_small():
    root = Path(screenshots.__file__).parents[1]
    shown = [part.partition('"')[0] for part in (root / "README.md").read_text(encoding="utf-8").split('src="')[1:]]
    assert len(shown) >= 2
    images = sorted((root / "analysis" / "images").iterdir())
    assert {str(image.relative_to(root)) for image in images} >= set(shown)
    assert all(image.stat().st_size <= 120_000 for image in images)
    assert sum(image.stat().st_size for image in images) <= 400_000
    assert all(Image.open(image).width <= screenshots.MOST_PIXELS for image in images)


# --- MLflow's pages -------------------------------------------------------------------------------------------------
def test_a_server_that_is_there_is_used():
    with screenshots.mlflow_pages("https://mlflow.example/tracking/") as base:
        assert base == "https://mlflow.example/tracking"


def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho starting\necho 'no such driver: postgresql://u:secret@h/d' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(AnalysisError, match="no such driver") as caught, screenshots.mlflow_pages("postgresql://h/d"):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, devtools.BROWSERS)), reason="no browser")
@pytest.mark.parametrize("view", [True, False])
def test_pictures_of_a_study(view, tmp_path):
    space = SPACES["ensemble_diversity"]
    synthetic_spaces.write_space(tmp_path, space)
    if view:
        client = MlflowClient(synthetic.tracking_uri(tmp_path))
        experiment = client.get_experiment_by_name(space.name).experiment_id
        for name, value in experiment_tags(space, experiment, 0, {}).items():
            client.set_experiment_tag(experiment, name, value)
    made = screenshots.write_screenshots(
        space.name, synthetic.tracking_uri(tmp_path), tmp_path / "images", find_browser()
    )
    sizes = {path.stem: Image.open(path).size for path in made}
    assert sizes["report"][0] == sizes["mlflow-charts"][0] == 1200
    assert sizes["report-phone"] == (780, 1688)
    for path in made:
        colours = Image.open(path).convert("RGB").getcolors(1 << 20)
        assert len(colours) > 20, f"{path.name} shows nothing"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, devtools.BROWSERS)), reason="no browser")
def test_a_page_as_a_browser_sees_it(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<meta name=viewport content='width=device-width'><p id=p>Hello", encoding="utf-8")
    with Browser(find_browser()) as browser:
        shown = browser.open(page.as_uri(), width=390, height=844, dark=True, phone=True)
        shown.wait("document.readyState === 'complete'", "page")
        assert shown.value("document.getElementById('p').innerText") == "Hello"
        assert shown.value("[innerWidth, devicePixelRatio]") == [390, 2]
        assert shown.value("matchMedia('(prefers-color-scheme: dark)').matches") is True
        assert shown.value("fetch('http://example.org').then(() => 'reached', () => 'not reached')") == "not reached"
        with pytest.raises(AnalysisError, match="the page refuses"):
            shown.value("nowhere.at.all")
        with pytest.raises(AnalysisError, match="cannot open"):
            shown.go((tmp_path / "nothing.html").as_uri())
