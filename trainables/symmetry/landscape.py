"""The loss landscape on the plane through three networks (paper, Fig. 4b).

Distances in the plane equal distances between parameter vectors, so the picture is a true section of weight space. The
three networks must be in the same frame: permute them first where they are not.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.checks import known
from trainables.symmetry.connectivity import require_same_tensors
from trainables.symmetry.permutations import require_plain_weights
from trainables.symmetry.repair import corrector
from trainables.training.evaluation import Batches, Evaluation, evaluate, model_device, require_reiterable

State = Mapping[str, Tensor]
States = tuple[State, State, State]
Point = tuple[float, float]
Coordinates = tuple[Point, Point, Point]
"""(x, y) of the three networks."""
BUFFERS = (".running_mean", ".running_var")
"""Ends of BatchNorm buffers' names: these belong to the state dict but not to the parameter vector."""
MIN_SINE = 1e-6
"""Three networks count as collinear if the sine of the angle at the first one is at most this."""


def plane_coordinates(state_1: State, state_2: State, state_3: State) -> Coordinates:
    """Return the positions of three networks on the plane through them, in units of parameter-space distance.

    The first network lies at the origin, the second on the x axis, the third at a positive y (Gram-Schmidt on their
    parameter vectors, in float64). The parameter vector consists of all floating-point tensors except BatchNorm's
    buffers.

    Args:
        state_1: name -> tensor.
        state_2: the same names and shapes.
        state_3: the same names and shapes.

    Raises:
        ValueError: the states differ in names or shapes, or the networks coincide or lie on one line.
    """
    require_same_tensors(state_1, state_2)
    require_same_tensors(state_1, state_3)
    chosen = [name for name, tensor in state_1.items() if tensor.is_floating_point() and not name.endswith(BUFFERS)]
    to_2 = {name: state_2[name].double() - state_1[name].double() for name in chosen}
    to_3 = {name: state_3[name].double() - state_1[name].double() for name in chosen}
    distance_2, distance_3 = math.sqrt(_dot(to_2, to_2)), math.sqrt(_dot(to_3, to_3))
    if distance_2 == 0 or distance_3 == 0:
        raise ValueError("the plane needs three different networks, but the second or third equals the first")
    x_axis = {name: tensor / distance_2 for name, tensor in to_2.items()}
    x_3 = _dot(to_3, x_axis)
    rest = {name: tensor - x_3 * x_axis[name] for name, tensor in to_3.items()}
    # Subtract the projection twice: the residue that rounding leaves along the first axis would tilt the second.
    leftover = _dot(rest, x_axis)
    rest = {name: tensor - leftover * x_axis[name] for name, tensor in rest.items()}
    y_3 = math.sqrt(_dot(rest, rest))
    if y_3 <= MIN_SINE * distance_3:
        raise ValueError("the three networks lie on one line and span no plane")
    return (0.0, 0.0), (distance_2, 0.0), (x_3 + leftover, y_3)


def mixing_weights(coordinates: Coordinates, x: float, y: float) -> tuple[float, float, float]:
    """Return the shares of the three networks in the point (x, y), its barycentric coordinates; they sum to 1."""
    _origin, (x_2, _zero), (x_3, y_3) = coordinates
    third = y / y_3
    second = (x - third * x_3) / x_2
    return 1 - second - third, second, third


def plane_state(states: States, coordinates: Coordinates, x: float, y: float) -> dict[str, Tensor]:
    """Return the state dict at the point (x, y): the affine combination of the three states.

    Running statistics are combined like parameters, with variances clamped to at least 0. Integer tensors are copied
    from the network with the largest mixing weight.
    """
    shares = mixing_weights(coordinates, x, y)
    nearest = states[shares.index(max(shares))]
    mixed: dict[str, Tensor] = {}
    for name, tensor in nearest.items():
        if not tensor.is_floating_point():
            mixed[name] = tensor.clone()
            continue
        total = sum(
            (share * state[name].double() for share, state in zip(shares, states, strict=True)), torch.zeros(())
        )
        mixed[name] = (total.clamp(min=0) if name.endswith("running_var") else total).to(tensor.dtype)
    return mixed


@dataclass(frozen=True, kw_only=True)
class PlaneGrid:
    """Loss and error on a grid of the plane.

    Attributes:
        xs: coordinates of the columns, increasing.
        ys: coordinates of the rows, increasing.
        losses: cross-entropy in nats at (ys[row], xs[column]), as losses[row][column].
        errors: 100 - accuracy in percent, as errors[row][column].
        coordinates: (x, y) of the three networks.
        network_losses: losses of the three networks, with the same correction as the grid's.
        network_errors: their errors, percent.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    coordinates: Coordinates
    network_losses: tuple[float, ...]
    network_errors: tuple[float, ...]


def plane_grid(
    model: nn.Module,
    states: States,
    batches: Batches,
    *,
    resolution: int = 21,
    margin: float = 0.2,
    correction: str = "bn_reset",
    train_batches: Batches | None = None,
) -> PlaneGrid:
    """Measure a grid of networks in the plane through three of them (paper, Fig. 4b).

    Args:
        model: provides the architecture; its weights are neither used nor changed.
        states: state dicts of the three networks, in the same frame (permuted where needed).
        batches: (images, labels) pairs to measure on; one pass per grid point.
        resolution: points per axis, at least 2.
        margin: how far the grid reaches beyond the networks on each side, as a share of their extent; at least 0.
        correction: "bn_reset" or "none". REPAIR has no meaning outside the triangle of the networks, where it would mix
            standard deviations with negative weights.
        train_batches: training images on which "bn_reset" estimates statistics at each grid point, read as in
            `reset_batchnorm`.

    Raises:
        ValueError: a resolution or margin out of bounds, an unknown correction, batches that are missing or can be read
            only once, or networks that span no plane.
    """
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2 points per axis, got {resolution}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and at least 0, got {margin}")
    require_reiterable(batches, "plane_grid()")
    require_plain_weights(model)
    coordinates = plane_coordinates(*states)
    worker = copy.deepcopy(model)
    device = model_device(worker)
    first, second, third = ({name: tensor.to(device) for name, tensor in state.items()} for state in states)
    known("correction of a plane", correction, ("none", "bn_reset"))
    correct = corrector(correction, worker, train_batches)

    def measure(x: float, y: float) -> Evaluation:
        worker.load_state_dict(plane_state((first, second, third), coordinates, x, y))
        correct(0)
        return evaluate(worker, batches)

    xs = _axis([x for x, _y in coordinates], resolution, margin)
    ys = _axis([y for _x, y in coordinates], resolution, margin)
    cells = {(x, y): measure(x, y) for y, x in itertools.product(ys, xs)}
    corners = [measure(x, y) for x, y in coordinates]
    return PlaneGrid(
        xs=xs,
        ys=ys,
        losses=tuple(tuple(cells[x, y].loss for x in xs) for y in ys),
        errors=tuple(tuple(100 - cells[x, y].accuracy for x in xs) for y in ys),
        coordinates=coordinates,
        network_losses=tuple(corner.loss for corner in corners),
        network_errors=tuple(100 - corner.accuracy for corner in corners),
    )


def _axis(values: list[float], resolution: int, margin: float) -> tuple[float, ...]:
    low, high = min(values), max(values)
    reach = margin * (high - low)
    start, stop = low - reach, high + reach
    return tuple(start + (stop - start) * step / (resolution - 1) for step in range(resolution))


def _dot(first: State, second: State) -> float:
    return sum(torch.dot(tensor.reshape(-1), second[name].reshape(-1)).item() for name, tensor in first.items())
