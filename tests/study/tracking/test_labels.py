"""How a job is called and described: recognisable, told apart, and findable in charts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from small_spaces import small

from search_spaces import SPACES, SearchSpace, get_space
from study.plan import Plan, make_plan
from study.tracking.labels import run_name, run_params
from trainables.config import Cell
from trainables.graph import Closure, Job, Ref, measurements, target
from trainables.models import MODELS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, OVERLAP, PLANE, PRUNE, SPARSE, STAGES

QUICKSTART = get_space("digits_quickstart")


# --- what a job is called -------------------------------------------------------------------------------------------
def named(space: SearchSpace) -> dict[str, set[str]]:
    plan = make_plan(space)
    names: dict[str, set[str]] = {kind: set() for kind in STAGES}
    for key, job in plan.jobs.items():
        names[job.kind].add(run_name(job, plan.cells[key]))
    return names


# --- names ----------------------------------------------------------------------------------------------------------
def test_a_person_recognises_every_job() -> None:
    names = named(small(width=2, sparsity=0.3, seeds=1, interpolation_points=3))
    assert names == {
        DENSE: {"dense · w2 · A2", "dense · w2 · B3"},
        PRUNE: {"imp · w2 · S=20% · round 1 · A2", "imp · w2 · S=30% · round 2 · A2"},
        MATCH: {"match activation · w2 · A2→B3", "match identity · w2 · A2→B3"},
        SPARSE: {
            "lth · w2 · S=30% · k=5 · A2",
            "naive · w2 · S=30% · k=5 · A2→B3",
            "permuted · w2 · S=30% · k=5 · A2→B3",
        },
        CONNECT: {"connect activation · w2 · A2→B3", "connect identity · w2 · A2→B3"},
        PLANE: set(),
        ENSEMBLE: set(),
        OVERLAP: set(),
    }


def test_names_of_the_imp_path() -> None:
    for model, entry in MODELS.items():
        names = named(small(model=model, method="imp", sparsity=0.3, imp_path=True, interpolation_points=3))
        assert names[CONNECT] == {
            f"connect imp · w1 · round {number} · A0 · {correction}"
            for number in (1, 2)
            for correction in ("none", *(["bn_reset"] if entry.batchnorm else []))
        }


def test_names_of_planes() -> None:
    assert named(small(plane_resolution=3))[PLANE] == {"plane · w1 · S=50% · k=5 · A0→B1"}
    # The LTH net is needed though nobody asks for it.
    names = named(small(method="permuted", matcher="weight", match_epoch=3, plane_resolution=3))
    assert names[PLANE] == {"plane · w1 · S=50% · k=5 · A0→B1 · weight · t=3"}
    assert names[SPARSE] == {"lth · w1 · S=50% · k=5 · A0", "permuted · w1 · S=50% · k=5 · A0→B1 · weight · t=3"}


def test_names_of_overlaps() -> None:
    names = named(small(mask_overlap=True, matcher="weight", rewind_epoch=(2, 5)))
    assert names[OVERLAP] == {"overlap · w1 · S=50% · A0→B1 · weight"}  # one for all rewind epochs
    assert {name.rpartition(" · ")[2] for name in names[PRUNE]} == {"A0", "B1"}
    names = named(small(mask_overlap=True, pruner="imp_rewind", rewind_epoch=(2, 5)))
    assert names[OVERLAP] == {f"overlap · w1 · S=50% · k={epoch} · A0→B1" for epoch in (2, 5)}


def test_names_of_ensembles_and_their_members() -> None:
    names = named(small(method=("dense", "imp", "lth", "permuted"), sparsity=0.2, members=2))
    assert names[ENSEMBLE] == {
        "ensemble of 2 dense · w1 · A0",  # at no sparsity, rewound to no epoch
        "ensemble of 2 imp · w1 · S=20% · A0",
        "ensemble of 2 lth · w1 · S=20% · k=5 · A0",
        "ensemble of 2 permuted · w1 · S=20% · k=5 · A0",
    }
    assert names[SPARSE] == {
        "lth · w1 · S=20% · k=5 · A0",
        "lth · w1 · S=20% · k=5 · A0 · order 1",
        "permuted · w1 · S=20% · k=5 · A0→B1",
        "permuted · w1 · S=20% · k=5 · A0→B3",
    }
    assert names[MATCH] == {"match activation · w1 · A0→B1", "match activation · w1 · A0→B3"}
    assert names[PRUNE] == {"imp · w1 · S=20% · round 1 · A0", "imp · w1 · S=20% · round 1 · A2"}


def test_names_tell_of_matches_on_fewer_images_than_the_paper_s() -> None:
    few = named(small(match_images=(300, 3000, 0), interpolation_points=3))
    assert {name for name in few[SPARSE] if name.startswith("permuted")} == {
        "permuted · w1 · S=50% · k=5 · A0→B1",
        "permuted · w1 · S=50% · k=5 · A0→B1 · 300 images",
        "permuted · w1 · S=50% · k=5 · A0→B1 · 3,000 images",
    }
    assert {"match activation · w1 · A0→B1 · 300 images", "match activation · w1 · A0→B1"} <= few[MATCH]
    assert "connect activation · w1 · A0→B1 · 3,000 images" in few[CONNECT]
    assert not any("images" in name for name in few[SPARSE] if not name.startswith("permuted"))


def test_names_of_early_matches() -> None:
    names = named(small(method="permuted", match_epoch=(3, 20, -1), interpolation_points=3, matcher="identity"))
    assert names[MATCH] == {"match identity · w1 · A0→B1", "match identity · w1 · A0→B1 · t=3"}
    assert names[CONNECT] == {"connect identity · w1 · A0→B1", "connect identity · w1 · A0→B1 · t=3"}
    assert names[SPARSE] == {
        "permuted · w1 · S=50% · k=5 · A0→B1 · identity",
        "permuted · w1 · S=50% · k=5 · A0→B1 · identity · t=3",
    }


def test_a_retrained_round_says_from_where() -> None:
    names = named(small(method="imp", pruner="imp_rewind", sparsity=0.2, rewind_epoch=(3, 5)))
    assert names[PRUNE] == {f"imp · w1 · S=20% · k={epoch} · round 1 · A0" for epoch in (3, 5)}


def test_a_net_without_rewinding_is_not_called_by_an_epoch_of_the_grid() -> None:
    assert named(small(method="reinit", rewind_epoch=(3, 5)))[SPARSE] == {"reinit · w1 · S=50% · A0→B1"}


def elsewhere(method: str, **settings: Any) -> Cell:
    fixed = {"dataset": "svhn", "mask_dataset": "cifar10", "sparsity": 0.5}
    return Cell(method=method, **{**fixed, **settings})


def test_nets_of_the_mask_s_dataset_say_so() -> None:
    cell = elsewhere("naive")
    dense = [job for job in Closure([Ref(target(cell))]).jobs.values() if job.kind == DENSE]
    assert {run_name(job, cell) for job in dense} == {"dense · w1 · A0 · cifar10", "dense · w1 · B1"}
    assert run_name(target(elsewhere("dense")), elsewhere("dense")) == "dense · w1 · A0"


def test_sparsities_are_said_as_they_are_asked_for() -> None:
    cell = Cell(method="lth", sparsity=0.95, prune_tolerance=0.005)
    assert " · S=95% · " in run_name(target(cell), cell)
    assert " · S=94.5% · " in run_name(target(cell).parent("mask").job, cell)


def test_the_jobs_of_the_quickstart_have_different_names() -> None:
    names = [name for each in named(QUICKSTART).values() for name in each]
    assert len(names) == len(set(names)) == len(make_plan(QUICKSTART).jobs)


# --- params ---------------------------------------------------------------------------------------------------------
def params_of(kind: str, method: str = "permuted") -> dict[str, Any]:
    plan = make_plan(small(width=2, seeds=1, interpolation_points=3, method=method, imp_lr=0.3, sparse_lr=0.4))
    return all_params(plan, kind)[-1]


def all_params(plan: Plan, kind: str) -> list[dict[str, Any]]:
    """Return the params of all jobs of a kind, in the order of the plan."""
    return [run_params(job, plan.cells[key]) for key, job in plan.jobs.items() if job.kind == kind]


RECIPE = {"epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule", "warmup_epochs", "precision"}
RECIPE |= {"first_epoch", "compiled", "kernels", "stacked", "graphs"}
PLACE = {"stage", "model", "dataset", "width"}
TASK = {"augment", "shortcut", "init", "image_size", "deterministic"}


def test_params_of_a_dense_job() -> None:
    params = params_of(DENSE, "dense")
    assert params.keys() == PLACE | RECIPE | TASK | {"method", "seed_a"}
    assert params.items() >= {"stage": "dense", "method": "dense", "model": "mlp", "width": "2", "seed_a": 2}.items()
    assert (params["epochs"], params["lr"]) == (20, 0.08)


def test_params_of_a_pruning_round_have_its_own_recipe_and_sparsity() -> None:
    params = params_of(PRUNE)
    assert params.items() >= {"stage": "prune", "method": "imp", "sparsity": "0.5", "round": 4, "seed_a": 2}.items()
    assert params.items() >= {"epochs": 2, "lr": 0.3, "momentum": 0.0, "pruner": "imp_finetune"}.items()
    assert not {"seed_b", "rewind_epoch", "matcher"} & params.keys()


@pytest.mark.parametrize("method", ["lth", "naive", "permuted"])
def test_params_of_a_sparse_job(method: str) -> None:
    params = params_of(SPARSE, method)
    assert params.items() >= {"stage": "sparse", "method": method, "sparsity": "0.5", "rewind_epoch": 5}.items()
    assert (params["seed_a"], params["epochs"], params["lr"]) == (2, 15, 0.4)
    assert params.get("seed_b") == (None if method == "lth" else 3)
    assert params.get("matcher") == ("activation" if method == "permuted" else None)


@pytest.mark.parametrize("kind", [MATCH, CONNECT])
def test_params_of_a_measurement_have_no_recipe(kind: str) -> None:
    params = params_of(kind)
    assert params.items() >= {"stage": kind, "seed_a": 2, "seed_b": 3, "match_images": 10_000}.items()
    assert params["matcher"] in ("activation", "identity")
    assert not RECIPE & params.keys()


def test_params_of_sparse_jobs_say_what_they_rest_on() -> None:
    settings = {"rewind_offset": 1, "prune_tolerance": 0.01, "sparse_schedule": "resume", "match_epoch": 3}
    (params,) = all_params(make_plan(small(method="permuted", **settings)), SPARSE)
    assert params.items() >= {"rewind_offset": 1, "prune_tolerance": 0.01, "first_epoch": 5, "match_epoch": 3}.items()
    assert params.items() >= {"mask_dataset": "digits", "data_order": 0, "lr": 0.08}.items()


def test_params_of_a_transferred_mask_name_both_datasets() -> None:
    cell = elsewhere("permuted")
    params = run_params(target(cell), cell)
    assert (params["dataset"], params["mask_dataset"]) == ("svhn", "cifar10")
    assert run_params(target(cell).parent("mask").job, cell)["dataset"] == "cifar10"


def test_params_of_the_imp_path() -> None:
    space = small(model="resnet20", method="imp", sparsity=0.3, seeds=1, imp_path=True, interpolation_points=3)
    plan = make_plan(space)
    params = all_params(plan, CONNECT)
    assert [(each["round"], each["sparsity"], each["correction"]) for each in params] == [
        (1, "0.2", "none"),
        (1, "0.2", "bn_reset"),
        (2, "0.3", "none"),
        (2, "0.3", "bn_reset"),
    ]
    for each in params:
        assert each.items() >= {"stage": "connect", "path": "imp", "seed_a": 2, "interpolation_points": 3}.items()
        assert not {"seed_b", "matcher", *RECIPE} & each.keys()


def test_params_of_the_path_between_a_pair() -> None:
    plan = make_plan(small(method="permuted", seeds=1, match_epoch=(3, -1), interpolation_points=3))
    params = all_params(plan, CONNECT)
    assert {each["path"] for each in params} == {"pair"}
    assert {(each["matcher"], each["match_epoch"]) for each in params} == {
        (matcher, epoch) for matcher in ("identity", "activation") for epoch in (3, -1)
    }


def test_params_of_a_match_have_its_epoch() -> None:
    params = all_params(make_plan(small(method="permuted", match_epoch=(3, -1))), MATCH)
    assert [each["match_epoch"] for each in params] == [3, -1]


def test_params_of_an_overlap() -> None:
    (params,) = all_params(make_plan(small(method="permuted", seeds=1, mask_overlap=True)), OVERLAP)
    place = {"stage": "overlap", "sparsity": "0.5", "seed_a": 2, "seed_b": 3, "matcher": "activation"}
    assert params.items() >= {**place, "match_epoch": -1, "prune_fraction": 0.2}.items()
    assert not {"method", "rewind_epoch", *RECIPE} & params.keys()


def test_params_of_a_plane() -> None:
    (params,) = all_params(make_plan(small(method="permuted", seeds=1, plane_resolution=3)), PLANE)
    place = {"stage": "plane", "method": "permuted", "sparsity": "0.5", "rewind_epoch": 5, "seed_a": 2, "seed_b": 3}
    assert params.items() >= place.items()
    assert params.items() >= {"matcher": "activation", "correction": "bn_reset", "plane_resolution": 3}.items()
    assert not RECIPE & params.keys()


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("dense", {}),
        ("imp", {"sparsity": "0.5"}),
        ("lth", {"sparsity": "0.5", "rewind_epoch": 5}),
        ("reinit", {"sparsity": "0.5"}),
        ("permuted", {"sparsity": "0.5", "rewind_epoch": 5, "matcher": "activation", "match_epoch": -1}),
    ],
)
def test_params_of_an_ensemble(method: str, place: dict[str, Any]) -> None:
    (params,) = all_params(make_plan(small(method=method, seeds=1, members=3)), ENSEMBLE)
    known = {"stage": "ensemble", "model": "mlp", "dataset": "digits", "width": "1", "method": method, "seed_a": 2}
    matching = {"match_images": 10_000, "match_augment": False, "stream_taps": "end"} if "matcher" in place else {}
    assert params == {**known, **place, **matching, "members": 3}


def test_lth_members_differ_in_their_order_and_the_others_in_their_seed() -> None:
    plan = make_plan(small(method=("lth", "naive"), members=3))
    params = all_params(plan, SPARSE)
    assert [each["data_order"] for each in params if each["method"] == "lth"] == [0, 1, 2]
    assert [each["seed_b"] for each in params if each["method"] == "naive"] == [1, 3, 5]
    assert {each["seed_a"] for each in params} == {0}


@pytest.mark.parametrize("name", SPACES)
def test_the_jobs_of_every_space_have_names_and_params_of_their_own(name: str) -> None:
    cells = [Cell.from_mapping(values) for values in SPACES[name].cells()]
    named: dict[str, str] = {}
    described: dict[str, str] = {}
    for root, cell in _roots(cells):
        for key, job in Closure([Ref(root)]).jobs.items():
            if key not in named:
                named[key], described[key] = run_name(job, cell), repr(sorted(run_params(job, cell).items()))
    assert len(set(named.values())) == len(named), "two jobs have one name: nobody could tell them apart"
    assert len(set(described.values())) == len(described), "two jobs have the same params"


def _roots(cells: list[Cell]) -> list[tuple[Job, Cell]]:
    """Return all that a plan asks for, nets before measurements, with its cell."""
    members = [
        dataclasses.replace(cell, member=member)
        for cell in cells
        for member in (range(cell.members) if cell.members else [0])
    ]
    nets = [(target(cell), cell) for cell in members]
    return nets + [(job, cell) for cell in members for job in measurements(cell)]
