"""The search spaces: each one is valid, plannable where its data is at hand, and usable with a plain Tuner."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT

from analysis.paper import numbers
from search_spaces import SPACES, SearchSpace, by_name, get_space
from study import plan as plan_module
from study.plan import make_plan
from trainables.config import Cell
from trainables.data import DATASETS, get_entry
from trainables.data.dataset import DatasetFacts
from trainables.knobs import SETTINGS


def test_two_spaces_of_one_name_are_refused() -> None:
    (name, space), *_ = SPACES.items()
    assert by_name([space, space]) == {name: space}
    with pytest.raises(ValueError, match=f"two search spaces are called '{name}'"):
        by_name([space, dataclasses.replace(space, question="Is mine another one?")])


def axes(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """Return the settings of a space that take several values."""
    values = {name: getattr(space, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if isinstance(value, tuple) and len(value) > 1}


def offline(space: SearchSpace) -> bool:
    return not any(get_entry(name).needs_data_dir for name in space.dataset)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_called_what_it_is_found_by(name: str) -> None:
    assert SPACES[name].name == name
    assert get_space(name) is SPACES[name]


@pytest.mark.parametrize("name", SPACES)
def test_a_space_asks_a_question(name: str) -> None:
    question = SPACES[name].question
    assert re.search(r"\w\?( \((paper|controls)[^()]*\))?$", question), (
        f"`question` of {name} should say in one line what the space is there to find out, and where it comes from"
    )
    assert "\n" not in question


def test_questions_and_names_differ() -> None:
    assert len({space.question for space in SPACES.values()}) == len(SPACES)


def test_the_file_of_a_space_bears_its_name() -> None:
    folder = Path(sys.modules["search_spaces"].__file__ or "").parent
    for name in SPACES:
        assert any(f'name="{name}"' in file.read_text(encoding="utf-8") for file in folder.glob("*.py"))


@pytest.mark.parametrize("name", SPACES)
def test_every_cell_of_a_space_is_valid(name: str) -> None:
    space = SPACES[name]
    cells = {Cell.from_mapping(values) for values in space.cells()}
    of_width, others = dict(space.rewind_epochs_of_width), axes(space)
    epochs = sum(len(of_width.get(width, space.rewind_epoch)) for width in space.width)
    others = {name: values for name, values in others.items() if name not in ("width", "rewind_epoch")}
    assert len(cells) == epochs * math.prod(len(values) for values in others.values())


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_grid_asks_for_no_more_than_the_paper_has_where_the_paper_has_it(space: SearchSpace) -> None:
    """A width of a sweep that repeats tables of the paper has the rewind epochs of these tables."""
    if space.name not in ("resnet20_width_sweep", "resnet20_cifar100_width_sweep", "vgg11_rewind_sweep"):
        return
    found = numbers.numbers()
    found = found[found["rewind_epoch"].notna() & (found["measure"] == "test_accuracy") & found["match_epoch"].isna()]
    theirs = {(one.dataset, one.model, one.width, one.rewind_epoch) for one in found.itertuples()}
    ours = {(cell["dataset"], cell["model"], cell["width"], cell["rewind_epoch"]) for cell in space.cells()}
    assert ours == {place for place in theirs if place[:2] == (space.dataset[0], space.model[0])}


def test_rewind_epochs_of_a_width_are_some_of_the_spaces_and_give_way_to_those_of_the_command_line() -> None:
    with pytest.raises(ValueError, match=r"rewind epochs at width 8 must be some of 0, 10, got 5$"):
        SearchSpace(name="test", question="?", rewind_epoch=(0, 10), rewind_epochs_of_width=((8.0, (5,)),))
    named = plan_module.override(get_space("resnet20_width_sweep"), ["width=8", "rewind_epoch=5"])
    assert {cell["rewind_epoch"] for cell in named.cells()} == {5}
    kept = plan_module.override(get_space("resnet20_width_sweep"), ["width=8"])
    assert {cell["rewind_epoch"] for cell in kept.cells()} == {0, 10, 25, 50, 100}


@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if offline(space)])
def test_a_space_whose_data_is_at_hand_can_be_planned(name: str) -> None:
    plan = make_plan(SPACES[name])
    assert plan.requests == sum(1 for _ in SPACES[name].cells())
    assert plan.jobs.keys() == plan.cells.keys()


def test_a_space_without_its_data_says_how_to_get_it() -> None:
    for space in (*SPACES.values(), SearchSpace(name="the paper", question="?")):
        if not offline(space):
            with pytest.raises(ValueError, match="--data-dir DIR"):
                make_plan(space)


def test_there_is_a_space_to_try_out_without_any_data() -> None:
    assert "digits" in DATASETS
    assert offline(get_space("digits_quickstart"))
    assert set(get_space("digits_quickstart").method) >= {"dense", "lth", "naive", "permuted"}


# --- by name --------------------------------------------------------------------------------------------------------
def test_a_misspelt_space_is_refused_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown search space 'digit_quikstart'") as caught:
        get_space("digit_quikstart")
    assert "did you mean 'digits_quickstart'?" in str(caught.value)
    assert str(caught.value).endswith(f"known: {', '.join(SPACES)}")


# --- for a plain Tuner ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SPACES)
def test_a_tuner_gets_every_axis_as_a_grid(name: str) -> None:
    space = SPACES[name]
    tuned = space.param_space()
    grids = {key: value["grid_search"] for key, value in tuned.items() if isinstance(value, dict)}
    expected = {"seed" if key == "seeds" else key: list(values) for key, values in axes(space).items()}
    expected.pop("method", None)
    assert grids == expected


@pytest.mark.parametrize("name", SPACES)
def test_one_trial_of_a_tuner_is_one_cell(name: str) -> None:
    tuned = SPACES[name].param_space()
    assert "method" not in tuned, "the method is the Trainable's"
    del tuned["storage"]
    trial = {key: value["grid_search"][0] if isinstance(value, dict) else value for key, value in tuned.items()}
    first = next(SPACES[name].cells())
    assert Cell.from_mapping({**trial, "method": first["method"]}) == Cell.from_mapping(first)


def test_a_trial_finds_storage_and_data_from_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    space = get_space("digits_quickstart")
    assert space.param_space()["storage"] == str(tmp_path / "outputs")
    assert "data_dir" not in space.param_space()
    given = space.param_space(storage="~/results", data_dir="data")
    assert (given["storage"], given["data_dir"]) == (str(tmp_path / "home" / "results"), str(tmp_path / "data"))
    remote = space.param_space(storage="s3://bucket/study", data_dir="gs://bucket/data")
    assert (remote["storage"], remote["data_dir"]) == ("s3://bucket/study", "gs://bucket/data")


def test_a_setting_given_as_a_tuple_is_an_axis() -> None:
    space = SearchSpace(name="test", question="?", lr=(0.1, 0.2), augment=(True, False), epochs=(20, 30))
    tuned = space.param_space()
    assert tuned["lr"] == {"grid_search": [0.1, 0.2]}
    assert tuned["augment"] == {"grid_search": [True, False]}
    assert sum(1 for _ in space.cells()) == 2 * 2 * 2 * len(space.method) * len(space.seeds)
    assert {"lr", "augment", "epochs"} <= axes(space).keys()


# --- pure data ------------------------------------------------------------------------------------------------------
def test_the_standard_library_is_all_that_a_space_needs() -> None:
    program = (
        "import json, sys; before = set(sys.modules); import search_spaces; "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    answer = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    foreign = set(json.loads(answer.stdout)) - sys.stdlib_module_names - {"search_spaces", "trainables"}
    assert not foreign, f"search_spaces must import no library, not {sorted(foreign)}"


JOBS = {
    "ensemble_diversity_cifar100": (129, 11_000),
    "digits_quickstart": (296, 1_824),
    "cifar10_two_cores": (318, 3_144),
    "image_folder_study": (90, 1_890),
    "resnet20_width_sweep": (1_308, 182_880),
    "resnet20_cifar100_width_sweep": (1_020, 133_560),
    "vgg11_rewind_sweep": (180, 25_950),
    "resnet50_imagenet_sweep": (49, 1_875),
    "early_matching": (162, 19_170),
    "matcher_ablation": (318, 31_980),
    "match_images": (312, 36_060),
    "mask_controls": (396, 39_480),
    "mask_transfer": (117, 13_530),
    "mode_connectivity": (630, 19_500),
    "ensemble_diversity": (90, 7_375),
}
"""Space -> jobs and epochs, as the space's own file gives them."""


@pytest.mark.parametrize("name", SPACES)
def test_the_files_of_the_spaces_say_what_they_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = DatasetFacts(
        num_classes=10, in_channels=3, image_size=32, train_images=50_000, test_images=10_000, fingerprint=""
    )
    monkeypatch.setattr(plan_module, "check_dataset", lambda *_: facts)
    plan = make_plan(SPACES[name])
    assert (len(plan.jobs), plan.epochs) == JOBS[name]
    text = " ".join(path.read_text() for path in (ROOT / "search_spaces").glob("*.py"))
    assert all(re.search(rf"\b{number:,}\b", text) for number in JOBS[name]), "correct the numbers in the space's file"
