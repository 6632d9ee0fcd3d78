"""Masks: exact counts, stable ties, nestedness, and what they do to tensors."""

import random
import re

import pytest
import torch

from trainables.masks import (
    apply_mask,
    collapsed_layers,
    layerwise_random_mask,
    magnitude_mask,
    mask_overlap,
    mask_sparsity,
    network_sparsity,
)
from trainables.models import MODELS, build_model

SPARSITIES = [0.0, 1e-6, 0.1, 0.2, 0.36, 0.5, 0.8, 0.9, 0.945, 0.95, 0.97, 0.999, 0.9999999]


def weights_with_ties(seed, dtype=torch.float32):
    """Return tensors of a few random shapes whose magnitudes take at most nine values, zero among them."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [[rng.randint(1, 9) for _ in range(rng.choice([2, 4]))] for _ in range(rng.randint(1, 5))]
    return {
        f"layer{i}.weight": torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4
        for i, shape in enumerate(shapes)
    }


def total(tensors):
    return sum(tensor.numel() for tensor in tensors.values())


def pruned(mask):
    return sum(int((~kept).sum()) for kept in mask.values())


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def same(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("seed", range(10))
def test_exact_count_and_stable_ties(seed, sparsity):
    weights = weights_with_ties(seed)
    mask = magnitude_mask(weights, sparsity)
    count = round(sparsity * total(weights))
    assert pruned(mask) == count
    magnitudes = flat(weights).abs().tolist()
    smallest = sorted(range(len(magnitudes)), key=lambda index: (magnitudes[index], index))[:count]
    assert (~flat(mask)).nonzero().flatten().tolist() == sorted(smallest)
    assert all(kept.dtype == torch.bool and kept.shape == weights[name].shape for name, kept in mask.items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparsity", [0.2, 0.9, 0.97])
def test_exact_count_on_models(name, sparsity):
    torch.manual_seed(0)
    model = build_model(name, width=0.25)
    weights = {key: tensor.detach() for key, tensor in model.named_parameters() if key in model.prunable_names()}
    mask = magnitude_mask(weights, sparsity)
    assert pruned(mask) == round(sparsity * total(weights))
    kept, gone = flat(weights).abs()[flat(mask)], flat(weights).abs()[~flat(mask)]
    assert gone.max() <= kept.min()


@pytest.mark.parametrize("seed", range(10))
def test_rounds_are_nested(seed):
    weights = weights_with_ties(seed)
    mask = None
    for round_number in range(1, 9):
        sparsity = 1 - 0.8**round_number
        new = magnitude_mask(weights, sparsity, previous=mask)
        assert pruned(new) == round(sparsity * total(weights))
        assert mask is None or not (flat(new) & ~flat(mask)).any()
        mask = new
        generator = torch.Generator().manual_seed(round_number)
        weights = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}


def test_same_sparsity_again_changes_nothing():
    weights = weights_with_ties(0)
    mask = magnitude_mask(weights, 0.7)
    others = {name: torch.rand_like(tensor) for name, tensor in weights.items()}
    assert same(magnitude_mask(others, 0.7, previous=mask), mask)


def test_pruned_weights_go_first_even_if_they_have_grown():
    previous = {"w": torch.tensor([False, True, True, True])}
    mask = magnitude_mask({"w": torch.tensor([9.0, 0.0, 0.0, 1.0])}, 0.5, previous)
    assert mask["w"].tolist() == [False, False, True, True]


def test_all_zero_weights():
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    mask = magnitude_mask(weights, 0.8)
    assert flat(mask).tolist() == [False] * 8 + [True] * 2
    previous = {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.tensor([True, True, True, False])}
    assert flat(magnitude_mask(weights, 0.3, previous)).tolist() == [False] * 2 + [True] * 7 + [False]


def test_negative_zero_and_infinity():
    mask = magnitude_mask({"w": torch.tensor([float("-inf"), -0.0, 0.0, 1.0])}, 0.5)
    assert mask["w"].tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    assert same(magnitude_mask(weights_with_ties(3, dtype), 0.6), magnitude_mask(weights_with_ties(3), 0.6))


def test_float64_is_not_rounded():
    tiny = torch.tensor([1.0 + 1e-12, 1.0], dtype=torch.float64)
    assert magnitude_mask({"w": tiny}, 0.5)["w"].tolist() == [True, False]


def test_memory_layout_does_not_matter():
    weight = torch.randint(-3, 4, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    assert same(
        magnitude_mask({"w": weight.to(memory_format=torch.channels_last)}, 0.5), magnitude_mask({"w": weight}, 0.5)
    )


def test_nothing_works_in_place():
    weights = weights_with_ties(1)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    first = magnitude_mask(weights, 0.3)
    first_before = {name: tensor.clone() for name, tensor in first.items()}
    second = magnitude_mask(weights, 0.6, previous=first)
    apply_mask(second, weights)
    layerwise_random_mask(second, 0)
    mask_overlap(first, second)
    assert same(weights, before)
    assert same(first, first_before)
    assert len({kept.untyped_storage().data_ptr() for kept in second.values()}) == len(second)


def test_parameters_may_require_gradients():
    model = build_model("mlp", width=0.25, image_size=4)
    weights = {key: tensor for key, tensor in model.named_parameters() if key in model.prunable_names()}
    assert mask_sparsity(magnitude_mask(weights, 0.5)) == 0.5


@pytest.mark.gpu
def test_same_mask_on_the_gpu():
    weights = weights_with_ties(2)
    on_gpu = {name: tensor.cuda() for name, tensor in weights.items()}
    mask = magnitude_mask(on_gpu, 0.5)
    assert all(kept.is_cuda for kept in mask.values())
    assert same({name: kept.cpu() for name, kept in mask.items()}, magnitude_mask(weights, 0.5))
    assert same(magnitude_mask(on_gpu, 0.7, magnitude_mask(weights, 0.5)), magnitude_mask(on_gpu, 0.7, mask))
    assert all(tensor.is_cuda for tensor in apply_mask(magnitude_mask(weights, 0.5), on_gpu).values())
    drawn = layerwise_random_mask(mask, 0)
    assert all(kept.is_cuda for kept in drawn.values())
    assert mask_overlap(mask, magnitude_mask(weights, 0.5)) == 1


W = {"w": torch.ones(2, 2)}
HALF = {"w": torch.tensor([[True, False], [True, False]])}


@pytest.mark.parametrize(
    ("weights", "sparsity", "previous", "words"),
    [
        (W, 1.0, None, ["1.0", "[0, 1)"]),
        (W, -0.1, None, ["-0.1", "[0, 1)"]),
        (W, float("nan"), None, ["nan", "[0, 1)"]),
        (W, 0.25, HALF, ["0.25", "prunes 1 of 4", "2", "0.5"]),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, 0.5, None, ["'b'", "NaN"]),
        ({}, 0.5, None, ["no weights"]),
        (W, 0.5, {"v": HALF["w"]}, ["'v'", "known: w"]),
        (W, 0.5, {}, ["lacks w"]),
        (W, 0.5, {"w": torch.ones(4, dtype=torch.bool)}, ["'w'", "(2, 2)", "(4,)"]),
        (W, 0.5, {"w": torch.ones(2, 2)}, ["'w'", "bool", "float32"]),
    ],
)
def test_magnitude_mask_names_what_is_wrong(weights, sparsity, previous, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        magnitude_mask(weights, sparsity, previous)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_sparsities_say_over_what():
    tensors = {"w": torch.ones(2, 2), "shortcut": torch.ones(3), "bias": torch.ones(1)}
    assert mask_sparsity(HALF) == 0.5
    assert network_sparsity(HALF, tensors) == 2 / 8
    with pytest.raises(ValueError, match="'w' has no tensor; known: v"):
        network_sparsity(HALF, {"v": torch.ones(2)})
    with pytest.raises(ValueError, match="no weights"):
        mask_sparsity({})
    with pytest.raises(ValueError, match="bool"):
        mask_sparsity(W)


def test_network_sparsity_of_the_papers_resnet20():
    torch.manual_seed(0)
    model = build_model("resnet20")
    parameters = dict(model.named_parameters())
    mask = magnitude_mask({name: parameters[name] for name in model.prunable_names()}, 0.8)
    assert 100 * mask_sparsity(mask) == pytest.approx(80, abs=1e-3)
    assert 100 * network_sparsity(mask, parameters) == pytest.approx(73.3, abs=0.1)  # shortcuts, BatchNorm, bias: dense


def test_apply_mask():
    tensors = {"bias": torch.tensor([5.0]), "w": torch.tensor([[1.0, -2.0], [3.0, float("inf")]])}
    masked = apply_mask(HALF, tensors)
    assert list(masked) == ["bias", "w"]
    assert masked["bias"] is tensors["bias"]
    assert masked["w"].tolist() == [[1.0, 0.0], [3.0, 0.0]]
    assert not torch.signbit(masked["w"]).any()
    with pytest.raises(ValueError, match="'w' has no tensor; known: v"):
        apply_mask(HALF, {"v": torch.ones(2, 2)})


@pytest.mark.parametrize("seed", range(5))
def test_layerwise_random_mask_keeps_the_counts(seed):
    mask = magnitude_mask(weights_with_ties(seed), 0.6)
    drawn = layerwise_random_mask(mask, seed)
    assert {name: int(kept.sum()) for name, kept in drawn.items()} == {n: int(kept.sum()) for n, kept in mask.items()}
    assert same(drawn, layerwise_random_mask(mask, torch.Generator().manual_seed(seed)))
    assert all(kept.shape == mask[name].shape and kept.dtype == torch.bool for name, kept in drawn.items())


def test_layerwise_random_mask_is_uniform():
    mask = {"w": torch.arange(8) < 2}
    generator = torch.Generator().manual_seed(0)
    hits = sum(layerwise_random_mask(mask, generator)["w"].int() for _ in range(2000))
    assert (hits / 2000 - 0.25).abs().max() < 0.04


def test_mask_overlap():
    left, right = {"w": torch.tensor([True, True, False, False])}, {"w": torch.tensor([True, False, True, False])}
    assert mask_overlap(left, right) == pytest.approx(1 / 3)
    assert mask_overlap(left, left) == 1
    assert mask_overlap(left, {"w": ~left["w"]}) == 0
    nothing = {"w": torch.zeros(4, dtype=torch.bool)}
    assert mask_overlap(nothing, nothing) == 1
    with pytest.raises(ValueError, match="'v' has no tensor"):
        mask_overlap({"v": left["w"]}, right)
    with pytest.raises(ValueError, match="lacks w"):
        mask_overlap({}, right)


def test_overlap_of_random_masks():
    mask = {"w": torch.arange(100_000) < 20_000}
    one, other = layerwise_random_mask(mask, 0), layerwise_random_mask(mask, 1)
    assert mask_overlap(one, other) == pytest.approx(0.2 / 1.8, abs=0.005)


def test_layers_without_a_weight_are_collapsed():
    none, some = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[False, True]])
    assert collapsed_layers({"a": none, "b": some, "c": none}) == ("a", "c")
    assert collapsed_layers({"b": some}) == ()
