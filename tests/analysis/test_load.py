import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import inspect
import re
import sqlite3

import pandas as pd
import pytest
import synthetic_runs as synthetic
from mlflow import MlflowClient

from analysis import command, load, sources
from trainables import schema


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all tests: to make the tables of a new one takes seconds."""
    place = tmp_path_factory.mktemp("study")
    synthetic.write_study(place, "width_sweep")
    client = MlflowClient(tracking_uri=synthetic.tracking_uri(place))
    client.create_experiment("just_planned", artifact_location=str(place))
    foreign = client.create_experiment("somebody_elses", artifact_location=str(place))
    client.set_terminated(client.create_run(foreign).info.run_id)
    client.delete_experiment(client.create_experiment("thrown_away", artifact_location=str(place)))
    return place


@pytest.fixture(scope="module")
def uri(folder):
    return synthetic.tracking_uri(folder)


@pytest.fixture(scope="module")
def frame(uri):
    return load.runs("width_sweep", uri)


def only(frame, **where):
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_one_row_per_job(frame):
    assert frame["key"].is_unique
    counts = frame["stage"].value_counts().to_dict()
    assert counts == {"dense": 12, "prune": 18, "match": 6, "connect": 12, "sparse": 72}
    assert set(frame["status"]) == {"FINISHED"}
    assert list(frame["started"]) == sorted(frame["started"])


def test_values_and_types(frame):
    run = only(frame, method="permuted", width=0.5, sparsity=0.95, rewind_epoch=10, seed_a=2)
    final = synthetic.accuracy("permuted", 0.5, 0.95, 10, 2)
    assert run["test_accuracy"] == pytest.approx(final)  # the last epoch's, not the best or the first
    assert run["generalization_gap"] == pytest.approx(99 - final)
    assert (run["seed_b"], run["matcher"], run["epochs"], run["lr"]) == (3, "activation", "20", "0.08")
    assert (run["reused"], run["error"], run["device"], run["torch"]) == (False, "", "x86_64 cpu", "2.11.0")
    assert run["engine"] == "fp32"
    types = frame.dtypes.astype(str)
    assert {types[name] for name in load.METRICS} == {"float64"}
    assert (types["width"], types["rewind_epoch"], types["seed_b"]) == ("float64", "Int64", "Int64")
    assert load.recipe_fields(frame) == ["epochs", "lr"]


def test_every_column_is_documented_and_every_metric_has_its_unit_in_the_schema(frame):
    columns = [name for name in frame.columns if name not in load.recipe_fields(frame)]
    assert set(columns) <= set(re.findall(r"``(\w+)``", load.runs.__doc__)) | {*load.METRICS, *schema.ENVIRONMENT}
    text = inspect.getsource(schema)
    documented = re.findall(r'^\w+: Final = "(\w+)"\n"""', text, flags=re.MULTILINE)
    assert set(load.METRICS) <= set(documented)


def test_what_a_job_does_not_have_is_missing_and_not_zero(frame):
    dense = frame[frame["stage"] == "dense"]
    assert dense["sparsity"].isna().all()
    assert dense["rewind_epoch"].isna().all()
    assert dense["gap_to_lth"].isna().all()
    assert frame.loc[frame["method"] == "lth", "seed_b"].isna().all()


def test_curves_are_long_and_complete(uri):
    curves = load.curves("width_sweep", uri)
    assert len(curves) == 12 * 11
    point = only(curves, width=1.0, seed_a=0, matcher="identity", alpha=0.5)
    assert point["interpolation_accuracy"] == pytest.approx(90 - 20.3)
    assert point["interpolation_loss"] == pytest.approx(0.3 + 20.3 / 20)
    assert (point["error_barrier"], point["seed_b"]) == (pytest.approx(20.3), 1)


@pytest.mark.parametrize(
    ("points", "step", "alpha"),
    [(25, 4, 1 / 24), (25, 96, 23 / 24), (9, 12, 1 / 8), (11, 10, 0.1), (3, 10, 0.1), (1, 10, 0.1), ("many", 10, 0.1)],
)
def test_alphas_are_those_that_were_measured_not_their_steps(folder, uri, points, step, alpha):
    name = f"alphas_{points}_{step}"
    recorder = synthetic.Recorder(folder, name)
    curve = {schema.INTERPOLATION_LOSS: {0: 1.0, step: 2.0, 100: 1.0}}
    place = {"stage": schema.CONNECT, "width": 1.0, "seed_a": 0, "seed_b": 1, "matcher": "identity"}
    recorder.run({}, curves=curve, interpolation_points=points, **place)
    assert load.curves(name, uri)["alpha"].tolist() == [0.0, pytest.approx(alpha, abs=1e-12), 1.0]


def test_curves_lead_from_a_to_b_only(folder, uri):
    recorder = synthetic.Recorder(folder, "two_paths")
    key = recorder.connect(1.0, (0, 1), "identity", path="pair")
    recorder.connect(1.0, (0, 1), "", path="imp", round=1, sparsity=0.2)
    assert set(load.curves("two_paths", uri)["key"]) == {key}
    rounds = load.runs("two_paths", uri).set_index("path")["round"]
    assert (rounds["imp"], pd.isna(rounds["pair"])) == (1, True)


def test_metrics_of_a_group_have_columns_and_those_of_the_system_have_not(folder, uri):
    recorder = synthetic.Recorder(folder, "grouped")
    recorder.run({"correlation/stream1": 0.5, "system/cpu": 3.0}, stage="match", width=1.0, seed_a=0, seed_b=1)
    recorder.dense(1.0, 0)
    frame = load.runs("grouped", uri)
    assert frame["correlation/stream1"].tolist()[0] == 0.5
    assert pd.isna(frame["correlation/stream1"].iloc[1])
    assert "system/cpu" not in frame
    assert load.recipe_fields(frame) == ["epochs", "lr"]


def test_a_curve_point_logged_twice_counts_as_logged_last(folder, uri):
    recorder = synthetic.Recorder(folder, "curve_twice")
    key = recorder.connect(1.0, (0, 1), "identity")
    run = load.runs("curve_twice", uri).iloc[0]
    recorder.client.log_metric(run["run_id"], schema.INTERPOLATION_LOSS, 7.0, recorder.clock + 10, 50)
    curves = load.curves("curve_twice", uri)
    assert len(curves) == 11
    assert only(curves, key=key, alpha=0.5)["interpolation_loss"] == 7.0


def test_a_job_recorded_twice_is_one_row_the_finished_one(folder, uri):
    recorder = synthetic.Recorder(folder, "twice")
    recorder.sparse("naive", 1.0, 0.8, 0, (0, 1))
    recorder.sparse("naive", 1.0, 0.8, 0, (0, 1), status="FAILED")
    assert load.runs("twice", uri)["status"].tolist() == ["FINISHED"]


def test_the_command_is_that_of_the_study_s_own_run_without_credentials(folder, uri):
    recorder = synthetic.Recorder(folder, "commanded")
    recorder.dense(1.0, 0, tags={schema.TAG_COMMAND: "rm -r /"})
    command = "python -m study.run --tracking-uri postgresql://me:secret@db/x\x1b[2J"
    for study, text in (("false", "echo"), ("true", command)):
        tags = {schema.TAG_STUDY: study, schema.TAG_COMMAND: text}
        recorder.client.create_run(recorder.experiment_id, tags=tags)
    said = load.runs("commanded", uri).attrs["command"]
    assert said.startswith("python -m study.run --tracking-uri postgresql://")
    assert "secret" not in said
    assert "\x1b" not in said


def test_runs_of_an_earlier_version_are_named_with_what_brings_them_up_to_date(folder, uri):
    recorder = synthetic.Recorder(folder, "earlier")
    recipe = f"{schema.TAG_RECIPE}.new"
    recorder.client.set_experiment_tag(recorder.experiment_id, schema.TAG_RECIPE, "new")
    recorder.dense(1.0, 0, tags={recipe: "true"})
    advice = "recorded by an earlier version; running the study's command again brings it up to date"
    with pytest.raises(load.AnalysisError, match=advice):
        load.runs("earlier", uri)
    typed = recorder.dense(1.0, 2, tags={recipe: '{"varied": [{"lr": 0.5, "augment": false, "init": null}]}'})
    recorder.dense(1.0, 6, tags={recipe: '{"varied": {"lr": 0.5, "augment": false, "init": "default"}}'})
    recorder.dense(1.0, 4, tags={recipe: '{"varied": [{"lr": [1]}]}'})
    frame = load.runs("earlier", uri)
    assert frame["key"].tolist() == [typed]
    assert frame.attrs["varied"] == ["lr", "augment", "init"]
    line = frame.iloc[0]
    assert (line["lr"], line["param.lr"], bool(line["augment"])) == (0.5, "0.08", False)
    left_out = frame.attrs["left_out"]
    assert [advice in line for line in left_out].count(True) == 2
    assert ["lr: " in line for line in left_out].count(True) == len(left_out) - 2 == 1


def test_recipes_are_not_pooled(folder, uri):
    recorder = synthetic.Recorder(folder, "two_recipes")
    tags = [{f"{schema.TAG_RECIPE}.{name}": '{"varied": {}}'} for name in ("old", "new")]
    recorder.sparse("naive", 1.0, 0.8, 0, (0, 1), tags=tags[0])
    recorder.dense(1.0, 0, tags=tags[0] | tags[1])
    new = recorder.sparse("naive", 1.0, 0.8, 0, (0, 1), momentum=0.5, tags=tags[1])
    assert len(load.runs("two_recipes", uri)) == 3  # nothing says which recipe is the latest
    recorder.client.set_experiment_tag(recorder.experiment_id, schema.TAG_RECIPE, "new")
    frame = load.runs("two_recipes", uri)
    assert frame["stage"].tolist() == ["dense", "sparse"]
    assert frame["key"].iloc[1] == new
    assert frame.attrs["set_aside"] == 1
    recorder.client.set_experiment_tag(recorder.experiment_id, schema.TAG_RECIPE, "newest")
    advice = "running the study's command again .python -m study.run --space two_recipes .* trains the rest"
    with pytest.raises(load.AnalysisError, match=f"no runs yet of its latest recipe, and 3 of earlier ones; {advice}"):
        load.runs("two_recipes", uri)


def test_runs_that_say_nothing_of_recipes_are_named_with_what_brings_them_up_to_date(folder, uri):
    recorder = synthetic.Recorder(folder, "no recipes")
    recorder.client.set_experiment_tag(recorder.experiment_id, schema.TAG_RECIPE, "new")
    recorder.dense(1.0, 0)
    advice = "has 1 runs of an earlier version; running .*study.run --space 'no recipes' .* and trains nothing"
    with pytest.raises(load.AnalysisError, match=advice):
        load.runs("no recipes", uri)


def test_the_question_of_a_study(folder, uri):
    recorder = synthetic.Recorder(folder, "asking")
    recorder.dense(1.0, 0)
    assert load.runs("asking", uri).attrs["question"] == ""
    recorder.client.set_experiment_tag(recorder.experiment_id, "mlflow.note.content", "Does it help?\n\nMore.")
    assert load.runs("asking", uri).attrs["question"] == "Does it help?"


def test_infinite_and_undefined_metrics_are_read_as_such_and_left_out_of_the_frame(folder, uri):
    recorder = synthetic.Recorder(folder, "diverged")
    metrics = {schema.TEST_LOSS: float("inf"), schema.TRAIN_LOSS: float("nan")}
    recorder.run(metrics, stage="dense", method="dense", width=1.0, seed_a=0)
    reader = sources.source(uri)
    experiment = reader.experiment("diverged")
    assert reader.records(experiment)[0].metrics["test_loss"] == float("inf")
    frame = load.runs("diverged", uri)
    assert frame[["test_loss", "train_loss"]].isna().all(axis=None)
    assert frame.attrs["left_out"] == [
        "metric test_loss of 1 runs, not a number",
        "metric train_loss of 1 runs, not a number",
    ]


def test_no_planes_is_an_empty_frame(uri):
    planes = load.planes("width_sweep", uri)
    assert planes.empty
    assert {"net", "x", "y", "error", "loss", "sparsity"} <= set(planes.columns)
    assert planes.attrs["unreadable"] == 0


def test_no_curves_is_an_empty_frame(folder, uri):
    synthetic.Recorder(folder, "no_curves").dense(1.0, 0)
    curves = load.curves("no_curves", uri)
    assert curves.empty
    assert {"alpha", "matcher", "interpolation_loss", "error_barrier"} <= set(curves.columns)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("with_swep", "no experiment 'with_swep'.*did you mean 'width_sweep'.*known: .*just_planned"),
        ("just_planned", "'just_planned' has no runs yet"),
        ("somebody_elses", "1 runs, but none is a study's job.*job_key"),
        (
            "thrown_away",
            r"'thrown_away' has been deleted; restore it \(`.*mlflow experiments restore --experiment-id \d+`",
        ),
    ],
)
def test_experiments_that_cannot_be_read(uri, space, message):
    with pytest.raises(load.AnalysisError, match=message):
        load.runs(space, uri)
    with pytest.raises(load.AnalysisError, match=message):
        load.curves(space, uri)
    with pytest.raises(load.AnalysisError, match=message):
        load.planes(space, uri)


def test_a_missing_database_is_named_and_not_created(tmp_path):
    file = tmp_path / "mlflow.db"
    with pytest.raises(load.AnalysisError, match=f"no MLflow database at {file}"):
        load.runs("width_sweep", f"sqlite:///{file}")
    assert not list(tmp_path.iterdir())


def test_other_files_are_not_touched(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database, but long enough to be looked at as one by a careless reader")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE addresses (name TEXT)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(load.AnalysisError, match=r"notes\.txt cannot be read as an sqlite database"):
        load.runs("width_sweep", f"sqlite:///{text}")
    with pytest.raises(load.AnalysisError, match=r"other\.db is not an MLflow database"):
        load.runs("width_sweep", f"sqlite:///{other}")
    assert other.read_bytes() == before


def test_a_place_that_is_not_a_number_names_its_run(folder, uri):
    synthetic.Recorder(folder, "odd").run({}, stage="dense", width="wide", seed_a=0)
    with pytest.raises(load.AnalysisError, match=r"run \w+: width: 'wide' in place of a number"):
        load.runs("odd", uri)


def asked(*options):
    return command.tracking_uri(command.parser("report", "").parse_args(["--space", "x", *options]))


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("outputs", "sqlite:///outputs/mlflow.db"),
        ("/data/study", "sqlite:////data/study/mlflow.db"),
        ("file:///data/my%20study", "sqlite:////data/my study/mlflow.db"),
        ("file:///data/a#b", "sqlite:////data/a#b/mlflow.db"),  # where study.run keeps it
        ("s3://bucket/study", "sqlite:///outputs/mlflow.db"),
    ],
)
def test_the_tracking_store_lies_in_the_storage(storage, expected):
    assert asked("--storage", storage) == expected


def test_a_named_tracking_store_goes_before_the_storage():
    assert asked("--storage", "s3://bucket/x", "--tracking-uri", "http://server") == "http://server"
