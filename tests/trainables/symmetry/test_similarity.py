"""Diversity measures on distributions whose values are known by hand."""

import math

import pytest
import torch

from trainables.symmetry.similarity import disagreement, ensemble_accuracy, js_divergence, kl_divergence, pairwise_mean


def logits(*rows):
    """Return logits of the given probabilities; the shift of all logits has no effect."""
    return torch.tensor(rows, dtype=torch.float64).log() + 3


HALF = logits([0.5, 0.5])
QUARTER = logits([0.25, 0.75])
FIRST, SECOND = torch.tensor([[80.0, -80.0]]), torch.tensor([[-80.0, 80.0]])


def test_disagreement_is_the_share_of_different_classes():
    first = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    second = torch.tensor([[2.0, 0], [0, 1], [0, 9], [0, 1]])
    assert disagreement(first, second) == 0.25


def test_kl_divergence_by_hand_in_both_directions():
    assert kl_divergence(HALF, QUARTER) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(QUARTER, HALF) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_divergences_are_means_over_inputs():
    first, second = torch.cat([HALF, HALF]), torch.cat([QUARTER, HALF])
    assert kl_divergence(first, second) == pytest.approx(kl_divergence(HALF, QUARTER) / 2)
    assert js_divergence(first, second) == pytest.approx(js_divergence(HALF, QUARTER) / 2)


def test_js_divergence_by_hand():
    middle = logits([0.375, 0.625])
    expected = 0.5 * kl_divergence(HALF, middle) + 0.5 * kl_divergence(QUARTER, middle)
    assert js_divergence(HALF, QUARTER) == pytest.approx(expected)
    assert js_divergence(QUARTER, HALF) == pytest.approx(expected)


def test_extremes_stay_finite():
    assert js_divergence(FIRST, SECOND) == pytest.approx(math.log(2))
    assert kl_divergence(FIRST, SECOND) == pytest.approx(160)
    assert kl_divergence(FIRST, FIRST) == js_divergence(FIRST, FIRST) == 0


def test_ensemble_averages_probabilities_not_logits():
    # Two hesitant votes for class 0 against a certain one for class 1: the mean probability is with the certain one,
    # the mean logit would be with it, too, but the majority would not.
    members = [logits([0.6, 0.4]), logits([0.6, 0.4]), logits([0.05, 0.95])]
    assert ensemble_accuracy(members, torch.tensor([1])) == 100
    # Here logits and probabilities differ: ln 0.999/0.001 = 6.9 outweighs 2 x ln 0.8/0.2 = 2.8 only in logits.
    members = [logits([0.001, 0.999]), logits([0.8, 0.2]), logits([0.8, 0.2])]
    assert torch.stack(members).mean(0).argmax(1).item() == 1
    assert ensemble_accuracy(members, torch.tensor([0])) == 100


def test_ensemble_accuracy_in_percent():
    member = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert ensemble_accuracy([member], torch.tensor([0, 0, 1, 0])) == 75


def test_pairwise_mean_takes_both_directions():
    both = (kl_divergence(HALF, QUARTER) + kl_divergence(QUARTER, HALF)) / 2
    assert pairwise_mean(kl_divergence, [HALF, QUARTER]) == pytest.approx(both)
    assert pairwise_mean(disagreement, [FIRST, SECOND, SECOND]) == pytest.approx(2 / 3)


def test_errors():
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(2, 2\)"):
        disagreement(HALF, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="N >= 1"):
        kl_divergence(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="at least one member"):
        ensemble_accuracy([], torch.zeros(1))
    with pytest.raises(ValueError, match="labels do not fit"):
        ensemble_accuracy([HALF], torch.zeros(2))
    with pytest.raises(ValueError, match="at least 2 members"):
        pairwise_mean(js_divergence, [HALF])
