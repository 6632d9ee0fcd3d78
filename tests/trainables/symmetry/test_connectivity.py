"""Interpolation, barriers and BatchNorm reset."""

import copy
import math

import pytest
import torch
from small_nets import digits, permuted_copy, random_batches, same, small_model, snapshot, trained_pair
from torch import nn

from trainables.knobs import CORRECTIONS
from trainables.models import MODELS
from trainables.symmetry.connectivity import (
    InterpolationCurve,
    interpolate,
    interpolation_curve,
    loss_barrier,
)
from trainables.symmetry.matching import match_models
from trainables.symmetry.permutations import invert_permutation, permutation_spec, random_permutation
from trainables.symmetry.repair import NoEffectWarning, batchnorm_layers, reset_batchnorm
from trainables.training.evaluation import evaluate


def each_of(names):
    """Return the names as parameters of a test; the network of 50 layers is slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet50" else []) for name in names]


def curve_of(alphas, losses, accuracies=None):
    return InterpolationCurve(
        alphas=tuple(alphas), losses=tuple(losses), accuracies=tuple(accuracies or [50.0] * len(losses))
    )


# --- interpolation ------------------------------------------------------------------------------------------------
def test_interpolation_is_exact_at_both_ends_and_linear_between():
    state_a, state_b = (small_model("resnet8", seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, state_a[name]) for name, tensor in interpolate(state_a, state_b, 0).items())
    assert all(torch.equal(tensor, state_b[name]) for name, tensor in interpolate(state_a, state_b, 1).items())
    quarter = interpolate(state_a, state_b, 0.25)
    expected = 0.75 * state_a["conv1.weight"] + 0.25 * state_b["conv1.weight"]
    torch.testing.assert_close(quarter["conv1.weight"], expected)
    assert list(quarter) == list(state_a)


@pytest.mark.parametrize(("alpha", "count"), [(0, 3), (0.5, 3), (0.51, 8), (1, 8)])
def test_counters_come_from_the_nearer_end(alpha, count):
    mixed = interpolate({"n": torch.tensor(3)}, {"n": torch.tensor(8)}, alpha)
    assert mixed["n"].item() == count
    assert mixed["n"].dtype == torch.int64


def test_interpolation_returns_new_tensors():
    state = {"w": torch.ones(2), "n": torch.tensor(3)}
    mixed = interpolate(state, state, 0)
    for tensor in mixed.values():
        tensor.zero_()
    assert state["w"].sum() == 2
    assert state["n"] == 3


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got"):
        interpolate({}, {}, alpha)


def test_states_must_fit():
    with pytest.raises(ValueError, match="differ in their tensors: b"):
        interpolate({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, 0)
    with pytest.raises(ValueError, match=r"'a' has shapes \(1,\) and \(2,\)"):
        interpolate({"a": torch.ones(1)}, {"a": torch.ones(2)}, 0)


# --- barriers ------------------------------------------------------------------------------------------------------
def test_barrier_by_hand():
    alphas, losses = [0, 0.25, 0.5, 1], [1.0, 2.0, 3.0, 2.0]
    # Straight line: 1, 1.25, 1.5, 2. Rises: 0, 0.75, 1.5, 0.
    assert loss_barrier(curve_of(alphas, losses)) == 1.5
    assert loss_barrier(alphas, losses) == 1.5
    assert loss_barrier(torch.tensor(alphas), torch.tensor(losses)) == 1.5


def test_barrier_is_never_negative():
    assert loss_barrier([0, 0.5, 1], [1.0, 0.2, 3.0]) == 0


def test_barrier_of_a_diverged_network_is_not_hidden():
    assert math.isnan(loss_barrier([0, 0.5, 1], [1.0, math.nan, 1.0]))


def test_error_barrier_in_percentage_points():
    curve = curve_of([0, 0.5, 1], [0, 0, 0], [90.0, 60.0, 80.0])
    assert curve.errors == (10, 40, 20)
    assert loss_barrier(curve.alphas, curve.errors) == 25


def test_barrier_needs_both_ends_and_one_loss_per_alpha():
    with pytest.raises(ValueError, match=r"alphas run from 0.0 to 0.9"):
        loss_barrier([0, 0.9], [1, 1])
    with pytest.raises(ValueError, match="2 alphas and 3 losses"):
        loss_barrier([0, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="alphas and losses"):
        loss_barrier([0, 1])


def test_midpoint():
    curve = curve_of([0, 0.5, 1], [1, 2, 3], [10, 20, 30])
    assert curve.midpoint_accuracy == 20
    with pytest.raises(ValueError, match=r"no point at alpha = 0.5; it has 0.0, 1.0"):
        _ = curve_of([0.0, 1.0], [1, 1]).midpoint_accuracy


@pytest.mark.parametrize("alphas", [[], [0, 0], [1, 0], [0, 1.5], [-1, 1], [0, math.nan]])
def test_alphas_must_increase_within_0_and_1(alphas):
    with pytest.raises(ValueError, match="alphas must increase within"):
        loss_barrier(alphas, alphas)


# --- curves ---------------------------------------------------------------------------------------------------------
def test_default_curve_has_11_points_and_true_ends():
    model_a, model_b = small_model("resnet8", 0), small_model("resnet8", 1).train()
    before = snapshot(model_a), snapshot(model_b)
    batches = random_batches()
    curve = interpolation_curve(model_a, model_b, batches)
    assert curve.alphas == tuple(step / 10 for step in range(11))
    assert (curve.losses[0], curve.accuracies[0]) == (
        evaluate(model_a, batches).loss,
        evaluate(model_a, batches).accuracy,
    )
    assert curve.losses[-1] == evaluate(model_b, batches).loss
    assert same(before[0], snapshot(model_a))
    assert same(before[1], snapshot(model_b))


@pytest.mark.filterwarnings("ignore::trainables.symmetry.repair.NoEffectWarning")
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", each_of(MODELS))
def test_no_barrier_to_a_permuted_copy_of_itself(name, correction):
    model = small_model(name)
    planted = random_permutation(permutation_spec(model), 1)
    batches = random_batches(2)
    curve = interpolation_curve(
        permuted_copy(model, planted),
        model,
        batches,
        alphas=[0, 0.3, 1],
        permutation=invert_permutation(planted),
        correction=correction,
        train_batches=batches,
    )
    assert loss_barrier(curve) <= 1e-5 * curve.losses[0]
    assert loss_barrier(curve.alphas, curve.errors) == 0


def test_corrections_apply_to_the_ends_as_well():
    model_a, model_b = small_model("resnet8", 0), small_model("resnet8", 1)
    batches = random_batches()
    curve = interpolation_curve(model_a, model_b, batches, alphas=[0, 1], correction="bn_reset", train_batches=batches)
    assert curve.losses[0] == pytest.approx(evaluate(reset_batchnorm(model_a, batches), batches).loss)
    assert curve.losses[1] == pytest.approx(evaluate(reset_batchnorm(model_b, batches), batches).loss)


def test_matching_and_bn_reset_lower_the_barrier_of_trained_networks():
    model_a, model_b = trained_pair("resnet8", 0.5)
    train, test = digits()

    def barrier(permutation, correction):
        return loss_barrier(
            interpolation_curve(
                model_a,
                model_b,
                test,
                alphas=[0, 0.25, 0.5, 0.75, 1],
                permutation=permutation,
                correction=correction,
                train_batches=train,
            )
        )

    permutation = match_models(model_a, model_b, train)
    assert barrier(permutation, "bn_reset") < 0.5 * barrier(None, "bn_reset")
    assert barrier(permutation, "bn_reset") < 0.5 * barrier(permutation, "none")


def test_requests_that_cannot_be_met():
    model, batches = small_model("resnet8"), random_batches()
    with pytest.raises(ValueError, match=r"unknown correction 'reset' .*; known: none, bn_reset, repair"):
        interpolation_curve(model, model, batches, correction="reset")
    with pytest.raises(ValueError, match="'bn_reset' needs train_batches"):
        interpolation_curve(model, model, batches, correction="bn_reset")
    with pytest.raises(ValueError, match="one-shot"):
        interpolation_curve(model, model, iter(batches))
    with pytest.raises(ValueError, match="one-shot"):
        interpolation_curve(model, model, batches, correction="repair", train_batches=iter(batches))
    with pytest.raises(ValueError, match="shapes"):
        interpolation_curve(model, small_model("resnet8", width=0.5), batches)


def test_the_barrier_of_the_training_loss_is_named_and_measured_apart():
    model_a, model_b, test, train = small_model("mlp", 0), small_model("mlp", 1), random_batches(1), random_batches(2)
    curve = interpolation_curve(model_a, model_b, test, train_batches=train, measure_train=True)
    on_train = interpolation_curve(model_a, model_b, train)
    assert curve.train_losses == pytest.approx(on_train.losses)
    assert loss_barrier(curve.alphas, curve.train_losses) == pytest.approx(loss_barrier(on_train), abs=1e-6)
    assert loss_barrier(curve) == loss_barrier(interpolation_curve(model_a, model_b, test))
    with pytest.raises(ValueError, match="0 losses"):
        loss_barrier(on_train.alphas, on_train.train_losses)
    with pytest.raises(ValueError, match="measure_train needs train_batches"):
        interpolation_curve(model_a, model_b, test, measure_train=True)


# --- BatchNorm reset ------------------------------------------------------------------------------------------------
def as_one_batch(batches):
    """Return the statistics that PyTorch computes in train mode with all samples in one batch."""
    return [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]


def statistics(model):
    return {name: tensor for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def of_one_batch_in_train_mode(model, batches):
    model = copy.deepcopy(model).train()
    for layer in batchnorm_layers(model):
        layer.reset_running_stats()
        layer.momentum = None
    with torch.no_grad():
        model(as_one_batch(batches)[0][0])
    return statistics(model)


@pytest.mark.parametrize("name", each_of(name for name in MODELS if batchnorm_layers(small_model(name))))
def test_reset_statistics_are_those_of_all_samples_however_they_are_batched_and_in_any_order(name):
    model, batches = small_model(name), random_batches(3)
    expected = of_one_batch_in_train_mode(model, batches)
    images, labels = as_one_batch(batches)[0]
    order = labels.argsort()  # sorted by class as image folders are: a batch holds one or two classes
    for these, size in ((images, len(images)), (images, 7), (images[order], 16), (images[order], len(images) - 1)):
        found = reset_batchnorm(model, [(part, part) for part in these.split(size)])
        for tensor, value in statistics(found).items():
            scale = expected[tensor.replace("running_mean", "running_var")].sqrt().max()
            torch.testing.assert_close(value, expected[tensor], rtol=1e-3, atol=1e-4 * scale.item(), msg=tensor)


def test_a_leftover_of_one_image_at_a_single_position_is_no_problem():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    images = torch.rand(5, 3, 1, 1)
    parts, whole = reset_batchnorm(model, images.split(4)), reset_batchnorm(model, [images])
    for name, value in statistics(parts).items():
        torch.testing.assert_close(value, statistics(whole)[name])
    alone = reset_batchnorm(model, [images[:1]])
    assert all(value.isfinite().all() for value in statistics(alone).values())


class WithIdleLayer(nn.Module):
    """A net with two layers, one of which never runs."""

    def __init__(self):
        super().__init__()
        self.idle, self.used = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.idle.running_mean, 7)

    def forward(self, images):
        return self.used(images)


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_that_does_not_run_keeps_the_statistics_of_a_new_one(count):
    found = reset_batchnorm(WithIdleLayer(), random_batches(count))
    assert not found.idle.running_mean.any()
    assert found.idle.num_batches_tracked == 0
    assert found.used.running_mean.all()
    assert found.used.num_batches_tracked == count


def test_a_layer_that_runs_twice_is_refused():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    with pytest.raises(ValueError, match="runs twice"):
        reset_batchnorm(model, random_batches(1))


@pytest.mark.parametrize(("name", "correction"), [("resnet8", "bn_reset"), ("resnet8", "repair"), ("vgg11", "repair")])
def test_barriers_do_not_depend_on_batches_or_order(name, correction):
    model_a, model_b, test = small_model(name, 0), small_model(name, 1), random_batches(1)
    images, labels = as_one_batch(random_batches(3))[0]
    order = labels.argsort()
    found = [
        loss_barrier(
            interpolation_curve(
                model_a,
                model_b,
                test,
                alphas=(0, 0.5, 1),
                permutation=match_models(model_a, model_b, batches),
                correction=correction,
                train_batches=batches,
            )
        )
        for batches in ([images], images[order].split(9), images.split(len(images) - 1))
    ]
    assert found == pytest.approx(found[:1] * 3, rel=1e-3, abs=1e-4)


def test_after_reset_on_one_batch_eval_mode_equals_train_mode():
    model, batches = small_model("resnet8"), random_batches(1, size=64)
    images = batches[0][0]
    found = reset_batchnorm(model, batches)
    with torch.no_grad():
        in_train_mode = copy.deepcopy(model).train()(images)
        torch.testing.assert_close(found(images), in_train_mode, rtol=1e-3, atol=5e-3)


def test_reset_changes_statistics_only_and_not_the_input():
    model = small_model("resnet8").train()
    model.bn1.momentum = 0.3
    before = snapshot(model)
    found = reset_batchnorm(model, random_batches())
    assert same(before, snapshot(model))
    for name, tensor in found.named_parameters():
        assert torch.equal(tensor, model.get_parameter(name))
    assert (found.bn1.momentum, found.training, found.bn1.training) == (0.3, True, True)
    assert not torch.equal(found.bn1.running_mean, model.bn1.running_mean)


def test_reset_twice_is_reset_once():
    once = reset_batchnorm(small_model("resnet8"), random_batches())
    twice = reset_batchnorm(once, random_batches())
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())


def test_dropout_does_not_disturb_the_statistics():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    images = random_batches(1)[0][0]
    found = reset_batchnorm(model, [images])
    torch.testing.assert_close(found[1].running_mean, images.mean(dim=(0, 2, 3)))
    assert found[0].training


def test_network_without_batchnorm_is_copied_with_a_warning():
    model = small_model("vgg11")
    with pytest.warns(NoEffectWarning, match="VGG11 has no BatchNorm"):
        found = reset_batchnorm(model, random_batches())
    assert found is not model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_reset_needs_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        reset_batchnorm(small_model("resnet8"), [])
