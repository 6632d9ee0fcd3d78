import pytest
import torch

from trainables.masks import expected_overlap, layerwise_random_mask, magnitude_mask, mask_overlap
from trainables.models import build_model
from trainables.symmetry.permutations import (
    apply_permutation,
    invert_permutation,
    permutation_spec,
    random_permutation,
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return build_model("resnet8", width=0.5)


def mask(net, seed, sparsity=0.8):
    """Return a magnitude mask of new random weights, larger in later layers so that densities differ."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: net.state_dict()[name] for name in net.prunable_names()}
    drawn = {
        name: torch.randn(tensor.shape, generator=generator) * (1 + place)
        for place, (name, tensor) in enumerate(weights.items())
    }
    return magnitude_mask(drawn, sparsity)


def test_expected_overlap_by_hand():
    one = {"a": torch.tensor([1, 1, 0, 0], dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
    other = {"a": torch.tensor([1, 0, 0, 0], dtype=torch.bool), "b": torch.tensor([True, False])}
    # in a: 2 * 1 / 4 by both, in b: 2 * 1 / 2; of 4 + 2 kept
    assert expected_overlap(one, other) == pytest.approx(1.5 / (6 - 1.5))
    nothing = {"a": torch.zeros(4, dtype=torch.bool)}
    assert expected_overlap(nothing, nothing) == mask_overlap(nothing, nothing) == 1


def test_expected_overlap_is_the_mean_over_random_masks(net):
    left, right = mask(net, 0), mask(net, 1, sparsity=0.7)
    drawn = [
        mask_overlap(layerwise_random_mask(left, seed), layerwise_random_mask(right, 1000 + seed)) for seed in range(30)
    ]
    assert expected_overlap(left, right) == pytest.approx(sum(drawn) / len(drawn), rel=0.01)
    # layers of unequal density overlap more than one layer of the same overall density would
    assert expected_overlap(left, left) > 0.2 / (2 - 0.2)


def test_the_right_permutation_recovers_the_whole_mask(net):
    spec, own = permutation_spec(net), mask(net, 0)
    moved = random_permutation(spec, 5)
    theirs = apply_permutation(spec, invert_permutation(moved), own)
    assert mask_overlap(apply_permutation(spec, moved, theirs), own) == 1
    assert mask_overlap(theirs, own) < 0.5
    assert expected_overlap(theirs, own) == expected_overlap(own, own)


def test_independent_masks_overlap_as_expected(net):
    left, right = mask(net, 0), mask(net, 1)
    assert mask_overlap(left, right) == pytest.approx(expected_overlap(left, right), rel=0.1)


def test_masks_of_different_nets_are_refused(net):
    left = mask(net, 0)
    with pytest.raises(ValueError, match="the mask lacks"):
        expected_overlap({}, left)
    with pytest.raises(ValueError, match="has no tensor"):
        expected_overlap({**left, "other": left["fc.weight"]}, left)
