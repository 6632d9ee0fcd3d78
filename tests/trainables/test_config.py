"""Configuration: every bound and every name, in a cell and in a search space alike."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from search_spaces import SearchSpace
from study.plan import make_plan
from trainables.config import Cell
from trainables.data import DATASETS
from trainables.graph import FRESH_SEEDS, target
from trainables.knobs import (
    AXES,
    CORRECTIONS,
    KERNELS,
    KNOBS,
    MAX_MEMBERS,
    MAX_SEED,
    PRECISIONS,
    PRUNERS,
    SCHEDULES,
    SETTINGS,
    SPARSE_SCHEDULES,
)
from trainables.methods import MATCHERS, METHODS
from trainables.models import INITS, MODELS, SHORTCUTS, STREAM_TAPS

TINY = 5e-324
BELOW_1 = math.nextafter(1, 0)
BOUNDS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    # field: (interval as the message gives it, values at the bounds, values just outside)
    "width": ("a number in [0.25, 32]", (0.25, 32), (0.1875, 32.0625, 0, -1)),
    "sparsity": ("a number in [0, 1)", (0, BELOW_1), (-TINY, 1, 90)),
    "epochs": ("a whole number in [1, 100000]", (200, 100_000), (0, -1, 1.5, 100_001)),
    "seed": ("a whole number in [0, 499999999]", (0, MAX_SEED), (-1, MAX_SEED + 1, 0.5)),
    "batch_size": ("a whole number in [1, 1000000]", (1, 10**6), (0, -1, 1.5, 10**6 + 1)),
    "lr": ("a number in (0, 100]", (TINY, 100), (0, -0.1, 100.5)),
    "sparse_lr": ("a number in (0, 100]", (TINY, 100), (0, -0.1, 100.5)),
    "imp_lr": ("a number in (0, 100]", (TINY, 100), (0, -0.1, 100.5)),
    "momentum": ("a number in [0, 1)", (0, BELOW_1), (-TINY, 1)),
    "imp_momentum": ("a number in [0, 1)", (0, BELOW_1), (-TINY, 1)),
    "weight_decay": ("a number in [0, 1]", (0, 1), (-TINY, 1.5)),
    "imp_weight_decay": ("a number in [0, 1]", (0, 1), (-TINY, 1.5)),
    "warmup_epochs": ("a number in [0, epochs] with epochs=200", (0, 0.5, 200), (-TINY, 200.5)),
    "prune_fraction": ("a number in [0.001, 1)", (0.001, BELOW_1), (0, 0.0009, 1)),
    "imp_epochs": ("a whole number in [0, 100000]", (0, 100_000), (-1, 0.5, 100_001)),
    "match_images": ("a whole number in [0, 1000000000]", (0, 10**9), (-1, 0.5, 10**9 + 1)),
    "interpolation_points": ("0 or a whole number in [3, 101]", (0, 3, 101), (-1, 1, 2, 103, 10.5, 0.0)),
    "rewind_offset": ("a whole number in [0, 1]", (0, 1), (-1, 2, 0.5)),
    "prune_tolerance": ("a number in [0, 0.1]", (0, 0.005, 0.1), (-TINY, 0.11)),
    "match_epoch": ("a whole number in [-1, epochs] with epochs=200", (-1, 0, 200), (-2, 201, 0.5)),
    "member": ("a whole number in [0, 99]", (0, MAX_MEMBERS - 1), (-1, MAX_MEMBERS, 0.5)),
    "members": ("0 or a whole number in [2, 100]", (0, 2, MAX_MEMBERS), (-1, 1, MAX_MEMBERS + 1, 1.5)),
    "plane_resolution": ("0 or a whole number in [2, 201]", (0, 2, 201), (-1, 1, 202, 1.5)),
    "rewind_epoch": ("a whole number in [0, epochs) with epochs=200", (0, 199), (-1, 200, 0.5)),
    "image_size": ("0 or a whole number in [8, 1024]", (0, 8, 1024), (7, 1025, 64.0)),
    "workers": ("a whole number in [1, 1024]", (1, 2, 1024), (0, 1025, 1.5)),
    "damaged_images": ("a whole number in [0, 1000000000]", (0, 10**9), (-1, 10**9 + 1, 0.5)),
}
INSIDE = [(field, value) for field, (_, inside, _) in BOUNDS.items() for value in inside]
OUTSIDE = [(field, value) for field, (_, _, outside) in BOUNDS.items() for value in outside]
NO_NUMBERS = (math.nan, True, "1", None)

NAMES: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "model": tuple(MODELS),
    "dataset": tuple(DATASETS),
    "matcher": tuple(MATCHERS),
    "schedule": tuple(SCHEDULES),
    "imp_schedule": tuple(SCHEDULES),
    "init": tuple(INITS),
    "precision": tuple(PRECISIONS),
    "kernels": tuple(KERNELS),
    "pruner": tuple(PRUNERS),
    "correction": tuple(CORRECTIONS),
    "shortcut": tuple(SHORTCUTS),
    "stream_taps": tuple(STREAM_TAPS),
    "sparse_schedule": tuple(SPARSE_SCHEDULES),
    "mask_dataset": tuple(DATASETS),
}
FINGERPRINTS = {name for name, knob in KNOBS.items() if knob.planned}


def cell(**settings: Any) -> Cell:
    return Cell(**{"method": "lth", "epochs": 200, "rewind_epoch": 10, **settings})


def space(**settings: Any) -> SearchSpace:
    if "seed" in settings:
        settings["seeds"] = settings.pop("seed")
    return SearchSpace(name="test", question="?", **{"epochs": 200, "rewind_epoch": 10, **settings})


def refusal(make: Any, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        make(**settings)
    return str(caught.value)


# --- bounds ---------------------------------------------------------------------------------------------------------
def test_every_number_of_a_cell_has_its_bounds_tested() -> None:
    numbers = {name for name, knob in KNOBS.items() if knob.kind in (int, float)}
    assert numbers == BOUNDS.keys(), "a number is missing in BOUNDS of this file, or was renamed"


@pytest.mark.parametrize(("field", "value"), INSIDE)
def test_the_bounds_themselves_are_accepted(field: str, value: float) -> None:
    assert getattr(cell(**{field: value}), field) == value
    space(**{field: value})


@pytest.mark.parametrize(("field", "value"), OUTSIDE)
def test_beyond_the_bounds_is_refused_in_the_same_words_by_cells_and_spaces(field: str, value: float) -> None:
    bounds = BOUNDS[field][0]
    assert refusal(cell, **{field: value}) == f"{field} must be {bounds}, got {value!r}"
    in_space = "seeds" if field == "seed" else field
    assert refusal(space, **{field: value}) == f"{in_space} must be {bounds}, got {value!r}"


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("field", BOUNDS)
def test_what_is_no_number_is_refused(field: str, value: object) -> None:
    for make in (cell, space):
        message = refusal(make, **{field: value})
        assert message.endswith(f"got {value!r}")
        assert BOUNDS[field][0] in message


@pytest.mark.parametrize("points", [4, 10, 100])
def test_interpolation_needs_a_midpoint(points: int) -> None:
    message = refusal(cell, interpolation_points=points)
    assert "0 or an odd number from 3" in message
    assert message.endswith(f"got {points}")


@pytest.mark.parametrize("field", [name for name, knob in KNOBS.items() if knob.kind is bool])
@pytest.mark.parametrize("value", [1, "true", None])
def test_switches_are_true_or_false(field: str, value: object) -> None:
    for make in (cell, space):
        assert refusal(make, **{field: value}) == f"{field} must be true or false, got {value!r}"


def test_a_path_over_the_rounds_needs_its_points() -> None:
    assert refusal(cell, imp_path=True) == "imp_path needs interpolation_points, got 0"
    assert cell(imp_path=True, interpolation_points=3).imp_path


def test_matching_ends_with_the_training() -> None:
    assert cell(epochs=20, match_epoch=20).match_epoch == 20
    bounds = "match_epoch must be a whole number in [-1, epochs] with epochs=20"
    assert refusal(cell, epochs=20, match_epoch=21) == f"{bounds}, got 21"
    assert refusal(space, epochs=(20, 200), match_epoch=50) == f"{bounds}, got 50"


def test_rewinding_stays_below_the_epochs() -> None:
    assert cell(epochs=1, rewind_epoch=0).rewind_epoch == 0
    assert refusal(cell, epochs=5, rewind_epoch=5) == (
        "rewind_epoch must be a whole number in [0, epochs) with epochs=5, got 5"
    )
    # With epochs as an axis, every combination has to make sense.
    assert "[0, epochs) with epochs=5, got 10" in refusal(space, epochs=(5, 20), rewind_epoch=(0, 10))


# --- names ----------------------------------------------------------------------------------------------------------
def test_every_text_of_a_cell_is_a_checked_name() -> None:
    texts = {name for name, knob in KNOBS.items() if knob.kind is str} - FINGERPRINTS
    assert texts == NAMES.keys(), "a text is missing in NAMES of this file, or was renamed"


@pytest.mark.parametrize("field", NAMES)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_ones(field: str) -> None:
    right = NAMES[field][0]
    wrong = right[:-1] + "_" if len(right) < 4 else right[:-1]
    message = refusal(cell, **{field: wrong})
    assert f"unknown {field} {wrong!r}" in message
    assert f"did you mean {right!r}" in message
    assert message.endswith(f"known: {', '.join(NAMES[field])}")


@pytest.mark.parametrize("field", NAMES)
def test_a_space_with_an_unknown_name_makes_no_plan(field: str) -> None:
    settings = {"dataset": "digits", field: "nothing like it"}
    with pytest.raises(ValueError, match=r"unknown .*'nothing like it'.*known: "):
        make_plan(space(**settings))


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"compiled": True}])
def test_sparse_kernels_know_single_precision_and_no_compiler(other: dict[str, Any]) -> None:
    message = refusal(cell, kernels="sparse", **other)
    assert "kernels='sparse'" in message
    assert str(*other.values()) in message


@pytest.mark.parametrize("other", [{"kernels": "sparse"}, {"compiled": True}, {"graphs": True}])
def test_two_settings_that_select_engines_exclude_each_other(other: dict[str, Any]) -> None:
    message = refusal(cell, stacked=True, **other)
    assert "stacked=True" in message
    assert "{}={!r}".format(*next(iter(other.items()))) in message


@pytest.mark.parametrize("name", [None, 7, ["resnet20"]], ids=repr)
@pytest.mark.parametrize("field", ["model", "mask_dataset"])
def test_a_name_that_is_no_text_is_refused(field: str, name: object) -> None:
    assert f"unknown {field}" in refusal(cell, **{field: name})


# --- models ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_the_defaults(model: str) -> None:
    assert cell(model=model).width == 1.0


@pytest.mark.parametrize(("model", "width", "nearest"), [("resnet20", 0.3, "0.25 and 0.3125"), ("mlp", 0.2505, "0.25")])
def test_a_width_must_keep_the_channels_whole(model: str, width: float, nearest: str) -> None:
    message = refusal(cell, model=model, width=width)
    assert f"width {width} of model {model!r}" in message
    assert f"nearest: {nearest}" in message


@pytest.mark.parametrize(
    ("model", "option"),
    [("vgg11", {"shortcut": "conv1x1"}), ("resnet50", {"shortcut": "conv1x1"}), ("mlp", {"stream_taps": "paper_code"})],
)
def test_an_option_that_the_model_lacks_is_refused(model: str, option: dict[str, str]) -> None:
    message = refusal(cell, model=model, **option)
    assert f"model {model!r} has no option {next(iter(option))!r}" in message
    assert "its options: " in message


def test_the_paper_s_model_takes_both_options() -> None:
    made = cell(shortcut="conv1x1", stream_taps="paper_code")
    assert (made.shortcut, made.stream_taps) == ("conv1x1", "paper_code")


# --- cells and spaces -----------------------------------------------------------------------------------------------
def test_cell_and_space_have_the_same_settings_and_defaults() -> None:
    in_cell = {field.name: field.default for field in dataclasses.fields(Cell)}
    in_space = {field.name: field.default for field in dataclasses.fields(SearchSpace) if field.name in SETTINGS}
    assert in_cell.pop("method") is dataclasses.MISSING, "a cell has one method, which nobody should get by default"
    assert {in_cell.pop(name) for name in FINGERPRINTS} == {""}
    assert in_cell.pop("seed") in in_space.pop("seeds")
    assert set(in_space.pop("method")) == {"dense", "lth", "naive", "permuted"}
    singles = {name: default[0] if name in AXES else default for name, default in in_space.items()}
    assert singles == in_cell


def test_the_cells_of_a_space_are_its_product() -> None:
    made = space(width=(0.5, 1.0), sparsity=(0.5, 0.9, 0.95), seeds=(3, 4), method=("lth", "naive"), lr=(0.1, 0.2))
    cells = [Cell.from_mapping(values) for values in made.cells()]
    assert len(set(cells)) == 2 * 3 * 2 * 2 * 2
    assert {each.seed for each in cells} == {3, 4}
    assert {each.lr for each in cells} == {0.1, 0.2}


def test_a_space_takes_lists_and_single_values_as_axes() -> None:
    made = space(width=[1, 2], dataset="digits", seeds=5, epochs=[10, 20], rewind_epoch=0)
    assert (made.width, made.dataset, made.seeds, made.epochs) == ((1.0, 2.0), ("digits",), (5,), (10, 20))


@pytest.mark.parametrize("values", [(), []])
def test_an_axis_has_values(values: object) -> None:
    assert refusal(space, width=values) == "width of space 'test' has no values"


@pytest.mark.parametrize(("field", "values"), [("width", (1, 2, 1.0)), ("lr", (0.1, 0.1)), ("seeds", (0, 0))])
def test_an_axis_repeats_nothing(field: str, values: tuple[float, ...]) -> None:
    assert f"{field} of space 'test' repeats a value" in refusal(space, **{field: values})


FLOATS = {name for name, knob in KNOBS.items() if knob.kind is float} - {"prune_fraction"}


@pytest.mark.parametrize("field", sorted(FLOATS))
def test_whole_and_decimal_spelling_are_one_setting(field: str) -> None:
    value = 1 if field in ("width", "lr", "sparse_lr", "imp_lr") else 0  # 0 or 1 is within the bounds of each
    whole, decimal = cell(**{field: value}), cell(**{field: float(value)})
    assert whole == decimal
    assert isinstance(getattr(whole, field), float)
    assert target(whole).key == target(decimal).key
    assert repr(space(**{field: value})) == repr(space(**{field: float(value)}))


def test_pairs_of_seeds_do_not_overlap() -> None:
    pairs = [cell(seed=seed) for seed in (0, 1, 2, MAX_SEED)]
    seeds = [seed for each in pairs for seed in (each.seed_a, each.seed_b)]
    assert seeds[:6] == [0, 1, 2, 3, 4, 5]
    assert max(seeds) < FRESH_SEEDS, "the seeds of controls must lie beyond those of all pairs"


def test_members_of_an_ensemble_come_from_the_pairs_that_follow() -> None:
    members = [cell(seed=3, member=member) for member in (0, 1, 2)]
    assert [each.seed_a for each in members] == [6, 6, 6]  # one mask for all
    assert [each.seed_b for each in members] == [7, 9, 11]
    assert [each.seed_own for each in members] == [6, 8, 10]
    last = cell(seed=MAX_SEED, member=MAX_MEMBERS - 1)
    assert max(last.seed_b, last.seed_own) < FRESH_SEEDS


# --- from a mapping -------------------------------------------------------------------------------------------------
def test_a_flat_mapping_makes_the_cell_it_was_made_from() -> None:
    original = cell(width=2, sparsity=0.95, seed=3, schedule="one_cycle", warmup_epochs=2)
    assert Cell.from_mapping(dataclasses.asdict(original)) == original


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    message = refusal(Cell.from_mapping, values={"method": "lth", "sparsty": 0.5})
    assert message.startswith("unknown setting 'sparsty' (did you mean 'sparsity'?); known: model, dataset, ")


def test_a_cell_without_a_method_is_refused() -> None:
    assert refusal(Cell.from_mapping, values={"width": 1}) == f"a cell needs a method; known: {', '.join(METHODS)}"
