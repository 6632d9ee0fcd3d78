"""The plane through three networks: an orthonormal frame that contains them, and what is measured on it."""

import math

import pytest
import torch
from small_nets import digits, random_batches, same, small_model, snapshot, trained_pair

from trainables.models import build_model
from trainables.symmetry.landscape import mixing_weights, plane_coordinates, plane_grid, plane_state
from trainables.symmetry.repair import NoEffectWarning, reset_batchnorm
from trainables.training.evaluation import evaluate


def states_of(name="resnet8"):
    return tuple(small_model(name, seed).state_dict() for seed in range(3))


def flat(tensors, names):
    return torch.cat([tensors[name].double().flatten() for name in names])


def test_distances_are_those_of_the_parameter_vectors():
    states = states_of()
    coordinates = plane_coordinates(*states)
    names = [name for name, _parameter in small_model("resnet8").named_parameters()]
    vectors = [flat(state, names) for state in states]
    for first in range(3):
        for second in range(3):
            expected = (vectors[first] - vectors[second]).norm().item()
            assert math.dist(coordinates[first], coordinates[second]) == pytest.approx(expected)
    assert coordinates[0] == (0, 0)
    assert coordinates[1][1] == 0
    assert coordinates[2][1] > 0


def test_plane_contains_the_three_networks():
    states = states_of()
    coordinates = plane_coordinates(*states)
    for state, (x, y) in zip(states, coordinates, strict=True):
        found = plane_state(states, coordinates, x, y)
        for name, tensor in state.items():
            torch.testing.assert_close(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_steps_of_length_one_along_the_axes_are_orthonormal():
    states = states_of()
    coordinates = plane_coordinates(*states)
    names = [name for name, _parameter in small_model("resnet8").named_parameters()]
    states = tuple({name: tensor.double() for name, tensor in state.items()} for state in states)
    origin, right, up, point = (
        flat(plane_state(states, coordinates, x, y), names) for x, y in ((0, 0), (1, 0), (0, 1), (1.5, -0.7))
    )
    x_axis, y_axis = right - origin, up - origin
    assert x_axis.norm().item() == pytest.approx(1, abs=1e-9)
    assert y_axis.norm().item() == pytest.approx(1, abs=1e-9)
    assert torch.dot(x_axis, y_axis).abs().item() < 1e-9
    torch.testing.assert_close(point, origin + 1.5 * x_axis - 0.7 * y_axis)
    assert sum(mixing_weights(coordinates, 1.5, -0.7)) == pytest.approx(1)


def test_variances_never_become_negative():
    states = states_of()
    coordinates = plane_coordinates(*states)
    found = plane_state(states, coordinates, -50.0, -50.0)
    assert all(tensor.min() >= 0 for name, tensor in found.items() if name.endswith("running_var"))


def test_networks_must_span_a_plane():
    first, second, _third = states_of()
    with pytest.raises(ValueError, match="three different networks"):
        plane_coordinates(first, first, second)
    middle = {name: (tensor + second[name]) / 2 for name, tensor in first.items()}
    with pytest.raises(ValueError, match="on one line"):
        plane_coordinates(first, second, middle)


def test_grid_holds_the_networks_and_reaches_beyond_them():
    model_a, model_b = trained_pair("resnet8", 0.25)
    train, test = digits()
    states = (model_a.state_dict(), model_b.state_dict(), untrained_state())
    before = snapshot(model_a)
    grid = plane_grid(model_a, states, test[:1], resolution=3, margin=0.1, train_batches=train[:3])
    assert same(before, snapshot(model_a))
    assert len(grid.xs) == len(grid.ys) == len(grid.losses) == len(grid.losses[0]) == len(grid.errors) == 3
    for axis in (0, 1):
        values = [point[axis] for point in grid.coordinates]
        extent = max(values) - min(values)
        line = (grid.xs, grid.ys)[axis]
        assert line[0] == pytest.approx(min(values) - 0.1 * extent)
        assert line[-1] == pytest.approx(max(values) + 0.1 * extent)
    expected = evaluate(reset_batchnorm(model_b, train[:3]), test[:1])
    assert grid.network_errors[1] == pytest.approx(100 - expected.accuracy, abs=0.6)
    assert grid.network_losses[1] == pytest.approx(expected.loss, rel=1e-3)
    assert grid.network_errors[0] < 15 < 50 < grid.network_errors[2]


def untrained_state():
    torch.manual_seed(9)
    return build_model("resnet8", width=0.25, in_channels=1).state_dict()


def test_rows_are_y_and_columns_are_x():
    model = small_model("mlp")
    states = states_of("mlp")
    batches = random_batches(1)
    grid = plane_grid(model, states, batches, resolution=2, margin=0, correction="none")
    coordinates = plane_coordinates(*states)
    model.load_state_dict(plane_state(states, coordinates, grid.xs[1], grid.ys[0]))
    assert grid.losses[0][1] == pytest.approx(evaluate(model, batches).loss, rel=1e-5)
    assert grid.losses[0][0] == pytest.approx(grid.network_losses[0], rel=1e-5)


def test_requests_that_cannot_be_met():
    model, states, batches = small_model("resnet8"), states_of(), random_batches()
    with pytest.raises(ValueError, match="resolution must be at least 2"):
        plane_grid(model, states, batches, resolution=1)
    with pytest.raises(ValueError, match="margin"):
        plane_grid(model, states, batches, margin=-0.1)
    with pytest.raises(ValueError, match="unknown correction of a plane 'repair'"):
        plane_grid(model, states, batches, correction="repair")
    with pytest.raises(ValueError, match="needs train_batches"):
        plane_grid(model, states, batches)
    with pytest.raises(ValueError, match="one-shot"):
        plane_grid(model, states, iter(batches))


def test_reset_without_batchnorm_warns_once():
    with pytest.warns(NoEffectWarning, match="MLP") as caught:
        plane_grid(
            small_model("mlp"), states_of("mlp"), random_batches(1), resolution=2, train_batches=random_batches(1)
        )
    assert len(caught) == 1
