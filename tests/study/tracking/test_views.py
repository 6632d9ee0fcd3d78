"""What an experiment says of itself in MLflow, and the view that is saved with it."""

import json
import re

import pytest
from tiny_study import tiny_space

from search_spaces import SPACES
from study.plan import make_plan
from study.tracking import views
from study.tracking.labels import run_params
from trainables import schema

NOTE, VIEW = "mlflow.note.content", "mlflow.sharedViewState.gaps"
LONGEST_TAG = 5000
"""Characters that MLflow takes as a tag of an experiment."""


def view() -> dict:
    """Return what the saved view shows."""
    envelope = json.loads(views.experiment_tags(tiny_space(), "7", 1234, {})[VIEW])
    assert isinstance(envelope["name"], str)
    assert envelope["createdAt"] == envelope["updatedAt"] == 1234
    return json.loads(envelope["state"])


@pytest.mark.parametrize("name", SPACES)
def test_every_space_has_a_note_that_begins_with_its_question_and_tags_that_mlflow_takes(name):
    tags = views.experiment_tags(SPACES[name], "7", 1234, {})
    assert tags[NOTE].split("\n\n")[0] == SPACES[name].question
    assert f"analysis.report --space {name}`" in tags[NOTE]
    assert all(len(value) <= LONGEST_TAG for value in tags.values())


def test_lines_of_the_note_are_whole_sentences_because_mlflow_breaks_where_they_end():
    lines = views.experiment_tags(tiny_space(), "7", 1234, {})[NOTE].splitlines()
    assert all(line == "" or line.startswith(("- ", "**")) for line in lines[1:])


def test_the_note_leads_to_the_view_of_its_own_experiment():
    tags = views.experiment_tags(tiny_space(), "7", 1234, {})
    (link,) = re.findall(r"\]\((#[^)]*)\)", tags[NOTE])
    assert link.startswith("#/experiments/7/runs?")
    key = re.search(r"viewStateShareKey=(\w+)", link)
    assert key is not None
    assert f"mlflow.sharedViewState.{key[1]}" in tags


def test_what_somebody_has_changed_stays():
    assert views.experiment_tags(tiny_space(), "7", 1234, {NOTE: "mine"}).keys() == {VIEW}
    assert views.experiment_tags(tiny_space(), "7", 1234, {NOTE: "mine", VIEW: "{}"}) == {}


def test_the_view_charts_params_that_sparse_runs_have_as_numbers_against_every_gap():
    shown = view()
    plan = make_plan(tiny_space())
    sparse = [run_params(job, plan.cells[key]) for key, job in plan.jobs.items() if job.kind == schema.SPARSE]
    assert shown["searchFilter"] == "params.stage = 'sparse'"
    for chart in shown["compareRunCharts"]:
        assert chart["type"] == "PARALLEL"
        for params in sparse:
            place = {name: params[name] for name in chart["selectedParams"]}
            assert isinstance(place.pop("method"), str)
            assert all(float(value) >= 0 for value in place.values())
    charted = [metric for chart in shown["compareRunCharts"] for metric in chart["selectedMetrics"]]
    assert charted == [schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.GENERALIZATION_GAP]
    sections = {section["uuid"] for section in shown["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in shown["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in shown["compareRunCharts"]}) == len(charted)


def test_columns_are_named_as_mlflow_names_them():
    assert all(re.fullmatch(r"(params|metrics|attributes)\.`\w+`", column) for column in view()["selectedColumns"])
