"""MLflow's SQLite databases: one reading of their names, and refusals that are found before anything starts."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from analysis import sources
from study.tracking.destination import _ask_database, check_tracking
from trainables.host import databases
from trainables.host.databases import (
    ARTIFACTS,
    artifact_folder,
    default_tracking_uri,
    misplaced,
    refusal,
    sqlite_file,
    sqlite_uri,
)
from trainables.storage import StorageError

NAMES = ("plain", "a b", "a%20b", "a?b=c", "a#b", "100%", "it's", "ü&;=")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one experiment; making one takes seconds."""
    folder = tmp_path_factory.mktemp("made")
    client = MlflowClient(default_tracking_uri(folder))
    client.create_experiment("here", artifact_location=(folder / "mlartifacts" / "here").as_uri())
    return folder / "mlflow.db"


@pytest.mark.parametrize("name", NAMES)
def test_study_analysis_and_mlflow_read_one_name_alike(name: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    uri = default_tracking_uri(folder)
    assert sqlite_file(uri) == folder / "mlflow.db"
    shutil.copy(made, folder)
    assert MlflowClient(uri).get_experiment_by_name("here") is not None
    assert sources.source(uri).experiment("here") is not None
    files = [path for path in tmp_path.rglob("*") if path.is_file()]  # MLflow leaves empty folders behind
    assert files == [folder / "mlflow.db"], "nobody makes another one"


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_come_back_with_either_sqlalchemy(name: str, decodes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_decodes", lambda: decodes)
    file = Path("/folder", name, "mlflow.db")
    assert sqlite_file(sqlite_uri(file)) == file


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_are_looked_for_where_mlflow_writes_them(name: str, tmp_path: Path) -> None:
    for location in (f"/folder/{name}/artifacts", Path("/folder", name, "artifacts").as_uri()):
        assert artifact_folder(location) == Path(local_file_uri_to_path(location))
    home = tmp_path / "a b"
    (home / ARTIFACTS).mkdir(parents=True)
    for location in (f"{tmp_path}/a%20b/{ARTIFACTS}", (home / ARTIFACTS).as_uri()):
        assert misplaced(location, home / "mlflow.db") is None


@pytest.mark.parametrize("location", ["s3://bucket/a", "mlflow-artifacts:/1", "dbfs:/a"])
def test_artifacts_elsewhere_have_no_folder_here(location: str, tmp_path: Path) -> None:
    assert artifact_folder(location) is None
    assert misplaced(location, tmp_path / "mlflow.db") is None


def change(file: Path, *statements: str) -> None:
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def write_over(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    file.write_bytes(content)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


REFUSED = {
    "deleted experiment": (
        lambda file: change(file, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'here'"),
        r"restore it \(`MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id 1`\), "
        r"remove it for good \(`mlflow gc --backend-store-uri {uri} --experiment-ids 1`\)",
    ),
    "earlier version": (
        lambda file: change(file, "UPDATE alembic_version SET version_num = 'bd07f7e963c5'"),
        r"`mlflow db upgrade {uri}`",
    ),
    "later version": (
        lambda file: change(file, "UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        r"a newer MLflow than the installed one made it",
    ),
    "another program's": (
        lambda file: change(file, "ALTER TABLE experiments RENAME TO letters"),
        r"not a database of MLflow's, .*: mv ",
    ),
    "written over": (write_over, r"is damaged .*: mv "),
    "no database": (lambda file: file.write_bytes(b"text" * 1000), r"is damaged .*: mv "),
    "directory": (replace_by_directory, r"is a directory.*: mv "),
    "moved artifacts": (
        lambda file: change(file, "UPDATE experiments SET artifact_location = 'file:///nowhere/at/all'"),
        r"copied or moved: it keeps its artifacts in /nowhere/at/all.*: mv ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mlflow_would_refuse_is_found_at_the_start_with_its_cure(name: str, made: Path, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    folder = tmp_path / "a b"
    folder.mkdir()
    file = folder / "mlflow.db"
    shutil.copy(made, file)
    change(file, f"UPDATE experiments SET artifact_location = '{(folder / 'mlartifacts' / 'here').as_uri()}'")
    uri = sqlite_uri(file)
    check_tracking(uri, "here")
    damage(file)
    with pytest.raises(ValueError, match=message.format(uri=shlex.quote(uri))) as caught:
        check_tracking(uri, "here")
    assert "\n" not in str(caught.value)


def test_a_path_that_begins_like_an_address_is_no_server() -> None:
    assert databases.is_server("https://server:5000/mlflow")
    assert not databases.is_server("httpdata/mlflow.db")
    assert "remove it for good" not in databases.deleted("https://server", "here", "1")
    assert "remove it for good" in databases.deleted("httpdata/mlflow.db", "here", "1")


@pytest.mark.parametrize("name", ["deleted experiment", "earlier version", "later version"])
def test_a_database_that_is_no_file_is_asked_for_the_same(name: str, made: Path, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    uri = sqlite_uri(Path(shutil.copy(made, tmp_path)))  # in place of a server's, which SQLAlchemy asks likewise
    assert _ask_database(uri, "here") is None
    assert _ask_database(uri, "another") is None
    damage(tmp_path / "mlflow.db")
    assert re.search(message.format(uri=shlex.quote(uri)), _ask_database(uri, "here") or "")


def test_a_database_that_does_not_answer_is_an_error_without_its_password() -> None:
    with pytest.raises(StorageError, match=r"cannot be reached: .*unable to open"):
        _ask_database("sqlite:////nowhere/at/all.db?password=secret", "here")


def test_what_mlflow_takes_is_not_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for uri in (sqlite_uri(tmp_path / "empty.db"), sqlite_uri(tmp_path / "new.db"), "sqlite:///:memory:"):
        assert refusal(uri, "here") is None
    assert refusal(sqlite_uri(made), "another") is None


def test_versions_are_those_of_the_mlflow_that_is_installed(made: Path) -> None:
    known, newest = databases._revisions()
    with sqlite3.connect(made) as connection:
        assert set(connection.execute("SELECT version_num FROM alembic_version")) == {(each,) for each in newest}
    assert newest < known


@pytest.mark.parametrize("name", ["written over", "no database", "directory"])
def test_analysis_says_in_one_line_what_it_cannot_read(name: str, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(made, file)
    REFUSED[name][0](file)
    with pytest.raises(sources.AnalysisError, match=r"mlflow\.db") as caught:
        sources.source(sqlite_uri(file)).names()
    assert "\n" not in str(caught.value)
