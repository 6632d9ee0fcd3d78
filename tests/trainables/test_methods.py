"""The method table: each row describes the training that answers its question."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from trainables.config import Cell, DenseConfig, MatchConfig, SparseConfig
from trainables.graph import FRESH_SEEDS, Closure, Job, Ref, target
from trainables.knobs import PRUNERS
from trainables.methods import METHODS, PERMUTE, TRANSFORMS, Method
from trainables.schema import DENSE, MATCH, PRUNE, SPARSE

PAIR, A, B = 3, 6, 7
FRESH = FRESH_SEEDS + PAIR
REWIND, EPOCHS = 10, 200


class Training(NamedTuple):
    """A method's training: the net it starts from, the net its mask comes from, the mask's transformation."""

    init_seed: int
    init_epoch: int
    epochs: int
    mask_seed: int
    transform: str
    transform_seed: int
    dense_seeds: set[int]


TRAININGS = {
    "lth": Training(A, REWIND, EPOCHS - REWIND, A, "none", 0, {A}),
    "naive": Training(B, REWIND, EPOCHS - REWIND, A, "none", 0, {A, B}),
    "permuted": Training(B, REWIND, EPOCHS - REWIND, A, "permute", 0, {A, B}),
    "shuffled": Training(B, REWIND, EPOCHS - REWIND, A, "shuffle", PAIR, {A, B}),
    "layerwise_random": Training(B, REWIND, EPOCHS - REWIND, A, "layerwise_random", PAIR, {A, B}),
    "own_mask": Training(B, REWIND, EPOCHS - REWIND, B, "none", 0, {B}),
    "reinit": Training(FRESH, 0, EPOCHS, A, "none", 0, {A, FRESH}),
}


def job_of(method: str, **settings: Any) -> Job:
    fixed = {"seed": PAIR, "epochs": EPOCHS, "rewind_epoch": REWIND, "sparsity": 0.9, "matcher": "activation"}
    return target(Cell(**{**fixed, "method": method, **settings}))


def parents(job: Job) -> dict[str, Ref]:
    return dict(job.parents)


def dense_seeds(job: Job) -> set[int]:
    return {each.config.seed for each in Closure([Ref(job)]).jobs.values() if isinstance(each.config, DenseConfig)}


def test_every_row_is_tested_here() -> None:
    assert METHODS.keys() == TRAININGS.keys() | {"dense", "imp"}, "add the new row to TRAININGS of this file"


@pytest.mark.parametrize("name", METHODS)
def test_rows_speak_of_known_things(name: str) -> None:
    row = METHODS[name]
    assert row.transform in TRANSFORMS
    assert row.init in ("a", "b", "fresh", "final")
    assert row.mask in ("a", "b", None)


def test_labels_tell_the_rows_apart() -> None:
    assert len({row.label for row in METHODS.values()}) == len(METHODS)
    assert len({(row.init, row.mask, row.transform) for row in METHODS.values()}) == len(METHODS)


def test_a_match_permutes_only_the_mask_of_a_for_net_b() -> None:
    for init, mask in (("a", "a"), ("a", "b"), ("fresh", "a"), ("b", "b"), ("b", None)):
        with pytest.raises(ValueError, match=f"needs init b and mask a, got {init} and {mask}"):
            Method(label="Mine", init=init, mask=mask, transform=PERMUTE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown transform 'permte' \(did you mean 'permute'\?\)"):
        Method(label="Mine", init="b", mask="a", transform="permte")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_a_transform_draws_differs_between_pairs_and_members(name: str) -> None:
    method = next(each for each, row in METHODS.items() if row.mask and row.transform == name and row.init != "final")
    seeds = {
        job_of(method, seed=seed, member=member, members=members).config.transform_seed  # type: ignore[union-attr]
        for seed, member, members in ((0, 0, 0), (1, 0, 0), (0, 3, 4))
    }
    assert (len(seeds) > 1) == TRANSFORMS[name].drawn


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.mask])
def test_every_way_to_prune_finds_a_mask_of_its_own(method: str) -> None:
    assert len({job_of(method, pruner=name).key for name in PRUNERS}) == len(PRUNERS)


def test_every_transform_is_used() -> None:
    assert {row.transform for row in METHODS.values()} == TRANSFORMS.keys()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_sparse_method_trains_what_its_row_says(name: str) -> None:
    job, expected = job_of(name), TRAININGS[name]
    config = job.config
    assert isinstance(config, SparseConfig)
    init, mask = parents(job)["init"], parents(job)["mask"]
    assert (init.job.kind, mask.job.kind, mask.epoch) == (DENSE, PRUNE, None)
    assert init.job.config.seed == config.seed == expected.init_seed  # type: ignore[union-attr]
    assert (init.epoch, config.recipe.epochs) == (expected.init_epoch, expected.epochs)
    assert mask.job.config.seed == expected.mask_seed  # type: ignore[union-attr]
    assert mask.job.config.sparsity == 0.9  # type: ignore[union-attr]
    assert (config.transform, config.transform_seed) == (expected.transform, expected.transform_seed)
    assert dense_seeds(job) == expected.dense_seeds


@pytest.mark.parametrize("name", TRAININGS)
def test_only_a_permuted_mask_needs_a_match(name: str) -> None:
    job = job_of(name)
    assert ("permutation" in parents(job)) == (name == "permuted")
    if name == "permuted":
        match = parents(job)["permutation"]
        assert (match.job.kind, match.epoch) == (MATCH, None)
        assert isinstance(match.job.config, MatchConfig)
        assert match.job.config.matcher == "activation"
        ends = {role: (ref.job.config.seed, ref.epoch) for role, ref in match.job.parents}  # type: ignore[union-attr]
        assert ends == {"a": (A, None), "b": (B, None)}, "A's final weights are moved onto B's final weights"


def test_dense_is_net_a_and_needs_nothing() -> None:
    job = job_of("dense")
    assert (job.kind, job.config.seed, job.epochs, job.parents) == (DENSE, A, EPOCHS, ())  # type: ignore[union-attr]


def test_imp_is_the_last_pruning_round_of_net_a() -> None:
    job = job_of("imp")
    assert job.kind == PRUNE
    assert job.key == parents(job_of("lth"))["mask"].key
    assert dense_seeds(job) == {A}


def test_the_compared_methods_share_everything_but_their_parents() -> None:
    lth, naive, permuted = (job_of(name) for name in ("lth", "naive", "permuted"))
    assert lth.kind == naive.kind == permuted.kind == SPARSE
    assert lth.config.recipe == naive.config.recipe == permuted.config.recipe  # type: ignore[union-attr]
    assert lth.config.task == naive.config.task == permuted.config.task
    assert parents(lth)["mask"].job is parents(naive)["mask"].job is parents(permuted)["mask"].job
    assert parents(naive)["init"].key == parents(permuted)["init"].key  # paired: the same start, the same data order
    assert naive.config.seed == permuted.config.seed  # type: ignore[union-attr]
    assert len({lth.key, naive.key, permuted.key}) == 3


def test_all_rows_have_keys_of_their_own() -> None:
    assert len({job_of(name).key for name in METHODS}) == len(METHODS)


def test_a_fresh_net_is_the_same_whatever_the_rewind_epoch() -> None:
    assert job_of("reinit", rewind_epoch=0).key == job_of("reinit", rewind_epoch=50).key
