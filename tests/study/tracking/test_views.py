"""What an experiment says of itself in MLflow, and the views that are saved with it."""

import dataclasses
import json
import re
import zlib
from base64 import b64decode
from collections import Counter

import pytest
from tiny_study import tiny_space

from analysis.drawing.averages import Chart
from search_spaces import SPACES
from study.tracking import views
from trainables import schema


def charts(panels):
    """Return charts of every measure over every axis, `panels` of each."""
    return [
        Chart(measure=measure, axis=axis, metric=f"w{panel} - {measure} by {axis}", late=True)
        for axis in (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
        for measure in (schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.TEST_ACCURACY, schema.GENERALIZATION_GAP)
        for panel in range(panels)
    ]


CHARTS = charts(16)
FIELDS = {
    "LINE": {
        *("metricKey", "selectedMetricKeys", "xAxisKey", "selectedXAxisMetricKey", "useGlobalXaxisKey"),
        *("lineSmoothness", "useGlobalLineSmoothing", "displayPoints"),
    },
    "SCATTER": {"xaxis", "yaxis"},
}
"""Type of a chart -> fields that MLflow's pages read."""
COMMON = {"type", "uuid", "metricSectionId", "runsCountToCompare", "deleted", "isGenerated"}


def states(charts=CHARTS, settings=()):
    """Return what each saved view shows."""
    found = {}
    for name, tag in views.view_tags(charts, settings, 1234, {}).items():
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
    assert len(note) <= views.LONGEST


def test_views_of_the_paper_s_grid_are_tags_that_mlflow_takes():
    assert all(len(tag) <= views.LONGEST for tag in views.view_tags(CHARTS, ["lr"], 1234, {}).values())


@pytest.mark.parametrize("panels", [0, 1, 37, 200])
def test_a_grid_of_any_size_has_views_that_mlflow_takes(panels):
    for name, tag in views.view_tags(charts(panels), ["lr"], 1234, {}).items():
        assert len(tag) <= views.LONGEST, name
        envelope = json.loads(tag)
        state = json.loads(zlib.decompress(b64decode(envelope["state"].removeprefix(views.PACKED))))
        if not name.endswith(views.CELLS):
            shown = Counter(card["metricSectionId"] for card in state["compareRunCharts"])
            assert len(set(shown.values())) <= 1, "a section lacks more charts than another"
            kept = max(shown.values(), default=0)
            assert kept == panels if panels <= 16 else 16 < kept <= panels
            assert (f"(first {kept} of {panels} charts per section)" in envelope["name"]) == (kept < panels)


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
        "Gap to dense (pp) by width, mean over k > 0",
        "Gap to dense (pp) by sparsity, mean over k > 0",
        "Gap to dense (pp) by rewind epoch k",
    ]
    assert max(map(len, titles)) <= 47, "MLflow cuts the title"
    axes = {card["metricSectionId"]: card["selectedXAxisMetricKey"] for card in state["compareRunCharts"]}
    assert list(axes.values()) == ["width", "sparsity", ""]
    assert state["runsHiddenMode"] == "SHOW_ALL"


def test_only_views_of_gaps_leave_out_dense_nets_which_have_none():
    filters = {view: state["searchFilter"] for view, state in states().items()}
    assert filters.pop(schema.VIEW) == "tags.level = 'method' and params.method != 'dense'"
    assert filters.pop(views.CELLS) == "tags.level = 'cell'"
    assert set(filters.values()) == {"tags.level = 'method'"}


def test_a_study_without_a_later_rewind_epoch_says_that_its_means_are_of_epoch_0():
    charts = [dataclasses.replace(chart, late=False) for chart in CHARTS]
    sections = states(charts)[schema.VIEW]["compareRunSections"]
    assert [section["name"] for section in sections][:2] == [
        "Gap to dense (pp) by width, k = 0",
        "Gap to dense (pp) by sparsity, k = 0",
    ]


def test_a_row_of_charts_fits_beside_the_list_of_runs():
    sections = [section for state in states().values() for section in state["compareRunSections"]]
    assert {section["columns"] for section in sections if section["display"]} == {2}
    assert {section["columns"] for section in states([])[schema.VIEW]["compareRunSections"]} == {1}


def test_the_table_of_cells_begins_with_the_place_in_the_grid_and_fits_on_the_screen():
    state = states(settings=["weight_decay"])[views.CELLS]
    *shown, created, duration = state["columnOrder"]
    assert shown[:5] == [
        "attributes.`Run Name`",
        *(f"params.`{name}`" for name in ("width", "sparsity", "weight_decay")),
        f"metrics.`{schema.TEST_ACCURACY}{schema.OVER_REWIND_EPOCHS}`",
    ]
    assert shown[1:] == state["selectedColumns"]
    assert (created, duration) == ("runDateAndNestInfo", "duration")
    widths = states()[views.CELLS]["columnWidths"]
    assert sum(widths.values()) - widths["duration"] <= 1440 - 330, "330 pixels are menus, margins and boxes to tick"


def test_runs_are_ordered_by_a_tag_because_by_time_the_page_would_fold_them_into_their_parent():
    assert {(state["orderByKey"], state["orderByAsc"]) for state in states().values()} == {("tags.`order`", True)}


def test_a_view_stays_once_its_times_say_that_it_was_edited():
    name = schema.VIEW_TAG + schema.VIEW
    saved = views.view_tags(CHARTS, [], 1234, {})[name]
    edited = json.dumps({**json.loads(saved), "updatedAt": 1235})
    assert name in views.view_tags([], [], 1234, {name: saved})
    assert name not in views.view_tags([], [], 1234, {name: edited})
    assert name not in views.view_tags([], [], 1234, {name: "{}"})


def test_columns_are_named_as_mlflow_names_them():
    columns = [column for state in states().values() for column in state["selectedColumns"]]
    assert all(re.fullmatch(r"(params|metrics)\.`[\w/]+`", column) for column in columns)


def test_headings_of_the_table_differ_in_the_dozen_letters_that_mlflow_shows():
    headings = [column.split("`")[1] for column in states()[views.CELLS]["selectedColumns"]]
    assert len({heading[:12] for heading in headings}) == len(headings)
