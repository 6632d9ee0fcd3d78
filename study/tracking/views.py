"""A study in MLflow's pages: the description of its experiment, and saved views with charts of all averages.

A view is a tag of the experiment, in the format in which MLflow's own pages save views since version 3.17. Older pages
load it too, or open without it. A description or view that a user has edited is never overwritten.
"""

from __future__ import annotations

import base64
import json
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces import SearchSpace
from trainables import schema

if TYPE_CHECKING:  # pandas and matplotlib are not for a plan
    from analysis.drawing.averages import Chart

PACKED = "deflate;"
"""How MLflow's pages mark a state that is compressed."""
HEIGHT, ACROSS = 320, (1, 2)
"""Height of a chart in pixels; bounds of the number of charts in a row. More would be too narrow for their titles and
legends: menus, the list of runs and, where it opens, MLflow's Assistant leave a third of a page of 1440 pixels."""
LONGEST = 5000
"""Characters that every supported MLflow takes as a tag of an experiment."""
CELLS = "cells"
VIEWS = {
    schema.VIEW: "Gaps by width, sparsity and rewind epoch",
    "gap_by_width": "Gap by width",
    "gap_by_sparsity": "Gap by sparsity",
    "by_rewind_epoch": "Accuracy and gap by rewind epoch",
    CELLS: "Cells: means over rewind epochs",
}
"""Name of a view in addresses -> its title."""
_MEASURES = {
    schema.GAP_TO_DENSE: "Gap to dense (pp)",
    schema.GAP_TO_LTH: "Gap to LTH (pp)",
    schema.TEST_ACCURACY: "Test accuracy (%)",
    schema.GENERALIZATION_GAP: "Train - test accuracy (pp)",
}
_AXES = {
    schema.PARAM_WIDTH: "by width",
    schema.PARAM_SPARSITY: "by sparsity",
    schema.PARAM_REWIND_EPOCH: "by rewind epoch k",
}
_SHOWN = {
    schema.VIEW: [(schema.GAP_TO_DENSE, axis) for axis in _AXES],
    "gap_by_width": [(measure, schema.PARAM_WIDTH) for measure in _MEASURES],
    "gap_by_sparsity": [(measure, schema.PARAM_SPARSITY) for measure in _MEASURES],
    "by_rewind_epoch": [(measure, schema.PARAM_REWIND_EPOCH) for measure in sorted(_MEASURES, reverse=True)],
}
"""View of method runs -> its sections: measure and axis of the charts."""
_OTHERS = "Model metrics"
"""Section that MLflow's pages give to all other metrics."""
_NOTE = """\
{question}

**[{title}](#{link})** has one line per method, averaged over seeds. The *Views* of this experiment show more: {others}.

- A *cell run* is one method at one width and sparsity: `test_accuracy`, `generalization_gap`, `gap_to_dense` and \
`gap_to_lth` (percentage points; less is better) as means over seeds, with `_std`, `_n`, `_low` and `_high` (95 % \
interval), at step = rewind epoch. To find cell runs: `tags.level = 'cell'`.
- Runs with the tag `job_key` are jobs. `permuted · w4 · S=95% · k=10 · A0→B1` trains net B1, four times as wide, from \
epoch 10 on under the mask of net A0, which removes 95 % of the prunable weights, permuted by the match of A0 onto B1.
- To find jobs: `params.stage = 'sparse' and params.method = 'permuted'`, `params.width = '1'`, `tags.reused = 'true'`.
- Tables, figures and intervals: `python -m analysis.report --space {space}`
"""
"""Markdown. MLflow's pages keep its line breaks, so each paragraph is one line."""
_EARLIER_NOTE = """\
{question}

**[Gaps across the grid](#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=gaps\
&compareRunsMode=CHART)** charts how far each sparse net is from dense, from LTH and from its own training accuracy, \
against method, width, sparsity and rewind epoch. It is among the *Views*, too.

- A run is a job. `permuted · w4 · S=95% · k=10 · A0→B1` trains net B1, four times as wide, from epoch 10 on under the \
mask of net A0, which removes 95 % of the prunable weights, permuted as A0 matches B1.
- `gap_to_dense`, `gap_to_lth` and `generalization_gap` are percentage points; less is better.
- To filter: `params.stage = 'sparse' and params.method = 'permuted'`, `params.width = '1'`, `tags.reused = 'true'`.
- Tables, figures and intervals: `python -m analysis.report --space {space}`
"""
"""Description by an earlier version, which knew neither cell runs nor the present views."""


def earlier_note(space: SearchSpace, experiment: str) -> str:
    """Return an earlier version's description of a study's experiment, which :func:`note` replaces."""
    return _EARLIER_NOTE.format(question=space.question, space=space.name, experiment=experiment)


def note(space: SearchSpace, experiment: str) -> str:
    """Return the description of a study's experiment, whose ID in MLflow is given."""
    (first, title), *others = VIEWS.items()
    links = ", ".join(f"[{other}](#{address(experiment, view)})" for view, other in others)
    names = {"question": space.question, "space": space.name, "title": title, "others": links}
    return _NOTE.format(**names, link=address(experiment, first))


def address(experiment: str, view: str = schema.VIEW) -> str:
    """Return the address of a view within MLflow's pages, after the ``#``."""
    kind = "workflowType=machine_learning"  # one of two kinds of page
    mode = "TABLE" if view == CELLS else "CHART"
    return f"/experiments/{experiment}/runs?{kind}&viewStateShareKey={view}&compareRunsMode={mode}"


def view_tags(
    charts: Sequence[Chart], settings: Sequence[str], created: int, present: dict[str, str]
) -> dict[str, str]:
    """Return the saved views, as tags, except those that a user has edited.

    Args:
        charts: the charts of the study's method runs.
        settings: params of its cell runs other than the axes of every grid.
        created: creation time of the experiment, ms since 1970.
        present: the experiment's tags.
    """
    names = {schema.VIEW_TAG + view: view for view in VIEWS}
    return {
        name: _saved(VIEWS[CELLS], created, _of_cells(settings)) if view == CELLS else _that_fits(view, created, charts)
        for name, view in names.items()
        if name not in present or _is_ours(present[name])
    }


def _that_fits(view: str, created: int, charts: Sequence[Chart]) -> str:
    """Return a view of method runs with as many charts in each section as MLflow stores.

    MLflow's pages show the others among all other metrics.
    """
    counts = Counter((chart.measure, chart.axis) for chart in charts)
    largest = max((counts[shown] for shown in _SHOWN[view]), default=0)

    def saved(most: int) -> str:
        kept = "" if most == largest else f" (first {most} of {largest} charts per section)"
        return _saved(VIEWS[view] + kept, created, _of_methods(_SHOWN[view], charts, most))

    # The length grows with the number of charts, if not strictly, because the state is compressed.
    most = bisect_right(range(largest), LONGEST, key=lambda most: len(saved(most + 1)))
    return saved(most)


def _is_ours(saved: str) -> bool:
    """Return whether nobody has edited a saved view: MLflow's pages would have noted the time."""
    try:
        envelope = json.loads(saved)
        return bool(envelope["createdAt"] == envelope["updatedAt"])
    except (ValueError, LookupError, TypeError):
        return False


def _saved(title: str, created: int, state: dict[str, Any]) -> str:
    packed = PACKED + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": title, "createdAt": created, "updatedAt": created, "state": packed})


def _of_methods(shown: Iterable[tuple[str, str]], charts: Sequence[Chart], most: int) -> dict[str, Any]:
    """Return the state of a page with method runs: a section for each measure and axis, with `most` charts or fewer."""
    sections, cards = [], []
    for measure, axis in shown:
        place = f"{measure} {axis}"
        chosen = [chart for chart in charts if (chart.measure, chart.axis) == (measure, axis)][:most]
        sections.append(_section(place, _title(measure, axis, late=any(chart.late for chart in chosen)), len(chosen)))
        cards += [_line(place, chart.metric, axis) for chart in chosen]
    columns = [f"params.`{schema.PARAM_METHOD}`"]
    # Dense nets have no gap, but would take a line of every legend, which shows two.
    only_gaps = {measure for measure, _ in shown} <= set(schema.GAPS)
    sparse = f" and params.{schema.PARAM_METHOD} != 'dense'" if only_gaps else ""
    return _state(schema.METHOD, sections, cards, columns, sparse)


def _title(measure: str, axis: str, *, late: bool) -> str:
    """Return the title of a section; MLflow's pages show some 47 characters of it."""
    pooled = ", mean over k > 0" if late else ", k = 0"
    return f"{_MEASURES[measure]} {_AXES[axis]}{'' if axis == schema.PARAM_REWIND_EPOCH else pooled}"


def _of_cells(settings: Sequence[str]) -> dict[str, Any]:
    """Return the state of a page with cell runs: a table of means, and charts of all cells."""
    over = schema.OVER_REWIND_EPOCHS
    cards = [
        _scatter(CELLS, axis, measure + over)
        for measure in schema.GAPS
        for axis in (schema.PARAM_WIDTH, schema.PARAM_SPARSITY)
    ]
    cards += [_line(CELLS, measure, schema.PARAM_REWIND_EPOCH) for measure in _MEASURES]
    # Means only: a heading shows a dozen letters, by which the deviation of a metric looks like its mean.
    metrics = (schema.TEST_ACCURACY, schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.PERMUTED_MINUS_NAIVE)
    places = [f"params.`{name}`" for name in (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, *settings)]
    means = [f"metrics.`{name}{over}`" for name in (*metrics, schema.GENERALIZATION_GAP)]
    state = _state(schema.CELL, [_section(CELLS, VIEWS[CELLS], len(cards))], cards, [*places, *means])
    # Beside the selected columns, the table has these three; without an order, params come last and off the screen.
    widths = {"attributes.`Run Name`": 230, **dict.fromkeys(places, 74), **dict.fromkeys(means, 112)}
    widths |= {"runDateAndNestInfo": 150, "duration": 80}
    return state | {"columnOrder": [*widths], "columnWidths": widths}


def _state(
    level: str, sections: list[dict[str, Any]], cards: list[dict[str, Any]], columns: list[str], chosen: str = ""
) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.{schema.TAG_LEVEL} = '{level}'{chosen}",
        # Not by time, by which the page would show children of the parent run only after a click on it.
        "orderByKey": f"tags.`{schema.TAG_ORDER}`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",  # by default, charts show ten runs
        "selectedColumns": columns,
        # The page adds a chart of each other metric, which would bury these: closed.
        "compareRunSections": [*sections, _section(_OTHERS, _OTHERS, 0) | {"display": False}],
        "compareRunCharts": cards,
        "isAccordionReordered": True,  # keeps the order of the sections
    }


def _section(name: str, title: str, charts: int) -> dict[str, Any]:
    across = min(max(charts, ACROSS[0]), ACROSS[1])
    placed = {"uuid": name, "name": title, "columns": across, "cardHeight": HEIGHT, "display": True}
    return placed | {"isReordered": False, "deleted": False, "isGenerated": False}


def _line(section: str, metric: str, axis: str) -> dict[str, Any]:
    """Return a chart of one metric by rewind epoch, which is MLflow's step, or by a metric of the axis' name."""
    rewound = axis == schema.PARAM_REWIND_EPOCH
    return _card("LINE", section, metric) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step" if rewound else "metric",
        "selectedXAxisMetricKey": "" if rewound else axis,
        "useGlobalXaxisKey": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
    }


def _scatter(section: str, axis: str, metric: str) -> dict[str, Any]:
    """Return a chart of a metric by a param; MLflow's pages name it after both."""
    axes = {"xaxis": {"key": axis, "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _card("SCATTER", section, f"{axis} {metric}") | axes


def _card(kind: str, section: str, name: str) -> dict[str, Any]:
    known = {"type": kind, "uuid": f"{section} {name}", "metricSectionId": section}
    return known | {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
