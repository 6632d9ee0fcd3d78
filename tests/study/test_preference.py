"""A space's preferred settings are used where they can be, and a study goes on as it was begun."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from search_spaces import RECIPES, SPACES, SearchSpace, get_space
from study import fastest, preference, sweep
from study.clean import plan_all
from study.options import Options
from study.plan import Plan, make_plan, override
from study.preference import ON_GPUS, preferences, preferring
from study.scheduling.address import ClusterError
from study.scheduling.cards import CARDS
from trainables import schema
from trainables.storage.starts import noted
from trainables.storage.store import Store
from trainables.training.engines import CPU, GPU
from trainables.training.way import SETTINGS, Way

PREFERRING = [space for space in SPACES.values() if space.preferred]
ON_ANY_DEVICE = [space for space in SPACES.values() if GPU in Way.of(space).engine.devices]
FEW = ("seeds=0", "width=0.5", "sparsity=0.95", "rewind_epoch=5")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "find_compiler", lambda: "g++")


def preferred(
    tmp_path: Path, *assignments: str, device: str | None = CPU, capability: tuple[int, int] | None = None
) -> tuple[Plan, Plan]:
    """Return the plan of the quickstart as it is asked for, and as it runs."""
    space = override(get_space("digits_quickstart"), assignments)
    asked = make_plan(space)
    return asked, preferring(asked, fastest.kept(space, assignments), Store(tmp_path), device, capability)


@pytest.mark.parametrize("space", PREFERRING, ids=lambda space: space.name)
def test_every_preference_is_a_setting_of_training_that_all_networks_of_its_space_allow(space: SearchSpace) -> None:
    assert {name for name, _ in space.preferred} <= {*SETTINGS}
    changed = next(each.space for each in preferences(space, {}) if each.settings == dict(space.preferred))
    assert all(getattr(changed, name) == value for name, value in space.preferred)


def test_the_quickstart_trains_on_sparse_kernels_where_it_can(tmp_path: Path) -> None:
    _, plan = preferred(tmp_path)
    assert plan.space == override(get_space("digits_quickstart"), ["kernels=sparse"])
    assert plan.jobs.keys() == make_plan(plan.space).jobs.keys()
    assert "--set kernels=dense" in plan.notes[0]


@pytest.mark.parametrize(
    "assignment",
    ["kernels=dense", "stacked=true", "precision=bf16", "model=mlp", "batch_size=50", "kernels=dense,sparse"],
)
def test_what_the_user_sets_comes_first(assignment: str, tmp_path: Path) -> None:
    asked, plan = preferred(tmp_path, assignment)
    assert plan is asked


def test_without_a_compiler_a_space_runs_without_the_kernels_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "find_compiler", lambda: None)
    asked, plan = preferred(tmp_path)
    assert plan.space == asked.space
    assert "g++" in plan.notes[0]


def test_a_compiler_for_cpus_does_not_decide_what_gpus_prefer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "find_compiler", lambda: None)
    _, plan = preferred(tmp_path, *FEW, "compiled=true", device=GPU)
    assert plan.space.precision == ON_GPUS["precision"]


@pytest.mark.parametrize("capability", [(8, 0), (12, 0), None])
def test_gpus_train_as_every_space_prefers_there_and_not_on_kernels_for_cpus(
    capability: tuple[int, int] | None, tmp_path: Path
) -> None:
    _, plan = preferred(tmp_path, device=GPU, capability=capability)
    assert plan.space == dataclasses.replace(get_space("digits_quickstart"), **ON_GPUS)
    assert "--set precision=fp32 --set graphs=false" in plan.notes[0]


def test_a_gpu_without_tensor_float_is_not_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = preferred(tmp_path, device=GPU, capability=(7, 5))
    assert plan.space == override(get_space("digits_quickstart"), ["graphs=true"])
    earlier = plan.jobs.keys()
    monkeypatch.setattr(Store, "keys", lambda self: earlier)
    assert preferred(tmp_path, device=GPU, capability=(8, 0))[1].jobs.keys() == earlier


@pytest.mark.parametrize("space", ON_ANY_DEVICE, ids=lambda space: space.name)
def test_every_space_trains_on_gpus_as_fast_as_pytorch_does_by_itself(space: SearchSpace) -> None:
    on_gpus = next(each.space for each in preferences(space, {}) if each.on == GPU)
    assert on_gpus == dataclasses.replace(space, **ON_GPUS)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (["precision=fp32"], ["precision=fp32", "graphs=true"]),
        (["precision=bf16"], ["precision=bf16", "graphs=true"]),
        (["graphs=false"], ["precision=tf32", "graphs=false"]),
        (["compiled=true"], ["precision=tf32", "compiled=true"]),
        (["stacked=true"], ["precision=tf32", "stacked=true"]),
        (["precision=fp32", "graphs=false"], []),
        (["precision=fp32,tf32"], []),
        (["kernels=sparse"], []),
    ],
)
def test_what_the_user_sets_comes_first_on_gpus(given: list[str], used: list[str], tmp_path: Path) -> None:
    asked, plan = preferred(tmp_path, *given, device=GPU)
    assert plan.space == override(asked.space, used)
    assert (plan is asked) is (used == [])


@pytest.mark.parametrize("name", ["digits_quickstart", "resnet50_imagenet_sweep", "vgg11_rewind_sweep"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leaves_open_how_training_is_computed(name: str, recipe: str) -> None:
    """So its keys are the same whether a space has it or the user names it."""
    assignments = [f"recipe={recipe}", "rewind_epoch=5", "batch_size=128"]
    space = override(get_space(name), assignments)
    given = fastest.kept(space, assignments)
    assert given == {}
    on_gpus = next(each for each in preferences(space, given) if each.on == GPU)
    assert on_gpus.settings == ON_GPUS


@pytest.mark.parametrize("began", [[], ["precision=tf32", "graphs=true"], ["graphs=true"]], ids=str)
@pytest.mark.parametrize("device", [CPU, GPU, None])
def test_a_study_goes_on_as_it_was_begun_on_gpus(
    began: list[str], device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make_plan(override(get_space("digits_quickstart"), [*FEW, *began]))
    monkeypatch.setattr(Store, "keys", lambda self: earlier.jobs.keys())
    _, plan = preferred(tmp_path, *FEW, device=device)
    assert plan.jobs.keys() == earlier.jobs.keys()
    assert "began" in plan.notes[0]


@pytest.mark.parametrize("began", ["dense", "sparse"])
@pytest.mark.parametrize("device", [CPU, GPU, None])
def test_a_study_goes_on_as_it_was_begun(
    began: str, device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "find_compiler", lambda: None)
    earlier = make_plan(override(get_space("digits_quickstart"), [*FEW, f"kernels={began}"]))
    done = {key for key, job in earlier.jobs.items() if job.kind in (schema.DENSE, schema.PRUNE, schema.SPARSE)}
    monkeypatch.setattr(Store, "keys", lambda self: done)
    _, plan = preferred(tmp_path, *FEW, device=device)
    assert plan.jobs.keys() == earlier.jobs.keys()
    assert "began" in plan.notes[0]


@pytest.mark.parametrize("began", ["dense", "sparse"])
def test_a_study_that_has_only_started_goes_on_as_it_began(began: str, tmp_path: Path) -> None:
    earlier = make_plan(override(get_space("digits_quickstart"), [*FEW, f"kernels={began}"]))
    note = {"space": "digits_quickstart", "command": "?", "seconds": 1.0, "jobs": dict.fromkeys(earlier.jobs, 1.0)}
    with noted(Store(tmp_path), note):
        _, plan = preferred(tmp_path, *FEW)
    assert plan.jobs.keys() == earlier.jobs.keys()


def test_results_that_both_ways_share_leave_the_choice_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(override(get_space("digits_quickstart"), [*FEW, "kernels=dense"]))
    done = {key for key, job in plan.jobs.items() if job.kind == schema.DENSE}
    monkeypatch.setattr(Store, "keys", lambda self: done)
    assert preferred(tmp_path, *FEW)[1].space.kernels == "sparse"


def test_cleaning_keeps_the_results_of_every_way_that_a_study_prefers() -> None:
    plans, _ = plan_all(None, None, {}, {})
    needed = {key for plan in plans for key in plan.jobs}
    for way in (["kernels=dense"], ["kernels=sparse"], ["precision=tf32", "graphs=true"], ["graphs=true"]):
        assert make_plan(override(get_space("digits_quickstart"), way)).jobs.keys() <= needed


def test_a_preference_is_checked_like_any_setting() -> None:
    with pytest.raises(ValueError, match="kernels"):
        SearchSpace(name="test", question="?", preferred=(("kernels", "quick"),))
    with pytest.raises(ValueError, match="kernel"):
        SearchSpace(name="test", question="?", preferred=(("kernel", "sparse"),))


# --- GPUs that only the cluster knew of -------------------------------------------------------------------------------
def check(
    tmp_path: Path, *assignments: str, card: str = "A100-80GB", plan: Plan | None = None, **changes: bool
) -> None:
    asked, seen = preferred(tmp_path, *FEW, *assignments, device=None)
    assert plan is not None or seen is asked, "a driver that cannot know the nodes plans for none"
    options = Options(space="digits_quickstart", set=(*FEW, *assignments), **changes)
    sweep._check_preference(plan or asked, Store(tmp_path), [CARDS[card]], options)


@pytest.mark.parametrize(
    ("card", "cure"), [("A100-80GB", "--set precision=tf32 --set graphs=true"), ("T4", "--set graphs=true")]
)
def test_gpus_that_were_not_known_are_not_used_in_the_way_of_a_cpu(card: str, cure: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=re.escape(f"`{cure}` trains as is usual on GPUs")):
        check(tmp_path, card=card)


@pytest.mark.parametrize(
    "assignments",
    [("precision=tf32", "graphs=true"), ("precision=fp32", "graphs=false"), ("kernels=sparse",)],
)
def test_settings_that_the_user_gives_are_used_on_gpus_that_were_not_known(
    assignments: tuple[str, ...], tmp_path: Path
) -> None:
    check(tmp_path, *assignments)


def test_a_study_that_began_in_the_way_of_a_cpu_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(override(get_space("digits_quickstart"), FEW))
    monkeypatch.setattr(Store, "keys", lambda self: plan.jobs.keys())
    check(tmp_path, plan=plan)


def test_what_was_measured_to_be_the_fastest_is_used_on_any_gpu(tmp_path: Path) -> None:
    check(tmp_path, fastest=True)
