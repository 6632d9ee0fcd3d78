"""Matching recovers planted permutations, equals a plain reference and leaves the models alone."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from live_memory import LiveMemory
from scipy.optimize import linear_sum_assignment
from small_nets import digits, permuted_copy, random_batches, same, small_model, snapshot, trained_pair
from torch import nn

from trainables.config import Task
from trainables.methods import MATCHERS
from trainables.models import MODELS
from trainables.symmetry.matching import (
    Problem,
    activation_moments,
    match,
    match_models,
    mean_over_groups,
    solve_assignment,
)
from trainables.symmetry.moments import ActivationMoments, UnitMoments, positions
from trainables.symmetry.permutations import (
    PermutationSpec,
    apply_permutation,
    identity_permutation,
    invert_permutation,
    permutation_spec,
    random_permutation,
)
from trainables.symmetry.weight_matching import match_weights
from trainables.training.evaluation import eval_mode, image_batches
from trainables.training.footprint import footprint

ACTIVATION = ("activation", "activation_inner")


class Counting:
    """Batches that count the passes over them."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[group], second[group]) for group in first)


def collected_activations(model, tap, batches):
    """Return all activations of one module, float64 (positions, units), from a separate pass."""
    outputs = []
    handle = model.get_submodule(tap).register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad(), eval_mode(model):
        for images in image_batches(batches, torch.device("cpu")):
            model(images)
    handle.remove()
    rows = [output.transpose(0, 1).flatten(1).T for output in outputs]
    return torch.cat(rows).double().numpy()


def textbook_correlation(units_a, units_b):
    """Return the Pearson correlation (units of B, units of A), computed in two passes; 0 for units that do not vary."""
    centred_a, centred_b = units_a - units_a.mean(0), units_b - units_b.mean(0)
    scale = np.outer(np.sqrt((centred_b**2).sum(0)), np.sqrt((centred_a**2).sum(0)))
    return np.divide(centred_b.T @ centred_a, scale, out=np.zeros_like(scale), where=scale > 0)


CLOSE = 1e-5
"""Scores that differ by less than this, relative to the largest, are ties: only rounding decides between them."""


def assert_equally_good(chosen, expected, score):
    """Assert that two assignments of a score's columns to its rows have the same total."""
    rows, score = np.arange(len(score)), np.asarray(score)
    assert sorted(np.asarray(chosen)) == sorted(np.asarray(expected)) == rows.tolist()
    gained, best = (score[rows, np.asarray(columns)].sum() for columns in (chosen, expected))
    assert gained == pytest.approx(best, rel=0, abs=CLOSE * np.abs(score).max() * len(score))


def clear_choices(score):
    """Return which rows have one column that is better than all others by more than rounding."""
    second, first = np.sort(np.asarray(score), axis=1)[:, -2:].T
    return torch.from_numpy(first - second > CLOSE * np.abs(np.asarray(score)).max())


# --- names ------------------------------------------------------------------------------------------------------
def test_names_and_descriptions_need_no_torch():
    code = "import sys, trainables.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_method_lists_the_names_and_suggests_the_nearest():
    model = small_model("mlp")
    with pytest.raises(ValueError, match=r"\(did you mean 'weight'\?\); known: activation, .*random$"):
        match_models(model, model, None, "weights")


# --- planted permutations ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["activation", "activation_inner", "weight"])
@pytest.mark.parametrize("name", MODELS)
def test_planted_permutation_is_recovered(name, method):
    reference = small_model(name)
    planted = random_permutation(permutation_spec(reference), 1)
    moved = permuted_copy(reference, planted)
    found = match(moved, reference, random_batches(), method)
    expected = invert_permutation(planted)
    moments = activation_moments(moved, reference, permutation_spec(reference), random_batches())
    for group, indices in found.permutation.items():
        # Activations say nothing about units that never vary; weights know them all.
        known = ~moments[group].b.dead() if method in ACTIVATION else torch.ones_like(indices, dtype=torch.bool)
        if method in ACTIVATION:
            score = moments[group].correlation() if method == "activation" else moments[group].inner_product()
            assert_equally_good(indices, expected[group], score)
            known &= clear_choices(moments[group].correlation())  # not two units that respond to a single image only
        assert known.any()
        assert torch.equal(indices[known], expected[group][known]), group
        assert found.correlation[group] == pytest.approx((~moments[group].b.dead()).double().mean().item(), abs=1e-5)


def test_aligned_network_is_the_reference():
    reference = small_model("resnet8")
    spec = permutation_spec(reference)
    moved = permuted_copy(reference, random_permutation(spec, 3))
    found = match_models(moved, reference, random_batches(), "weight")
    aligned = apply_permutation(spec, found, moved.state_dict())
    assert all(torch.equal(aligned[name], tensor) for name, tensor in reference.state_dict().items())


# --- the same as a plain implementation ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "live"),
    [
        ("resnet8", {}, 0.8),
        ("mlp", {"image_size": 8}, 0.8),
        pytest.param("resnet50", {"epochs": 1, "small_images": True}, 0.4, marks=pytest.mark.slow),
    ],
)
def test_one_pass_over_all_groups_equals_one_textbook_pass_per_group(name, options, live):
    model_a, model_b = trained_pair(name, 0.25, **options)
    before = snapshot(model_a), snapshot(model_b)
    batches = Counting(digits()[0][:3] if name == "resnet50" else digits()[0])
    found = match(model_a, model_b, batches)
    assert batches.passes == 1
    assert same(before[0], snapshot(model_a))
    assert same(before[1], snapshot(model_b))
    spec = permutation_spec(model_a)
    for group, tap in spec.taps.items():
        correlation = textbook_correlation(
            collected_activations(model_a, tap, batches), collected_activations(model_b, tap, batches)
        )
        rows, expected = linear_sum_assignment(correlation, maximize=True)
        assert (correlation[rows, expected] != 0).mean() > live
        assert_equally_good(found.permutation[group], expected, correlation)
        assert found.correlation[group] == pytest.approx(correlation[rows, expected].mean(), abs=2e-6)
        assert found.correlation_identity[group] == pytest.approx(np.diag(correlation).mean(), abs=2e-6)


def test_inner_product_matching_maximises_equation_1():
    model_a, model_b = trained_pair("resnet8", 0.25)
    found = match_models(model_a, model_b, digits()[0], "activation_inner")
    for group, tap in permutation_spec(model_a).taps.items():
        units_a = collected_activations(model_a, tap, digits()[0])
        units_b = collected_activations(model_b, tap, digits()[0])
        score = units_b.T @ units_a
        _rows, expected = linear_sum_assignment(score, maximize=True)
        assert_equally_good(found[group], expected, score)


def test_matching_improves_correlation_of_trained_networks():
    model_a, model_b = trained_pair("resnet8", 0.25)
    found = match(model_a, model_b, digits()[0])
    assert mean_over_groups(found.correlation) > mean_over_groups(found.correlation_identity) + 0.15
    assert all(found.correlation[group] >= found.correlation_identity[group] for group in found.correlation)


# --- memory -----------------------------------------------------------------------------------------------------
def live_bytes(monkeypatch, batches):
    """Collect two ResNet20s' moments; return the peak of the live bytes beside them, and those at each update."""
    images, size, noted = len(batches[0]), batches[0].shape[-1], []
    update = ActivationMoments.update

    def noting(moments, *units):
        noted.append(memory.now)
        update(moments, *units)

    monkeypatch.setattr(ActivationMoments, "update", noting)
    model_a, model_b = small_model("resnet20", 0), small_model("resnet20", 1)
    net = footprint(
        Task(model="resnet20", width=0.25, dataset="digits"), image_size=size, num_classes=10, in_channels=3
    )
    with LiveMemory() as memory:
        moments = activation_moments(model_a, model_b, permutation_spec(model_a), batches)
    assert moments
    return memory.peak - memory.now, noted, 4 * images * net.tapped, 4 * images * net.largest


def test_activations_of_one_network_wait_for_the_other_s_and_none_for_the_next_batch(monkeypatch):
    batches = list(torch.randn(8, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    few, noted, tapped, largest = live_bytes(monkeypatch, batches[:2])
    assert noted[0] > tapped, "those of A are complete when the first ones of B come"
    for at_first, at_last in ((noted[0], noted[11]), (noted[12], noted[-1])):
        assert at_last < 0.3 * at_first, "each is released with its counterpart"
    assert few < tapped + 8 * largest < 2 * tapped + 2 * largest
    many, *_ = live_bytes(monkeypatch, batches)
    assert many == few


# --- moments ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_streamed_moments_equal_those_of_the_whole_data(offset):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1000, 4, generator=generator)
    units_a = hidden @ torch.randn(4, 6, generator=generator) + offset
    units_b = hidden @ torch.randn(4, 5, generator=generator) + torch.randn(1000, 5, generator=generator) - offset
    moments = ActivationMoments()
    for part_a, part_b in zip(units_a.split([1, 700, 299]), units_b.split([1, 700, 299]), strict=True):
        moments.update(part_a, part_b)
    exact_a, exact_b = units_a.double(), units_b.double()
    assert moments.a.count == moments.b.count == 1000
    torch.testing.assert_close(moments.a.mean(), exact_a.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.b.variance(), exact_b.var(0, correction=0), rtol=1e-5, atol=0)
    both = torch.cat([exact_b, exact_a], dim=1).T
    torch.testing.assert_close(moments.correlation(), torch.corrcoef(both)[:5, 5:], rtol=0, atol=2e-6)
    torch.testing.assert_close(moments.inner_product(), exact_b.T @ exact_a / 1000, rtol=1e-6, atol=1e-4)


def test_moments_need_data_and_the_same_positions():
    with pytest.raises(ValueError, match="at least one batch"):
        UnitMoments().mean()
    with pytest.raises(ValueError, match="A has 2 positions and B 3"):
        ActivationMoments().update(torch.zeros(2, 1), torch.zeros(3, 1))


def test_positions_are_rows_of_samples_and_pixels_and_a_copy():
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert positions(images)[5].tolist() == [13, 17, 21]
    flat = torch.ones(2, 3)
    rows = positions(flat)
    flat.zero_()
    assert rows.sum() == 6


# --- dead units -------------------------------------------------------------------------------------------------
def test_dead_units_have_correlation_zero_and_stay_if_they_can():
    generator = torch.Generator().manual_seed(0)
    units_b = torch.randn(200, 6, generator=generator)
    units_a = units_b[:, [1, 0, 2, 3, 5, 4]].clone()
    units_a[:, [2, 3]] = 7.1  # constant, though no multiple of it is exact in float32
    units_b[:, [2, 3]] = 0
    moments = ActivationMoments()
    moments.update(units_a[:50], units_b[:50])
    moments.update(units_a[50:], units_b[50:])
    correlation = moments.correlation()
    assert moments.a.dead().nonzero().flatten().tolist() == [2, 3]
    assert moments.b.dead().nonzero().flatten().tolist() == [2, 3]
    assert correlation[:, [2, 3]].abs().max() == correlation[[2, 3]].abs().max() == 0
    assert solve_assignment(correlation.numpy()).tolist() == [1, 0, 2, 3, 5, 4]


def test_places_of_dead_units_do_not_hang_on_rounding():
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    score[[3, 4, 5, 30, 31]] = 0
    score[:, [4, 9, 10, 11, 35]] = 0
    first = solve_assignment(score.numpy())
    assert first[4] == 4
    for _trial in range(20):
        jitter = 1 + 1e-9 * torch.randn(40, 40, generator=generator, dtype=torch.float64)
        assert torch.equal(solve_assignment((score * jitter).numpy()), first)
    _rows, unguided = linear_sum_assignment(score.numpy(), maximize=True)
    places = torch.arange(40)
    assert score[places, first].sum().item() == pytest.approx(score[places, torch.from_numpy(unguided)].sum().item())


def test_scores_must_be_finite():
    with pytest.raises(ValueError, match="not finite"):
        solve_assignment(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_group_without_live_units_is_left_in_place():
    model_a, model_b = small_model("resnet8", 0), small_model("resnet8", 1)
    for model in (model_a, model_b):
        nn.init.zeros_(model.layer2[0].bn1.weight)
        nn.init.zeros_(model.layer2[0].bn1.bias)
    found = match(model_a, model_b, random_batches())
    units = len(found.permutation["layer2.0.conv1"])
    assert found.permutation["layer2.0.conv1"].tolist() == list(range(units))
    assert found.correlation["layer2.0.conv1"] == 0
    assert found.moved["layer2.0.conv1"] == 0
    assert all(np.isfinite(value) for value in found.correlation.values())


# --- determinism, and no traces -----------------------------------------------------------------------------------
@pytest.mark.parametrize("method", MATCHERS)
def test_same_arguments_same_permutation_and_untouched_models(method):
    model_a, model_b = small_model("resnet8", 0).train(), small_model("resnet8", 1)
    before = snapshot(model_a), snapshot(model_b)
    first = match(model_a, model_b, random_batches(), method, seed=5)
    second = match_models(model_a, model_b, random_batches(), method, seed=5)
    assert equal(first.permutation, second)
    assert same(before[0], snapshot(model_a))
    assert same(before[1], snapshot(model_b))
    assert all(indices.dtype == torch.int64 for indices in second.values())


@pytest.mark.parametrize(("name", "options"), [("resnet8", {}), ("mlp", {"image_size": 8})])
def test_how_the_data_are_batched_does_not_matter(name, options):
    model_a, model_b = trained_pair(name, 0.25, **options)
    images = torch.cat([images for images, _labels in digits()[0]])
    parts = (images.split(64), images.split(500))
    moments, others = (activation_moments(model_a, model_b, permutation_spec(model_a), part) for part in parts)
    for group, found in match_models(model_a, model_b, parts[0]).items():
        torch.testing.assert_close(moments[group].correlation(), others[group].correlation(), rtol=0, atol=2e-6)
        assert_equally_good(found, match_models(model_a, model_b, parts[1])[group], others[group].correlation())


def test_a_generator_is_enough_for_one_pass():
    model = small_model("mlp")
    found = match(model, model, iter(random_batches()))
    assert found.correlation == pytest.approx(found.correlation_identity, abs=CLOSE)
    assert min(found.correlation.values()) > 0.5


def test_seed_changes_random_permutations():
    model = small_model("resnet8")
    first, second = (match_models(model, model, None, "random", seed=seed) for seed in (0, 1))
    assert not equal(first, second)


# --- what a match reports -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [name for name, matcher in MATCHERS.items() if not matcher.needs_data])
def test_without_data_there_are_no_correlations(method):
    model_a, model_b = small_model("mlp", 0), small_model("mlp", 1)
    found = match(model_a, model_b, None, method)
    assert found.correlation == found.correlation_identity == {}
    with pytest.raises(ValueError, match="no groups"):
        mean_over_groups(found.correlation)


def test_identity_is_its_own_baseline():
    model_a, model_b = small_model("mlp", 0), small_model("mlp", 1)
    found = match(model_a, model_b, random_batches(), "identity")
    assert found.correlation == found.correlation_identity
    assert found.moved_units == 0


def test_moved_units_are_counted_over_all_groups():
    model = small_model("resnet8")
    spec = permutation_spec(model)
    planted = identity_permutation(spec)
    planted["stream3"][[0, 1]] = torch.tensor([1, 0])
    found = match(permuted_copy(model, planted), model, None, "weight")
    assert found.moved["stream3"] == 2 / spec.sizes["stream3"]
    assert found.moved_units == pytest.approx(2 / sum(spec.sizes.values()))


def test_mean_over_groups():
    assert mean_over_groups({"a": 1.0, "b": 2.0}) == 1.5


# --- weight matching ------------------------------------------------------------------------------------------------
def problem(spec, a, b, seed=0):
    return Problem(spec=spec, parameters_a=a, parameters_b=b, moments={}, seed=seed)


def test_weight_matching_climbs_to_where_no_single_group_can_improve():
    model_a, model_b = trained_pair("resnet8", 0.25)
    spec = permutation_spec(model_a)
    a, b = ({name: p.detach() for name, p in model.named_parameters()} for model in (model_a, model_b))
    permutation, history = match_weights(problem(spec, a, b, seed=1))
    assert equal(permutation, match_models(model_a, model_b, None, "weight", seed=1))

    def objective(moving):
        parameters = {name: tensor.double() for name, tensor in model_a.named_parameters() if any(spec.axes[name])}
        moved = apply_permutation(spec, moving, parameters)
        return sum((moved[name] * model_b.get_parameter(name).double()).sum().item() for name in moved)

    assert all(low < high for low, high in itertools.pairwise(history))
    assert history[0] == pytest.approx(objective(identity_permutation(spec)), rel=1e-9)
    assert history[-1] == pytest.approx(objective(permutation), rel=1e-9)
    for group in spec.groups:
        for first, second in itertools.combinations(range(spec.sizes[group]), 2):
            swapped = permutation[group].clone()
            swapped[[first, second]] = swapped[[second, first]]
            assert objective({**permutation, group: swapped}) <= history[-1] + 1e-9


def test_one_group_is_matched_optimally():
    spec = PermutationSpec(axes={"in": ("g", None), "bias": ("g",), "out": (None, "g")}, sizes={"g": 5}, taps={"g": ""})
    generator = torch.Generator().manual_seed(0)
    shapes = {"in": (5, 3), "bias": (5,), "out": (2, 5)}
    a, b = ({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(2))
    permutation, history = match_weights(problem(spec, a, b))

    def objective(order):
        moved = apply_permutation(spec, {"g": torch.tensor(order)}, a)
        return sum((moved[name] * b[name]).sum().item() for name in a)

    best = max(itertools.permutations(range(5)), key=objective)
    assert permutation["g"].tolist() == list(best)
    assert history[-1] == pytest.approx(objective(best), rel=1e-6)


def test_group_on_both_axes_of_a_tensor_still_climbs():
    spec = PermutationSpec(axes={"in": ("g", None), "loop": ("g", "g")}, sizes={"g": 8}, taps={"g": ""})
    generator = torch.Generator().manual_seed(0)
    b = {"in": torch.randn(8, 20, generator=generator), "loop": torch.randn(8, 8, generator=generator)}
    planted = {"g": torch.randperm(8, generator=generator)}
    permutation, history = match_weights(problem(spec, apply_permutation(spec, planted, b), b))
    assert equal(permutation, invert_permutation(planted))
    assert all(low < high for low, high in itertools.pairwise(history))


# --- errors -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ACTIVATION)
def test_activation_matching_needs_data(method):
    model = small_model("mlp")
    with pytest.raises(ValueError, match="needs batches"):
        match_models(model, model, None, method)
    with pytest.raises(ValueError, match="at least one batch"):
        match_models(model, model, [], method)


def test_networks_must_have_the_same_groups():
    with pytest.raises(ValueError, match="differ in architecture"):
        match_models(small_model("resnet8"), small_model("resnet8", width=0.5), random_batches())


def test_tapped_module_must_run_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.relu = nn.Linear(2, 3), nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.outer(self.relu(self.inner(x))))

        def permutation_spec(self):
            axes = {
                "inner.weight": ("g", None),
                "inner.bias": ("g",),
                "outer.weight": (None, "g"),
                "outer.bias": (None,),
            }
            return PermutationSpec(axes=axes, sizes={"g": 3}, taps={"g": "relu"})

    model = Twice()
    with pytest.raises(ValueError, match="'relu' of group 'g' ran twice"):
        match_models(model, Twice(), [torch.zeros(4, 2)])
    assert not model.relu._forward_hooks
