"""NumPy scalars, as samplers and array grids produce them, are treated as the equal Python values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import copy_project

from search_spaces import SearchSpace, get_space
from study.plan import make_plan, override
from trainables.config import Cell
from trainables.graph import target
from trainables.knobs import KNOBS, Knob, plain, plain_values, written

ROW = """
    label_smoothing: float = training(0.0, "[0, 0.5]", "share of a label that all classes get", neutral=0.0)
"""
USE = """
    label_smoothing: float = of_knob("label_smoothing")
"""
REACHED = """
import json, sys
import pandas as pd
from analysis.page import how
from search_spaces import get_space
from study.plan import make_plan, override
from study.tracking.labels import run_params, settings_tag

def plan(*assignments):
    return make_plan(override(get_space("digits_quickstart"), ["seeds=0", "width=0.5", *assignments]))

def described(plan):
    frame = pd.DataFrame()
    frame.attrs["settings"] = settings_tag(plan.space)
    return how.settings(frame)["label_smoothing"], [run_params(job, plan.cells[key]) for key, job in plan.jobs.items()]

asked, params = described(plan("label_smoothing=0.1"))
neutral, _ = described(plan("label_smoothing=0"))
try:
    refusal = str(plan("label_smoothing=0.6"))
except ValueError as error:
    refusal = str(error)
print(json.dumps({
    "keys": [list(plan(*each).jobs) for each in ((), ("label_smoothing=0",), ("label_smoothing=0.1",))],
    "params": sorted({str(each["label_smoothing"]) for each in params if "epochs" in each}),
    "recipes": [asked, neutral],
    "refusal": refusal,
}))
"""


def test_a_knob_is_added_by_a_row_and_by_what_uses_it(tmp_path: Path) -> None:
    before = list(make_plan(override(get_space("digits_quickstart"), ["seeds=0", "width=0.5"])).jobs)
    project = copy_project(tmp_path)
    project.insert("trainables/knobs.py", ROW, after="# --- training\n")
    project.insert("trainables/config.py", USE, after="    schedule: str\n")
    reached = json.loads(project.run("-c", REACHED))
    without, neutral, asked = reached["keys"]
    assert without == neutral == before
    assert not {*asked} & {*before}
    assert reached["params"] == ["0.1"]
    assert reached["recipes"] == ["0.1", "0.0"]
    assert reached["refusal"] == "label_smoothing must be a number in [0, 0.5], got 0.6"
    assert "| `label_smoothing` | `0.0` | [0, 0.5] |" in project.run("-m", "trainables.knobs")


def test_an_end_of_an_interval_that_is_no_number_is_another_knob() -> None:
    limits = {name: knob.limit for name, knob in KNOBS.items() if knob.limit}
    assert limits == {"rewind_epoch": "epochs", "warmup_epochs": "epochs", "match_epoch": "epochs"}


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.name)
def test_a_default_is_a_value_that_its_knob_takes(knob: Knob) -> None:
    limit = {knob.limit: KNOBS[knob.limit].default} if knob.limit else {}
    for value in knob.grid or (knob.default,):
        assert knob.checked(value, **limit) == value
        assert type(value) is knob.kind
        assert knob.parsed(written(value)) == value
    assert knob.neutral in (None, knob.default)


def test_the_recipe_of_the_paper_is_the_defaults() -> None:
    assert override(SearchSpace(name="x", question="?"), ["recipe=paper"]) == SearchSpace(name="x", question="?")


# --- NumPy's scalars, as samplers and grids of arrays give them -------------------------------------------------------
VALUES: list[tuple[Any, Any]] = [
    (np.int64(5), 5),
    (np.int32(5), 5),
    (np.uint8(5), 5),
    (np.float64(0.1), 0.1),
    (np.float32(0.5), 0.5),
    (np.float32(0.9), 0.9),
    (np.float16(0.9), 0.9),
    (np.longdouble("0.5"), 0.5),
    (np.bool_(True), True),
    (np.str_("lth"), "lth"),
    (np.array(5), 5),
    (np.array(0.9, dtype=np.float32), 0.9),
    (5, 5),
    (None, None),
]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=lambda value: repr(value))
def test_a_scalar_becomes_the_python_value_that_it_is_written_like(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_arrays_of_one_axis_are_values_of_an_axis_and_others_are_left_for_the_checks() -> None:
    assert plain_values(np.arange(3)) == (0, 1, 2)
    assert plain_values([np.float32(0.9), 0.5]) == (0.9, 0.5)
    assert plain_values(np.zeros((2, 2))).shape == (2, 2)


NUMPY: dict[type, Any] = {int: np.int64, float: np.float32, bool: np.bool_, str: np.str_}


@pytest.mark.parametrize("knob", [knob for knob in KNOBS.values() if knob.name != "method"], ids=lambda knob: knob.name)
def test_a_cell_of_numpy_scalars_is_the_cell_of_python_values(knob: Knob) -> None:
    expected = Cell(method="permuted")
    made = Cell.from_mapping({"method": np.str_("permuted"), knob.name: NUMPY[knob.kind](knob.default)})
    assert made == expected
    assert type(getattr(made, knob.name)) is type(getattr(expected, knob.name))
    assert target(made).key == target(expected).key


def test_a_space_of_numpy_values_is_the_space_of_python_values() -> None:
    plain_space = SearchSpace(name="x", question="?", sparsity=(0.9, 0.97), seeds=(0, 1, 2), epochs=100, augment=False)
    numpy_space = SearchSpace(
        name="x",
        question="?",
        sparsity=np.array([0.9, 0.97], dtype=np.float32),
        seeds=np.arange(3),
        epochs=np.int64(100),
        augment=np.bool_(False),
    )
    assert numpy_space == plain_space


@pytest.mark.parametrize(("name", "value"), [("rewind_epoch", np.float64(5.0)), ("seed", np.bool_(True))])
def test_what_is_refused_of_python_is_refused_of_numpy(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        Cell.from_mapping({"method": "permuted", name: value})
