"""Corrections of interpolated networks: BatchNorm reset and REPAIR.

Averaging the weights of two networks shrinks the variance of the hidden activations ("variance collapse", Jordan et
al., 2023). Two remedies work without training: re-estimate BatchNorm's statistics, or rescale every channel so that its
mean and standard deviation interpolate those of the end points (REPAIR).
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.checks import known
from trainables.knobs import CORRECTIONS
from trainables.symmetry.moments import DEAD_RATIO, UnitMoments, positions
from trainables.symmetry.permutations import require_plain_weights
from trainables.symmetry.resumable import Pause, ResumablePasses
from trainables.training.evaluation import Batches, eval_mode, image_batches, model_device, observed, require_reiterable

NORM_BEHIND: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
"""Layer type (output channels on axis 0 of the weight) -> BatchNorm type that normalises its output."""
FUSIBLE = tuple(NORM_BEHIND)
MEASURED: tuple[type[nn.Module], ...] = (_BatchNorm, *FUSIBLE)
"""Types of the layers whose statistics a correction measures."""
EPSILON = 1e-12
"""BatchNorm's epsilon while REPAIR measures: far below any variance that matters, above that of rounding errors."""
ChannelStatistics = dict[str, tuple[Tensor, Tensor]]
"""Layer -> mean and standard deviation of each channel over samples and pixels, both float64 (channels,)."""


class NoEffectWarning(UserWarning):
    """A requested correction changes nothing."""


def reset_batchnorm(model: nn.Module, batches: Batches) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm layer.

    The new statistics are the mean and the unbiased variance of the layer's inputs over all samples and pixels, with
    every earlier layer normalising by its own new statistics. PyTorch computes the same in train mode on a single batch
    of all samples. The result depends on neither the batch size nor the order of the samples. Dropout and other layers
    that behave differently in training run in eval mode.

    Args:
        model: not changed.
        batches: images (N, C, H, W), labels ignored; usually training data. They are read several times if their
            activations take too much memory together (see `trainables.symmetry.resumable`).

    Returns:
        A copy of `model` with new running means, variances and batch counts; weights, momentum and mode are the same.
        Without BatchNorm layers it is a plain copy, with a `NoEffectWarning`.

    Raises:
        ValueError: no batches, batches that can be read only once, or a BatchNorm layer that runs twice.
    """
    require_plain_weights(model)
    result = copy.deepcopy(model)
    corrector("bn_reset", result, batches)(0)
    return result


def corrector(
    correction: str, worker: nn.Module, batches: Batches | None, ends: Sequence[Mapping[str, Tensor]] = ()
) -> Callable[[float], None]:
    """Return a function of alpha that corrects `worker` in place, after it has loaded the weights to correct.

    Args:
        correction: a name in `trainables.knobs.CORRECTIONS`.
        worker: the network; "repair" leaves other weights in it.
        batches: training images on which the correction estimates its statistics; not needed for "none".
        ends: states of the end points at alpha = 0 and 1; only "repair" needs them.

    Raises:
        ValueError: an unknown correction, or batches that are missing or can be read only once.
    """
    known("correction", correction, CORRECTIONS)
    if correction == "none":
        return lambda _alpha: None
    if batches is None:
        raise ValueError(f"correction {correction!r} needs train_batches, got None")
    require_reiterable(batches, f"correction {correction!r}")
    if correction == "repair":
        points = repair_points(worker, batches)

        def measured(state: Mapping[str, Tensor]) -> ChannelStatistics:
            worker.load_state_dict(state)
            return channel_statistics(worker, points, batches)

        first, second = map(measured, ends)
        passes = ResumablePasses(worker, batches, MEASURED)
        return lambda alpha: _repair_in_place(worker, mix_statistics(first, second, alpha), passes)
    layers = batchnorm_layers(worker)
    if not layers:
        name = type(worker).__name__
        message = f"{name} has no BatchNorm layers: resetting them changes nothing (try correction 'repair')"
        warnings.warn(message, NoEffectWarning, stacklevel=3)
        return lambda _alpha: None
    _require_single_runs(worker, layers, batches)
    passes = ResumablePasses(worker, batches, MEASURED)
    return lambda _alpha: _recompute_statistics(worker, layers, passes)


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of `model` that keep running statistics, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def _require_single_runs(model: nn.Module, layers: Collection[nn.Module], batches: Batches) -> None:
    """Raise ValueError if one of `layers` runs twice in a forward pass."""
    runs: Counter[str] = Counter()
    names = [name for name, module in model.named_modules() if module in layers]
    with torch.no_grad(), eval_mode(model), observed(model, names, lambda name, *_: runs.update([name])):
        for images in image_batches(batches, model_device(model)):
            model(images[:2])
            break
    if twice := [name for name, count in runs.items() if count > 1]:
        raise ValueError(f"a BatchNorm layer that runs twice has no statistics of its own: {', '.join(twice)}")


def _recompute_statistics(model: nn.Module, layers: Collection[_BatchNorm], passes: ResumablePasses) -> None:
    """Re-estimate the running statistics of `layers` in place, see `reset_batchnorm`.

    All passes pause at the first layer without new statistics and measure its input there, because that layer needs
    its statistics over all samples before it runs.
    """
    waiting: set[nn.Module] = set(layers)
    moments: dict[nn.Module, UnitMoments] = {}
    counts: dict[nn.Module, int] = {}

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer in waiting:
            moments.setdefault(layer, UnitMoments()).update(positions(inputs[0]))
            raise Pause

    with ExitStack() as hooks, eval_mode(model, *layers), torch.no_grad():
        passes.begin()
        hooks.callback(passes.forget)
        for layer in layers:
            layer.reset_running_stats()
            hooks.callback(layer.register_forward_pre_hook(measure).remove)
        while waiting:
            batches = passes.run()
            if not batches:
                raise ValueError("estimating activation statistics needs at least one batch, got none")
            if not moments:
                break  # all layers that run are measured; layers that never run keep the statistics of a new layer
            # The variance is biased until all layers are known, as in train mode.
            measured, collected = moments.popitem()
            measured.get_buffer("running_mean").copy_(collected.mean())
            measured.get_buffer("running_var").copy_(collected.variance())
            counts[measured] = collected.count
            waiting.remove(measured)
        for layer in layers:
            if layer in counts:
                layer.get_buffer("running_var").mul_(counts[layer] / max(counts[layer] - 1, 1))
                if layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.fill_(batches)


def repair(
    model_interp: nn.Module, model_a: nn.Module, model_b: nn.Module, alpha: float, batches: Batches
) -> nn.Module:
    """Undo the variance collapse of an interpolated network (REPAIR, Jordan et al., 2023, section 4).

    Every channel of every pre-activation gets the mean ``(1 - alpha) * mean_A + alpha * mean_B`` and the standard
    deviation (not the variance) mixed likewise. Behind a layer with BatchNorm, BatchNorm's affine parameters take these
    targets. Behind any other convolution or linear layer, a temporary BatchNorm takes them and is then fused into the
    layer's weight and bias. Statistics are measured with all earlier layers corrected already. The classifier (the last
    linear or convolutional layer to run) is not corrected. Zero weights remain zero, so a mask still holds. The result
    does not depend on the batch size.

    Args:
        model_interp: the interpolated network; no model is changed.
        model_a: end point at alpha = 0; permuted, if it was permuted for the interpolation.
        model_b: end point at alpha = 1.
        alpha: position of `model_interp` between the end points, in [0, 1].
        batches: images (N, C, H, W), labels ignored; usually training data. They are read as in `reset_batchnorm`, and
            once more for each end point.

    Returns:
        A corrected copy of `model_interp` with the same architecture and tensor names.

    Raises:
        ValueError: alpha out of range, batches that are empty or can be read only once, a layer that runs twice, or one
            that has neither BatchNorm nor a bias to take up the shift.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    for model in (model_interp, model_a, model_b):
        require_plain_weights(model)
    result = copy.deepcopy(model_interp)
    correct = corrector("repair", result, batches, (model_a.state_dict(), model_b.state_dict()))
    result.load_state_dict(model_interp.state_dict())
    correct(alpha)
    return result


def repair_points(model: nn.Module, batches: Batches) -> tuple[str, ...]:
    """Find the layers whose output REPAIR corrects, in the order in which they run.

    They are the BatchNorm layers, and every convolution or linear layer that does not feed a BatchNorm layer directly,
    except the last one (the classifier). A forward pass shows which layer feeds which, so any architecture will do.

    Raises:
        ValueError: no batches, a layer that runs twice, or one that has neither BatchNorm nor a bias.
    """
    ran: list[str] = []
    sources: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive: the ids of freed ones are reused
    normalised: set[str] = set()

    def watch(name: str, x: Tensor, output: Tensor) -> None:
        ran.append(name)
        sources[id(output)] = (name, output)
        if isinstance(layers[name], _BatchNorm) and id(x) in sources:
            normalised.add(sources[id(x)][0])

    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, MEASURED)
    }
    with torch.no_grad(), eval_mode(model), observed(model, layers, watch):
        for images in image_batches(batches, model_device(model)):
            model(images[:2])
            break
    if not ran:
        raise ValueError("REPAIR needs at least one batch and a network with convolutional or linear layers")
    if twice := sorted({name for name in ran if ran.count(name) > 1}):
        raise ValueError(f"layers that run twice cannot be corrected: {', '.join(twice)}")
    classifier = next(name for name in reversed(ran) if isinstance(layers[name], FUSIBLE))
    points = tuple(name for name in ran if name not in normalised and name != classifier)
    for name in points:
        if getattr(layers[name], "bias", None) is None and not isinstance(layers[name], _BatchNorm):
            raise ValueError(f"layer {name!r} has neither BatchNorm nor a bias: REPAIR cannot shift its output")
    return points


def channel_statistics(model: nn.Module, points: Iterable[str], batches: Batches) -> ChannelStatistics:
    """Measure the outputs of the modules `points` in eval mode."""
    moments = {name: UnitMoments() for name in points}

    def watch(name: str, _input: Tensor, output: Tensor) -> None:
        moments[name].update(positions(output))

    with torch.no_grad(), eval_mode(model), observed(model, moments, watch):
        for images in image_batches(batches, model_device(model)):
            model(images)
    return {name: (collected.mean(), collected.variance().sqrt()) for name, collected in moments.items()}


def mix_statistics(first: ChannelStatistics, second: ChannelStatistics, alpha: float) -> ChannelStatistics:
    """Interpolate means and standard deviations: `first` at alpha = 0, `second` at alpha = 1."""

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        return torch.lerp(one, other.to(one.device), alpha)

    return {name: (mixed(mean, second[name][0]), mixed(std, second[name][1])) for name, (mean, std) in first.items()}


def _repair_in_place(model: nn.Module, targets: ChannelStatistics, passes: ResumablePasses) -> None:
    """Give the channels of `model`'s repair points the statistics `targets`, measured in `passes`."""
    own = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    behind = {name: _norm_behind(model.get_submodule(name)) for name in targets if name not in own}
    norms = {name: behind[name] if name in behind else own[name] for name in targets}
    # With BatchNorm's usual epsilon, a collapsed channel would miss its target, and later layers would see that.
    epsilons = {name: norm.eps for name, norm in norms.items()}
    with torch.no_grad(), observed(model, behind, lambda name, _input, output: behind[name](output)):
        for name, (mean, std) in targets.items():
            norm = norms[name]
            norm.eps = EPSILON
            if norm.affine:
                # A standard deviation has no sign; keep the BatchNorm weight's sign, or the channel would be flipped.
                norm.weight.copy_(norm.weight.sign() * std)
                norm.bias.copy_(mean)
        _recompute_statistics(model, norms.values(), passes)
        for name, norm in norms.items():
            if name in behind:
                _fuse(model.get_submodule(name), norm)
            else:
                _restore_epsilon(norm, epsilons[name])


def _norm_behind(layer: nn.Module) -> _BatchNorm:
    norm = next(norm for kind, norm in NORM_BEHIND.items() if isinstance(layer, kind))
    weight = layer.get_parameter("weight")
    return norm(weight.shape[0], device=weight.device, dtype=weight.dtype)


def _restore_epsilon(norm: _BatchNorm, epsilon: float) -> None:
    """Put `epsilon` back into `norm` without changing what it computes in eval mode."""
    if norm.affine:
        norm.weight.mul_(_inverse_deviation(norm, norm.eps) / _inverse_deviation(norm, epsilon))
    norm.eps = epsilon


def _fuse(layer: nn.Module, norm: _BatchNorm) -> None:
    """Fold the affine map that `norm` applies in eval mode into `layer` before it."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    scale = torch.where(_varies(norm), norm.weight * _inverse_deviation(norm, norm.eps), 1.0)
    bias.copy_((bias - norm.get_buffer("running_mean")) * scale + norm.bias)
    weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))


def _inverse_deviation(norm: _BatchNorm, epsilon: float) -> Tensor:
    """Return the factor by which `norm` normalises each channel; 1 for channels that do not vary."""
    return torch.where(_varies(norm), (norm.get_buffer("running_var") + epsilon).rsqrt(), 1.0)


def _varies(norm: _BatchNorm) -> Tensor:
    """Return which channels vary by more than rounding; the others have a mean to correct but no scale."""
    return norm.get_buffer("running_var") > (DEAD_RATIO * norm.get_buffer("running_mean")).square()
