"""NumPy scalars, as samplers and array grids produce them, are treated as the equal Python values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search_spaces import SearchSpace
from trainables.config import Cell
from trainables.graph import target
from trainables.knobs import KNOBS, Knob, plain, plain_values

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
