"""The results of measurement jobs, checked against the nets that they measure."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import assert_same_result, publish, tiny_cell
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables import schema
from trainables.config import BARRIER_ALPHAS, Cell
from trainables.data import load_dataset
from trainables.graph import (
    Job,
    Ref,
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
    target,
)
from trainables.jobs import measure, train
from trainables.jobs.measure import MEASUREMENTS, agreement
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.masks import expected_overlap, mask_overlap
from trainables.methods import MATCHERS
from trainables.seeding import derive_seed
from trainables.storage.artifacts import read_mask, read_metrics, read_permutation, read_weights, unpack
from trainables.storage.store import Store
from trainables.symmetry.connectivity import InterpolationCurve, interpolate, interpolation_curve, loss_barrier
from trainables.symmetry.permutations import (
    apply_permutation,
    identity_permutation,
    permutation_spec,
    random_permutation,
)
from trainables.symmetry.repair import NoEffectWarning
from trainables.symmetry.similarity import disagreement, ensemble_accuracy, js_divergence, kl_divergence
from trainables.training.evaluation import Evaluation, evaluate, predict_logits

CELL = tiny_cell()
ONE_IMAGE = 100 / 899
"""Percentage points that one test image of the digits is worth."""
ENSEMBLES = ("dense", "imp", "lth", "permuted", "naive")


@pytest.fixture(scope="module")
def store(published: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny study, to which the tests of this file add their measurements."""
    root = tmp_path_factory.mktemp("measured") / "store"
    shutil.copytree(published.root, root)
    return Store(root)


def measured(job: Job, store: Store) -> dict[str, Any]:
    """Return the metrics of a job, after computing it and its ancestors if missing."""
    publish([Ref(job)], Context(store=store))
    return read_metrics(store, job.key)


def data(store: Store, cell: Cell = CELL) -> TaskData:
    return TaskData(target(cell).config.task, Context(store=store))


def labels() -> Tensor:
    return load_dataset("digits").test.labels.long()


def logits(store: Store, key: str) -> Tensor:
    return unpack(store.read(key, schema.LOGITS))["logits"]


def accuracy(values: Tensor) -> float:
    return 100 * float((values.argmax(dim=1) == labels()).double().mean())


def loss(values: Tensor) -> float:
    return float(cross_entropy(values.double(), labels()))


def evaluated(store: Store, weights: dict[str, Tensor]) -> Evaluation:
    return evaluate(data(store).model(weights), data(store).test)


def pair_job(**changes: Any) -> Job:
    """Return the job that measures the path from A to B, matched by the cell's matcher."""
    cell = tiny_cell(**changes)
    match = match_job(cell, cell.matcher)
    return connect_job(cell, match.parent("a"), match.parent("b"), match)


def test_every_kind_that_trains_nothing_is_tested_here() -> None:
    assert MEASUREMENTS.keys() == {schema.MATCH, schema.CONNECT, schema.PLANE, schema.ENSEMBLE, schema.OVERLAP}
    assert set(schema.STAGES) == MEASUREMENTS.keys() | {schema.DENSE, schema.PRUNE, schema.SPARSE}


# --- match ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_match_publishes_a_permutation_and_how_good_it_is(store: Store, matcher: str) -> None:
    job = match_job(CELL, matcher)
    final = measured(job, store)["final"]
    assert set(store.manifest(job.key)["files"]) == {schema.METRICS, schema.PERMUTATION, schema.LOG}
    permutation = read_permutation(store, job.key)
    spec = permutation_spec(data(store).model())
    assert permutation.keys() == set(spec.groups)
    assert all(torch.equal(each.sort().values, torch.arange(len(each))) for each in permutation.values())
    by_group = [final[f"correlation/{group}"] for group in spec.groups]
    assert final[schema.MEAN_CORRELATION] == pytest.approx(sum(by_group) / len(by_group))
    assert -1 <= final[schema.MEAN_CORRELATION_IDENTITY] <= 1
    assert 0 <= final[schema.MOVED_UNITS] <= 1
    assert (schema.AGREEMENT_WITH_WEIGHT in final) == (MATCHERS[matcher].needs_data)


def test_the_identity_moves_nothing(store: Store) -> None:
    final = measured(match_job(CELL, "identity"), store)["final"]
    assert final[schema.MOVED_UNITS] == 0
    assert final[schema.MEAN_CORRELATION] == final[schema.MEAN_CORRELATION_IDENTITY]


@pytest.mark.parametrize("model", ["resnet8", "mlp"])
@pytest.mark.parametrize(("matcher", "points"), [("activation", 5), ("identity", 3)])
def test_a_match_measures_no_network_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch, model: str, matcher: str, points: int
) -> None:
    """Its barriers are those of whole curves, to the bit: at its end, B is the same net whatever the other end."""
    job = match_job(tiny_cell(model=model, match_images=150), matcher)
    nets, calls = list[nn.Module](), list[dict[str, Any]]()

    def noted(*given: Any, **options: Any) -> InterpolationCurve:
        nets[:] = given[:2]
        calls.append(options)
        return interpolation_curve(*given, **options)

    monkeypatch.setattr(measure, "interpolation_curve", noted)
    final = measured(job, store)["final"]
    assert sum(len(options["alphas"]) for options in calls) == points
    options = {**calls[0], "alphas": BARRIER_ALPHAS}
    for name, permutation in (
        (schema.LOSS_BARRIER_BEFORE, None),
        (schema.LOSS_BARRIER_AFTER, read_permutation(store, job.key)),
    ):
        whole = interpolation_curve(*nets, data(store).test, **{**options, "permutation": permutation})
        assert final[name] == loss_barrier(whole)


def test_matching_by_activations_finds_the_highest_correlation(store: Store) -> None:
    found = {name: measured(match_job(CELL, name), store)["final"] for name in MATCHERS}
    assert max(found, key=lambda name: found[name][schema.MEAN_CORRELATION]) == "activation"
    assert len({final[schema.MEAN_CORRELATION_IDENTITY] for final in found.values()}) == 1


@pytest.mark.parametrize("matcher", [name for name, matcher in MATCHERS.items() if matcher.needs_data])
def test_agreement_is_with_the_weight_matching_of_the_same_nets(store: Store, matcher: str) -> None:
    by_data, by_weight = match_job(CELL, matcher), match_job(CELL, "weight")
    final = measured(by_data, store)["final"]
    measured(by_weight, store)
    expected = agreement(read_permutation(store, by_data.key), read_permutation(store, by_weight.key))
    assert final[schema.AGREEMENT_WITH_WEIGHT] == expected
    assert 0 <= expected <= 1


def test_agreement_by_hand(store: Store) -> None:
    spec = permutation_spec(data(store).model())
    same = random_permutation(spec, 1)
    assert agreement(same, same) == 1
    one, other = ({"a": torch.tensor([0, 1, 2]), "b": torch.tensor(order)} for order in ([0], [0]))
    assert agreement(one, {**other, "a": torch.tensor([2, 1, 0])}) == pytest.approx(2 / 4)  # units, not groups
    assert agreement(one, {**other, "a": torch.tensor([1, 2, 0]), "b": torch.tensor([1])}) == 0


def test_an_early_match_is_with_b_as_it_was(store: Store) -> None:
    cell = tiny_cell(match_epoch=1, matcher="weight")
    job = match_job(cell, "weight")
    measured(job, store)
    late = match_job(tiny_cell(matcher="weight"), "weight")
    measured(late, store)
    assert not all(
        torch.equal(left, right)
        for left, right in zip(
            read_permutation(store, job.key).values(), read_permutation(store, late.key).values(), strict=True
        )
    )


def test_a_young_b_s_final_weights_are_not_needed(tmp_path: Path) -> None:
    cell = tiny_cell(match_epoch=2)
    rows = publish([Ref(target(cell))], Context(store=Store(tmp_path / "store")))
    b = dense_job(cell, cell.seed_b)
    assert [row["step"] for row in rows if row["job_key"] == b.key] == [1, 2]
    assert b.key not in Store(tmp_path / "store")


# --- connect: the path between a pair -------------------------------------------------------------------------------
def test_uncorrected_ends_of_the_path_are_the_nets_themselves(store: Store) -> None:
    job = pair_job(correction="none", matcher="identity")
    curve = measured(job, store)["history"]
    for row, role in ((curve[0], "a"), (curve[-1], "b")):
        own = logits(store, job.parent(role).key)
        assert row[schema.INTERPOLATION_ACCURACY] == pytest.approx(accuracy(own))
        assert row[schema.INTERPOLATION_LOSS] == pytest.approx(loss(own), rel=1e-5)


def test_a_permuted_end_has_the_function_of_a(store: Store) -> None:
    job = pair_job(correction="none")
    first, _middle, last = measured(job, store)["history"]
    own = logits(store, job.parent("a").key)
    assert first[schema.INTERPOLATION_LOSS] == pytest.approx(loss(own), rel=1e-4)
    assert first[schema.INTERPOLATION_ACCURACY] == pytest.approx(accuracy(own), abs=1.5 * ONE_IMAGE)
    assert last[schema.INTERPOLATION_ACCURACY] == pytest.approx(accuracy(logits(store, job.parent("b").key)))


def test_the_midpoint_is_the_mean_of_permuted_a_and_b(store: Store) -> None:
    job = pair_job(correction="none")
    document = measured(job, store)
    model = data(store).model()
    permutation = read_permutation(store, job.parent("permutation").key)
    moved = apply_permutation(permutation_spec(model), permutation, read_weights(store, job.parent("a").key))
    expected = evaluated(store, interpolate(moved, read_weights(store, job.parent("b").key), 0.5))
    middle = document["history"][1]
    assert [row["step"] for row in document["history"]] == [0, 50, 100]
    assert middle[schema.INTERPOLATION_LOSS] == pytest.approx(expected.loss, rel=1e-6)
    assert document["final"][schema.MIDPOINT_ACCURACY] == middle[schema.INTERPOLATION_ACCURACY] == expected.accuracy
    net = data(store).model(interpolate(moved, read_weights(store, job.parent("b").key), 0.5))
    images = data(store).measuring(job.config.images, derive_seed(job.config.seed, "connect"))
    on_training_images = evaluate(net, images).loss
    assert middle[schema.INTERPOLATION_TRAIN_LOSS] == pytest.approx(on_training_images, rel=1e-5)
    assert middle[schema.INTERPOLATION_TRAIN_LOSS] != middle[schema.INTERPOLATION_LOSS]


@pytest.mark.parametrize("correction", ["none", "bn_reset", "repair"])
def test_barriers_are_those_of_the_curve(store: Store, correction: str) -> None:
    document = measured(pair_job(correction=correction, interpolation_points=5), store)
    curve, final = document["history"], document["final"]
    assert [row["step"] for row in curve] == [0, 25, 50, 75, 100]
    for name, barrier, sign in (
        (schema.INTERPOLATION_LOSS, schema.LOSS_BARRIER, 1),
        (schema.INTERPOLATION_TRAIN_LOSS, schema.TRAIN_LOSS_BARRIER, 1),
        (schema.INTERPOLATION_ACCURACY, schema.ERROR_BARRIER, -1),
    ):
        heights = [sign * row[name] for row in curve]
        rises = [height - (heights[0] + (heights[-1] - heights[0]) * i / 4) for i, height in enumerate(heights)]
        assert final[barrier] == pytest.approx(max(0.0, *rises), abs=1e-9)


@pytest.mark.parametrize("correction", ["none", "bn_reset"])
def test_a_net_lies_on_a_level_path_to_itself(store: Store, correction: str) -> None:
    a = Ref(dense_job(CELL, CELL.seed_a))
    document = measured(connect_job(tiny_cell(correction=correction), a, a), store)
    assert document["final"][schema.LOSS_BARRIER] == pytest.approx(0, abs=1e-6)
    assert document["final"][schema.ERROR_BARRIER] == pytest.approx(0, abs=1e-9)
    assert len({row[schema.INTERPOLATION_ACCURACY] for row in document["history"]}) == 1


def test_the_steps_of_a_curve_are_whole_numbers_that_differ(store: Store) -> None:
    document = measured(pair_job(correction="none", interpolation_points=25, matcher="identity"), store)
    steps = [row["step"] for row in document["history"]]
    assert steps == sorted(set(steps))
    assert (len(steps), steps[0], steps[12], steps[-1]) == (25, 0, 50, 100)


# --- connect: the path over the pruning rounds ----------------------------------------------------------------------
def test_the_imp_path_leads_from_dense_a_to_each_round(store: Store) -> None:
    cell = tiny_cell("imp", sparsity=0.36, imp_path=True)
    paths = measurements(cell)
    rounds = pruning_rounds(target(cell))
    assert len(rounds) == 2
    for index, job in enumerate(paths):
        curve = measured(job, store)["history"]
        assert set(store.manifest(job.key)["files"]) == {schema.METRICS, schema.LOG}
        if job.config.correction == "none":  # type: ignore[union-attr]
            ends = [dense_job(cell, cell.seed_a).key, rounds[index // 2].key]
            measured_there = [curve[0][schema.INTERPOLATION_ACCURACY], curve[-1][schema.INTERPOLATION_ACCURACY]]
            assert measured_there == pytest.approx([accuracy(logits(store, key)) for key in ends])


def test_paths_over_the_rounds_begin_alike(store: Store) -> None:
    paths = measurements(tiny_cell("imp", sparsity=0.36, imp_path=True))
    for correction in ("none", "bn_reset"):
        made = [measured(job, store) for job in paths if job.config.correction == correction]  # type: ignore[union-attr]
        assert len({document["history"][0][schema.INTERPOLATION_LOSS] for document in made}) == 1
        assert len({document["history"][-1][schema.INTERPOLATION_LOSS] for document in made}) == 2


# --- plane ----------------------------------------------------------------------------------------------------------
def plane(store: Store, **changes: Any) -> tuple[Job, dict[str, Any], dict[str, Any]]:
    """Return a plane's job, its document and its final metrics."""
    job = plane_job(tiny_cell(plane_resolution=3, **changes))
    final = measured(job, store)["final"]
    return job, store.read_json(job.key, schema.PLANE_GRID), final


def test_a_plane_s_document_is_complete(store: Store) -> None:
    job, document, _final = plane(store, correction="none")
    assert set(store.manifest(job.key)["files"]) == {schema.METRICS, schema.PLANE_GRID, schema.LOG}
    assert document["networks"] == ["dense", "lth", "permuted"]
    assert document.keys() == {"networks", "xs", "ys", "losses", "errors", "coordinates"} | {
        "network_losses",
        "network_errors",
    }
    assert (len(document["xs"]), len(document["ys"])) == (3, 3)
    assert document["xs"] == sorted(document["xs"])
    for name, low, high in (("losses", 0, math.inf), ("errors", 0, 100)):
        values = [value for row in document[name] for value in row] + document[f"network_{name}"]
        assert len(values) == 9 + 3
        assert all(math.isfinite(value) and low <= value <= high for value in values)


def test_uncorrected_corners_of_a_plane_are_the_nets_themselves(store: Store) -> None:
    job, document, final = plane(store, correction="none")
    for index, name in enumerate(document["networks"]):
        own = logits(store, job.parent(name).key)
        assert document["network_errors"][index] == pytest.approx(100 - accuracy(own), abs=1.5 * ONE_IMAGE)
        assert document["network_losses"][index] == pytest.approx(loss(own), rel=1e-4)
        assert final[f"{schema.PLANE_ERROR}/{name}"] == document["network_errors"][index]


def test_the_nets_lie_in_the_plane_at_their_distances_in_b_s_frame(store: Store) -> None:
    job, document, _final = plane(store, correction="none")
    model = data(store).model()
    spec, permutation = permutation_spec(model), read_permutation(store, job.parent("permutation").key)
    states = [read_weights(store, job.parent(name).key) for name in document["networks"]]
    states[:2] = [apply_permutation(spec, permutation, state) for state in states[:2]]
    names = {name for name, _ in model.named_parameters()}
    vectors = [torch.cat([state[name].double().reshape(-1) for name in sorted(names)]) for state in states]
    for left in range(3):
        for right in range(left):
            expected = float(torch.dist(vectors[left], vectors[right]))
            assert math.dist(document["coordinates"][left], document["coordinates"][right]) == pytest.approx(expected)


def test_the_grid_reaches_beyond_the_nets(store: Store) -> None:
    _job, document, _final = plane(store, correction="none")
    for axis, values in enumerate((document["xs"], document["ys"])):
        places = [place[axis] for place in document["coordinates"]]
        assert values[0] < min(places) < max(places) < values[-1]


def test_a_corrected_plane_has_corrected_corners(store: Store) -> None:
    _job, plain, _final = plane(store, correction="none")
    _job, reset, _final = plane(store, correction="bn_reset")
    assert reset["coordinates"] == plain["coordinates"]
    assert reset["network_losses"] != plain["network_losses"]


def test_a_plane_without_batchnorm_warns_of_no_reset(store: Store) -> None:
    """The warning would recommend REPAIR, which planes do not have and which this user has asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        cell = tiny_cell(model="mlp", plane_resolution=2, correction="repair", match_images=150)
        assert measured(plane_job(cell), store)["final"]


# --- ensemble -------------------------------------------------------------------------------------------------------
def ensemble_of(method: str, count: int = 3) -> Job:
    return ensemble_job(tiny_cell(method, members=count))


@pytest.mark.parametrize("method", ENSEMBLES)
def test_an_ensemble_s_numbers_by_hand(store: Store, method: str) -> None:
    job = ensemble_of(method)
    final = measured(job, store)["final"]
    members = [logits(store, ref.key) for _, ref in job.parents]
    singles = [accuracy(each) for each in members]
    mean = sum(singles) / 3
    votes = torch.stack([each.double().softmax(dim=1) for each in members]).mean(dim=0)
    assert final[schema.MEMBERS] == 3
    assert final[schema.MEMBER_ACCURACY_MEAN] == pytest.approx(mean)
    assert final[schema.MEMBER_ACCURACY_STD] == pytest.approx(
        math.sqrt(sum((each - mean) ** 2 for each in singles) / 2)
    )
    assert final[schema.ENSEMBLE_ACCURACY] == pytest.approx(accuracy(votes)) == ensemble_accuracy(members, labels())
    pairs = [(0, 1), (0, 2), (1, 2)]
    apart = [float((members[i].argmax(1) != members[j].argmax(1)).double().mean()) for i, j in pairs]
    assert final[schema.DISAGREEMENT] == pytest.approx(sum(apart) / 3) == _mean(disagreement, members)
    both_ways = [*pairs, *((j, i) for i, j in pairs)]
    kl = [kl_divergence(members[i], members[j]) for i, j in both_ways]
    assert final[schema.KL_DIVERGENCE] == pytest.approx(sum(kl) / 6)
    assert final[schema.JS_DIVERGENCE] == pytest.approx(_mean(js_divergence, members))


def _mean(measure: Any, members: list[Tensor]) -> float:
    values = [measure(members[i], members[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return float(sum(values) / len(values))


@pytest.mark.parametrize("method", ENSEMBLES)
def test_members_are_different_functions_of_like_accuracy(store: Store, method: str) -> None:
    job = ensemble_of(method)
    final = measured(job, store)["final"]
    accuracies = [read_metrics(store, ref.key)["final"][schema.TEST_ACCURACY] for _, ref in job.parents]
    assert final[schema.MEMBER_ACCURACY_MEAN] == pytest.approx(sum(accuracies) / 3)
    assert 0 < final[schema.DISAGREEMENT] < 1
    assert 0 < final[schema.JS_DIVERGENCE] <= math.log(2)
    assert final[schema.KL_DIVERGENCE] > 0


def test_lth_members_start_alike_and_differ_in_their_order(store: Store) -> None:
    job = ensemble_of("lth")
    measured(job, store)
    weights = [read_weights(store, ref.key)["fc.weight"] for _, ref in job.parents]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    zeros = [each == 0 for each in weights]
    assert all(torch.equal(zeros[0], other) for other in zeros[1:]), "they have the same mask"


def test_logits_that_were_too_many_to_store_are_computed_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ensemble_of("dense", 2)
    measured(job, store)
    monkeypatch.setattr(train, "LOGITS_LIMIT", 0)
    bare = Store(tmp_path / "store")
    measured(job, bare)
    for _, ref in job.parents:
        assert schema.LOGITS in store.manifest(ref.key)["files"]
        assert schema.LOGITS not in bare.manifest(ref.key)["files"]
        net = data(bare).model(read_weights(bare, ref.key))
        assert torch.allclose(predict_logits(net, data(bare).test), logits(store, ref.key), atol=1e-5)
    assert_same_result(store, bare, job.key)


# --- overlap --------------------------------------------------------------------------------------------------------
def test_an_overlap_is_with_the_mask_that_own_mask_wears(store: Store) -> None:
    job = overlap_job(tiny_cell())
    final = measured(job, store)["final"]
    wears = {method: target(tiny_cell(method)).key for method in ("permuted", "naive", "own_mask")}
    publish([Ref(target(tiny_cell(method))) for method in wears], Context(store=store))
    masks = {method: read_mask(store, key) for method, key in wears.items()}
    assert final[schema.MASK_OVERLAP] == mask_overlap(masks["permuted"], masks["own_mask"])
    assert final[schema.MASK_OVERLAP_IDENTITY] == mask_overlap(masks["naive"], masks["own_mask"])
    assert final[schema.MASK_OVERLAP_RANDOM] == expected_overlap(masks["permuted"], masks["own_mask"])


def test_matched_to_itself_a_net_has_its_own_mask(store: Store) -> None:
    cell = tiny_cell(matcher="identity")
    itself = overlap_job(cell)
    mask = itself.parent("own")
    job = make_job(schema.OVERLAP, itself.config, mask=mask, own=mask, permutation=itself.parent("permutation"))
    final = measured(job, store)["final"]
    assert final[schema.MASK_OVERLAP] == final[schema.MASK_OVERLAP_IDENTITY] == 1
    assert final[schema.MASK_OVERLAP_RANDOM] < 1


# --- all of them ----------------------------------------------------------------------------------------------------
def test_a_measurement_has_the_same_numbers_every_time(store: Store, tmp_path: Path) -> None:
    made = [pair_job(), plane_job(tiny_cell(plane_resolution=3)), ensemble_of("lth"), match_job(CELL, "activation")]
    made.append(overlap_job(CELL))
    for job in made:
        measured(job, store)
    again = Store(shutil.copytree(store.root, tmp_path / "again"))
    for job in made:
        shutil.rmtree(again.directory(job.key))
    torch.rand(3)  # earlier draws have no influence
    for job in made:
        measured(job, again)
        assert_same_result(store, again, job.key)


def test_nets_without_batchnorm_are_measured_like_the_others(tmp_path: Path) -> None:
    settings = {"model": "mlp", "epochs": 2, "sparsity": 0.2, "correction": "none", "plane_resolution": 2}
    settings["mask_overlap"] = True
    cell = tiny_cell(width=0.25, members=2, **settings)
    made = Store(tmp_path / "store")
    for job in measurements(cell):
        final = measured(job, made)["final"]
        assert all(math.isfinite(value) for value in final.values())
    assert {job.kind for job in measurements(cell)} == set(MEASUREMENTS) - {schema.MATCH}


def test_identity_and_itself_make_a_plane_of_the_nets_as_they_are(store: Store) -> None:
    job, document, _final = plane(store, correction="none", matcher="identity")
    assert (
        read_permutation(store, job.parent("permutation").key).keys()
        == identity_permutation(permutation_spec(data(store).model())).keys()
    )
    own = [accuracy(logits(store, job.parent(name).key)) for name in document["networks"]]
    assert document["network_errors"] == pytest.approx([100 - each for each in own])


def test_what_is_measured_does_not_depend_on_who_asks(store: Store) -> None:
    # The first pruning round of two sparsities is one job, and so is the path to it.
    low, high = (measurements(tiny_cell("imp", sparsity=s, imp_path=True)) for s in (0.2, 0.36))
    assert low[0].key == high[0].key
    assert prune_job(tiny_cell("imp", sparsity=0.2), 0).key == low[0].parent("b").key
    assert math.isfinite(measured(low[0], store)["final"][schema.LOSS_BARRIER])
