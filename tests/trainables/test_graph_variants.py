"""Variants of the protocol: what each setting beyond the paper's main grid does to the graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from trainables.config import (
    Cell,
    ConnectConfig,
    DenseConfig,
    EnsembleConfig,
    MatchConfig,
    PlaneConfig,
    PruneConfig,
    Recipe,
    SparseConfig,
)
from trainables.graph import (
    FRESH_SEEDS,
    Closure,
    Job,
    Ref,
    dense_job,
    match_job,
    measurements,
    prune_job,
    pruning_rounds,
    round_sparsities,
    snapshot_key,
    target,
)
from trainables.methods import METHODS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, OVERLAP, PLANE, PRUNE
from trainables.training.schedule import learning_rate
from trainables.training.way import Way

SPARSE_METHODS = [name for name, row in METHODS.items() if row.mask is not None and row.init != "final"]
REWOUND = [name for name in SPARSE_METHODS if METHODS[name].init != "fresh"]
STEPS = 7
"""Per epoch."""


def cell(method: str = "permuted", **settings: Any) -> Cell:
    fixed = {"epochs": 200, "rewind_epoch": 10, "sparsity": 0.9, "seed": 0, "matcher": "activation"}
    fixed |= {"pruner": "imp_finetune", "prune_fraction": 0.2, "lr": 0.08, "sparse_lr": 0.02}
    return Cell(**{**fixed, "method": method, **settings})


def recipe_of(job: Job) -> Recipe:
    assert isinstance(job.config, DenseConfig | PruneConfig | SparseConfig)
    return job.config.recipe


def seed_of(ref: Ref) -> int:
    assert isinstance(ref.job.config, DenseConfig | PruneConfig)
    return ref.job.config.seed


def sparse_config(job: Job) -> SparseConfig:
    assert isinstance(job.config, SparseConfig)
    return job.config


def ensemble(method: str, **settings: Any) -> Job:
    """Return the ensemble job at a point of the grid."""
    (job,) = (each for each in measurements(cell(method, members=5, **settings)) if each.kind == ENSEMBLE)
    return job


def members(method: str, **settings: Any) -> list[Job]:
    return [ref.job for _, ref in ensemble(method, **settings).parents]


# --- a tolerance: the paper's code stops half a point early ---------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "rounds", "reached"), [(0.8, 8, 80), (0.9, 11, 90), (0.95, 13, 94.5), (0.97, 16, 97)]
)
def test_the_paper_s_code_prunes_as_many_rounds_as_it_says(asked: float, rounds: int, reached: float) -> None:
    made = round_sparsities(asked, 0.2, tolerance=0.005)
    assert len(made) == rounds
    assert 100 * made[-1] == pytest.approx(reached, abs=0.005)


def test_vgg_s_tolerance_makes_a_full_95_percent() -> None:
    # The paper's code stops VGG11 within 5e-7 only: 14 rounds, 95.00 %.
    assert round_sparsities(0.95, 0.2, tolerance=5e-7) == round_sparsities(0.95, 0.2)
    assert len(round_sparsities(0.95, 0.2)) == 14


@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.005, 0.02, 0.1])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.36, 0.5, 0.8, 0.95, 0.99])
def test_a_tolerance_only_leaves_the_last_round_out(sparsity: float, tolerance: float) -> None:
    exact, tolerant = round_sparsities(sparsity, 0.2), round_sparsities(sparsity, 0.2, tolerance)
    assert exact[: len(tolerant)] == tolerant, "the rounds are those without a tolerance, so they are shared"
    assert sparsity - tolerance <= tolerant[-1] <= sparsity
    assert all(reached < sparsity - tolerance for reached in tolerant[:-1]), "it stops at the first such round"


def test_a_tolerant_mask_is_a_round_of_the_exact_chain() -> None:
    exact, tolerant = (prune_job(cell(sparsity=0.95, prune_tolerance=each), 0) for each in (0.0, 0.005))
    assert [job.key for job in pruning_rounds(exact)][:13] == [job.key for job in pruning_rounds(tolerant)]
    assert target(cell("lth", sparsity=0.95, prune_tolerance=0.005)).parent("mask").key == tolerant.key


def test_pruning_rounds_are_listed_from_the_first_to_the_job_itself() -> None:
    job = prune_job(cell(sparsity=0.5), 0)
    rounds = pruning_rounds(job)
    assert [each.config.round for each in rounds] == [1, 2, 3, 4]  # type: ignore[union-attr]
    assert rounds[-1] is job
    assert pruning_rounds(dense_job(cell(), 0)) == ()


# --- an offset: the paper's code calls k what is k + 1 epochs old ---------------------------------------------------
@pytest.mark.parametrize("rewind_epoch", [0, 10, 199])
@pytest.mark.parametrize("method", REWOUND)
def test_an_offset_starts_from_an_older_state_and_trains_as_long(method: str, rewind_epoch: int) -> None:
    plain, late = (target(cell(method, rewind_epoch=rewind_epoch, rewind_offset=each)) for each in (0, 1))
    init = late.parent("init")
    assert init.epoch == rewind_epoch + 1
    assert init.key == snapshot_key(plain.parent("init").job.key, rewind_epoch + 1)
    assert late.config == plain.config
    assert late.epochs == 200 - rewind_epoch  # 201 epochs in all
    assert late.parent("mask").key == plain.parent("mask").key


def test_what_was_never_trained_has_no_offset() -> None:
    assert target(cell("reinit", rewind_offset=1)).key == target(cell("reinit")).key
    assert target(cell("reinit", rewind_offset=1)).parent("init").epoch == 0


def test_an_offset_holds_for_retraining_rounds() -> None:
    rounds = pruning_rounds(prune_job(cell(pruner="imp_rewind", rewind_offset=1), 0))
    assert {job.parent("rewind").epoch for job in rounds} == {11}
    assert {job.epochs for job in rounds} == {190}


# --- the schedule of sparse training: of its own, or the dense one resumed ------------------------------------------
@pytest.mark.parametrize("warmup", [0.0, 20.0])
@pytest.mark.parametrize("schedule", ["cosine", "cosine_step", "one_cycle", "steps", "constant"])
@pytest.mark.parametrize("rewind_epoch", [0, 10, 67, 199])
def test_a_resumed_schedule_goes_on_where_the_dense_one_was(schedule: str, warmup: float, rewind_epoch: int) -> None:
    settings = {"schedule": schedule, "warmup_epochs": warmup, "rewind_epoch": rewind_epoch}
    job = target(cell(sparse_schedule="resume", **settings))
    dense, sparse = recipe_of(job.parent("init").job), recipe_of(job)
    assert sparse.epochs == 200 - rewind_epoch
    for epoch in range(sparse.epochs):
        for step in (0, 3, STEPS - 1):
            in_sparse = learning_rate(sparse, epoch * STEPS + step, STEPS)
            assert in_sparse == learning_rate(dense, (rewind_epoch + epoch) * STEPS + step, STEPS)


def test_a_restarted_schedule_begins_at_its_own_peak() -> None:
    sparse = recipe_of(target(cell(sparse_schedule="restart", schedule="cosine")))
    assert (sparse.lr, sparse.first_epoch, learning_rate(sparse, 0, STEPS)) == (0.02, 0, 0.02)


def test_resuming_leaves_the_mask_and_the_dense_nets_as_they_are() -> None:
    restart, resume = (target(cell(sparse_schedule=each)) for each in ("restart", "resume"))
    assert [ref.key for _, ref in restart.parents] == [ref.key for _, ref in resume.parents]
    assert recipe_of(resume).lr == recipe_of(resume.parent("init").job).lr == 0.08


def test_a_resumed_schedule_does_not_ask_for_the_sparse_learning_rate() -> None:
    one, other = (target(cell(sparse_schedule="resume", sparse_lr=lr)) for lr in (0.02, 0.5))
    assert one.key == other.key


def test_a_resumed_fresh_net_has_the_whole_dense_schedule() -> None:
    job = target(cell("reinit", sparse_schedule="resume"))
    assert recipe_of(job) == recipe_of(job.parent("init").job)


def test_retraining_rounds_resume_as_well() -> None:
    rounds = pruning_rounds(prune_job(cell(pruner="imp_rewind", sparse_schedule="resume"), 0))
    assert {(recipe_of(job).first_epoch, recipe_of(job).lr) for job in rounds} == {(10, 0.08)}


# --- early matching: A trained, B young -----------------------------------------------------------------------------
@pytest.mark.parametrize("epoch", [0, 5, 199])
def test_early_matching_looks_at_b_as_it_was(epoch: int) -> None:
    match = target(cell(match_epoch=epoch)).parent("permutation").job
    assert (match.parent("a").epoch, seed_of(match.parent("a"))) == (None, 0)
    assert (match.parent("b").epoch, seed_of(match.parent("b"))) == (epoch, 1)
    assert match.parent("b").key == snapshot_key(dense_job(cell(), 1).key, epoch)


def test_the_last_epoch_is_the_end() -> None:
    assert target(cell(match_epoch=200)).key == target(cell(match_epoch=-1)).key == target(cell()).key
    assert match_job(cell(match_epoch=200), "activation").parent("b").epoch is None


def test_early_matching_saves_the_rest_of_b_s_training() -> None:
    made = cell(match_epoch=20, rewind_epoch=10)
    todo = Closure([Ref(target(made))]).todo(set())
    assert todo[dense_job(made, 1).key] == {10, 20}  # and not None: B is trained for 20 epochs
    assert todo[dense_job(made, 0).key] == {None}
    at_the_end = Closure([Ref(target(cell()))]).todo(set())
    assert at_the_end[dense_job(made, 1).key] == {None, 10}


def test_nobody_but_the_permuted_net_is_matched() -> None:
    for method in METHODS:
        same = target(cell(method, match_epoch=20)).key == target(cell(method)).key
        assert same == (METHODS[method].transform != "permute")


def test_the_path_of_an_early_match_ends_at_the_young_b() -> None:
    for job in measurements(cell(match_epoch=20, interpolation_points=3)):
        match = job.parent("permutation").job
        assert job.parent("b").key == match.parent("b").key == snapshot_key(dense_job(cell(), 1).key, 20)


# --- a mask from another dataset ------------------------------------------------------------------------------------
def datasets(job: Job) -> dict[str, str]:
    """Return the datasets of a sparse job and of its initial net, mask and permutation."""
    start, mask = job.parent("init").job, job.parent("mask").job
    made = {"itself": job.config.task.dataset, "start": start.config.task.dataset, "mask": mask.config.task.dataset}
    if "permutation" in dict(job.parents):
        match = job.parent("permutation").job
        made |= {"match": match.config.task.dataset}
        made |= {role: match.parent(role).job.config.task.dataset for role in ("a", "b")}
    return made


TRANSFER = {"dataset": "svhn", "mask_dataset": "cifar10", "data_version": "s", "mask_data_version": "c"}


def test_a_transferred_mask_is_found_on_its_own_dataset_and_worn_on_the_target() -> None:
    job = target(cell(**TRANSFER))
    assert datasets(job) == {
        "itself": "svhn",
        "start": "svhn",
        "mask": "cifar10",
        "match": "svhn",  # both nets look at the target's images
        "a": "cifar10",
        "b": "svhn",
    }
    assert {each.config.task.dataset for each in pruning_rounds(job.parent("mask").job)} == {"cifar10"}


@pytest.mark.parametrize("method", SPARSE_METHODS)
def test_every_method_starts_on_the_target_s_dataset(method: str) -> None:
    made = datasets(target(cell(method, **TRANSFER)))
    assert (made["itself"], made["start"], made["mask"]) == ("svhn", "svhn", "cifar10")


def test_versions_of_the_data_go_with_their_datasets() -> None:
    for job in Closure([Ref(target(cell(**TRANSFER)))]).jobs.values():
        task = job.config.task
        assert task.data_version == {"svhn": "s", "cifar10": "c"}[task.dataset]


def test_a_transferred_mask_is_the_one_that_its_dataset_s_own_study_finds() -> None:
    transferred = target(cell(**TRANSFER))
    at_home = target(cell(dataset="cifar10", data_version="c"))
    assert transferred.parent("mask").key == at_home.parent("mask").key
    assert transferred.parent("permutation").job.parent("a").key == at_home.parent("permutation").job.parent("a").key


def test_a_dense_net_is_one_of_the_target_and_a_pruned_one_of_the_mask() -> None:
    assert target(cell("dense", **TRANSFER)).config.task.dataset == "svhn"
    assert target(cell("imp", **TRANSFER)).config.task.dataset == "cifar10"


def test_naming_the_same_dataset_twice_changes_nothing() -> None:
    settings = {"dataset": "svhn", "data_version": "s"}
    twice = cell(**settings, mask_dataset="svhn", mask_data_version="s")
    assert target(twice).key == target(cell(**settings)).key


def test_nets_of_the_mask_s_dataset_are_measured_on_it() -> None:
    paths = measurements(cell("imp", imp_path=True, interpolation_points=3, **TRANSFER))
    at_home = cell("imp", imp_path=True, interpolation_points=3, dataset="cifar10", data_version="c")
    assert [job.key for job in paths] == [job.key for job in measurements(at_home)]
    assert ensemble("imp", **TRANSFER).key == ensemble("imp", dataset="cifar10", data_version="c").key
    assert ensemble("naive", **TRANSFER).config.task.dataset == "svhn"


# --- ensembles ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_is_of_the_method_s_own_nets(method: str) -> None:
    job = ensemble(method)
    assert job.config == EnsembleConfig(task=target(cell(method)).config.task)
    assert [role for role, _ in job.parents] == [f"member{number:02}" for number in range(5)]
    assert [ref.key for _, ref in job.parents] == [target(cell(method, member=number)).key for number in range(5)]
    assert job.parents[0][1].key == target(cell(method)).key, "the first member is the grid's own net"
    assert len({ref.key for _, ref in job.parents}) == 5


def test_the_first_member_alone_asks_for_the_ensemble() -> None:
    kinds = [[job.kind for job in measurements(cell("lth", members=3, member=member))] for member in range(3)]
    assert kinds == [[ENSEMBLE], [], []]


@pytest.mark.parametrize(("method", "kind"), [("dense", DENSE), ("imp", PRUNE)])
def test_members_that_reuse_no_mask_are_of_different_pairs(method: str, kind: str) -> None:
    made = members(method, seed=3)
    assert {job.kind for job in made} == {kind}
    assert [job.config.seed for job in made] == [6, 8, 10, 12, 14]  # type: ignore[union-attr]


def test_imp_members_have_masks_of_their_own() -> None:
    firsts = [pruning_rounds(job)[0].parent("previous").job for job in members("imp")]
    assert len({job.key for job in firsts}) == 5


def test_lth_members_differ_in_their_data_order_alone() -> None:
    made = members("lth", seed=3)
    assert [sparse_config(job).order for job in made] == [0, 1, 2, 3, 4]
    assert {sparse_config(job).seed for job in made} == {6}
    assert len({tuple((role, ref.key) for role, ref in job.parents) for job in made}) == 1


@pytest.mark.parametrize("method", ["naive", "permuted", "shuffled", "layerwise_random"])
def test_members_under_one_mask_start_from_different_nets(method: str) -> None:
    made = members(method, seed=3)
    assert len({job.parent("mask").key for job in made}) == 1
    assert {seed_of(job.parent("mask")) for job in made} == {6}
    assert [seed_of(job.parent("init")) for job in made] == [7, 9, 11, 13, 15]
    assert [sparse_config(job).seed for job in made] == [7, 9, 11, 13, 15]
    assert {sparse_config(job).order for job in made} == {0}


def test_every_permuted_member_has_a_permutation_of_its_own() -> None:
    matches = [job.parent("permutation").job for job in members("permuted", seed=3)]
    assert {seed_of(match.parent("a")) for match in matches} == {6}
    assert [seed_of(match.parent("b")) for match in matches] == [7, 9, 11, 13, 15]
    assert len({match.key for match in matches}) == 5


def test_members_of_random_controls_have_draws_of_their_own() -> None:
    for method in ("shuffled", "layerwise_random"):
        assert [job.config.transform_seed for job in members(method, seed=3)] == [3, 4, 5, 6, 7]
    drawn = [job.parent("permutation").job.config.seed for job in members("permuted", seed=3, matcher="random")]
    assert drawn == [3, 4, 5, 6, 7]
    found = [job.parent("permutation").job.config.seed for job in members("permuted", seed=3)]
    assert found == [3] * 5, "they are matched by the same images"


def test_members_with_their_own_masks_and_fresh_ones() -> None:
    own = members("own_mask", seed=3)
    assert [(seed_of(job.parent("init")), seed_of(job.parent("mask"))) for job in own] == [
        (seed, seed) for seed in (7, 9, 11, 13, 15)
    ]
    fresh = members("reinit", seed=3)
    assert [seed_of(job.parent("init")) for job in fresh] == [FRESH_SEEDS + number for number in (3, 4, 5, 6, 7)]
    assert {seed_of(job.parent("mask")) for job in fresh} == {6}


def test_naive_and_permuted_members_are_paired() -> None:
    naive, permuted = members("naive"), members("permuted")
    assert [job.parent("init").key for job in naive] == [job.parent("init").key for job in permuted]


def test_members_are_the_nets_of_the_grid_s_other_pairs_where_those_are_the_same() -> None:
    # Dense and pruned nets are always net A of their pair; a naive net has another mask there.
    for method, shared in (("dense", True), ("imp", True), ("own_mask", True), ("naive", False), ("lth", False)):
        assert (target(cell(method, member=1)).key == target(cell(method, seed=1)).key) == shared


# --- the path over the pruning rounds -------------------------------------------------------------------------------
def test_the_imp_path_leads_from_dense_a_to_each_round_with_and_without_correction() -> None:
    made = cell("imp", sparsity=0.5, imp_path=True, interpolation_points=3, correction="repair", seed=2)
    jobs, rounds = measurements(made), pruning_rounds(target(made))
    assert len(rounds) == 4
    assert {job.kind for job in jobs} == {CONNECT}
    ends = [(job.parent("b").job, job.config.correction) for job in jobs]  # type: ignore[union-attr]
    assert ends == [(each, correction) for each in rounds for correction in ("none", "repair")]
    for job in jobs:
        assert job.parent("a").key == dense_job(made, 4).key
        assert "permutation" not in dict(job.parents)
        assert isinstance(job.config, ConnectConfig)
        assert job.config.points == 3


@pytest.mark.parametrize(
    ("model", "correction", "measured"),
    [
        ("vgg11", "bn_reset", ["none"]),
        ("vgg11", "repair", ["none", "repair"]),
        ("vgg11_bn", "bn_reset", ["none", "bn_reset"]),
    ],
)
def test_the_imp_path_of_a_net_without_batchnorm_has_no_reset(model: str, correction: str, measured: list[str]) -> None:
    made = cell("imp", model=model, sparsity=0.2, imp_path=True, interpolation_points=3, correction=correction)
    assert [job.config.correction for job in measurements(made)] == measured  # type: ignore[union-attr]


def test_the_imp_path_is_not_measured_twice_without_correction() -> None:
    made = cell("imp", sparsity=0.5, imp_path=True, interpolation_points=3, correction="none")
    assert len(measurements(made)) == 4


@pytest.mark.parametrize("method", [name for name in METHODS if name != "imp"])
def test_other_methods_do_not_walk_the_imp_path(method: str) -> None:
    walking, plain = (cell(method, imp_path=each, interpolation_points=3) for each in (True, False))
    assert [job.key for job in measurements(walking)] == [job.key for job in measurements(plain)]


def test_paths_of_lower_sparsities_are_shared() -> None:
    low, high = (measurements(cell("imp", sparsity=s, imp_path=True, interpolation_points=3)) for s in (0.36, 0.9))
    assert {job.key for job in low} <= {job.key for job in high}


# --- the plane ------------------------------------------------------------------------------------------------------
def plane(**settings: Any) -> Job:
    (job,) = (each for each in measurements(cell(plane_resolution=5, **settings)) if each.kind == PLANE)
    return job


def test_the_plane_lies_in_b_s_frame() -> None:
    job = plane(seed=3)
    permuted = target(cell(seed=3))
    assert {role: ref.key for role, ref in job.parents} == {
        "dense": dense_job(cell(), 6).key,
        "lth": target(cell("lth", seed=3)).key,
        "permuted": permuted.key,
        "permutation": permuted.parent("permutation").key,  # A and its LTH net are moved to B by it
    }
    assert [ref.epoch for _, ref in job.parents] == [None] * 4
    match = job.parent("permutation").job
    assert match.parent("a").key == job.parent("dense").key
    assert seed_of(match.parent("b")) == seed_of(permuted.parent("init")) == 7


def test_what_a_plane_knows() -> None:
    config = plane(match_images=123, seed=3, correction="none").config
    assert isinstance(config, PlaneConfig)
    assert (config.resolution, config.correction, config.images, config.seed) == (5, "none", 123, 3)
    assert config.margin > 0


@pytest.mark.parametrize("correction", ["bn_reset", "repair"])
def test_a_plane_has_no_repair(correction: str) -> None:
    assert plane(correction=correction).config.correction == "bn_reset"  # type: ignore[union-attr]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "permuted"])
def test_only_the_permuted_net_spans_a_plane(method: str) -> None:
    assert measurements(cell(method, plane_resolution=5)) == ()


def test_a_member_s_plane_goes_through_the_grid_s_lth_net() -> None:
    first, second = plane(), plane(member=1)
    assert first.parent("lth").key == second.parent("lth").key
    assert first.parent("permuted").key != second.parent("permuted").key


# --- the overlap of masks -------------------------------------------------------------------------------------------
def test_the_overlap_is_of_the_masks_that_permuted_and_own_mask_wear() -> None:
    (job,) = measurements(cell(seed=3, mask_overlap=True))
    permuted, own = target(cell(seed=3)), target(cell("own_mask", seed=3))
    assert {role: ref.key for role, ref in job.parents} == {
        "mask": permuted.parent("mask").key,
        "own": own.parent("mask").key,
        "permutation": permuted.parent("permutation").key,
    }


def test_all_rewind_epochs_share_an_overlap_unless_pruning_rewinds() -> None:
    for pruner, number in (("imp_finetune", 1), ("imp_rewind", 2)):
        made = [cell(pruner=pruner, rewind_epoch=epoch, mask_overlap=True) for epoch in (5, 10)]
        assert len({job.key for each in made for job in measurements(each)}) == number


def test_b_s_own_mask_is_found_on_its_own_data() -> None:
    (job,) = measurements(cell(dataset="svhn", mask_dataset="cifar10", mask_overlap=True))
    assert job.parent("mask").job.config.task.dataset == "cifar10"
    assert job.parent("own").job.config.task.dataset == "svhn"


@pytest.mark.parametrize("method", [name for name in METHODS if name != "permuted"])
def test_only_a_permuted_mask_is_compared_with_b_s(method: str) -> None:
    assert measurements(cell(method, mask_overlap=True)) == ()


def test_everything_at_once() -> None:
    made = cell(interpolation_points=3, plane_resolution=5, members=3, imp_path=True, mask_overlap=True)
    assert Counter(job.kind for job in measurements(made)) == {CONNECT: 2, PLANE: 1, ENSEMBLE: 1, OVERLAP: 1}
    jobs = Closure(Ref(job) for job in (target(made), *measurements(made))).jobs.values()
    assert sum(job.kind == MATCH for job in jobs) == 3 + 1  # each member's, and the identity
    assert {job.config.matcher for job in jobs if isinstance(job.config, MatchConfig)} == {"activation", "identity"}


# --- sparse kernels: a choice of each job, by its own sparsity ------------------------------------------------------
@pytest.mark.parametrize("pruner", ["imp_finetune", "imp_rewind", "one_shot"])
@pytest.mark.parametrize("method", [*SPARSE_METHODS, "imp"])
def test_sparse_kernels_are_for_jobs_that_are_sparse_enough(method: str, pruner: str) -> None:
    jobs = Closure([Ref(target(cell(method, kernels="sparse", pruner=pruner)))]).jobs.values()
    trained = [job for job in jobs if isinstance(job.config, DenseConfig | PruneConfig | SparseConfig)]
    for job in trained:
        sparsity = job.config.sparsity if isinstance(job.config, PruneConfig) else 0.9 * (job.kind != DENSE)
        assert recipe_of(job).kernels == (
            "sparse" if sparsity >= Way(kernels="sparse").engine.gains_from else "dense"
        ), job.kind
    assert any(recipe_of(job).kernels == "sparse" for job in trained)


def test_whatever_is_not_sparse_enough_is_shared_with_studies_on_dense_kernels() -> None:
    below = cell("imp", sparsity=0.69)
    assert target(dataclasses.replace(below, kernels="sparse")).key == target(below).key
    sparse, dense = (Closure([Ref(target(cell(kernels=kernels)))]).jobs for kernels in ("sparse", "dense"))
    shared = sparse.keys() & dense.keys()
    assert {sparse[key].kind for key in shared} == {DENSE, PRUNE, MATCH}
    assert sum(sparse[key].kind == PRUNE for key in shared) == 5  # rounds to 20, 36, 48.8, 59 and 67.2 %


def test_targets_share_their_rounds_on_sparse_kernels_too() -> None:
    low, high = (pruning_rounds(target(cell("imp", sparsity=s, kernels="sparse"))) for s in (0.8, 0.95))
    assert [job.key for job in low[:-1]] == [job.key for job in high[: len(low) - 1]]
