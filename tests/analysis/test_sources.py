import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses
import shutil
import sqlite3

import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces
from mlflow import MlflowClient
from mlflow.entities import Metric

from analysis import load, sources
from search_spaces import SPACES
from trainables import schema

SPACE = dataclasses.replace(
    SPACES["mode_connectivity"], width=(1.0,), seeds=(0,), sparsity=(0.5,), plane_resolution=3, interpolation_points=3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("records")
    synthetic_spaces.write_space(place, SPACE)
    return place


@pytest.fixture(scope="module")
def uri(folder):
    return synthetic.tracking_uri(folder)


@pytest.fixture
def through_the_client(monkeypatch):
    """Read as from a tracking server, whatever the URI."""
    monkeypatch.setattr(load, "source", sources.Source)


READERS = (load.runs, load.curves, load.planes)


def test_a_file_is_read_without_the_client_and_a_server_with_it(uri):
    assert type(sources.source(uri)) is sources._Database
    assert type(sources.source("sqlite:///:memory:")) is sources.Source


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_file_and_client_give_the_same_frames(uri, read, monkeypatch):
    from_file = read(SPACE.name, uri)
    monkeypatch.setattr(load, "source", sources.Source)
    monkeypatch.setattr(sources, "PAGE", 3)  # so that pages are joined, too
    from_client = read(SPACE.name, uri)
    assert len(from_file) > 3
    assert from_file.attrs == from_client.attrs
    pd.testing.assert_frame_equal(from_file, from_client)


def test_what_only_a_client_can_write_is_read_alike(tmp_path, monkeypatch):
    """Deleted runs, special numbers, missing names and tags: as the client has them."""
    recorder = synthetic.Recorder(tmp_path, "odd")
    key = recorder.dense(1.0, 0)
    recorder.dense(1.0, 1, status="RUNNING")
    recorder.client.delete_run(load.runs("odd", synthetic.tracking_uri(tmp_path))["run_id"].iloc[1])
    run_id = load.runs("odd", synthetic.tracking_uri(tmp_path))["run_id"].iloc[0]
    special = {schema.TEST_LOSS: float("nan"), schema.TRAIN_LOSS: float("inf"), schema.LOSS_BARRIER: float("-inf")}
    recorder.client.log_batch(run_id, [Metric(name, value, 1, 0) for name, value in special.items()])
    recorder.client.set_tag(run_id, "mlflow.runName", "")
    uri = synthetic.tracking_uri(tmp_path)
    from_file = load.runs("odd", uri)
    assert from_file["key"].tolist() == [key]
    assert pd.isna(from_file[schema.TEST_LOSS].iloc[0])
    for reader in (sources.source(uri), sources.Source(uri)):
        experiment = reader.experiment("odd")
        metrics = reader.records(experiment)[0].metrics
        assert (metrics[schema.TRAIN_LOSS], metrics[schema.LOSS_BARRIER]) == (float("inf"), -float("inf"))
    monkeypatch.setattr(load, "source", sources.Source)
    pd.testing.assert_frame_equal(from_file, load.runs("odd", synthetic.tracking_uri(tmp_path)))


def test_a_database_of_another_layout_is_left_to_the_client(folder, tmp_path):
    """MLflow may change its tables; its client knows them, and says so if it does not."""
    other = tmp_path / "mlflow.db"
    shutil.copyfile(folder / "mlflow.db", other)
    connection = sqlite3.connect(other)
    connection.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO not_a_number")
    connection.close()
    assert type(sources.source(f"sqlite:///{other}")) is sources.Source


def test_reading_does_not_write(folder, uri):
    before = (folder / "mlflow.db").read_bytes()
    for read in READERS:
        read(SPACE.name, uri)
    assert (folder / "mlflow.db").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}


# --- artifacts ------------------------------------------------------------------------------------------------------
def test_planes_have_their_grid_and_nets(uri):
    planes = load.planes(SPACE.name, uri)
    assert planes["net"].value_counts().to_dict() == {"": 9, "dense": 1, "lth": 1, "permuted": 1}
    nets = planes.set_index("net").loc[["dense", "lth", "permuted"]]
    runs = load.runs(SPACE.name, uri)
    plane = runs[runs["stage"] == schema.PLANE].iloc[0]
    assert nets["error"].tolist() == [plane[f"{schema.PLANE_ERROR}/{net}"] for net in nets.index]
    assert (nets["x"].iloc[0], nets["y"].iloc[0], nets["y"].iloc[1]) == (0.0, 0.0, 0.0)
    assert set(planes["run_id"]) == {plane["run_id"]}


def test_a_storage_that_was_moved_has_its_artifacts_beside_the_database(folder, tmp_path, uri):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copyfile(folder / "mlflow.db", moved / "mlflow.db")
    shutil.copytree(folder / "mlartifacts", moved / "mlartifacts")
    here = load.planes(SPACE.name, uri)
    (folder / "mlartifacts").rename(folder / "away")
    try:
        there = load.planes(SPACE.name, synthetic.tracking_uri(moved))
        gone = load.planes(SPACE.name, uri)
    finally:
        (folder / "away").rename(folder / "mlartifacts")
    pd.testing.assert_frame_equal(here, there)
    assert gone.empty
    assert gone.attrs["unreadable"] == 1


@pytest.mark.usefixtures("through_the_client")
def test_a_server_that_has_lost_an_artifact(folder, uri):
    (folder / "mlartifacts").rename(folder / "away")
    try:
        gone = load.planes(SPACE.name, uri)
    finally:
        (folder / "away").rename(folder / "mlartifacts")
    assert (len(gone), gone.attrs["unreadable"]) == (0, 1)


def test_the_client_names_what_it_cannot_reach():
    with pytest.raises(load.AnalysisError, match=r"cannot read postgresql\+nosuchdriver://\*\*\*@db/x"):
        sources.Source("postgresql+nosuchdriver://me:secret@db/x").names()


def test_runs_of_one_stage_only(uri):
    reader = sources.source(uri)
    experiment = reader.experiment(SPACE.name)
    stages = [record.params.get(schema.PARAM_STAGE) for record in reader.records(experiment, schema.MATCH)]
    assert set(stages) == {schema.MATCH}
    assert len(reader.records(experiment)) > len(stages)
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name(SPACE.name).experiment_id == experiment.id
