"""Linear connectivity: loss and accuracy along the straight line between two networks, and their barrier.

alpha = 0 is network A (permuted, if a permutation is given) and alpha = 1 is network B.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.symmetry.permutations import Permutation, apply_permutation, permutation_spec, require_plain_weights
from trainables.symmetry.repair import corrector
from trainables.training.evaluation import Batches, evaluate, require_reiterable

DEFAULT_ALPHAS = tuple(step / 10 for step in range(11))


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Mix two state dicts: ``(1 - alpha) * A + alpha * B``, exactly A at 0 and B at 1.

    Args:
        state_a: name -> tensor.
        state_b: the same names and shapes; its tensors are moved to A's devices.
        alpha: in [0, 1].

    Returns:
        New tensors under A's names. Integer tensors (BatchNorm's batch counter) cannot be mixed: they are copied from
        the nearer end point, at alpha = 1/2 from A.

    Raises:
        ValueError: alpha is out of range, or the states differ in names or shapes.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    require_same_tensors(state_a, state_b)
    mixed: dict[str, Tensor] = {}
    for name, tensor_a in state_a.items():
        tensor_b = state_b[name].to(tensor_a.device)
        if tensor_a.is_floating_point():
            mixed[name] = torch.lerp(tensor_a, tensor_b.to(tensor_a.dtype), alpha)
        else:
            mixed[name] = (tensor_a if alpha <= 0.5 else tensor_b).clone()
    return mixed


def require_same_tensors(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both states have the same names and shapes."""
    if state_a.keys() != state_b.keys():
        raise ValueError(f"the states differ in their tensors: {', '.join(sorted(state_a.keys() ^ state_b.keys()))}")
    for name, tensor in state_a.items():
        if tensor.shape != state_b[name].shape:
            raise ValueError(
                f"tensor {name!r} has shapes {tuple(tensor.shape)} and {tuple(state_b[name].shape)} in the states"
            )


@dataclass(frozen=True, kw_only=True)
class InterpolationCurve:
    """Measurements along the line from A (alpha = 0) to B (alpha = 1).

    Attributes:
        alphas: increasing, in [0, 1].
        losses: mean cross-entropy at each alpha, nats.
        accuracies: percent at each alpha.
        train_losses: mean cross-entropy on training images at each alpha, nats; empty if not measured.
    """

    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    train_losses: tuple[float, ...] = ()

    @property
    def midpoint_accuracy(self) -> float:
        """Accuracy at alpha = 1/2, percent. ValueError if the curve has no such point."""
        for alpha, accuracy in zip(self.alphas, self.accuracies, strict=True):
            if math.isclose(alpha, 0.5):
                return accuracy
        raise ValueError(f"the curve has no point at alpha = 0.5; it has {', '.join(map(str, self.alphas))}")

    @property
    def errors(self) -> tuple[float, ...]:
        """Error at each alpha, percent."""
        return tuple(100 - accuracy for accuracy in self.accuracies)


def interpolation_curve(
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Batches,
    *,
    alphas: Sequence[float] | None = None,
    permutation: Permutation | None = None,
    correction: str = "none",
    train_batches: Batches | None = None,
    measure_train: bool = False,
) -> InterpolationCurve:
    """Measure the networks on the line from (permuted) A to B (paper, Fig. 3).

    The correction is applied at every alpha, including the end points. Uncorrected end points would mix two estimators
    of the same statistics, and the barrier would contain their difference.

    Args:
        model_a: end point at alpha = 0. Neither model is changed.
        model_b: end point at alpha = 1, of the same architecture.
        batches: (images, labels) pairs to measure on; one pass per alpha.
        alphas: increasing, in [0, 1]; default: 0, 0.1, ..., 1.
        permutation: applied to A first, by A's own permutation specification.
        correction: a name in `trainables.knobs.CORRECTIONS`.
        train_batches: training images on which the correction estimates its statistics, at every alpha.
        measure_train: whether to measure the loss on `train_batches`, too, which then need labels; one pass per alpha.

    Returns:
        Losses in nats and accuracies in percent, one of each per alpha.

    Raises:
        ValueError: a bad alpha, an unknown correction, a correction or `measure_train` without `train_batches`,
            batches that can be read only once, or networks that differ in their tensors.
    """
    points = _check_alphas(DEFAULT_ALPHAS if alphas is None else alphas)
    require_reiterable(batches, "interpolation_curve()")
    require_plain_weights(model_a)
    require_plain_weights(model_b)
    state_a: Mapping[str, Tensor] = model_a.state_dict()
    if permutation is not None:
        state_a = apply_permutation(permutation_spec(model_a), permutation, state_a)
    state_b = model_b.state_dict()
    require_same_tensors(state_a, state_b)
    # One working copy is refilled at every alpha; the callers' models are only read.
    worker = copy.deepcopy(model_b)
    correct = corrector(correction, worker, train_batches, (state_a, state_b))
    if measure_train:
        if train_batches is None:
            raise ValueError("measure_train needs train_batches, got None")
        require_reiterable(train_batches, "measure_train")
    evaluations, train_losses = [], []
    for alpha in points:
        worker.load_state_dict(interpolate(state_a, state_b, alpha))
        correct(alpha)
        evaluations.append(evaluate(worker, batches))
        if measure_train and train_batches is not None:
            train_losses.append(evaluate(worker, train_batches).loss)
    return InterpolationCurve(
        alphas=points,
        losses=tuple(evaluation.loss for evaluation in evaluations),
        accuracies=tuple(evaluation.accuracy for evaluation in evaluations),
        train_losses=tuple(train_losses),
    )


def loss_barrier(curve: InterpolationCurve | Sequence[float], losses: Sequence[float] | None = None) -> float:
    """Return how far the loss rises above the straight line between the end points' losses.

    For a curve, it uses the loss on the batches that the curve was measured on, usually the test set. The paper defines
    the barrier on the training loss (Eq. 3): ``loss_barrier(curve.alphas, curve.train_losses)``.

    Args:
        curve: an interpolation curve; or the alphas, increasing from 0 to 1.
        losses: the loss, or another height, at each alpha; only if `curve` holds alphas.

    Returns:
        max over alpha of ``loss(alpha) - (1 - alpha) * loss(0) - alpha * loss(1)`` in the losses' unit, at least 0;
        NaN if any loss is NaN.

    Raises:
        ValueError: the curve does not run from 0 to 1, or the numbers of losses and alphas differ.
    """
    if isinstance(curve, InterpolationCurve):
        return loss_barrier(curve.alphas, curve.losses)
    if losses is None:
        raise ValueError("loss_barrier() needs an InterpolationCurve, or alphas and losses")
    alphas = _check_alphas(curve)
    if len(alphas) != len(losses):
        raise ValueError(f"{len(alphas)} alphas and {len(losses)} losses: a barrier needs one loss per alpha")
    if alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError(f"a barrier needs both end points, alphas run from {alphas[0]} to {alphas[-1]}")
    first, last = float(losses[0]), float(losses[-1])
    rises = [float(loss) - (first + alpha * (last - first)) for alpha, loss in zip(alphas, losses, strict=True)]
    if any(math.isnan(rise) for rise in rises):
        return math.nan
    return max(0.0, *rises)


def _check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(alpha) for alpha in alphas)
    rising = all(low < high for low, high in itertools.pairwise(values))
    if not values or not rising or values[0] < 0 or values[-1] > 1:
        raise ValueError(f"alphas must increase within [0, 1], got {', '.join(map(str, values)) or 'none'}")
    return values
