"""REPAIR gives every channel the interpolated mean and standard deviation."""

import copy

import pytest
import torch
from small_nets import digits, random_batches, same, small_model, snapshot, trained_pair
from torch import nn

from trainables.models import MODELS
from trainables.symmetry.connectivity import interpolate, interpolation_curve, loss_barrier
from trainables.symmetry.matching import match_models
from trainables.symmetry.repair import channel_statistics, mix_statistics, repair, repair_points, reset_batchnorm
from trainables.training.evaluation import predict_logits


def mixed(model_a, model_b, alpha):
    result = copy.deepcopy(model_a)
    result.load_state_dict(interpolate(model_a.state_dict(), model_b.state_dict(), alpha))
    return result


@pytest.fixture(params=["resnet8", "resnet20", "vgg11", "vgg11_bn", "mlp"])
def problem(request):
    """Two networks, the one between them, alpha, and a single batch, on which targets are met exactly."""
    model_a, model_b = small_model(request.param, 0), small_model(request.param, 1)
    return mixed(model_a, model_b, 0.3), model_a, model_b, 0.3, random_batches(1, size=400)


def test_channels_get_the_mixed_means_and_standard_deviations(problem):
    interpolated, model_a, model_b, alpha, batches = problem
    points = repair_points(interpolated, batches)
    ends = [channel_statistics(model, points, batches) for model in (model_a, model_b)]
    found = channel_statistics(repair(*problem), points, batches)
    for name in points:
        (mean_a, std_a), (mean_b, std_b) = (end[name] for end in ends)
        mean = (1 - alpha) * mean_a + alpha * mean_b
        std = (1 - alpha) * std_a + alpha * std_b
        found_mean, found_std = found[name]
        # BatchNorm's own epsilon and its unbiased variance leave a little less than the target.
        tolerance = 0.01 * std.max().item() + 1e-4 * mean.abs().max().item()
        torch.testing.assert_close(found_mean, mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(found_std, std, rtol=0, atol=tolerance)


def test_result_has_the_same_architecture_and_inputs_are_untouched(problem):
    interpolated, model_a, model_b, alpha, batches = problem
    before = [snapshot(model) for model in (interpolated, model_a, model_b)]
    found = repair(interpolated, model_a, model_b, alpha, batches)
    shapes = {name: tensor.shape for name, tensor in found.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in interpolated.state_dict().items()}
    assert [type(module) for module in found.modules()] == [type(module) for module in interpolated.modules()]
    after = [snapshot(model) for model in (interpolated, model_a, model_b)]
    assert all(same(*pair) for pair in zip(before, after, strict=True))
    assert not any(module._forward_hooks for module in found.modules())
    assert torch.equal(found.fc.weight, interpolated.fc.weight)


@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mlp"])
def test_network_between_two_equal_ones_is_left_as_it_is(name):
    batches = random_batches(1, size=64)
    model = small_model(name)
    if name == "resnet8":
        nn.init.uniform_(model.layer1[0].bn1.weight, -1, 1)  # a negative weight must keep its sign
        model = reset_batchnorm(model, batches)
    logits = predict_logits(repair(model, model, model, 0.5, batches), batches)
    torch.testing.assert_close(logits, predict_logits(model, batches), rtol=1e-2, atol=1e-2)


def test_points_are_what_a_block_sends_on():
    batches = random_batches(1)
    assert repair_points(small_model("vgg11"), batches) == tuple(f"features.conv{index}" for index in range(1, 9))
    resnet = repair_points(small_model("resnet8"), batches)
    norms = {name for name, module in small_model("resnet8").named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert set(resnet) == norms
    assert resnet[0] == "bn1"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_repaired(name):
    model, batches = small_model(name), random_batches(1)
    points = repair_points(model, batches)
    assert points
    assert "fc" not in points


@pytest.mark.parametrize("name", ["vgg11", "resnet8"])
def test_masked_weights_stay_zero(name):
    model_a, model_b, batches = small_model(name, 0), small_model(name, 1), random_batches()
    masks = {}
    for module_name, module in model_a.named_modules():
        if isinstance(module, nn.Conv2d):
            masks[f"{module_name}.weight"] = torch.rand(module.weight.shape) < 0.5
    for model in (model_a, model_b):
        for key, mask in masks.items():
            model.get_parameter(key).data.mul_(mask)
    found = repair(mixed(model_a, model_b, 0.5), model_a, model_b, 0.5, batches)
    assert all(found.get_parameter(key)[~mask].abs().max() == 0 for key, mask in masks.items())


def test_channel_that_never_varies_stays_finite():
    model_a, model_b, batches = small_model("vgg11", 0), small_model("vgg11", 1), random_batches()
    for model in (model_a, model_b):
        nn.init.zeros_(model.features.conv3.weight)
    found = repair(mixed(model_a, model_b, 0.5), model_a, model_b, 0.5, batches)
    assert all(torch.isfinite(tensor).all() for tensor in found.state_dict().values())
    expected = (model_a.features.conv3.bias + model_b.features.conv3.bias) / 2
    torch.testing.assert_close(found.features.conv3.bias, expected, rtol=0, atol=1e-4)


def test_channel_that_varies_by_rounding_only_is_not_blown_up():
    constant = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 10))
    varying = copy.deepcopy(constant)
    nn.init.constant_(constant[0].weight, 1e-9)
    nn.init.constant_(constant[0].bias, 0.7)
    found = repair(constant, constant, varying, 0.5, random_batches())
    assert torch.equal(found[0].weight, constant[0].weight)


def test_standard_deviations_are_mixed_not_variances():
    batches = [torch.tensor([[-1.0], [1.0]])]
    narrow, wide = (nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)) for _ in range(2))
    for model, weight in ((narrow, 1.0), (wide, 3.0)):
        nn.init.constant_(model[0].weight, weight)
        nn.init.zeros_(model[0].bias)
    ends = [channel_statistics(model, ["0"], batches) for model in (narrow, wide)]
    _mean, std = mix_statistics(*ends, 0.25)["0"]
    assert std.item() == pytest.approx(1.5)


def test_matching_and_repair_lower_the_barrier_of_networks_without_batchnorm():
    model_a, model_b = trained_pair("mlp", 0.25, image_size=8)
    train, test = digits()

    def barrier(permutation, correction):
        curve = interpolation_curve(
            model_a, model_b, test, permutation=permutation, correction=correction, train_batches=train
        )
        return loss_barrier(curve)

    permutation = match_models(model_a, model_b, train)
    assert barrier(None, "repair") < 0.5 * barrier(None, "none")
    assert barrier(permutation, "repair") < barrier(permutation, "none") < 0.5 * barrier(None, "none")


def test_curve_uses_the_same_repair():
    model_a, model_b = trained_pair("mlp", 0.25, image_size=8)
    train, test = digits()
    curve = interpolation_curve(model_a, model_b, test, alphas=[0.3], correction="repair", train_batches=train)
    single = repair(mixed(model_a, model_b, 0.3), model_a, model_b, 0.3, train)
    logits, labels = predict_logits(single, test), torch.cat([labels for _images, labels in test])
    assert curve.losses[0] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_requests_that_cannot_be_met():
    model, batches = small_model("mlp"), random_batches()
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
        repair(model, model, model, 2, batches)
    with pytest.raises(ValueError, match="one-shot"):
        repair(model, model, model, 0.5, iter(batches))
    with pytest.raises(ValueError, match="at least one batch"):
        repair(model, model, model, 0.5, [])
    unshiftable = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 10))
    with pytest.raises(ValueError, match="layer '0' has neither BatchNorm nor a bias"):
        repair(unshiftable, unshiftable, unshiftable, 0.5, batches)
    shared = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(shared, shared, nn.Flatten(), nn.Linear(3 * 256, 10))
    with pytest.raises(ValueError, match="run twice"):
        repair(twice, twice, twice, 0.5, batches)
