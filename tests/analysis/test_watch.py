"""The report of a study that is under way."""

import os

from checkout import ROOT

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import signal
import subprocess
import sys
import time
import types

import pytest
import synthetic_runs as synthetic
from waiting import HANG_SECONDS

from analysis import load, report, watch, write
from trainables import schema
from trainables.storage.store import Store

REFRESH = '<meta http-equiv="refresh" content="7">'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all tests, an experiment for each."""
    return synthetic.with_tables(tmp_path_factory.mktemp("study"))


@pytest.fixture
def scene(folder, request, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(watch, "REST", 0)
    monkeypatch.setattr("analysis.write.FIGURES", {})
    return Scene(folder, request.node.name, tmp_path)


class Scene:
    """A study that does one thing between two looks at it."""

    def __init__(self, folder, space, place):
        self.folder, self.space, self.out = folder, space, place / "report"
        self.page, self.storage = self.out / "index.html", place / "storage"
        self.pauses = []
        self._lease = None

    def begin(self):
        self._lease = Store(self.storage).register_study({"space": self.space, "jobs": 9})

    def end(self):
        self._lease.release()

    def record(self, seed=0, status="FINISHED"):
        synthetic.Recorder(self.folder, self.space).run({}, stage=schema.DENSE, width=1.0, seed_a=seed, status=status)

    def watch(self, *events, **options):
        """Watch it; Ctrl-C comes after the last event."""
        todo = iter(events)

        def pause(seconds):
            self.pauses.append(seconds)
            event = next(todo, None)
            if event is None:
                raise KeyboardInterrupt
            event()

        uri = synthetic.tracking_uri(self.folder)
        watch.watch(self.space, uri, str(self.storage), self.out, 7, pause=pause, **{"logged": False, **options})
        assert next(todo, None) is None, "it ended before the last event"

    def text(self):
        return self.page.read_text(encoding="utf-8")


def nothing():
    pass


def said(capsys):
    """Return the lines that were printed without their clock."""
    return [line[10:] if line[2:3] == ":" else line for line in capsys.readouterr().out.splitlines()]


def test_from_before_the_experiment_to_the_end_of_the_study(scene, capsys):
    pages = []

    def keep():
        pages.append(scene.text())

    scene.watch(
        *(nothing, scene.begin, scene.record, keep),
        *(lambda: scene.record(1, "RUNNING"), keep, scene.end),
    )
    lines = said(capsys)
    assert lines[0] == f"watching {scene.space} every 7 s until the study ends; Ctrl-C stops watching"
    assert lines[1].startswith(f"no study of {scene.space} is running on ")
    assert lines[2].startswith(f"waiting: no experiment '{scene.space}' in ")
    assert lines[3:] == [
        f"1 of 9 jobs finished  {scene.page}",
        f"1 of 9 jobs finished  {scene.page}",
        f"the study has ended; {scene.page}",
    ]
    assert all(REFRESH in page for page in pages)
    assert pages[0] != pages[1]
    assert "refresh" not in scene.text()
    assert "1 of 2 jobs on record have finished" in scene.text()


def test_nothing_running_is_not_the_end(scene, capsys):
    scene.record()
    scene.watch(nothing, scene.begin, nothing, nothing)  # and then Ctrl-C
    assert said(capsys)[-1] == f"stopped; {scene.page}"
    scene.end()
    assert "refresh" not in scene.text()


def test_results_are_waited_for_after_the_study_has_signed_off(scene, monkeypatch, capsys):
    monkeypatch.setattr(watch, "SETTLED_SECONDS", 1e9)
    scene.record()
    scene.begin()
    scene.watch(scene.end, nothing, lambda: scene.record(1))
    assert said(capsys)[-2:] == [f"2 of 9 jobs finished  {scene.page}", f"stopped; {scene.page}"]


def test_what_has_not_changed_is_not_written_again(scene):
    stamps = []
    scene.record()
    scene.watch(*3 * [lambda: stamps.append(scene.page.stat().st_mtime_ns)])
    assert len(set(stamps)) == 1


def test_a_long_look_is_followed_by_a_long_rest(scene, monkeypatch):
    """A look takes 10 seconds: of those that are due every 7 seconds, all that fall into 30 are passed over."""
    monkeypatch.setattr(watch, "REST", 3)
    now, looks = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime)
    monkeypatch.setattr(watch, "time", clock)

    def pass_by(seconds):
        now[0] += seconds

    def slowly(*_):
        looks.append(now[0])
        pass_by(10)
        raise load.AnalysisError("nothing yet")

    monkeypatch.setattr(load, "runs", slowly)
    scene.watch(*12 * [lambda: pass_by(7)])
    assert looks == [0, 45, 90]
    assert set(scene.pauses) == {7}


def test_a_tracking_server_that_is_away_for_a_while(scene, monkeypatch, capsys):
    runs = load.runs

    def away():
        addresses = iter(range(100))

        def refuse(*_):
            raise load.AnalysisError(f"cannot read http://here: refused <socket at {next(addresses):#x}>")

        monkeypatch.setattr(load, "runs", refuse)

    def back():
        monkeypatch.setattr(load, "runs", runs)

    scene.record()
    scene.watch(away, nothing, nothing, back, lambda: scene.record(1), away, nothing)
    lines = [line.partition(" at ")[0] for line in said(capsys)[2:]]
    assert lines == [
        f"1 of 1 jobs finished  {scene.page}",
        "waiting: cannot read http://here: refused <socket",
        f"2 of 2 jobs finished  {scene.page}",
        "waiting: cannot read http://here: refused <socket",
        f"stopped; {scene.page}",
    ]


def test_a_page_that_could_not_be_written_is_tried_again(scene, monkeypatch, capsys):
    write_files, failures = write.write_files, iter([True])

    def unlucky(*arguments, **options):
        if next(failures, False):
            raise load.AnalysisError("the server went away half-way")
        return write_files(*arguments, **options)

    monkeypatch.setattr(write, "write_files", unlucky)
    scene.record()
    scene.watch(nothing)
    lines = said(capsys)
    assert lines[2:4] == ["waiting: the server went away half-way", f"1 of 1 jobs finished  {scene.page}"]


def test_the_report_is_logged_once_at_the_end(scene, monkeypatch):
    logged = []
    monkeypatch.setattr(write, "log", lambda frame, *_: logged.append((len(frame), scene.text())))
    scene.record()
    scene.watch(nothing, lambda: scene.record(1), nothing, logged=True)
    ((jobs, page),) = logged
    assert jobs == 2
    assert "refresh" not in page


def test_ctrl_c_before_there_is_anything(scene, capsys):
    scene.watch(nothing)
    assert said(capsys)[-1] == "stopped; there was nothing to report"
    assert not scene.out.exists()


def test_a_storage_that_tells_nothing_leaves_it_to_ctrl_c(scene, capsys):
    scene.storage = "nowhere://bucket"
    scene.record()
    scene.watch(nothing, nothing)
    lines = said(capsys)
    assert lines[1].startswith("cannot tell whether the study runs: ")
    assert lines[-1] == f"stopped; {scene.page}"


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "1.5"])
def test_an_interval_is_a_whole_number_of_seconds(seconds, capsys):
    with pytest.raises(SystemExit) as left:
        report.main(["--space", "x", f"--watch={seconds}"])
    assert left.value.code == 2
    assert f"at least 1, got '{seconds}'" in capsys.readouterr().err


def test_a_reader_never_sees_a_part_of_a_page(tmp_path):
    page = tmp_path / "index.html"
    write.replace_text(page, "whole")
    with pytest.raises(UnicodeEncodeError):
        write.replace_text(page, 1000 * "begun " + "\ud800")
    assert page.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.slow
def test_the_command_ends_well_on_ctrl_c(folder, tmp_path):
    synthetic.write_partial(folder, "interrupted")
    options = ["--space", "interrupted", "--storage", str(folder), "--out", str(tmp_path), "--watch", "1"]
    line = [sys.executable, "-m", "analysis.report", *options]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("6 of 8 jobs finished" in text for text in process.stdout)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].endswith(f"stopped; {tmp_path / 'index.html'}")
    assert 'http-equiv="refresh"' not in (tmp_path / "index.html").read_text(encoding="utf-8")
