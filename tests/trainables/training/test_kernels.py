"""Sparse kernels: they compute what PyTorch computes, with the kept weights alone."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live_memory import LiveMemory
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.host.cpu import WIDEST_REGISTER
from trainables.host.toolchain import find_compiler
from trainables.masks import apply_mask, magnitude_mask
from trainables.models import MODELS, build_model
from trainables.training.engines.sparse_cpu import lanes
from trainables.training.engines.sparse_cpu import library as libraries
from trainables.training.engines.sparse_cpu.convolution import SparseConvolution
from trainables.training.engines.sparse_cpu.lanes import OnLanes, from_lanes, to_lanes
from trainables.training.engines.sparse_cpu.normalization import Normalization
from trainables.training.engines.sparse_cpu.program import Program
from trainables.training.evaluation import eval_mode

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
CONVOLUTIONAL = [name for name, entry in MODELS.items() if entry.convolutional]


def back(x: Tensor) -> Tensor:
    """Turn (N / lanes, C, H, W, lanes) into (N, C, H, W)."""
    return x.movedim(-1, 1).flatten(0, 1)


def assert_near(ours: Tensor, exact: Tensor) -> None:
    """Assert that nothing is wrong but rounding, which goes with the largest numbers that were added up."""
    assert ours.shape == exact.shape
    if exact.numel():
        assert float((ours - exact).detach().abs().max()) <= 1e-5 * float(exact.detach().abs().max()) + 1e-7


def gradients(out: Tensor, seen_by: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, of, seen_by)


# --- convolutions ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [
        (3, 1, 1, 32, 32),
        (3, 2, 1, 16, 16),
        (3, 2, 1, 7, 9),
        (3, 1, 0, 5, 13),
        (1, 1, 0, 8, 8),
        (1, 2, 0, 8, 7),
        (7, 2, 3, 21, 20),
        (5, 3, 2, 11, 10),
        (3, 1, 2, 4, 4),
        (3, 1, 1, 1, 1),
    ],
)
def test_convolution_and_its_gradients_are_pytorch_s(
    kernel: int, stride: int, padding: int, height: int, width: int, density: float, bias: bool
) -> None:
    torch.manual_seed(0)
    assert_pytorch_s(nn.Conv2d(5, 6, kernel, stride, padding, bias=bias), density, height, width)


@pytest.mark.parametrize("density", [0.02, 0.1, 1.0])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)])
def test_channels_that_do_not_fit_into_the_fastest_memory_are_taken_in_groups(
    kernel: int, stride: int, padding: int, density: float
) -> None:
    torch.manual_seed(0)
    assert_pytorch_s(nn.Conv2d(37, 41, kernel, stride, padding, bias=False), density, 9, 10)


def assert_pytorch_s(layer: nn.Conv2d, density: float, height: int, width: int) -> None:
    """Assert that the twin of a layer with a random mask, and its gradients, are those of PyTorch in float64."""
    layer = layer.to(memory_format=torch.channels_last)
    keep = torch.rand_like(layer.weight) < density
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        exact.weight.mul_(keep)  # the twin's weights stay as they are: it must not look at the masked ones
    images = torch.randn(3 * WIDEST_REGISTER, layer.in_channels, height, width)
    x, x_exact = images.clone().requires_grad_(), images.double().requires_grad_()
    expected = exact(x_exact)
    seen_by = torch.randn(expected.shape, dtype=torch.float64)
    out = back(SparseConvolution(layer, keep)(to_lanes(x)))
    assert_near(out, expected)
    parameters = list(layer.parameters())
    found = gradients(out, seen_by.float(), x, *parameters)
    wanted = gradients(expected, seen_by, x_exact, *exact.parameters())
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape == keep.shape:
            assert not ours[~keep].any()
            theirs = theirs * keep
        assert_near(ours, theirs)


def test_weights_may_change_and_images_too() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    twin = SparseConvolution(layer, torch.ones_like(layer.weight, dtype=torch.bool))
    for size in (8, 4, 8):
        images = torch.randn(WIDEST_REGISTER, 2, size, size)
        with torch.no_grad():
            layer.weight.normal_()
        torch.testing.assert_close(back(twin(to_lanes(images))), layer(images), atol=1e-5, rtol=1e-5)


def test_threads_share_the_work() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    twin = SparseConvolution(layer, torch.rand_like(layer.weight) < 0.3)
    x = torch.randn(5, 4, 6, 6, libraries.lanes(), requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):  # of five blocks
            torch.set_num_threads(threads)
            out = twin(x)
            results.append((out, *gradients(out, torch.ones_like(out), x, layer.weight)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])
        assert_near(result[2], results[0][2])


# --- normalization --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_normalization_and_its_gradients_are_those_of_the_steps_one_by_one(
    size: int, rectified: bool, summed: bool
) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.uniform_(-1, 2)
        norm.bias.normal_()
    exact = copy.deepcopy(norm).double()
    images, more = 10 + 3 * torch.randn(2, 2 * WIDEST_REGISTER, 5, size, size)
    x, residual = (each.clone().requires_grad_() for each in (images, more - 10))
    x_exact, residual_exact = (each.detach().double().requires_grad_() for each in (x, residual))
    twin = Normalization(norm, rectified=rectified)
    for _ in range(2):  # the running statistics move twice
        out = back(twin(to_lanes(x), *([to_lanes(residual)] if summed else [])))
        expected = exact(x_exact) + (residual_exact if summed else 0)
        expected = expected.relu() if rectified else expected
    assert_near(out, expected)
    seen_by = torch.randn(expected.shape, dtype=torch.float64)
    inputs, exact_inputs = ([x, residual], [x_exact, residual_exact]) if summed else ([x], [x_exact])
    found = gradients(out, seen_by.float(), *inputs, *norm.parameters())
    wanted = gradients(expected, seen_by, *exact_inputs, *exact.parameters())
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs)
    for name, buffer in norm.named_buffers():
        assert_near(buffer, exact.get_buffer(name))


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("used", ["both", "first", "second"])
def test_two_users_of_a_normalization_get_the_same_and_their_gradients_are_added(
    used: str, rectified: bool, summed: bool
) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    x, residual = (torch.randn(2, 3, 4, 4, libraries.lanes(), requires_grad=True) for _ in range(2))
    given = (x, residual) if summed else (x,)
    alone = Normalization(norm, rectified=rectified)(*given)
    first, second = Normalization(norm, rectified=rectified, twice=True)(*given)
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)
    factors = {"both": (2.0, -0.5), "first": (2.0, 0.0), "second": (0.0, -0.5)}[used]
    users = [each * factor for each, factor in zip((first, second), factors, strict=True) if factor]
    loss = torch.stack([each.pow(3).sum() for each in users]).sum()
    expected = sum((f * alone).pow(3).sum() for f in factors)
    of = (*given, *norm.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, of), torch.autograd.grad(expected, of), strict=True):
        assert_near(ours, theirs)


# --- networks -------------------------------------------------------------------------------------------------------
def network(name: str, sparsity: float = 0.8) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"small_images": True} if name == "resnet50" else {}
    model = build_model(name, width=0.25, num_classes=7, in_channels=3, **options)
    mask = magnitude_mask({each: model.get_parameter(each).detach() for each in model.prunable_names()}, sparsity)
    model.load_state_dict(apply_mask(mask, model.state_dict()))
    return model.to(memory_format=torch.channels_last).train(), mask


def learnt(model: nn.Module, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the loss."""
    model.zero_grad()
    cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_convolutional_network_computes_the_same_on_lanes(name: str) -> None:
    model, mask = network(name)
    exact = copy.deepcopy(model).double()
    images, labels = (
        torch.randn(4 * WIDEST_REGISTER, 3, 16, 16),
        torch.randint(0, 7, (4 * WIDEST_REGISTER,)),
    )
    forward = OnLanes(model, mask)
    logits, expected = forward(images), exact(images.double())
    torch.testing.assert_close(logits.double(), expected, atol=1e-3, rtol=1e-3)
    found, wanted = learnt(model, logits, labels), learnt(exact, expected, labels)
    assert found.keys() == wanted.keys()
    for each, keep in mask.items():
        found[each] *= keep
        wanted[each] *= keep
    for each, ours in found.items():
        theirs = wanted[each]
        # A unit within rounding of zero is on in one and off in the other: no elementwise bound holds.
        assert float((ours - theirs).norm()) <= 0.02 * float(theirs.norm()) + 1e-6, each
    for each, buffer in model.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(each).double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_network_that_is_no_longer_a_number_says_so(name: str) -> None:
    parameters, seen = dict(network(name)[0].named_parameters()), 0
    images, labels = torch.randn(WIDEST_REGISTER, 3, 16, 16), torch.randint(0, 7, (WIDEST_REGISTER,))
    for each in [*parameters][:: max(1, len(parameters) // 4)]:
        model, mask = network(name)
        poisoned = model.get_parameter(each).detach()
        kept = mask.get(each, torch.ones_like(poisoned, dtype=torch.bool))
        poisoned[tuple(kept.nonzero()[0])] = math.nan
        exact = copy.deepcopy(model)
        logits, expected = OnLanes(model, mask)(images), exact(images)
        # A weight that sees nothing but padding may break one of the two and not the other.
        assert logits.isnan()[expected.isnan()].all(), each
        found, wanted = learnt(model, logits, labels), learnt(exact, expected, labels)
        broken = [parameter for parameter, theirs in wanted.items() if theirs.isnan().any()]
        assert all(found[parameter].isnan().any() for parameter in broken), each
        seen += len(broken)
    assert seen, "else this test tests nothing"


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_network_itself_stays_as_it_was(name: str) -> None:
    model, mask = network(name)
    state, modules = list(model.state_dict()), list(model.modules())
    before = model.eval()(torch.zeros(1, 3, 16, 16))
    OnLanes(model, mask)
    assert list(model.state_dict()) == state
    assert list(model.modules()) == modules
    assert torch.equal(model(torch.zeros(1, 3, 16, 16)), before)


@pytest.mark.parametrize("count", [1, 3 * WIDEST_REGISTER, 300])  # 300 are evaluated in two parts
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_convolutional_network_evaluates_the_same_on_lanes(name: str, count: int) -> None:
    model, mask = network(name)
    forward = OnLanes(model, mask)
    forward(torch.randn(WIDEST_REGISTER, 3, 16, 16))  # statistics other than the initial ones
    images = torch.randn(count, 3, 16, 16)
    before = {each: buffer.clone() for each, buffer in model.named_buffers()}
    with eval_mode(model, forward), torch.inference_mode():
        logits, expected = forward(images), model(images)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(buffer, before[each]) for each, buffer in model.named_buffers())
    assert forward(images[:1].expand(WIDEST_REGISTER, -1, -1, -1)).requires_grad  # training goes on


class Sums(nn.Module):
    """Sums that a BatchNorm has a part in, and that look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        normal = self.bn(x)
        x = self.relu(normal + 0.5) + normal
        x = x + self.other(x)
        return self.relu(self.other(x) + x).mean(dim=(2, 3))


def test_whatever_a_batchnorm_is_summed_with_takes_part() -> None:
    torch.manual_seed(0)
    model = Sums()
    images = torch.randn(WIDEST_REGISTER, 3, 6, 6)
    ours = OnLanes(model, {})(images)
    assert_near(ours, copy.deepcopy(model).double()(images.double()))


# --- networks as programs -------------------------------------------------------------------------------------------
Pass = tuple[Tensor, ...]


def a_pass(model: nn.Module, forward: nn.Module, seed: int, count: int = 2 * WIDEST_REGISTER) -> Pass:
    """Return logits and, in order, the gradients that a pass adds to those of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    logits = forward(images)
    cross_entropy(logits, torch.randint(0, 7, (count,), generator=generator)).backward()  # type: ignore[no-untyped-call]
    return logits, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def layer_by_layer(model: nn.Module, mask: dict[str, Tensor]) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "with_program", lambda network: network)
        return OnLanes(model, mask)


def programs(forward: nn.Module) -> list[Program]:
    return [module for module in forward.modules() if isinstance(module, Program)]


def test_a_resnet_is_a_program() -> None:
    model, mask = network("resnet20")
    (program,) = programs(OnLanes(model, mask))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    assert len(program._steps) == len(layers)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_program_has_the_bits_of_the_layers_one_by_one(name: str) -> None:
    """For batches of two sizes in turns, whose gradients are added up, and for a network whose weights have moved."""
    passes: list[list[Pass]] = []
    for make in (OnLanes, layer_by_layer):
        model, mask = network(name)
        forward = make(model, mask)
        passes.append([a_pass(model, forward, each, each % 2 * WIDEST_REGISTER + WIDEST_REGISTER) for each in range(3)])
        for parameter in model.parameters():
            parameter.data, parameter.grad = parameter.data.clone() * 1.5, None
        passes[-1] += [a_pass(model, forward, 3), tuple(model.buffers())]
    for ours, expected in zip(*passes, strict=True):
        assert len(ours) == len(expected)
        assert all(map(torch.equal, ours, expected))


def test_a_pass_leaves_the_gradients_of_earlier_ones_alone() -> None:
    model, mask = network("resnet8")
    forward = OnLanes(model, mask)
    _, *first = a_pass(model, forward, 0)
    copies = [each.clone() for each in first]
    for parameter in model.parameters():
        parameter.grad = None
    _, *second = a_pass(model, forward, 1)
    assert all(map(torch.equal, first, copies))
    assert not any(map(torch.equal, first, second))


def test_gradients_of_activations_that_are_gone_are_an_error() -> None:
    model, mask = network("resnet8")
    forward = OnLanes(model, mask)
    images = torch.randn(WIDEST_REGISTER, 3, 8, 8)
    first, second = forward(images), forward(images)
    with pytest.raises(RuntimeError, match="a later forward pass of the network has overwritten the activations"):
        first.sum().backward()
    second.sum().backward()


def test_weights_that_change_between_the_passes_are_an_error() -> None:
    model, mask = network("resnet8")
    logits = OnLanes(model, mask)(torch.randn(WIDEST_REGISTER, 3, 8, 8))
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


class Pieces(nn.Module):
    """Layers one after the other, then the mean over positions."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.layers(x).mean(dim=(2, 3))
        return mean


def convolution(*channels: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(*channels, 3, padding=1, bias=bias)  # type: ignore[arg-type]


SHARED = convolution(4, 4)
SHARED_NORM = nn.BatchNorm2d(4)
PIECES = {
    "a layer runs twice": (convolution(3, 4), nn.BatchNorm2d(4), SHARED, nn.BatchNorm2d(4), SHARED, nn.BatchNorm2d(4)),
    "a norm runs twice": (convolution(3, 4), SHARED_NORM, nn.ReLU(), convolution(4, 4), SHARED_NORM, nn.ReLU()),
    "a convolution is the last": (convolution(3, 4), nn.BatchNorm2d(4), nn.ReLU(), convolution(4, 7)),
    "there is no norm": (convolution(3, 4), nn.ReLU()),
    "a norm is the first": (nn.BatchNorm2d(3), convolution(3, 4), nn.BatchNorm2d(4)),
    "it ends in the middle": (convolution(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), convolution(4, 7)),
    "it ends at a bias": (convolution(3, 4), nn.BatchNorm2d(4), nn.ReLU(), convolution(4, 7, bias=True), nn.ReLU()),
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_whatever_no_program_can_do_is_computed_layer_by_layer(pieces: tuple[nn.Module, ...]) -> None:
    model = copy.deepcopy(Pieces(*pieces))
    exact = copy.deepcopy(model).double()
    forward = OnLanes(model, {})
    for _ in range(2):
        images = torch.randn(WIDEST_REGISTER, 3, 8, 8)
        logits, expected = forward(images), exact(images.double())
        assert_near(logits, expected)
        labels = torch.randint(0, logits.shape[1], (len(logits),))
        found, wanted = learnt(model, logits, labels), learnt(exact, expected, labels)
        for each, ours in found.items():
            assert float((ours - wanted[each]).norm()) <= 1e-3 * float(wanted[each].norm()) + 1e-6, each


def test_gradients_of_the_images_are_those_of_the_network() -> None:
    model, mask = network("resnet8")
    images = torch.randn(WIDEST_REGISTER, 3, 8, 8, requires_grad=True)
    sums = (each(images).square().sum() for each in (OnLanes(model, mask), model))
    ours, exact = (torch.autograd.grad(each, images)[0] for each in sums)
    assert float((ours - exact).norm()) <= 0.02 * float(exact.norm())


def test_evaluation_keeps_no_activations_that_no_later_layer_reads() -> None:
    model, mask = network("resnet20")
    images, peaks = torch.randn(8 * WIDEST_REGISTER, 3, 16, 16), []
    for forward in (OnLanes(model, mask), layer_by_layer(model, mask)):
        with eval_mode(model, forward), torch.no_grad():
            forward(images)  # the first pass of a shape in a process makes the workspace that both share
            with LiveMemory() as memory:
                forward(images)
        peaks.append(memory.peak)
    assert peaks[0] <= peaks[1] + images.nbytes


def test_as_many_images_lie_side_by_side_as_a_register_holds_numbers() -> None:
    side_by_side = libraries.lanes()
    images = torch.arange(2 * WIDEST_REGISTER * 3.0).view(2 * WIDEST_REGISTER, 3, 1, 1)
    x = to_lanes(images)
    assert x.shape == (2 * WIDEST_REGISTER // side_by_side, 3, 1, 1, side_by_side)
    assert x[1, 2, 0, 0, 3] == images[side_by_side + 3, 2, 0, 0]
    assert torch.equal(from_lanes(x.mean(dim=(2, 3))), images.flatten(1))


# --- registers of every width ---------------------------------------------------------------------------------------
WIDTHS = {"AVX512": 16, "AVX2": 8, "DEFAULT": 4}
"""What PyTorch uses of an x86 processor -> the numbers that a register holds."""


@pytest.fixture(params=WIDTHS)
def register_width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Kernels that are compiled for processors with registers of a width."""
    here = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() not in ("x86_64", "amd64") or here not in WIDTHS:
        pytest.skip(f"registers have one width on {platform.machine()} with {here}")
    if WIDTHS[request.param] > WIDTHS[here]:
        pytest.skip(f"{request.param} is more than this processor has, or may use: {here}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    libraries.library.cache_clear()
    yield WIDTHS[request.param]
    libraries.library.cache_clear()


def test_every_register_width_computes_the_same(register_width: int) -> None:
    assert libraries.lanes() == register_width, "wider vectors than the registers go through memory"
    torch.manual_seed(0)
    shapes = ((3, 1, 1, 9, 8), (3, 2, 1, 7, 9), (1, 2, 0, 8, 7), (7, 2, 3, 21, 20))
    for (kernel, stride, padding, height, width), density in itertools.product(shapes, (0.0, 0.1, 1.0)):
        assert_pytorch_s(nn.Conv2d(5, 6, kernel, stride, padding), density, height, width)
    assert_pytorch_s(nn.Conv2d(37, 41, 3, padding=1), 0.1, 9, 10)
    for size, rectified, summed in itertools.product((1, 8), (False, True), (False, True)):
        test_normalization_and_its_gradients_are_those_of_the_steps_one_by_one(size, rectified, summed)
    test_every_convolutional_network_computes_the_same_on_lanes("resnet8")
    test_every_convolutional_network_evaluates_the_same_on_lanes("resnet8", 3)


# --- what they refuse -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, WIDEST_REGISTER + 1])
def test_a_batch_must_fill_its_lanes(count: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of {WIDEST_REGISTER} images, got {count}"):
        to_lanes(torch.zeros(count, 3, 8, 8))


def test_they_are_for_processors() -> None:
    with pytest.raises(ValueError, match="the network is on meta"):
        OnLanes(network("resnet8")[0].to("meta"), {})


@pytest.mark.parametrize("step", [nn.AvgPool2d(2), nn.Dropout(), nn.Flatten()])
def test_a_step_that_they_do_not_know_is_named(step: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"do not know the step .*Sequential"):
        OnLanes(nn.Sequential(nn.Conv2d(3, 4, 3), step), {})


def test_without_a_compiler_they_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    libraries.library.cache_clear()
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, one of g\+\+, clang\+\+"):
        OnLanes(network("resnet8")[0], {})


def test_what_the_compiler_complains_of_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("no such language\n")
    monkeypatch.setattr(libraries, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    libraries.library.cache_clear()
    with pytest.raises(ValueError, match=r"(?s)\+\+ failed: .*broken\.cpp"):
        libraries.library()
    assert not list(tmp_path.rglob("*.so"))


def test_caches_that_cannot_be_written_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    monkeypatch.setattr("tempfile.tempdir", str(occupied))
    libraries.library.cache_clear()
    with pytest.raises(ValueError, match=r"compiled kernels \(.*file/sparse.*file/sparse.*set XDG_CACHE_HOME"):
        libraries.library()


def test_they_are_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libraries.library.cache_clear()
    libraries.library()
    (made,) = tmp_path.rglob("*.so")
    libraries.library.cache_clear()
    at = made.stat().st_mtime_ns
    libraries.library()
    assert list(tmp_path.rglob("*.so")) == [made]
    assert made.stat().st_mtime_ns == at
    libraries.library.cache_clear()


FLAWS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "foreign": lambda content: b"no library" * 1000,
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A compiler that makes the same bytes each time, quickly, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = tmp_path / "c++"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && { echo stand-in 1; exit; }\n'
        'for last; do :; done\necho built >> "$0.log"\nseq 1 4000 > "$last"\n'
    )
    program.chmod(0o755)
    return str(program)


def builds(program: str) -> int:
    return len(Path(f"{program}.log").read_text().splitlines())


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_damaged_library_is_compiled_again(flaw: str, stand_in: str, caplog: pytest.LogCaptureFixture) -> None:
    made = libraries._built(stand_in)
    whole = made.read_bytes()
    assert libraries._built(stand_in) == made
    assert builds(stand_in) == 1
    made.write_bytes(FLAWS[flaw](whole))
    again = libraries._built(stand_in)
    assert again.read_bytes() == whole
    assert builds(stand_in) == 2
    assert f"{made} are damaged" in caplog.text
    assert list(made.parent.iterdir()) == [again], "what was damaged is gone"


def test_libraries_for_different_processors_flags_and_compilers_are_kept_apart(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes with a home directory in common have one cache."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    made = [libraries._built(stand_in)]
    monkeypatch.setattr(libraries.cpu, "features", lambda: "those of another processor")
    made.append(libraries._built(stand_in))
    monkeypatch.setattr(libraries, "FLAGS", (*libraries.FLAGS, "-g"))
    made.append(libraries._built(stand_in))
    for capability in WIDTHS.keys() - {"AVX512"}:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        made.append(libraries._built(stand_in))
    program = Path(stand_in)
    program.write_text(program.read_text().replace("stand-in 1", "stand-in 2"))
    made.append(libraries._built(stand_in))
    assert len(set(made)) == len(made)


def test_processes_that_compile_at_once_each_get_a_whole_library(stand_in: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: libraries._built(stand_in), range(8)))
    assert {hashlib.sha256(path.read_bytes()).hexdigest() in path.name for path in made} == {True}
    before = builds(stand_in)
    assert libraries._built(stand_in) in made
    assert builds(stand_in) == before


@pytest.mark.slow  # it compiles the kernels twice
def test_a_job_survives_a_damaged_library(tmp_path: Path) -> None:
    """In a process of its own: the code before died of it, by SIGBUS where the file is torn."""
    program = (
        "from pathlib import Path\nimport sys\n"
        "from trainables.training.engines.sparse_cpu import library as libraries\n"
        "libraries.library()\n"
        "for path in Path(sys.argv[1]).rglob('*.so'): print(path.stat().st_size)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (made,) = tmp_path.rglob("*.so")
    os.truncate(made, made.stat().st_size // 2)
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
