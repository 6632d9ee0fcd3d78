"""A study in MLflow's pages: the description of its experiment, and a saved view with charts of the gaps.

A view is a tag of the experiment, in the format in which MLflow's own pages save views since version 3.17. Older pages
load it too, or open without it. A description or view that exists is never overwritten: a user may have edited it.
"""

from __future__ import annotations

import json
from typing import Any

from search_spaces import SearchSpace
from trainables import schema

NOTE = "mlflow.note.content"
VIEW_TITLE = "Gaps across the grid"
ADDRESS = f"workflowType=machine_learning&viewStateShareKey={schema.VIEW}&compareRunsMode=CHART"
"""Query of the view's address, after the path of the experiment's runs."""
_PLACE = (schema.PARAM_METHOD, schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
_GAPS = {
    schema.GAP_TO_DENSE: "Gap to dense (pp)",
    schema.GAP_TO_LTH: "Gap to LTH (pp)",
    schema.GENERALIZATION_GAP: "Training minus test accuracy (pp)",
}
_NOTE = """\
{question}

**[{title}](#/experiments/{experiment}/runs?{address})** charts how far each sparse net is from dense, from LTH and \
from its own training accuracy, against method, width, sparsity and rewind epoch. It is among the *Views*, too.

- A run is a job. `permuted · w4 · S=95% · k=10 · A0→B1` trains net B1, four times as wide, from epoch 10 on under the \
mask of net A0, which removes 95 % of the prunable weights, permuted as A0 matches B1.
- `gap_to_dense`, `gap_to_lth` and `generalization_gap` are percentage points; less is better.
- To filter: `params.stage = 'sparse' and params.method = 'permuted'`, `params.width = '1'`, `tags.reused = 'true'`.
- Tables, figures and intervals: `python -m analysis.report --space {space}`
"""
"""Markdown. MLflow's pages keep its line breaks, so each paragraph is one line."""


def experiment_tags(space: SearchSpace, experiment: str, created: int, present: dict[str, str]) -> dict[str, str]:
    """Return the description and the saved view, as tags, unless the experiment has them.

    Args:
        space: the study's search space.
        experiment: the experiment's ID in MLflow.
        created: creation time of the experiment, ms since 1970.
        present: the experiment's tags.
    """
    wanted = {NOTE: _note(space, experiment), schema.TAG_VIEW: _saved_view(created)}
    return {name: value for name, value in wanted.items() if name not in present}


def _note(space: SearchSpace, experiment: str) -> str:
    names = {"space": space.name, "question": space.question, "experiment": experiment}
    return _NOTE.format(**names, title=VIEW_TITLE, address=ADDRESS)


def _saved_view(created: int) -> str:
    """Return a view of the sparse runs, as JSON: a parallel-coordinates chart per gap, and the table columns."""
    charts = [
        {
            "type": "PARALLEL",
            "uuid": gap,
            "metricSectionId": schema.VIEW,
            "displayName": title,
            "selectedParams": _PLACE,
            "selectedMetrics": [gap],
            "showAllRuns": True,
            "deleted": False,
            "isGenerated": False,
        }
        for gap, title in _GAPS.items()
    ]
    section = {"uuid": schema.VIEW, "name": VIEW_TITLE, "columns": 1, "cardHeight": 330, "display": True}
    state: dict[str, Any] = {
        "searchFilter": f"params.{schema.PARAM_STAGE} = '{schema.SPARSE}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [
            *(f"params.`{name}`" for name in (*_PLACE, schema.PARAM_SEED_A, schema.PARAM_SEED_B)),
            *(f"metrics.`{name}`" for name in (schema.TEST_ACCURACY, *_GAPS)),
        ],
        "compareRunSections": [{**section, "isReordered": False, "deleted": False, "isGenerated": False}],
        "compareRunCharts": charts,
    }
    return json.dumps({"name": VIEW_TITLE, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})
