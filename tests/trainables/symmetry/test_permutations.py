"""Permuting a network's units preserves its function: every model, evaluation and training, float64 and float32.

A specification is wrong if it misses a tensor (the logits change), names a wrong tap (the tapped activation is not
the permuted one) or forgets a buffer (training mode moves the wrong statistics).
"""

import copy
import functools
import re

import pytest
import torch
from small_nets import OPTIONS, permuted_copy, random_batches, small_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from trainables.masks import apply_mask, magnitude_mask
from trainables.models import MODELS, build_model
from trainables.models.network import kaiming_normal
from trainables.symmetry.connectivity import interpolation_curve
from trainables.symmetry.matching import match_models
from trainables.symmetry.permutations import (
    PermutationSpec,
    apply_permutation,
    compose_permutations,
    identity_permutation,
    invert_permutation,
    permutation_spec,
    random_permutation,
)
from trainables.symmetry.repair import repair, reset_batchnorm

SIDE = 16
WIDTHS = {"resnet50": (0.25, 0.5), "vgg11": (0.25, 0.5, 1), "vgg11_bn": (0.25, 0.5, 1)}
CASES = [(name, width) for name in MODELS for width in WIDTHS.get(name, (0.25, 0.5, 1, 2))]
EXTRA_OPTIONS = [("resnet20", {"stream_taps": "paper_code"}), ("resnet20", {"shortcut": "conv1x1"}), ("resnet50", {})]


def batch(seed, dtype=torch.float64, images=8):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=generator, dtype=torch.float64).to(dtype)
    return pixels, torch.randint(10, (images,), generator=generator)


def sgd_step(model, images, labels):
    model.train()
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.02 * parameter.grad


@functools.cache
def trained(name, width, **options):
    """Return a float64 net after three steps, so that no bias, scale or running statistic has its default."""
    torch.manual_seed(0)
    model = build_model(name, width=width, **{**OPTIONS.get(name, {}), **options}).double()
    kaiming_normal(model)  # with PyTorch's default, the signal in VGG and MLP fades until logits ignore the image
    for step in range(3):
        sgd_step(model, *batch(step))
    return model.eval()


def assert_close(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def tapped(model, spec, images):
    """Return group -> activation at the group's tap, evaluated on `images`."""
    seen = {}
    hooks = [
        model.get_submodule(tap).register_forward_hook(lambda _m, _i, out, group=group: seen.update({group: out}))
        for group, tap in spec.taps.items()
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("name", "width"), CASES)
def test_spec_covers_the_state_dict(name, width):
    with torch.device("meta"):
        model = build_model(name, width=width)
    spec = permutation_spec(model)
    assert list(spec.axes) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert len(spec.axes[key]) == tensor.dim()
        for size, group in zip(tensor.shape, spec.axes[key], strict=True):
            assert group is None or size == spec.sizes[group]


@pytest.mark.parametrize("name", MODELS)
def test_groups_run_from_input_to_output(name):
    spec = permutation_spec(trained(name, 0.25))
    order = []
    for group, module in spec.taps.items():
        trained(name, 0.25).get_submodule(module)
        order.append(next(index for index, groups in enumerate(spec.axes.values()) if groups[:1] == (group,)))
    assert order == sorted(order)
    assert spec.groups == tuple(spec.taps)
    unpermuted = [key for key, groups in spec.axes.items() if groups and groups[0] is None]
    assert unpermuted == ["fc.weight", "fc.bias"]  # only the classes keep their numbers


@pytest.mark.parametrize(
    ("name", "groups", "streams"),
    [("resnet20", 12, 3), ("resnet8", 6, 3), ("vgg11", 8, 0), ("vgg11_bn", 8, 0), ("resnet50", 37, 4), ("mlp", 3, 0)],
)
def test_number_of_groups(name, groups, streams):
    spec = permutation_spec(trained(name, 0.25))
    assert len(spec.groups) == groups
    assert sum(group.startswith("stream") for group in spec.groups) == streams


@pytest.mark.parametrize(("name", "width"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_permuting_preserves_the_function(name, width, dtype, tolerance):
    model = copy.deepcopy(trained(name, width)).to(dtype)
    images, _ = batch(7, dtype)
    permutation = random_permutation(permutation_spec(model), generator=1)
    moved = permuted_copy(model, permutation)
    assert not any(torch.equal(moved.state_dict()[key], model.state_dict()[key]) for key in model.prunable_names())
    with torch.no_grad():
        assert_close(moved.eval()(images), model.eval()(images), tolerance)
        assert_close(moved.train()(images), model.train()(images), tolerance)
    expected = apply_permutation(permutation_spec(model), permutation, model.state_dict())
    for key, tensor in moved.state_dict().items():  # running statistics have moved alike
        assert_close(tensor, expected[key], tolerance)


@pytest.mark.parametrize(("name", "options"), EXTRA_OPTIONS)
def test_permuting_preserves_the_function_of_variants(name, options):
    model = trained(name, 0.25, **options)
    images, _ = batch(7)
    moved = permuted_copy(model, random_permutation(permutation_spec(model), generator=1))
    with torch.no_grad():
        assert_close(moved(images), model(images), 1e-11)


@pytest.mark.parametrize(("name", "width"), [(name, width) for name, width in CASES if width <= 0.5])
def test_taps_hold_the_units_of_their_group(name, width):
    check_taps(trained(name, width))


@pytest.mark.parametrize(("name", "options"), [*EXTRA_OPTIONS, ("resnet50", {"small_images": False})])
def test_taps_of_variants(name, options):
    check_taps(trained(name, 0.25, **options))


def check_taps(model):
    spec = permutation_spec(model)
    images, _ = batch(7)
    permutation = random_permutation(spec, generator=2)
    plain, moved = tapped(model, spec, images), tapped(permuted_copy(model, permutation), spec, images)
    assert set(plain) == set(spec.groups)
    for group, activation in plain.items():
        assert activation.shape[:2] == (len(images), spec.sizes[group])
        assert activation.min() >= 0
        assert activation.max() > 0
        assert_close(moved[group], activation[:, permutation[group]], 1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_training_a_permuted_net_is_permuting_a_trained_one(name):
    model = copy.deepcopy(trained(name, 0.25))
    spec = permutation_spec(model)
    permutation = random_permutation(spec, generator=3)
    moved = permuted_copy(model, permutation)
    for net in (model, moved):
        sgd_step(net, *batch(8))
    expected = apply_permutation(spec, permutation, model.state_dict())
    for key, tensor in moved.state_dict().items():
        assert_close(tensor, expected[key], 1e-9)


@pytest.mark.parametrize("name", ["resnet8", "vgg11", "vgg11_bn", "mlp"])
def test_every_permuted_tensor_matters(name):
    """The invariance test would notice any single tensor that the specification forgets."""
    model = trained(name, 0.25)
    spec = permutation_spec(model)
    images, _ = batch(7)
    state = apply_permutation(spec, random_permutation(spec, generator=4), model.state_dict())
    expected = model(images)
    for key, groups in spec.axes.items():
        if not any(groups):
            continue
        forgetful = torch.func.functional_call(model, {**state, key: model.state_dict()[key]}, (images,))
        assert (forgetful - expected).abs().max() > 1e-6 * expected.abs().max(), key


@pytest.mark.parametrize("name", MODELS)
def test_permutations_form_a_group(name):
    model = trained(name, 0.25)
    spec, state = permutation_spec(model), model.state_dict()
    first, second, third = (random_permutation(spec, generator=seed) for seed in (1, 2, 3))
    inverse = invert_permutation(first)

    def same(left, right):
        return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)

    assert same(apply_permutation(spec, inverse, apply_permutation(spec, first, state)), state)
    assert same(compose_permutations(first, inverse), identity_permutation(spec))
    assert same(compose_permutations(inverse, first), identity_permutation(spec))
    assert same(
        apply_permutation(spec, second, apply_permutation(spec, first, state)),
        apply_permutation(spec, compose_permutations(first, second), state),
    )
    assert same(
        compose_permutations(compose_permutations(first, second), third),
        compose_permutations(first, compose_permutations(second, third)),
    )
    assert same(apply_permutation(spec, {}, state), state)
    assert same(apply_permutation(spec, identity_permutation(spec), state), state)


@pytest.mark.parametrize("name", MODELS)
def test_masking_commutes_with_permuting(name):
    model = trained(name, 0.25)
    spec, state = permutation_spec(model), model.state_dict()
    mask = magnitude_mask({key: state[key] for key in model.prunable_names()}, 0.8)
    permutation = random_permutation(spec, generator=5)
    one_way = apply_mask(apply_permutation(spec, permutation, mask), apply_permutation(spec, permutation, state))
    other_way = apply_permutation(spec, permutation, apply_mask(mask, state))
    assert all(torch.equal(one_way[key], other_way[key]) for key in state)


@pytest.mark.parametrize("name", MODELS)
def test_applying_leaves_the_input_alone_and_shares_no_memory(name):
    model = trained(name, 0.25)
    spec, state = permutation_spec(model), model.state_dict()
    before = {key: tensor.clone() for key, tensor in state.items()}
    moved = apply_permutation(spec, random_permutation(spec), state)
    assert list(moved) == list(state)
    for tensor in moved.values():
        tensor.zero_()
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_random_permutation_is_reproducible():
    spec = permutation_spec(trained("mlp", 0.25))
    once, again = random_permutation(spec, 3), random_permutation(spec, torch.Generator().manual_seed(3))
    assert all(torch.equal(once[group], again[group]) for group in spec.groups)
    assert not torch.equal(once["hidden1"], random_permutation(spec, 4)["hidden1"])
    assert not torch.equal(once["hidden1"], once["hidden2"])


def test_occurrences():
    spec = permutation_spec(trained("mlp", 0.25))
    assert list(spec.occurrences("hidden1")) == [("hidden1.weight", 0), ("hidden1.bias", 0), ("hidden2.weight", 1)]


def test_a_group_that_only_one_side_has_is_kept():
    left, right = {"a": torch.tensor([1, 0])}, {"b": torch.tensor([2, 0, 1])}
    composed = compose_permutations(left, right)
    assert torch.equal(composed["a"], left["a"])
    assert torch.equal(composed["b"], right["b"])


TOY = PermutationSpec(axes={"w": ("g", None), "n": ()}, sizes={"g": 3}, taps={"g": "relu"})


@pytest.mark.parametrize(
    ("permutation", "tensors", "words"),
    [
        ({"h": torch.arange(3)}, {}, ["'h'", "known: g"]),
        ({"g": torch.arange(4)}, {}, ["'g'", "0..2", "(4,)"]),
        ({"g": torch.tensor([0, 0, 1])}, {}, ["'g'", "0..2"]),
        ({}, {"v": torch.zeros(3)}, ["'v'", "known: n, w"]),
        ({}, {"w": torch.zeros(3)}, ["'w'", "1 axes", "lists 2"]),
        ({}, {"w": torch.zeros(4, 2)}, ["'w'", "4 units", "has 3"]),
    ],
)
def test_misuse_is_named(permutation, tensors, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        apply_permutation(TOY, permutation, tensors)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_foreign_model_has_no_spec():
    with pytest.raises(ValueError, match="Linear has no permutation_spec"):
        permutation_spec(nn.Linear(2, 2))


def test_new_is_old_at_p():
    moved = apply_permutation(TOY, {"g": torch.tensor([2, 0, 1])}, {"w": torch.tensor([[1.0], [2.0], [3.0]])})
    assert moved["w"].flatten().tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("wrap", "hint"),
    [
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            r"torch\.nn\.utils\.prune\.remove\(module, 'weight'\)",
        ),
        (parametrizations.orthogonal, "remove_parametrizations"),
    ],
)
def test_a_net_that_computes_its_weights_from_others_is_refused_with_what_to_do(wrap, hint):
    plain, wrapped = small_model("resnet8"), small_model("resnet8")
    wrap(wrapped.layer2[0].conv1)
    batches = random_batches(1)
    for use in (
        lambda: permutation_spec(wrapped),
        lambda: match_models(wrapped, plain, None, "weight"),
        lambda: match_models(plain, wrapped, batches),
        lambda: reset_batchnorm(wrapped, batches),
        lambda: repair(plain, plain, wrapped, 0.5, batches),
        lambda: interpolation_curve(plain, wrapped, batches),
    ):
        with pytest.raises(ValueError, match=rf"layer 'layer2\.0\.conv1' of ResNet .*{hint}"):
            use()


def test_a_pruned_net_can_be_matched_once_its_pruning_is_made_permanent():
    model, other = small_model("resnet8"), small_model("resnet8", 1)
    prune.l1_unstructured(model.layer2[0].conv1, "weight", 0.5)
    prune.remove(model.layer2[0].conv1, "weight")
    assert match_models(model, other, None, "weight").keys() == permutation_spec(model).sizes.keys()
