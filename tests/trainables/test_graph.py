"""The graph: which jobs a cell needs, what their keys depend on, and what is left to do."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from checkout import ROOT

from search_spaces import SPACES
from trainables.config import Cell, Config, DenseConfig, PruneConfig, Recipe, Task
from trainables.data import DATASETS
from trainables.graph import (
    VERSIONS,
    Closure,
    Job,
    Ref,
    canonical,
    connect_job,
    dense_job,
    ensemble_job,
    make_job,
    match_job,
    measurements,
    overlap_job,
    plane_job,
    prune_job,
    pruning_rounds,
    round_sparsities,
    snapshot_key,
    target,
)
from trainables.knobs import KNOBS
from trainables.methods import METHODS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, OVERLAP, PLANE, PRUNE, SPARSE, STAGES
from trainables.training.way import SETTINGS

CELL: dict[str, Any] = {
    # Every setting is given, so that another default changes nothing here.
    "method": "permuted",
    "model": "resnet20",
    "dataset": "cifar10",
    "data_version": "",
    "width": 1.0,
    "sparsity": 0.9,
    "rewind_epoch": 10,
    "seed": 0,
    "matcher": "activation",
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.08,
    "sparse_lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_epochs": 0.0,
    "precision": "fp32",
    "compiled": False,
    "kernels": "dense",
    "stacked": False,
    "graphs": False,
    "deterministic": False,
    "augment": True,
    "init": "default",
    "shortcut": "conv3x3",
    "pruner": "imp_finetune",
    "prune_fraction": 0.2,
    "imp_epochs": 50,
    "imp_lr": 0.01,
    "imp_momentum": 0.0,
    "imp_weight_decay": 0.0,
    "imp_schedule": "",
    "prune_shortcuts": False,
    "prune_classifier": True,
    "match_images": 10_000,
    "match_augment": False,
    "stream_taps": "end",
    "interpolation_points": 0,
    "correction": "bn_reset",
    "rewind_offset": 0,
    "rewind_offset_counts": False,
    "prune_tolerance": 0.0,
    "sparse_schedule": "restart",
    "match_epoch": -1,
    "mask_dataset": "",
    "mask_data_version": "",
    "member": 0,
    "members": 0,
    "imp_path": False,
    "plane_resolution": 0,
    "mask_overlap": False,
}
GOLDEN = {
    DENSE: (1, "94c834a805046436f97787dd5bf5f476de2104c014b0aa1fd91708685f87dddc"),
    PRUNE: (1, "819543c2544a1211ff192b3eb61a9f8207764567485fa27d1c3a65f962ea94ac"),
    MATCH: (1, "e0cc316a8b5f6f82cb4483cab366769aee413b8493ff50547dffd92321d8e392"),
    SPARSE: (1, "6fecb2951886580073e098f9ab197beac14aade72e103e170836cfba4ba08376"),
    CONNECT: (2, "0eacce8a12d6a7bcac3c4a3d16a592c5961610337db203efb993b30780daf89d"),
    PLANE: (2, "34b306d118f1a47b1b2b1958bb4457cf20ced85dc028f80c6f7637a261e4c31f"),
    ENSEMBLE: (1, "9763cb2b94ae8fb1ffadbfae6ab5e541ad4f144ad696d1a44e724e2782fb81ef"),
    OVERLAP: (1, "7fb32e1ac93dd2a170fc4309f258cbc91525d971507fece9eea8f7f5c2cafde6"),
}
"""Kind of job -> its version and the key of that job behind `CELL`, with every kind of measurement."""


def cell(method: str = "permuted", **settings: Any) -> Cell:
    return Cell(**{**CELL, "method": method, **settings})


def job_of_kind(kind: str, made: Cell) -> Job:
    match kind:
        case "dense":
            return dense_job(made, made.seed_a)
        case "prune":
            return prune_job(made, made.seed_a)
        case "match":
            return match_job(made, made.matcher)
        case "connect":
            match_ = match_job(made, made.matcher)
            return connect_job(made, match_.parent("a"), match_.parent("b"), match_)
        case "plane":
            return plane_job(dataclasses.replace(made, method="permuted"))
        case "overlap":
            return overlap_job(dataclasses.replace(made, method="permuted"))
        case "ensemble":
            return ensemble_job(made)
        case _:
            return target(made)


def keys(made: Cell) -> dict[str, str]:
    """Return one key per kind of job behind a cell."""
    return {kind: job_of_kind(kind, made).key for kind in STAGES}


def chain(made: Cell) -> tuple[Job, ...]:
    """Return a cell's pruning rounds in order."""
    return pruning_rounds(prune_job(made, made.seed_a))


def prune_config(job: Job) -> PruneConfig:
    assert isinstance(job.config, PruneConfig)
    return job.config


def interpolating(**settings: Any) -> Cell:
    return cell(interpolation_points=11, **settings)


def measured(**settings: Any) -> Cell:
    """Return a cell with every kind of measurement."""
    return interpolating(plane_resolution=21, members=3, mask_overlap=True, **settings)


# --- keys -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", STAGES)
def test_golden_keys_change_only_together_with_versions(kind: str) -> None:
    version, key = GOLDEN[kind]
    assert VERSIONS[kind] == version, "a new version: pin the new key in GOLDEN of this file"
    assert job_of_kind(kind, measured()).key == key, (
        f"{kind} jobs have new keys, so nobody finds published results any more. If a new field did it, give it a "
        "neutral value in its metadata. If the meaning of the job changed, bump VERSIONS in trainables/graph.py and "
        "pin the new keys, its own and its children's, here."
    )


def test_keys_are_64_hex_digits() -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys(measured()).values())
    assert re.fullmatch("[0-9a-f]{64}", snapshot_key(target(cell("dense")).key, 10))


PROGRAM = """
import json, sys
from trainables.config import Cell
from trainables.graph import Ref, Closure, measurements, target
cell = Cell(**json.loads(sys.argv[1]))
jobs = Closure(map(Ref, (target(cell), *measurements(cell)))).jobs
print(json.dumps(sorted({ref.key for job in jobs.values() for _, ref in job.parents} | jobs.keys())))
"""


@pytest.mark.parametrize("hash_seed", [None, "1"])
def test_another_process_derives_the_same_keys(hash_seed: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    if hash_seed is not None:
        environment["PYTHONHASHSEED"] = hash_seed
    made = measured()
    command = [sys.executable, "-c", PROGRAM, json.dumps(dataclasses.asdict(made))]
    answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    jobs = Closure(map(Ref, (target(made), *measurements(made)))).jobs
    expected = {ref.key for job in jobs.values() for _, ref in job.parents} | jobs.keys()
    assert json.loads(answer.stdout) == sorted(expected)


ALL = frozenset(STAGES)
TRAINED = frozenset({SPARSE, PLANE, ENSEMBLE})
MASKED = TRAINED | {PRUNE, OVERLAP}
MATCHED = TRAINED | {MATCH, CONNECT, OVERLAP}
RENAMES: list[tuple[dict[str, Any], frozenset[str]]] = [
    # change of the cell -> kinds of job whose keys change; a kind's key holds its ancestors' keys
    ({"model": "resnet8"}, ALL),
    ({"dataset": "cifar100"}, ALL),
    ({"data_version": "f00d"}, ALL),
    ({"width": 2.0}, ALL),
    ({"seed": 1}, ALL),
    ({"epochs": 100}, ALL),
    ({"batch_size": 64}, ALL),
    ({"lr": 0.1}, ALL),
    ({"momentum": 0.8}, ALL),
    ({"weight_decay": 1e-4}, ALL),
    ({"schedule": "constant"}, ALL),
    ({"warmup_epochs": 1.0}, ALL),
    ({"precision": "bf16"}, ALL),
    ({"compiled": True}, ALL),
    ({"kernels": "sparse"}, MASKED),
    ({"stacked": True}, ALL),
    ({"graphs": True}, ALL),
    ({"deterministic": True}, ALL),
    ({"augment": False}, ALL),
    ({"image_size": 64}, ALL),
    ({"streaming": True, "damaged_images": 3, "workers": 4}, frozenset()),
    ({"shortcut": "conv1x1"}, ALL),
    ({"init": "fan_out"}, ALL),
    ({"init": "fan_in"}, frozenset()),  # the model's own initialisation, under another name
    ({"sparsity": 0.95}, MASKED),
    ({"pruner": "one_shot"}, MASKED),
    ({"pruner": "imp_rewind"}, MASKED),
    ({"prune_fraction": 0.3}, MASKED),
    ({"imp_epochs": 10}, MASKED),
    ({"imp_lr": 0.1}, MASKED),
    ({"imp_momentum": 0.9}, MASKED),
    ({"imp_weight_decay": 5e-4}, MASKED),
    ({"imp_schedule": "constant"}, MASKED),
    ({"imp_schedule": "cosine"}, frozenset()),  # that of dense training
    ({"prune_shortcuts": True}, MASKED),
    ({"prune_classifier": False}, MASKED),
    ({"prune_tolerance": 0.05}, MASKED),
    ({"prune_tolerance": 0.005}, frozenset()),  # no full round is within this tolerance of 90 %
    ({"rewind_epoch": 20}, TRAINED),
    ({"rewind_offset": 1}, TRAINED),
    ({"rewind_offset_counts": True}, frozenset()),  # of an offset of 0
    ({"rewind_offset": 1, "rewind_offset_counts": True}, TRAINED),
    ({"sparse_lr": 0.1}, TRAINED),
    ({"sparse_schedule": "resume"}, TRAINED),
    ({"matcher": "weight"}, MATCHED),
    ({"match_images": 0}, MATCHED),
    ({"match_augment": True}, MATCHED),
    ({"stream_taps": "paper_code"}, MATCHED),
    ({"match_epoch": 50}, MATCHED),
    ({"match_epoch": 200}, frozenset()),  # the last epoch is the final state, under another name
    ({"mask_dataset": "svhn"}, ALL - {DENSE}),
    ({"mask_dataset": "svhn", "mask_data_version": "f00d"}, ALL - {DENSE}),
    ({"mask_dataset": "cifar10"}, frozenset()),  # its own
    ({"interpolation_points": 21}, frozenset({CONNECT})),
    ({"correction": "repair"}, frozenset({CONNECT})),  # a plane has no REPAIR
    ({"correction": "none"}, frozenset({CONNECT, PLANE})),
    ({"plane_resolution": 11}, frozenset({PLANE})),
    ({"members": 4}, frozenset({ENSEMBLE})),
    ({"member": 1}, frozenset({MATCH, SPARSE, CONNECT, PLANE, OVERLAP})),  # another B; the ensemble is of all members
    ({"imp_path": True}, frozenset()),
    ({"mask_overlap": False}, frozenset()),
    ({"method": "naive"}, frozenset({SPARSE, ENSEMBLE})),
]


def test_between_nets_of_two_datasets_nothing_is_interpolated() -> None:
    """The labels of one dataset do not fit the other's classifier."""
    settings: dict[str, Any] = {"interpolation_points": 3, "plane_resolution": 3, "mask_overlap": True}
    kinds = {job.kind for job in measurements(cell(mask_dataset="svhn", **settings))}
    assert kinds == {OVERLAP}
    assert {job.kind for job in measurements(cell(mask_dataset="cifar10", **settings))} == {OVERLAP, CONNECT, PLANE}


def test_what_every_setting_renames_is_tested() -> None:
    assert {name for change, _ in RENAMES for name in change} == {field.name for field in dataclasses.fields(Cell)}, (
        "add the new setting to RENAMES of this file, with the kinds of job whose results it changes"
    )


@pytest.mark.parametrize(("change", "renamed"), RENAMES, ids=[str(change) for change, _ in RENAMES])
def test_a_setting_renames_only_what_it_changes(change: dict[str, Any], renamed: frozenset[str]) -> None:
    before = keys(measured())
    after = keys(dataclasses.replace(measured(), **change))
    assert {kind for kind in STAGES if before[kind] != after[kind]} == renamed


def test_retraining_rounds_have_the_rewind_epoch_in_their_keys_but_fine_tuning_ones_have_not() -> None:
    for pruner, renamed in (("imp_finetune", False), ("one_shot", False), ("imp_rewind", True)):
        early, late = (prune_job(cell(pruner=pruner, rewind_epoch=epoch), 0).key for epoch in (5, 6))
        assert (early != late) == renamed


@pytest.mark.parametrize("rewind_epoch", [0, 7, 10])
def test_snapshots_do_not_rename_the_dense_net(rewind_epoch: int) -> None:
    init = target(cell("lth", rewind_epoch=rewind_epoch)).parent("init")
    assert init.job.key == target(cell("dense")).key
    assert init.key == snapshot_key(init.job.key, rewind_epoch)


def test_snapshots_have_keys_of_their_own() -> None:
    key = target(cell("dense")).key
    assert len({key, *(snapshot_key(key, epoch) for epoch in range(200))}) == 201


def test_the_networks_of_a_pair_are_named_alike() -> None:
    # Net B of one pair is an ordinary dense net: a grid that uses it as net A shares it.
    config = dense_job(cell(), 5).config
    assert isinstance(config, DenseConfig)
    assert config == dataclasses.replace(dense_job(cell(), 4).config, seed=5)


@pytest.mark.parametrize("cls", [Task, Recipe, *Config.__args__])
def test_a_field_at_its_neutral_value_renames_nothing(cls: type) -> None:
    fields = dataclasses.fields(cls)
    neutral = {field.name: field.metadata["neutral"] for field in fields if "neutral" in field.metadata}
    others = {name: tuple(KNOBS[name].values or (False, True))[-1] for name in SETTINGS}
    other: dict[str, Any] = {field.name: 1 for field in fields if field.name not in neutral}
    assert canonical(cls(**other, **neutral)) == other == canonical(cls(**other))
    for name in neutral:
        assert name in canonical(cls(**other, **{**neutral, name: others.get(name, "something else")}))


def test_what_has_no_neutral_value_is_always_in_the_key() -> None:
    config = canonical(target(cell("dense")).config)
    assert config.keys() == {"task", "recipe", "seed"}
    assert config["task"] == {"model": "resnet20", "width": 1.0, "dataset": "cifar10"}
    assert config["recipe"].keys() == {"epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule"}


def test_parents_and_their_roles_are_in_the_key() -> None:
    a, b = Ref(dense_job(cell(), 0)), Ref(dense_job(cell(), 1))
    config = match_job(cell(), "activation").config
    straight, swapped = make_job(MATCH, config, a=a, b=b), make_job(MATCH, config, a=b, b=a)
    assert straight.key != swapped.key
    assert straight.key == make_job(MATCH, config, b=b, a=a).key  # but not the order in which they are listed


# --- pruning rounds -------------------------------------------------------------------------------------------------
SPARSITIES = [0.0, 1e-6, 0.1, 0.2, 0.36, 0.488, 0.5, 0.5904, 0.67232, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999]
FRACTIONS = [0.05, 0.1, 0.2, 0.5, 0.9]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_rounds_rise_to_land_exactly(sparsity: float, fraction: float) -> None:
    rounds = round_sparsities(sparsity, fraction)
    assert rounds[-1] == sparsity
    assert all(earlier < later for earlier, later in itertools.pairwise(rounds))


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_full_rounds_prune_the_fraction_of_what_remains_and_the_last_no_more(sparsity: float, fraction: float) -> None:
    kept = [1.0, *(1.0 - reached for reached in round_sparsities(sparsity, fraction))]
    shares = [1.0 - after / before for before, after in itertools.pairwise(kept)]
    assert shares[:-1] == pytest.approx([fraction] * (len(shares) - 1), abs=1e-8)
    assert -1e-8 <= shares[-1] <= fraction + 1e-8


@pytest.mark.parametrize(
    ("sparsity", "rounds"),
    [
        (0.0, (0.0,)),
        (0.1, (0.1,)),
        (0.2, (0.2,)),
        (0.36, (0.2, 0.36)),  # exactly two full rounds: no third one that prunes nothing
        (0.361, (0.2, 0.36, 0.361)),
        (0.488, (0.2, 0.36, 0.488)),
        (0.5, (0.2, 0.36, 0.488, 0.5)),
    ],
)
def test_rounds_by_hand(sparsity: float, rounds: tuple[float, ...]) -> None:
    assert round_sparsities(sparsity, 0.2) == rounds


def test_the_paper_s_sparsities_take_the_paper_s_number_of_rounds() -> None:
    # 0.8 ** 7 = 0.21 and 0.8 ** 8 = 0.17, and so on
    assert [len(round_sparsities(sparsity, 0.2)) for sparsity in (0.8, 0.9, 0.95, 0.97)] == [8, 11, 14, 16]


@pytest.mark.parametrize(("low", "high"), list(itertools.pairwise(SPARSITIES[2:])))
def test_the_full_rounds_of_a_lower_target_begin_those_of_a_higher_one(low: float, high: float) -> None:
    full = round_sparsities(low, 0.2)[:-1]
    assert round_sparsities(high, 0.2)[: len(full)] == full
    lower, higher = chain(cell(sparsity=low)), chain(cell(sparsity=high))
    assert [job.key for job in lower[:-1]] == [job.key for job in higher[: len(full)]]


def test_a_target_on_a_full_round_is_a_round_of_every_higher_target() -> None:
    exact, beyond = chain(cell(sparsity=0.36)), chain(cell(sparsity=0.9))
    assert exact[-1].key == beyond[1].key


def test_a_fine_tuned_chain_by_hand() -> None:
    rounds = chain(cell(sparsity=0.5, seed=2, imp_epochs=7, imp_lr=0.3, weight_decay=0.1, warmup_epochs=3))
    configs = [prune_config(job) for job in rounds]
    assert [config.sparsity for config in configs] == [0.2, 0.36, 0.488, 0.5]
    assert [config.round for config in configs] == [1, 2, 3, 4]
    assert {config.seed for config in configs} == {4}
    recipe = configs[0].recipe
    assert (recipe.epochs, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.warmup_epochs) == (7, 0.3, 0, 0, 0)
    assert all(config.recipe == recipe for config in configs)
    first = rounds[0].parents
    assert [(role, ref.job.kind, ref.epoch) for role, ref in first] == [("previous", DENSE, None)]


def test_a_retrained_chain_goes_back_to_the_rewind_epoch_in_every_round() -> None:
    rounds = chain(cell(sparsity=0.5, pruner="imp_rewind", rewind_epoch=10, imp_lr=0.3))
    dense = rounds[0].parent("previous").job
    assert [prune_config(job).sparsity for job in rounds] == [0.2, 0.36, 0.488, 0.5]
    for job in rounds:
        assert (job.parent("rewind").job, job.parent("rewind").epoch) == (dense, 10)
        recipe = prune_config(job).recipe
        assert (recipe.epochs, recipe.lr, recipe.momentum, recipe.weight_decay) == (190, 0.02, 0.9, 5e-4)


def test_one_shot_prunes_once_from_the_trained_net() -> None:
    (only,) = chain(cell(sparsity=0.95, pruner="one_shot"))
    assert (prune_config(only).sparsity, prune_config(only).round, prune_config(only).recipe.epochs) == (0.95, 1, 50)
    assert only.parent("previous").epoch is None
    assert only.key != chain(cell(sparsity=0.95))[0].key


def test_a_chain_may_be_longer_than_the_recursion_limit() -> None:
    rounds = round_sparsities(0.9, 0.001)
    assert len(rounds) > sys.getrecursionlimit()
    job = target(cell("lth", prune_fraction=0.001))
    assert sum(each.kind == PRUNE for each in Closure([Ref(job)]).jobs.values()) == len(rounds)


# --- measurements ---------------------------------------------------------------------------------------------------
def test_the_path_is_measured_before_and_after_matching() -> None:
    made = interpolating(matcher="weight", correction="repair")
    before, after = measurements(made)
    matchers = [job.parent("permutation").job.config.matcher for job in (before, after)]  # type: ignore[union-attr]
    assert matchers == ["identity", "weight"]
    assert after.parent("permutation").key == target(made).parent("permutation").key
    for job in (before, after):
        assert [(role, ref.epoch) for role, ref in job.parents] == [("a", None), ("b", None), ("permutation", None)]
        assert (job.config.points, job.config.correction) == (11, "repair")  # type: ignore[union-attr]


def test_the_identity_is_not_measured_twice() -> None:
    assert len(measurements(interpolating(matcher="identity"))) == 1


def test_nothing_is_measured_unasked() -> None:
    assert measurements(cell()) == ()
    assert all(measurements(interpolating(method=name)) == () for name in METHODS if name != "permuted")


# --- walking --------------------------------------------------------------------------------------------------------
def cells_of(name: str) -> list[Cell]:
    return [Cell.from_mapping(values) for values in SPACES[name].cells()]


def assert_parents_first(order: Iterable[Job]) -> None:
    seen: set[str] = set()
    for job in order:
        assert all(ref.job.key in seen for _, ref in job.parents)
        seen.add(job.key)


@pytest.mark.parametrize("name", SPACES)
def test_parents_come_first_in_every_space(name: str) -> None:
    cells = cells_of(name)
    random.Random(0).shuffle(cells)
    graph = Closure(Ref(job) for each in cells for job in (target(each), *measurements(each)))
    assert list(graph.jobs) == [job.key for job in graph.jobs.values()]
    assert_parents_first(graph.jobs.values())
    assert_parents_first(graph.jobs[key] for key in graph.todo(set()))


def test_adding_an_output_returns_only_what_is_new() -> None:
    graph = Closure([Ref(target(cell("lth")))])
    known = set(graph.jobs)
    added = graph.add(Ref(target(cell("naive"))))
    assert_parents_first(graph.jobs.values())
    assert {job.kind for job in added} == {DENSE, SPARSE}  # net B and the training itself
    assert not {job.key for job in added} & known
    assert graph.add(Ref(target(cell("naive")))) == []


def everything(graph_roots: Iterable[Ref]) -> set[str]:
    """Return the keys of all outputs that a run on an empty store publishes."""
    graph = Closure(graph_roots)
    return {Ref(graph.jobs[key], epoch).key for key, outputs in graph.todo(set()).items() for epoch in outputs}


def test_with_an_empty_store_everything_is_to_do() -> None:
    job = target(cell("permuted", rewind_epoch=10))
    todo = Closure([Ref(job)]).todo(set())
    assert todo.keys() == Closure([Ref(job)]).jobs.keys()
    a, b = (dense_job(cell(), seed).key for seed in (0, 1))
    assert todo[a] == {None}
    assert todo[b] == {None, 10}  # matching needs the final weights, sparse training the early ones
    assert all(outputs == {None} for key, outputs in todo.items() if key != b)


def test_an_early_state_alone_does_not_ask_for_the_final_one() -> None:
    # The naive method needs only net B's rewind state, not the fully trained net.
    todo = Closure([Ref(target(cell("naive")))]).todo(set())
    assert todo[dense_job(cell(), 1).key] == {10}


def test_nothing_is_to_do_when_the_target_is_published() -> None:
    job = target(cell())
    assert Closure([Ref(job)]).todo({job.key}) == {}  # whether or not its ancestors are still there
    assert Closure([Ref(job)]).todo(everything([Ref(job)])) == {}


def test_ancestors_of_published_results_are_not_needed() -> None:
    job = target(cell("lth"))
    mask = job.parent("mask").job
    todo = Closure([Ref(job)]).todo({mask.key})
    assert todo == {dense_job(cell(), 0).key: {10}, job.key: {None}}  # no pruning round, no fully trained net


def test_a_further_snapshot_of_a_published_net_is_all_that_is_computed_of_it() -> None:
    early, late = (target(cell("lth", rewind_epoch=epoch)) for epoch in (5, 10))
    published = everything([Ref(late)])
    todo = Closure([Ref(early), Ref(late)]).todo(published)
    assert todo == {dense_job(cell(), 0).key: {5}, early.key: {None}}


def test_a_lost_result_is_computed_again_with_nothing_but_itself() -> None:
    job = target(cell())
    for lost in (job, job.parent("permutation").job):
        wanted = [Ref(job), Ref(job.parent("permutation").job)]
        assert Closure(wanted).todo(everything(wanted) - {lost.key}) == {lost.key: {None}}


def test_a_lost_pruning_round_in_the_middle_is_missed_by_nobody_until_a_later_one_is_needed() -> None:
    rounds = chain(cell("imp"))
    root = Ref(rounds[-1])
    assert Closure([root]).todo(everything([root]) - {rounds[3].key}) == {}
    lost = {rounds[3].key, rounds[-1].key}
    assert Closure([root]).todo(everything([root]) - lost) == {rounds[-1].key: {None}}
    lost.add(rounds[-2].key)
    assert Closure([root]).todo(everything([root]) - lost).keys() == {rounds[-2].key, rounds[-1].key}


def test_every_dataset_and_model_has_tasks_of_its_own() -> None:
    made = {target(cell("dense", dataset=name)).key for name in DATASETS}
    assert len(made) == len(DATASETS)
