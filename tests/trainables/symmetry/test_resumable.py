"""Passes that continue where they paused compute the same as passes from the start, in less time."""

import math
from collections import Counter

import pytest
import torch
from small_nets import random_batches, same, small_model, snapshot
from torch import nn

from trainables.models import MODELS
from trainables.symmetry.repair import corrector, repair, reset_batchnorm
from trainables.training.evaluation import observed

pytestmark = pytest.mark.numeric
HELD = "trainables.symmetry.resumable.HELD_OUTPUTS"


def images_only(count):
    return [images for images, _labels in random_batches(count)]


class Readings(list):
    """Batches that count how often they are read from the start."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def calls_while_resetting(model, batches):
    """Return how often each layer of `model` runs in a reset of its BatchNorm layers."""
    calls = Counter()
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]

    def count(name, images, _output):
        if len(images) > 2:  # not the two images on which the traced network is compared
            calls[name] += 1

    with observed(model, names, count):  # the copy that is corrected has these hooks, too
        reset_batchnorm(model, batches)
    return calls


@pytest.mark.filterwarnings("ignore::trainables.symmetry.repair.NoEffectWarning")
@pytest.mark.parametrize("name", MODELS)
def test_what_memory_allows_changes_no_bit(name, monkeypatch):
    model_a, model_b, batches = small_model(name, 0), small_model(name, 1), images_only(4)
    corrected = []
    for held in (0, 3, math.inf):
        monkeypatch.setattr(HELD, held)
        corrected.append([reset_batchnorm(model_a, batches), repair(model_a, model_a, model_b, 0.3, batches)])
    for kind in zip(*corrected, strict=True):
        first, *others = map(snapshot, kind)
        assert all(same(first, other) for other in others)


@pytest.mark.parametrize("count", [1, 3])
def test_a_layer_runs_once_for_each_batch_if_all_passes_are_held(count, monkeypatch):
    monkeypatch.setattr(HELD, math.inf)
    model = small_model("resnet20")
    last = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)][-1]
    calls = calls_while_resetting(model, images_only(count))
    assert calls.pop(last, 0) == 0, "nothing is measured behind the last layer"
    assert set(calls.values()) == {count}


def test_passes_without_memory_start_again(monkeypatch):
    model, batches = small_model("resnet20"), images_only(6)
    held_calls = []
    for held in (0, 4, math.inf):
        monkeypatch.setattr(HELD, held)
        held_calls.append(calls_while_resetting(model, batches)["conv1"])
    none, some, everything = held_calls
    assert none == 21 * len(batches)
    assert everything == len(batches) < some < none


def test_batches_are_read_again_only_for_passes_that_start_again(monkeypatch):
    times = []
    for held in (0, math.inf):
        monkeypatch.setattr(HELD, held)
        batches = Readings(images_only(3))
        reset_batchnorm(small_model("resnet8"), batches)
        times.append(batches.times)
    layers = MODELS["resnet8"].corrected_layers
    assert times[0] - times[1] == layers - 1


class Branching(nn.Module):
    """A network whose forward pass depends on what `torch.fx` does not see."""

    def __init__(self, decides):
        super().__init__()
        torch.manual_seed(0)
        self.decides = decides
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.second(self.conv(x if self.decides(x) else -x))


@pytest.mark.parametrize(
    "decides", [lambda x: bool(x.sum() > -1e9), lambda x: isinstance(x, torch.Tensor)], ids=["by value", "by type"]
)
def test_a_network_that_cannot_be_traced_is_corrected_all_the_same(decides):
    batches = images_only(3)
    untraced, traced = (reset_batchnorm(Branching(each), batches) for each in (decides, lambda _x: True))
    assert same(snapshot(untraced), snapshot(traced))


class Kept(nn.Conv2d):
    """A layer that `torch.fx` would look into, because it is not defined in PyTorch."""


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Plain(nn.Module):
    """A network of replaceable layers, with a norm of its own whose statistics no correction changes."""

    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.second, self.fc = conv(3, 4, 3), norm(4), conv(4, 5, 3), nn.Linear(5, 2)
        self.register_buffer("frozen", torch.rand(4) + 0.5)

    def forward(self, x):
        frozen = self.frozen.square().rsqrt()  # of a buffer alone: tracing computes it at once
        x = self.second(self.norm(self.first(x)).relu() * frozen[:, None, None])
        return self.fc(x.relu().mean((2, 3)))


@pytest.mark.parametrize("correction", ["bn_reset", "repair"])
def test_layers_and_constants_of_one_s_own_are_corrected_as_pytorch_s_are(correction, monkeypatch):
    states = []
    for conv, norm, held in ((nn.Conv2d, nn.BatchNorm2d, 0), (nn.Conv2d, nn.BatchNorm2d, 99), (Kept, OwnNorm, 99)):
        monkeypatch.setattr(HELD, held)
        ends, worker = [Plain(conv, norm, seed) for seed in range(2)], Plain(conv, norm)
        correct = corrector(correction, worker, images_only(4), [end.state_dict() for end in ends])
        for end in reversed(ends):  # the second network has another constant
            worker.load_state_dict(end.state_dict())
            correct(0.5)
            states.append(snapshot(worker))
    for first, second in zip(states[:2] * 2, states[2:], strict=True):
        assert same(first, second)


class Shuffled:
    """Batches whose order is another one in every iteration."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        yield from self.images[torch.randperm(len(self.images))].split(4)


@pytest.mark.parametrize("held", [0, 3, math.inf])
def test_batches_in_another_order_each_time_give_the_same_statistics(held, monkeypatch):
    monkeypatch.setattr(HELD, held)
    images = torch.cat(images_only(2))[:28]
    whole, shuffled = (reset_batchnorm(small_model("resnet8"), batches) for batches in ([images], Shuffled(images)))
    for name, expected in whole.named_buffers():
        if "running" in name:
            torch.testing.assert_close(shuffled.get_buffer(name), expected, rtol=1e-3, atol=1e-4)


class AnyInputs(Branching):
    """A network that takes any number of inputs, and whose output may be no tensor."""

    def __init__(self, output):
        super().__init__(lambda _x: True)
        self.output = output

    def forward(self, *inputs):
        return self.output(super().forward(inputs[0]))


@pytest.mark.parametrize(
    "output", [lambda y: y, lambda y: (y, y), lambda y: {"out": y}], ids=["tensor", "tuple", "dict"]
)
def test_inputs_and_outputs_of_other_forms_are_no_obstacle(output):
    batches = images_only(3)
    found, expected = (reset_batchnorm(net, batches) for net in (AnyInputs(output), Branching(lambda _x: True)))
    assert same(snapshot(found), snapshot(expected))


def test_an_error_of_the_network_reaches_the_user():
    with pytest.raises(RuntimeError, match="channels"):
        reset_batchnorm(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(5, 4, 3)), images_only(2))


def test_a_second_input_keeps_its_default():
    class Scaled(Branching):
        def forward(self, x, scale=2.0):
            return super().forward(x * scale)

    batches = images_only(3)
    scaled, plain = Scaled(lambda _x: True), Branching(lambda _x: True)
    found, expected = reset_batchnorm(scaled, batches), reset_batchnorm(plain, [2 * images for images in batches])
    assert same(snapshot(found), snapshot(expected))
