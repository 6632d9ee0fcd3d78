"""The plan: what a grid shares, counted by hand; overriding a space."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from PIL import Image
from small_spaces import small

from search_spaces import RECIPES, SPACES, SearchSpace, get_space, recipe
from study.plan import Plan, datasets, make_plan, override, varied_settings
from study.tracking.labels import recipe_digest
from trainables.config import TRAINING_CONFIGS, Cell
from trainables.data import DATASETS
from trainables.graph import Closure, Ref, measurements, round_sparsities, target
from trainables.knobs import AXES, SETTINGS
from trainables.models import MODELS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, PLANE, PRUNE, SPARSE

QUICKSTART = get_space("digits_quickstart")


def counts(plan: Plan) -> dict[str, int]:
    return dict(Counter(job.kind for job in plan.jobs.values()))


# --- what is shared -------------------------------------------------------------------------------------------------
def chain_length(sparsities: tuple[float, ...], fraction: float) -> int:
    """Return the pruning rounds of one net: the full ones of all targets together, and one that lands on each."""
    full: set[float] = set()
    for sparsity in sparsities:
        reached = fraction
        while reached < sparsity - 1e-9:
            full.add(round(reached, 9))
            reached = 1 - (1 - reached) * (1 - fraction)
    return len(full | {round(sparsity, 9) for sparsity in sparsities})


def test_the_quickstart_shares_what_can_be_shared() -> None:
    space = QUICKSTART
    widths, seeds, sparsities = len(space.width), len(space.seeds), len(space.sparsity)
    cells = widths * seeds * sparsities * len(space.rewind_epoch)  # of each method
    assert {"dense", "lth", "naive", "permuted"} == set(space.method), "this test counts these four methods"
    assert (len(space.model), len(space.dataset), len(space.matcher)) == (1, 1, 1), "this test counts one of each"
    assert space.interpolation_points, "this test counts interpolations"
    plan = make_plan(space)
    assert plan.requests == 4 * cells
    assert counts(plan) == {
        DENSE: widths * 2 * seeds,  # A and B, whatever the sparsity, the rewind epoch and the method
        PRUNE: widths * seeds * chain_length(space.sparsity, space.prune_fraction),  # of A only
        MATCH: widths * seeds * 2,  # the pair's permutation, and the identity to measure the path without it
        SPARSE: 3 * cells,
        CONNECT: widths * seeds * 2,
    }


def test_a_chain_by_hand() -> None:
    # 0.2, 0.36, 0.488, 0.5 and 0.2, 0.36, 0.488, 0.5904, 0.6: three full rounds in common
    assert chain_length((0.5, 0.6), 0.2) == 6
    assert chain_length((0.36, 0.5), 0.2) == 4  # a target that is itself a full round on the way


@pytest.mark.parametrize("sparsities", [(0.5, 0.6), (0.36, 0.5), (0.9, 0.95), (0.0, 0.2)])
def test_targets_share_their_pruning_rounds(sparsities: tuple[float, ...]) -> None:
    plan = make_plan(small(sparsity=sparsities, method="lth"))
    assert counts(plan)[PRUNE] == chain_length(sparsities, 0.2)


def test_a_dense_grid_is_one_job_per_net_and_width() -> None:
    plan = make_plan(small(method="dense", width=(0.5, 1), sparsity=(0.5, 0.9), rewind_epoch=(0, 5, 10), seeds=(0, 1)))
    assert plan.requests == 2 * 2 * 3 * 2
    assert counts(plan) == {DENSE: 4}  # B is not needed
    assert plan.epochs == 4 * 20
    assert plan.separate_epochs == plan.requests * 20


def test_rewind_epochs_cost_only_their_sparse_training() -> None:
    one, three = (make_plan(small(method="lth", rewind_epoch=epochs)) for epochs in (5, (0, 5, 10)))
    assert counts(three) == counts(one) | {SPARSE: 3}
    assert three.epochs - one.epochs == 20 + 10


def test_matchers_share_all_but_the_match_and_its_use() -> None:
    one, two = (make_plan(small(method=("lth", "permuted"), matcher=each)) for each in ("weight", ("weight", "random")))
    assert counts(two) == counts(one) | {MATCH: 2, SPARSE: 1 + 2}


def test_every_matcher_and_correction_of_a_grid_is_measured() -> None:
    # The sparse training is the same whatever the path is corrected by: one cell's measurements must not stand for all.
    plan = make_plan(small(method="permuted", interpolation_points=(3, 5), correction=("none", "repair")))
    assert counts(plan) == {DENSE: 2, PRUNE: 4, MATCH: 2, SPARSE: 1, CONNECT: 2 * 2 * 2}
    for key, cell in plan.cells.items():
        roots = [Ref(job) for job in (target(cell), *measurements(cell))]
        assert key in Closure(roots).jobs, "a job is derived from its cell on the node that computes it"


def test_separate_epochs_by_hand() -> None:
    # Dense: 20 epochs, but 5 for the B of a naive net. Rounds to 0.5 (0.2, 0.36, 0.488, 0.5): 4 x 2 = 8. Sparse from
    # epoch 5: 15. A reinitialised net starts from epoch 0 of a third net.
    alone = {"dense": 20, "lth": 20 + 8 + 15, "naive": 20 + 5 + 8 + 15, "permuted": 2 * 20 + 8 + 15}
    alone |= {"reinit": 20 + 0 + 8 + 20}
    plan = make_plan(small(method=tuple(alone)))
    assert plan.requests == 5
    assert plan.separate_epochs == sum(alone.values())
    assert plan.epochs == 2 * 20 + 8 + 3 * 15 + 20
    for method, epochs in alone.items():
        single = make_plan(small(method=method))
        assert (single.epochs, single.separate_epochs) == (epochs, epochs)


def test_whatever_is_missing_of_a_plan_is_to_be_computed_also_if_it_only_led_to_others() -> None:
    plan = make_plan(SPACES["digits_quickstart"])
    needed = plan.closure.todo(set())
    everything = {Ref(plan.jobs[key], epoch).key for key, epochs in needed.items() for epoch in epochs}
    assert not plan.closure.todo(everything)
    for key in plan.jobs:
        assert key in plan.closure.todo(everything - {key})


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for key, job in make_plan(QUICKSTART).jobs.items():
        assert {ref.job.key for _, ref in job.parents} <= seen
        seen.add(key)


def test_a_plan_is_the_same_every_time() -> None:
    assert list(make_plan(QUICKSTART).jobs) == list(make_plan(QUICKSTART).jobs)


def test_a_job_is_known_by_the_first_cell_that_needs_it() -> None:
    plan = make_plan(QUICKSTART)
    assert plan.cells.keys() == plan.jobs.keys()
    for key, cell in plan.cells.items():
        roots = [Ref(job) for job in (target(cell), *measurements(cell))]
        assert key in Closure(roots).jobs
    for values in QUICKSTART.cells():
        job = target(Cell.from_mapping(values))
        if job.kind == SPARSE:
            assert plan.cells[job.key].method == values["method"]


def test_every_sparse_job_is_compared_with_the_lth_job_of_its_point() -> None:
    plan = make_plan(QUICKSTART)
    assert plan.lth_keys.keys() == {key for key, job in plan.jobs.items() if job.kind == SPARSE}
    for key, lth in plan.lth_keys.items():
        own, other = plan.cells[key], plan.cells[lth]
        assert other == dataclasses.replace(own, method="lth")
        assert plan.jobs[key].parent("mask").key == plan.jobs[lth].parent("mask").key


def test_without_lth_in_the_grid_there_is_nothing_to_compare_with() -> None:
    assert make_plan(small(method=("naive", "permuted"))).lth_keys == {}


@pytest.mark.parametrize("setting", ["lr=0.1,0.2", "imp_lr=0.1,0.2", "sparse_lr=0.1,0.2", "prune_fraction=0.2,0.3"])
def test_a_job_depends_on_the_settings_whose_values_it_does_not_share(setting: str) -> None:
    methods = ("dense", "imp", "lth", "naive", "permuted", "reinit", "shuffled")
    space = override(small(method=methods, interpolation_points=3), [setting])
    plan = make_plan(space)
    name, values = setting.split("=")
    alone = [make_plan(override(space, [f"{name}={value}"])).jobs for value in values.split(",")]
    assert {key for key, recipes in plan.recipes.items() if recipes == [{name: None}]} == alone[0].keys() & alone[
        1
    ].keys()
    assert plan.recipes.keys() == plan.jobs.keys()


@pytest.mark.parametrize(
    "settings",
    [
        ["sparse_schedule=restart,resume", "sparse_lr=0.01,0.02"],
        ["prune_tolerance=0.0,0.005,0.02", "sparsity=0.8,0.9"],
        ["pruner=imp_finetune,imp_rewind", "imp_lr=0.01,0.02", "lr=0.1,0.2"],
        ["schedule=cosine,constant", "imp_schedule=,cosine"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_job_belongs_to_the_recipes_whose_plans_need_it(settings: list[str]) -> None:
    """However the settings depend on each other: each combination is planned on its own."""
    methods = ("dense", "imp", "lth", "naive", "reinit")
    space = override(small(method=methods, rewind_epoch=(2, 4)), settings)
    plan, names = make_plan(space), varied_settings(space)
    expected: dict[str, set[tuple[Any, ...]]] = {key: set() for key in plan.jobs}
    for values in itertools.product(*(getattr(space, name) for name in names)):
        for key in make_plan(dataclasses.replace(space, **dict(zip(names, values, strict=True)))).jobs:
            expected[key].add(values)
    for key, recipes in plan.recipes.items():
        found = [
            combination
            for recipe in recipes
            for combination in itertools.product(
                *(getattr(space, name) if recipe[name] is None else (recipe[name],) for name in names)
            )
        ]
        assert len(found) == len(set(found))
        assert set(found) == expected[key]


def test_a_plan_knows_its_data() -> None:
    facts = make_plan(small()).facts
    assert facts.keys() == {"digits"}
    known = DATASETS["digits"]
    assert facts["digits"].train_images == known.train_images
    assert (facts["digits"].test_images, facts["digits"].num_classes) == (known.test_images, 10)


def test_planning_needs_no_heavy_library() -> None:
    program = (
        "import sys; from search_spaces import get_space; from study.plan import make_plan; "
        "make_plan(get_space('digits_quickstart')); "
        "print(sorted({'torch', 'ray', 'mlflow', 'numpy', 'pandas', 'scipy'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert answer.stdout == "[]\n", "planning must not wait for these imports: move them to where they are used"


# --- ensembles, planes and masks from elsewhere ---------------------------------------------------------------------
def test_members_of_an_ensemble_are_cells_of_the_plan() -> None:
    methods = ("dense", "imp", "lth", "permuted", "naive")
    plan = make_plan(small(method=methods, members=3, sparsity=0.2))
    assert plan.requests == len(methods) * 3
    assert counts(plan) == {
        DENSE: 6,  # A and B of three pairs
        PRUNE: 3,  # IMP's members; the others wear the first one's mask
        MATCH: 3,
        SPARSE: 3 * 3,
        ENSEMBLE: len(methods),
    }
    assert plan.separate_epochs == 3 * (20 + (20 + 2) + (20 + 2 + 15) + (2 * 20 + 2 + 15) + (20 + 5 + 2 + 15))


def test_a_member_is_known_by_its_own_cell() -> None:
    plan = make_plan(small(method=("dense", "imp", "lth", "permuted", "naive", "own_mask"), members=3))
    for key, job in plan.jobs.items():
        if job.kind == SPARSE:
            assert target(plan.cells[key]).key == key, "it would be called and described as another one"
        if job.kind == ENSEMBLE:
            assert key in {each.key for each in measurements(plan.cells[key])}


def test_every_lth_member_is_compared_with_the_first() -> None:
    plan = make_plan(small(method=("lth", "permuted"), members=3))
    (lth,) = set(plan.lth_keys.values())
    assert len(plan.lth_keys) == 6
    assert plan.cells[lth] == dataclasses.replace(plan.cells[lth], method="lth", member=0)


def test_a_plane_s_lth_net_is_known_as_such_where_the_grid_has_none() -> None:
    for methods in ("permuted", ("permuted", "lth")):
        plan = make_plan(small(method=methods, plane_resolution=3))
        assert counts(plan) == {DENSE: 2, PRUNE: 4, MATCH: 1, SPARSE: 2, PLANE: 1}
        for key, job in plan.jobs.items():
            if job.kind == SPARSE:
                assert target(plan.cells[key]).key == key
                assert plan.cells[key].method == ("permuted" if "permutation" in dict(job.parents) else "lth")
        assert list(plan.cells) == list(plan.jobs)


def test_early_matches_share_all_but_the_match_and_its_use() -> None:
    plan = make_plan(small(match_epoch=(2, 10, 20, -1)))
    assert plan.requests == 4 * 4
    assert counts(plan) == {DENSE: 2, PRUNE: 4, MATCH: 3, SPARSE: 2 + 3}  # 20 epochs are all, like -1


def images(root: Path, classes: int, size: int) -> None:
    """Write a dataset of one image per class and split."""
    for split in ("train", "test"):
        for number in range(classes):
            folder = root / split / f"class{number:02}"
            folder.mkdir(parents=True)
            Image.new("RGB", (size, size)).save(folder / "image.png")


def test_datasets_of_a_space_include_those_of_its_masks() -> None:
    assert datasets(get_space("mask_transfer")) == ["svhn", "cifar10"]
    assert datasets(get_space("mask_controls")) == ["cifar10"]


def transfer(**settings: Any) -> SearchSpace:
    fixed = {"dataset": "svhn", "mask_dataset": "image_folder", "method": ("dense", "imp", "naive", "permuted")}
    return small(**{**fixed, "batch_size": 10, **settings})


def test_a_mask_from_elsewhere_needs_the_data_of_both(tmp_path: Path) -> None:
    images(tmp_path / "svhn", 10, 32)
    with pytest.raises(ValueError, match=r"dataset 'image_folder' is not in"):
        make_plan(transfer(), str(tmp_path))
    images(tmp_path / "image_folder", 10, 32)
    plan = make_plan(transfer(), str(tmp_path))
    assert plan.facts.keys() == {"svhn", "image_folder"}
    assert counts(plan) == {DENSE: 3, PRUNE: 4, MATCH: 1, SPARSE: 2}  # A on both, B on the target's
    versions = {job.config.task.dataset: job.config.task.data_version for job in plan.jobs.values()}
    assert versions == {name: facts.fingerprint for name, facts in plan.facts.items()}


@pytest.mark.parametrize(("classes", "size", "model"), [(9, 32, "resnet8"), (10, 16, "mlp"), (10, 72, "resnet50")])
def test_a_mask_of_another_shape_is_refused(tmp_path: Path, classes: int, size: int, model: str) -> None:
    images(tmp_path / "svhn", 10, 32)
    images(tmp_path / "image_folder", classes, size)
    with pytest.raises(ValueError, match=f"mask_dataset 'image_folder' .*{classes} classes, 3 channels, {size} pixels"):
        make_plan(transfer(model=model), str(tmp_path))
    with pytest.raises(ValueError, match=r"mask_dataset 'digits' .*dataset 'svhn' "):
        make_plan(transfer(model=model, mask_dataset="digits"), str(tmp_path))


def test_other_sizes_of_images_are_fine_for_a_net_that_takes_them(tmp_path: Path) -> None:
    images(tmp_path / "svhn", 10, 32)
    images(tmp_path / "image_folder", 10, 16)
    assert make_plan(transfer(model="resnet8"), str(tmp_path)).facts["image_folder"].image_size == 16


# --- overriding -----------------------------------------------------------------------------------------------------
def test_an_axis_takes_several_values_and_keeps_their_types() -> None:
    space = override(QUICKSTART, ["width=0.5, 2", "sparsity=0.9", "seeds=3,4", "method=lth,naive", "rewind_epoch=0"])
    assert (space.width, space.sparsity, space.seeds) == ((0.5, 2.0), (0.9,), (3, 4))
    assert (space.method, space.rewind_epoch) == (("lth", "naive"), (0,))
    assert all(isinstance(width, float) for width in space.width)


def test_a_recipe_takes_one_value_or_becomes_an_axis() -> None:
    space = override(QUICKSTART, ["epochs=30", "lr=0.1,0.2", "schedule=one_cycle", "augment=false", "match_images=100"])
    assert (space.epochs, space.lr, space.schedule) == (30, (0.1, 0.2), "one_cycle")
    assert space.augment is False
    assert space.match_images == 100


def test_what_is_not_set_stays() -> None:
    space = override(QUICKSTART, ["epochs=31"])
    assert space == dataclasses.replace(QUICKSTART, epochs=31)
    assert get_space("digits_quickstart") == QUICKSTART != space
    assert override(QUICKSTART, []) == QUICKSTART


def test_an_overridden_field_has_the_bounds_of_the_space() -> None:
    with pytest.raises(ValueError, match=r"^sparsity must be a number in \[0, 1\), got 90.0$"):
        override(QUICKSTART, ["sparsity=90"])
    with pytest.raises(ValueError, match=r"^rewind_epoch must be a whole number in \[0, epochs\) with epochs=2, got "):
        override(QUICKSTART, ["epochs=2"])
    with pytest.raises(ValueError, match=r"^width of space 'digits_quickstart' repeats a value"):
        override(QUICKSTART, ["width=1,1.0"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "--set takes key=value, got 'epochs'"),
        ("epochs=", "epochs must be a whole number, got ''"),
        ("epochs=1e2", "epochs must be a whole number, got '1e2'"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("seeds=0,one", "seeds must be a whole number, got 'one'"),
        ("width=1,", "width must be a number, got ''"),
        ("augment=yes", "augment must be true or false, got 'yes'"),
        ("lr=nan", "lr must be a number in (0, 100], got nan"),
    ],
)
def test_a_value_of_another_type_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        override(QUICKSTART, [assignment])
    assert str(caught.value) == message


@pytest.mark.parametrize(("key", "nearest"), [("sparsty", "sparsity"), ("seed", "seeds"), ("batchsize", "batch_size")])
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        override(QUICKSTART, [f"{key}=1"])
    assert str(caught.value).startswith(
        f"unknown key of --set {key!r} (did you mean {nearest!r}?); known: recipe, model"
    )


# --- recipes by name ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_all_its_fields_and_nothing_else(name: str) -> None:
    space = SearchSpace(name="test", question="?", epochs=60, rewind_epoch=5, width=(1, 4), lr=0.3, correction="none")
    assert override(space, [f"recipe={name}"]) == dataclasses.replace(space, **RECIPES[name])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_every_knob_of_recipes_and_no_other(name: str, model: str) -> None:
    """So that what one recipe sets, another one sets as well, and ``recipe=paper`` restores the paper's settings."""
    assert recipe(name, [model]).keys() == {key for key, knob in SETTINGS.items() if knob.recipe}
    space = SearchSpace(name="test", question="?", model=(model,), rewind_epoch=(0,))
    assert override(space, [f"recipe={name}", "recipe=paper"]) == override(space, ["recipe=paper"]) == space


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_alone_what_the_space_varies(name: str) -> None:
    space = get_space("match_images")
    assert override(space, [f"recipe={name}", "rewind_epoch=10"]).match_images == space.match_images
    varied = dataclasses.replace(space, lr=(0.1, 0.3))
    found = override(varied, [f"recipe={name}", "rewind_epoch=10"])
    assert (found.lr, found.epochs) == ((0.1, 0.3), RECIPES[name]["epochs"])
    assert override(
        space, ["match_images=100,300", f"recipe={name}", "match_images=50", "rewind_epoch=10"]
    ).match_images == (50,)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_one_for_every_model(name: str, model: str) -> None:
    assignments = [f"recipe={name}", f"model={model}", "batch_size=64", "seeds=0", "width=1", "rewind_epoch=2"]
    assert make_plan(override(QUICKSTART, assignments)).jobs


def test_what_the_papers_code_does_depends_on_the_model() -> None:
    def of(model: str, place: int) -> SearchSpace:
        assignments = [f"model={model}", "recipe=paper_code"]
        return override(QUICKSTART, [*assignments[place:], *assignments[:place], "rewind_epoch=10"])

    for place in (0, 1):  # in whatever order they are given
        assert (of("resnet20", place).prune_tolerance, of("resnet20", place).stream_taps) == (0.005, "paper_code")
        assert (of("vgg11", place).prune_tolerance, of("vgg11", place).stream_taps) == (5e-7, "end")
        assert all(of(model, place).match_augment for model in ("resnet20", "vgg11", "resnet50"))
        imagenet = of("resnet50", place)
        assert (imagenet.epochs, imagenet.batch_size, imagenet.lr, imagenet.imp_lr) == (90, 256, 0.04, 0.002)
    with pytest.raises(ValueError, match=r"recipe 'paper_code' is not the same for models resnet20, vgg11"):
        of("resnet20,vgg11", 0)
    assert override(QUICKSTART, ["model=resnet20,vgg11", "recipe=paper"]).epochs == 200


def test_the_papers_code_for_imagenet_trains_89_less_k_epochs_and_prunes_at_a_constant_rate() -> None:
    space = override(
        QUICKSTART, ["recipe=paper_code", "model=resnet50", "seeds=0", "sparsity=0.9", "rewind_epoch=10,50"]
    )
    recipes: dict[str, set[Any]] = {}
    for job in make_plan(space).jobs.values():
        if isinstance(job.config, TRAINING_CONFIGS):
            recipe = job.config.recipe
            recipes.setdefault(job.kind, set()).add((recipe.epochs, recipe.lr, recipe.schedule))
    assert recipes == {
        DENSE: {(90, 0.04, "steps_paper_code")},
        PRUNE: {(20, 0.002, "constant")},
        SPARSE: {(79, 0.04, "steps_paper_code"), (39, 0.04, "steps_paper_code")},
    }


def test_a_sparsity_that_leaves_no_weight_is_refused_with_the_bound_before_anything_is_planned() -> None:
    count = 4_804  # of resnet8 at width 0.25 with a single input channel
    message = r"^sparsity 0\.99999 prunes all 4,804 prunable weights of resnet8 at width 0\.25: .* below 0\.99989"
    with pytest.raises(ValueError, match=message):
        make_plan(override(QUICKSTART, ["width=0.25", "sparsity=0.99999", "prune_shortcuts=false"]))
    one_left = ["width=0.25", f"sparsity={1 - 1 / count}", "prune_shortcuts=false", "method=naive"]
    assert make_plan(override(QUICKSTART, one_left)).jobs
    dense = make_plan(override(QUICKSTART, ["width=0.25", "sparsity=0.99999", "method=dense"]))
    assert {job.kind for job in dense.jobs.values()} == {DENSE}  # which has no sparsity


def test_later_overrides_win_over_a_recipe_and_a_recipe_over_earlier_ones() -> None:
    short = RECIPES["short"]
    after = override(QUICKSTART, ["recipe=short", "lr=0.3", "epochs=12"])
    assert (after.lr, after.epochs, after.sparse_lr) == (0.3, 12, short["sparse_lr"])
    before = override(QUICKSTART, ["lr=0.3", "width=2", "recipe=short"])
    assert (before.lr, before.width) == (short["lr"], (2.0,))
    last = override(QUICKSTART, ["recipe=paper_imagenet", "recipe=short"])
    assert (last.schedule, last.epochs) == (short["schedule"], short["epochs"])


def test_the_short_recipe_makes_a_plan() -> None:
    space = override(QUICKSTART, ["recipe=short", "width=0.5", "sparsity=0.95", "seeds=0", "rewind_epoch=0,2"])
    recipes = {job.config.recipe for job in make_plan(space).jobs.values() if job.kind == DENSE}  # type: ignore[union-attr]
    (recipe,) = recipes
    short = RECIPES["short"]
    assert {field: getattr(recipe, field) for field in ("epochs", "lr", "schedule", "warmup_epochs")} == {
        field: short[field] for field in ("epochs", "lr", "schedule", "warmup_epochs")
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_of_known_settings_and_say_how_to_train_completely(name: str) -> None:
    assert RECIPES[name].keys() <= SETTINGS.keys() - set(AXES)
    training = {"epochs", "batch_size", "lr", "sparse_lr", "momentum", "weight_decay", "schedule", "warmup_epochs"}
    pruning = {"pruner", "prune_fraction", "imp_epochs", "imp_lr", "imp_momentum", "imp_weight_decay"}
    assert RECIPES[name].keys() >= training | pruning


def test_a_recipe_too_short_for_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rewind_epoch must be .* with epochs=20, got 25$"):
        override(SearchSpace(name="test", question="?", rewind_epoch=(10, 25)), ["recipe=short"])


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown recipe 'shrt' \(did you mean 'short'\?\); known: paper, "):
        override(QUICKSTART, ["recipe=shrt"])


def test_new_settings_can_be_set() -> None:
    first = ["match_epoch=2,-1", "rewind_offset=1", "prune_tolerance=0.005", "sparse_schedule=resume"]
    then = ["mask_dataset=digits", "members=3", "imp_path=true", "plane_resolution=5"]
    space = override(QUICKSTART, [*first, *then])
    assert (space.match_epoch, space.rewind_offset, space.prune_tolerance) == ((2, -1), 1, 0.005)
    assert (space.sparse_schedule, space.mask_dataset, space.members) == ("resume", "digits", 3)
    assert (space.imp_path, space.plane_resolution) == (True, 5)


@pytest.mark.parametrize("key", ["name", "question", "settings"])
def test_a_space_cannot_be_renamed(key: str) -> None:
    with pytest.raises(ValueError, match="unknown key"):
        override(QUICKSTART, [f"{key}=other"])


# --- the recipe of a space ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("space", "recorded"),
    [
        ("digits_quickstart", "a2aac56a89d8"),
        ("cifar10_two_cores", "dd0f63f12bdd"),
        ("resnet20_width_sweep", "4a9120320b9a"),
        ("vgg11_rewind_sweep", "71f80c32beeb"),
        ("resnet50_imagenet_sweep", "629126236244"),
        ("early_matching", "0f453da4df78"),
        ("match_images", "d0ee4872811b"),
        ("mask_controls", "f9ba721ee81f"),
        ("mask_transfer", "c8639ea38425"),
        ("mode_connectivity", "2c7600086df2"),
        ("ensemble_diversity", "05e5e9f9d84f"),
    ],
)
def test_runs_of_earlier_versions_belong_to_the_recipe(space: str, recorded: str) -> None:
    assert recipe_digest(SPACES[space]) == recorded, (
        "the report would set all earlier runs aside: is a new knob not marked as young?"
    )


@pytest.mark.parametrize("change", ["graphs=true", "deterministic=true", "image_size=64"])
def test_later_knobs_make_another_recipe(change: str) -> None:
    assert recipe_digest(override(QUICKSTART, [change])) != recipe_digest(QUICKSTART)


def test_growing_the_grid_keeps_the_recipe() -> None:
    grown = override(QUICKSTART, ["width=1,2,4", "seeds=0,1,2,3,4", "sparsity=0.5", "method=lth", "matcher=weight"])
    assert recipe_digest(grown) == recipe_digest(QUICKSTART)


@pytest.mark.parametrize("change", ["epochs=31", "lr=0.17", "augment=false", "pruner=one_shot", "sparse_lr=0.17"])
def test_another_recipe_has_another_digest(change: str) -> None:
    assert recipe_digest(override(QUICKSTART, [change])) != recipe_digest(QUICKSTART)


def test_the_spelling_of_a_number_makes_no_other_recipe() -> None:
    assert recipe_digest(small(lr=1, warmup_epochs=2)) == recipe_digest(small(lr=1.0, warmup_epochs=2.0))


def test_the_rounds_of_the_quickstart_land_on_its_sparsities() -> None:
    plan = make_plan(QUICKSTART)
    fraction = QUICKSTART.prune_fraction
    landed = {job.config.sparsity for job in plan.jobs.values() if job.kind == PRUNE}  # type: ignore[union-attr]
    assert landed == {each for sparsity in QUICKSTART.sparsity for each in round_sparsities(sparsity, fraction)}


# --- settings that would do nothing ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"imp_path": True, "interpolation_points": 3, "method": ("lth",)}, "imp_path is measured for method 'imp'"),
        ({"plane_resolution": 3, "method": ("lth",)}, "plane_resolution is measured for method 'permuted'"),
        ({"mask_overlap": True, "method": ("lth",)}, "mask_overlap is measured for method 'permuted'"),
        ({"members": 3, "member": 1}, "member=1 has no meaning with members=3"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_plan(small(**settings))
