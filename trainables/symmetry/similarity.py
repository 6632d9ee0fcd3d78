"""Functional diversity: how much the predictions of networks differ (paper, Table 1).

All functions take logits (N, classes) for the same inputs in the same order, as
`trainables.training.evaluation.predict_logits` returns them, and raise ValueError if shapes differ. Divergences are in
nats: for bits, divide by ln 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def disagreement(first: Tensor, second: Tensor) -> float:
    """Return the share of inputs, in [0, 1], for which the two networks predict different classes."""
    _check(first, second)
    return (first.argmax(dim=1) != second.argmax(dim=1)).double().mean().item()


def kl_divergence(first: Tensor, second: Tensor) -> float:
    """Return KL(first || second) of the softmax probabilities, nats, mean over inputs; at least 0, not symmetric."""
    _check(first, second)
    return _kl(_log_probabilities(first), _log_probabilities(second)).mean().item()


def js_divergence(first: Tensor, second: Tensor) -> float:
    """Return the Jensen-Shannon divergence of the softmax probabilities, nats, mean over inputs.

    It is the mean of both distributions' KL divergences from their average: symmetric, in [0, ln 2].
    """
    _check(first, second)
    log_first, log_second = _log_probabilities(first), _log_probabilities(second)
    log_middle = torch.logaddexp(log_first, log_second) - math.log(2)
    return (0.5 * (_kl(log_first, log_middle) + _kl(log_second, log_middle))).mean().item()


def ensemble_accuracy(members: Sequence[Tensor], labels: Tensor) -> float:
    """Return the accuracy, percent, of predicting the class with the largest mean *probability* over `members`.

    Args:
        members: logits (N, classes) of each member; at least one.
        labels: int64 (N,).

    Raises:
        ValueError: no members, or shapes that do not fit.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, got none")
    for member in members:
        _check(members[0], member)
    if labels.shape != members[0].shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels do not fit logits of shape {tuple(members[0].shape)}")
    probabilities = torch.stack([_log_probabilities(member).exp() for member in members]).mean(dim=0)
    return 100 * (probabilities.argmax(dim=1) == labels.to(probabilities.device)).double().mean().item()


def pairwise_mean(measure: Callable[[Tensor, Tensor], float], members: Sequence[Tensor]) -> float:
    """Return the mean of `measure` over all ordered pairs of different members.

    For a symmetric measure this is the mean over unordered pairs; for the KL divergence it averages both directions.

    Raises:
        ValueError: fewer than two members.
    """
    if len(members) < 2:
        raise ValueError(f"pairs need at least 2 members, got {len(members)}")
    values = [measure(first, second) for first, second in itertools.permutations(members, 2)]
    return sum(values) / len(values)


def _log_probabilities(logits: Tensor) -> Tensor:
    # Float64, because a confident network's probabilities differ from 1 by less than float32 resolves.
    return torch.log_softmax(logits.double(), dim=1)


def _kl(log_first: Tensor, log_second: Tensor) -> Tensor:
    """Return KL(first || second) of each row of log-probabilities, float64 (N,)."""
    return (log_first.exp() * (log_first - log_second)).sum(dim=1).clamp(min=0)


def _check(first: Tensor, second: Tensor) -> None:
    if first.dim() != 2 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"logits must both have shape (N, classes) for the same N >= 1 inputs, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
