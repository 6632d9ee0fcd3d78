"""What an experiment says of itself in MLflow, and the views that are saved with it."""

import json
import re
import zlib
from base64 import b64decode

import pytest
from tiny_study import tiny_space

from analysis.drawing.averages import Chart
from search_spaces import SPACES
from study.tracking import views
from trainables import schema

LONGEST_TAG = 5000
"""Characters that every supported MLflow takes as a tag of an experiment."""
CHARTS = [
    Chart(measure=measure, axis=axis, metric=f"w{panel} - {measure} by {axis}")
    for axis in (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
    for measure in (schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.TEST_ACCURACY, schema.GENERALIZATION_GAP)
    for panel in range(16)
]
FIELDS = {
    "LINE": {
        *("metricKey", "selectedMetricKeys", "xAxisKey", "selectedXAxisMetricKey", "useGlobalXaxisKey"),
        *("lineSmoothness", "useGlobalLineSmoothing", "displayPoints"),
    },
    "SCATTER": {"xaxis", "yaxis"},
}
"""Type of a chart -> fields that MLflow's pages read."""
COMMON = {"type", "uuid", "metricSectionId", "runsCountToCompare", "deleted", "isGenerated"}


def states(charts=CHARTS):
    """Return what each saved view shows."""
    found = {}
    for name, tag in views.view_tags(charts, 1234, {}).items():
        envelope = json.loads(tag)
        assert envelope["createdAt"] == envelope["updatedAt"] == 1234
        packed = envelope["state"].removeprefix("deflate;")
        found[name.removeprefix("mlflow.sharedViewState.")] = json.loads(zlib.decompress(b64decode(packed)))
        assert envelope["name"] == views.VIEWS[name.removeprefix("mlflow.sharedViewState.")]
    return found


@pytest.mark.parametrize("name", SPACES)
def test_every_space_has_a_note_that_begins_with_its_question(name):
    note = views.note(SPACES[name], "7")
    assert note.split("\n\n")[0] == SPACES[name].question
    assert f"analysis.report --space {name}`" in note
    assert len(note) <= LONGEST_TAG


def test_views_of_the_paper_s_grid_are_tags_that_mlflow_takes():
    assert all(len(tag) <= LONGEST_TAG for tag in views.view_tags(CHARTS, 1234, {}).values())


def test_lines_of_the_note_are_whole_sentences_because_mlflow_breaks_where_they_end():
    lines = views.note(tiny_space(), "7").splitlines()
    assert all(line == "" or line.startswith(("- ", "**")) for line in lines[1:])


def test_the_note_leads_to_every_view_of_its_own_experiment():
    links = re.findall(r"\]\(#([^)]*)\)", views.note(tiny_space(), "7"))
    assert links == [views.address("7", view) for view in views.VIEWS]
    assert states().keys() == views.VIEWS.keys()


def test_charts_have_the_fields_that_mlflow_reads_and_stand_in_a_section():
    for state in states().values():
        sections = {section["uuid"] for section in state["compareRunSections"]}
        cards = state["compareRunCharts"]
        assert len({card["uuid"] for card in cards}) == len(cards)
        assert {card["metricSectionId"] for card in cards} <= sections
        for card in cards:
            assert card.keys() == COMMON | FIELDS[card["type"]]


def test_the_first_view_has_gaps_by_width_sparsity_and_rewind_epoch_and_hides_no_run():
    state = states()[schema.VIEW]
    titles = [section["name"] for section in state["compareRunSections"] if section["display"]]
    assert titles == [
        "Gap to dense (pp) by width, mean over k",
        "Gap to dense (pp) by sparsity, mean over k",
        "Gap to dense (pp) by rewind epoch k",
    ]
    axes = {card["metricSectionId"]: card["selectedXAxisMetricKey"] for card in state["compareRunCharts"]}
    assert list(axes.values()) == ["width", "sparsity", ""]
    assert (state["runsHiddenMode"], state["searchFilter"]) == ("SHOW_ALL", "tags.level = 'method'")


def test_runs_are_not_ordered_by_time_because_the_page_would_fold_them_into_their_parent():
    assert all("start_time" not in state["orderByKey"] for state in states().values())


def test_a_view_stays_once_its_times_say_that_it_was_edited():
    name = schema.VIEW_TAG + schema.VIEW
    saved = views.view_tags(CHARTS, 1234, {})[name]
    edited = json.dumps({**json.loads(saved), "updatedAt": 1235})
    assert name in views.view_tags([], 1234, {name: saved})
    assert name not in views.view_tags([], 1234, {name: edited})
    assert name not in views.view_tags([], 1234, {name: "{}"})


def test_columns_are_named_as_mlflow_names_them():
    columns = [column for state in states().values() for column in state["selectedColumns"]]
    assert all(re.fullmatch(r"(params|metrics)\.`[\w/]+`", column) for column in columns)


def test_headings_of_the_table_differ_in_the_dozen_letters_that_mlflow_shows():
    headings = [column.split("`")[1] for column in states()[views.CELLS]["selectedColumns"]]
    assert len({heading[:12] for heading in headings}) == len(headings)
