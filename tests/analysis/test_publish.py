"""The report as a run of the study's experiment."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import shutil
import sqlite3
from pathlib import Path

import pytest
import synthetic_runs as synthetic

from analysis import load, mlflow_report, report
from trainables import schema


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all tests, an experiment for each."""
    return synthetic.with_tables(tmp_path_factory.mktemp("study"))


@pytest.fixture
def recorder(folder, request):
    recorder = synthetic.Recorder(folder, request.node.name)
    recorder.dense(1.0, 0)
    return recorder


@pytest.fixture
def uri(folder):
    return synthetic.tracking_uri(folder)


def files(folder, *names, content="old"):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content)
    return [folder / name for name in names]


def reports(recorder):
    """The runs of an experiment that are no jobs."""
    runs = recorder.client.search_runs([recorder.experiment_id])
    return [run for run in runs if schema.TAG_KEY not in run.data.tags]


def artifacts(recorder, run_id):
    return [found.path for found in recorder.client.list_artifacts(run_id)]


def content(run, name):
    return Path(run.info.artifact_uri.removeprefix("file://"), name).read_text()


def test_a_report_is_a_finished_run_that_says_what_it_is(recorder, uri, tmp_path, request):
    paths = files(tmp_path / "report", "index.html", "rewind.png", "accuracy.csv")
    run_id = mlflow_report.log_report(request.node.name, uri, paths, "It helps.")
    (run,) = reports(recorder)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "study", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == "It helps."
    assert artifacts(recorder, run_id) == ["accuracy.csv", "index.html", "rewind.png"]


def test_the_next_report_takes_its_place_and_leaves_nothing_of_it(recorder, uri, tmp_path, request):
    first = mlflow_report.log_report(request.node.name, uri, files(tmp_path / "a", "index.html", "plane.png"), "early")
    second = mlflow_report.log_report(
        request.node.name, uri, files(tmp_path / "b", "index.html", "width.png", content="new"), "late"
    )
    assert first == second
    (run,) = reports(recorder)
    assert artifacts(recorder, second) == ["index.html", "width.png"]
    assert content(run, "index.html") == "new"
    assert run.data.tags["mlflow.note.content"] == "late"


def test_of_two_reports_that_were_logged_at_once_one_stays(recorder, uri, tmp_path, request):
    for _ in range(2):
        recorder.client.create_run(recorder.experiment_id, tags={schema.TAG_STUDY: "true"})
    mlflow_report.log_report(request.node.name, uri, files(tmp_path / "a", "index.html"), "")
    assert len(reports(recorder)) == 1


def test_readers_of_jobs_pass_the_report_over(recorder, uri, tmp_path, request):
    before = load.runs(request.node.name, uri)
    mlflow_report.log_report(request.node.name, uri, files(tmp_path / "a", "index.html"), "")
    assert load.runs(request.node.name, uri).equals(before)


def test_what_cannot_be_logged_leaves_no_empty_report(recorder, uri, tmp_path, request):
    with pytest.raises(mlflow_report.NotLogged, match="No such file"):
        mlflow_report.log_report(request.node.name, uri, [tmp_path / "lost.html"], "")
    assert reports(recorder) == []


def test_a_report_without_a_study(uri, tmp_path):
    with pytest.raises(mlflow_report.NotLogged, match="no experiment 'nowhere' in sqlite"):
        mlflow_report.log_report("nowhere", uri, files(tmp_path / "a", "index.html"), "")


def test_a_server_that_is_away_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(mlflow_report.NotLogged) as raised:
        mlflow_report.log_report("x", "http://me:secret@127.0.0.1:1", files(tmp_path / "a", "index.html"), "")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_copy_does_not_write_into_the_original(recorder, folder, tmp_path, request):
    (folder / "mlartifacts").mkdir(exist_ok=True)
    shutil.copy(folder / "mlflow.db", tmp_path)
    paths = files(tmp_path / "a", "index.html")
    _relocate(tmp_path, request.node.name, "/nowhere/mlartifacts")
    with pytest.raises(mlflow_report.NotLogged, match=r"artifacts in .*, which is not on this machine"):
        mlflow_report.log_report(request.node.name, synthetic.tracking_uri(tmp_path), paths, "")
    (tmp_path / "mlartifacts").mkdir()
    with pytest.raises(mlflow_report.NotLogged, match="it has been copied or moved: its artifacts are in"):
        mlflow_report.log_report(request.node.name, synthetic.tracking_uri(tmp_path), paths, "")
    assert not Path("/nowhere").exists()


def _relocate(folder, experiment, location):
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (location, experiment))


class KeepsEverything:
    """Artifacts of a store that does not delete, as some of MLflow's do not."""

    def __init__(self, *names):
        self.names = set(names)

    def list_artifacts(self):
        return [type("File", (), {"path": name}) for name in self.names]

    def log_artifacts(self, folder):
        self.names |= {path.name for path in Path(folder).iterdir()}

    def delete_artifacts(self, name):
        pass


def test_what_cannot_be_removed_is_named(tmp_path):
    with pytest.raises(mlflow_report.NotLogged, match=r"cannot be removed: plane\.png$"):
        mlflow_report._replace(KeepsEverything("plane.png", "index.html"), files(tmp_path, "index.html"))


# --- the command ------------------------------------------------------------------------------------------------------
def command(folder, space, out, *options):
    return report.main(["--space", space, "--storage", str(folder), "--out", str(out), *options])


@pytest.fixture
def quick(monkeypatch):
    """Reports without figures."""
    monkeypatch.setattr("analysis.write.FIGURES", {})


@pytest.mark.usefixtures("quick")
def test_the_command_logs_what_it_writes(recorder, folder, tmp_path, request, capsys):
    assert command(folder, request.node.name, tmp_path) == 0
    (run,) = reports(recorder)
    assert set(artifacts(recorder, run.info.run_id)) == {path.name for path in tmp_path.iterdir()}
    assert {"index.html", "runs.csv", "accuracy.csv"} <= set(artifacts(recorder, run.info.run_id))
    assert capsys.readouterr() == (f"{tmp_path / 'index.html'}\n", "")


@pytest.mark.usefixtures("quick")
def test_the_command_logs_nothing_if_told_so(recorder, folder, tmp_path, request):
    assert command(folder, request.node.name, tmp_path, "--no-log") == 0
    assert reports(recorder) == []


@pytest.mark.usefixtures("quick", "recorder")
def test_a_report_that_is_not_logged_is_there_all_the_same(folder, tmp_path, request, capsys):
    shutil.copy(folder / "mlflow.db", tmp_path)
    _relocate(tmp_path, request.node.name, "/nowhere/mlartifacts")
    assert command(tmp_path, request.node.name, tmp_path / "report") == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'report' / 'index.html'}\n"
    assert said.err.startswith("warning: the report is not logged to MLflow: ")
    assert said.err.count("\n") == 1
    assert (tmp_path / "report" / "index.html").exists()
