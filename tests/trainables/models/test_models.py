"""The registry, the architectures and what they promise to pruning and matching."""

import itertools
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from trainables.config import Cell, prunable_count
from trainables.models import (
    INITS,
    MODELS,
    build_model,
    check_options,
    check_width,
    image_options,
    model_entry,
)

QUICK = {"resnet50": {"small_images": True}, "mlp": {"image_size": 16}}


def meta_model(name, **settings):
    with torch.device("meta"):
        return build_model(name, **settings)


def count(model, names):
    parameters = dict(model.named_parameters())
    return sum(parameters[name].numel() for name in names)


def test_listing_models_does_not_import_torch():
    code = "import sys, trainables.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_known_names():
    assert {"resnet20", "resnet8", "vgg11", "vgg11_bn", "resnet50", "mlp"} <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_entry_states_facts_of_the_model(name):
    entry = MODELS[name]
    model = meta_model(name)
    mult_adds = 0

    def add(module, _inputs, output):
        nonlocal mult_adds
        positions = output[0, 0].numel()
        mult_adds += positions * module.weight.numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(add)
    side = entry.reference_image_size
    model.eval()(torch.empty(1, 3, side, side, device="meta"))

    assert mult_adds == entry.mult_adds
    hidden = {module.weight.shape[0] for module in layers if module is not model.fc}
    assert hidden == set(entry.base_channels)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert entry.batchnorm == bool(norms)
    assert entry.corrected_layers == (len(norms) or len(layers) - 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_logits_for_any_image_size(name, size):
    options = {"image_size": size} if name == "mlp" else QUICK.get(name, {})
    model = meta_model(name, width=0.5, num_classes=7, in_channels=1, **options)
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_global_seed_decides_the_initialisation(name):
    def build(seed):
        torch.manual_seed(seed)
        return build_model(name, width=0.25, **QUICK.get(name, {})).state_dict()

    first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first if first[key].dim() > 1)


@pytest.mark.parametrize("name", ["resnet20", "resnet8", "resnet50"])
def test_resnets_start_kaiming_normal(name):
    torch.manual_seed(0)
    model = build_model(name, width=1 if name != "resnet50" else 0.25)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


EXPECTED_STD = {
    # Kind of layer -> of its weights, by how the net is initialised; PyTorch draws uniformly within 1 / sqrt(fan-in).
    ("fan_in", nn.Conv2d): lambda weight: (2 / weight[0].numel()) ** 0.5,
    ("fan_in", nn.Linear): lambda weight: (2 / weight[0].numel()) ** 0.5,
    ("fan_out", nn.Conv2d): lambda weight: (2 / weight[:, 0].numel()) ** 0.5,
    ("fan_out", nn.Linear): lambda weight: (3 * weight[0].numel()) ** -0.5,
    ("pytorch", nn.Conv2d): lambda weight: (3 * weight[0].numel()) ** -0.5,
    ("pytorch", nn.Linear): lambda weight: (3 * weight[0].numel()) ** -0.5,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("init", INITS)
def test_every_model_can_start_in_every_way(name, init):
    torch.manual_seed(0)
    model = build_model(name, width=0.25, init=init, **QUICK.get(name, {}))
    way = MODELS[name].init if init == "default" else init
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 2000:
            expected = EXPECTED_STD[way, type(module)](module.weight)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
    torch.manual_seed(0)
    if init == MODELS[name].init:
        default = build_model(name, width=0.25, **QUICK.get(name, {}))
        assert all(torch.equal(tensor, default.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_resnet50_can_start_as_torchvisions():
    ours, theirs = build_model("resnet50", init="fan_out", num_classes=1000), torchvision.models.resnet50()
    assert ours.conv1.weight.std().item() == pytest.approx(0.025, abs=0.001)
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            expected = module.weight.std().item()
            assert ours.get_submodule(name).weight.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("width", [0.25, 1, 2])
@pytest.mark.parametrize("image_size", [32, 96])
def test_prunable_weights_are_counted_without_building_the_net(name, width, image_size):
    entry = MODELS[name]
    for shortcut in entry.options.get("shortcut", ("conv3x3",)):
        options = {"shortcut": shortcut} if "shortcut" in entry.options else {}
        options |= image_options(name, image_size)
        model = meta_model(name, width=width, num_classes=7, in_channels=2, **options)
        for shortcuts, classifier in itertools.product((True, False), repeat=2):
            choice = {"prune_shortcuts": shortcuts, "prune_classifier": classifier}
            cell = Cell(method="lth", model=name, width=width, shortcut=shortcut, **choice)
            expected = count(model, model.prunable_names(**choice))
            assert prunable_count(cell, num_classes=7, in_channels=2, image_size=image_size) == expected


@pytest.mark.parametrize("name", MODELS)
def test_relus_are_not_in_place(name):
    assert not any(m.inplace for m in meta_model(name).modules() if isinstance(m, nn.ReLU))


@pytest.mark.parametrize("name", MODELS)
def test_traceable(name):
    torch.fx.symbolic_trace(build_model(name, width=0.25, **QUICK.get(name, {})))


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("resnet20", 1, 268_336),
        ("resnet20", 4, 4_280_512),
        ("resnet20", 8, 17_113_472),
        ("resnet20", 16, 68_436_736),
        ("vgg11", 1, 9_222_848),
        ("vgg11_bn", 1, 9_222_848),
    ],
)
def test_prunable_weights_of_the_paper(name, width, expected):
    model = meta_model(name, width=width)
    assert count(model, model.prunable_names()) == expected


@pytest.mark.parametrize(("width", "expected"), [(1, 23_040), (4, 368_640), (8, 1_474_560), (16, 5_898_240)])
def test_shortcut_weights_of_the_paper(width, expected):
    model = meta_model("resnet20", width=width)
    shortcuts = set(model.prunable_names(prune_shortcuts=True)) - set(model.prunable_names())
    assert count(model, shortcuts) == expected


@pytest.mark.parametrize("name", MODELS)
def test_prunable_names(name):
    model = meta_model(name)
    matrices = tuple(key for key, tensor in model.named_parameters() if tensor.dim() > 1)
    assert model.prunable_names(prune_shortcuts=True) == matrices
    assert set(model.prunable_names()) == {key for key in matrices if "downsample" not in key}
    assert set(model.prunable_names()) - set(model.prunable_names(prune_classifier=False)) == {"fc.weight"}
    assert model.prunable_names()[0] == matrices[0]


def test_resnet50_is_torchvisions():
    ours = build_model("resnet50", num_classes=1000)
    theirs = torchvision.models.resnet50(weights=None)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_width_scales_all_hidden_units_and_nothing_else(name):
    narrow, wide = meta_model(name, width=0.5), meta_model(name, width=2)
    axes = narrow.permutation_spec().axes
    for key, tensor in wide.state_dict().items():
        small = narrow.state_dict()[key].shape
        assert list(tensor.shape) == [4 * n if group else n for n, group in zip(small, axes[key], strict=True)]


def test_shortcut_option():
    weights = {s: meta_model("resnet20", shortcut=s).layer2[0].downsample[0].weight for s in ("conv3x3", "conv1x1")}
    assert weights["conv3x3"].shape == (32, 16, 3, 3)
    assert weights["conv1x1"].shape == (32, 16, 1, 1)


def test_stream_taps_option():
    end = meta_model("resnet20").permutation_spec().taps
    early = meta_model("resnet20", stream_taps="paper_code").permutation_spec().taps
    assert [end[f"stream{s}"] for s in (1, 2, 3)] == ["layer1.2.relu2", "layer2.2.relu2", "layer3.2.relu2"]
    assert {group for group in end if end[group] != early[group]} == {"stream3"}
    assert early["stream3"] == "layer3.1.relu2"


@pytest.mark.parametrize(("name", "width"), [("resnet20", 0.25), ("vgg11", 0.3125), ("mlp", 32), ("resnet50", 1.5)])
def test_valid_widths(name, width):
    check_width(name, width)


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("resnet20", 0.3, ["0.3", "0.25 to 32", "1/16", "0.25 and 0.3125"]),
        ("vgg11", 1.01, ["1.01", "1 and 1.01562"]),
        ("mlp", 0.2, ["0.2", "0.25 to 32", "nearest: 0.25"]),
        ("resnet8", 64, ["64", "nearest: 32"]),
        ("resnet20", float("nan"), ["nan", "0.25 to 32"]),
    ],
)
def test_invalid_widths(name, width, words):
    with pytest.raises(ValueError, match="width") as error:
        check_width(name, width)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet2"}, ["'resnet2'", "did you mean 'resnet20'", "vgg11_bn", "mlp"]),
        ({"name": "zzz"}, ["'zzz'", "known: resnet20"]),
        ({"name": "resnet20", "shortcuts": "conv1x1"}, ["'shortcuts'", "shortcut, stream_taps"]),
        ({"name": "resnet20", "shortcut": "pad"}, ["'pad'", "'conv3x3', 'conv1x1'"]),
        ({"name": "vgg11", "image_size": 32}, ["'image_size'", "none"]),
        ({"name": "mlp", "image_size": 0}, ["image_size", "1 to 512"]),
        ({"name": "mlp", "image_size": 8.0}, ["8.0", "1 to 512"]),
        ({"name": "resnet50", "small_images": 1}, ["False, True"]),
        ({"name": "resnet8", "stream_taps": "paper_code"}, ["'stream_taps'", "shortcut"]),
        ({"name": "mlp", "num_classes": 0}, ["num_classes", "at least 1", "0"]),
        ({"name": "mlp", "in_channels": -1}, ["in_channels", "-1"]),
        ({"name": "mlp", "width": 33}, ["33", "32"]),
    ],
)
def test_build_model_names_what_is_wrong(settings, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        build_model(**settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_options_are_checked_without_building():
    check_options("resnet20", shortcut="conv1x1", stream_taps="paper_code")
    with pytest.raises(ValueError, match="no option 'depth'"):
        check_options("vgg11", depth=3)
    assert model_entry("mlp") is MODELS["mlp"]
