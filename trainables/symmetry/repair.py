"""Corrections of interpolated networks: BatchNorm reset and REPAIR.

Averaging the weights of two networks shrinks the variance of the hidden activations ("variance collapse", Jordan et
al., 2023). Two remedies, neither of which trains anything: re-estimate BatchNorm's statistics, or rescale every channel
so that its mean and standard deviation are the interpolation of the end points' (REPAIR).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.symmetry.moments import DEAD_RATIO, UnitMoments, positions
from trainables.symmetry.permutations import require_plain_weights
from trainables.training.evaluation import Batches, eval_mode, image_batches, model_device, require_reiterable

NORM_BEHIND: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
"""Layer with its output channels on axis 0 of the weight -> the BatchNorm that normalises its output."""
FUSIBLE = tuple(NORM_BEHIND)
EPSILON = 1e-12
"""Epsilon of BatchNorm while REPAIR measures: far below any variance that matters, above that of rounding errors."""
NO_BATCHES = "estimating activation statistics needs at least one batch, got none"


class NoEffectWarning(UserWarning):
    """A step that was asked for changes nothing."""


def reset_batchnorm(model: nn.Module, batches: Batches) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm layer.

    They become the mean and the unbiased variance of the layer's inputs over all samples and pixels together, where the
    layers before it normalise by their own statistics over all samples. That is what PyTorch computes in train mode on
    one batch of everything, and it depends neither on how the samples are batched nor on their order. Dropout and
    whatever else tells training from evaluation runs in eval mode.

    Args:
        model: left as it is.
        batches: images (N, C, H, W), labels ignored; training data, usually. Several batches are passed over once for
            each layer, up to that layer; a single batch is passed over once.

    Returns:
        A copy of `model` with new running means, variances and counts of batches; weights, momentum and mode are the
        model's. Without BatchNorm layers it is a plain copy, with a `NoEffectWarning`.

    Raises:
        ValueError: no batches, batches that can be read only once, or a BatchNorm layer that runs twice.
    """
    require_reiterable(batches, "reset_batchnorm()")
    require_plain_weights(model)
    result = copy.deepcopy(model)
    layers = batchnorm_layers(result)
    if not layers:
        warn_no_batchnorm(model)
        return result
    recompute_statistics(result, layers, batches)
    return result


def warn_no_batchnorm(model: nn.Module) -> None:
    """Warn that a BatchNorm reset of `model` changes nothing."""
    message = (
        f"{type(model).__name__} has no BatchNorm layers: resetting them changes nothing (try correction 'repair')"
    )
    warnings.warn(message, NoEffectWarning, stacklevel=3)


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of `model` that keep running statistics, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def recompute_statistics(model: nn.Module, layers: Iterable[_BatchNorm], batches: Batches) -> None:
    """Re-estimate, in place, the running statistics of `layers`, see `reset_batchnorm`.

    Each pass measures the first layer on the way that has no statistics yet, and goes no further: the layers behind it
    need them for all samples. Where one batch is everything, a single pass goes on through all layers.
    """
    waiting = dict.fromkeys(layers)
    single = len(list(itertools.islice(batches, 2))) == 1
    ran: set[_BatchNorm] = set()
    collected = UnitMoments()
    counts: dict[_BatchNorm, int] = {}
    reached: _BatchNorm | None = None

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal collected, reached
        assert isinstance(layer, _BatchNorm)
        if layer in ran:
            raise ValueError("a BatchNorm layer that runs twice has no statistics of its own")
        ran.add(layer)
        if layer not in waiting:
            return
        reached = layer
        collected.update(positions(inputs[0]))
        if not single:
            raise _FarEnough
        settle()

    def settle() -> None:
        """Give the layer that was measured its statistics; biased until all are known, as in train mode."""
        nonlocal collected, reached
        assert reached is not None
        _set_statistics(reached, collected.mean(), collected.variance())
        counts[reached] = collected.count
        del waiting[reached]
        collected, reached = UnitMoments(), None

    for layer in waiting:
        layer.reset_running_stats()
    with ExitStack() as hooks, eval_mode(model, *waiting), torch.no_grad():
        for layer in waiting:
            hooks.callback(layer.register_forward_pre_hook(measure).remove)
        while waiting:
            passed = 0
            for images in image_batches(batches, model_device(model)):
                ran.clear()
                with contextlib.suppress(_FarEnough):
                    model(images)
                passed += 1
            if not passed:
                raise ValueError(NO_BATCHES)
            for layer in counts.keys() if reached is None else (reached,):
                if layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.fill_(passed)
            if reached is None:
                break  # all layers that run are measured; the others keep the statistics of a new layer
            settle()
    for layer, count in counts.items():
        assert layer.running_var is not None
        layer.running_var.mul_(count / max(count - 1, 1))


class _FarEnough(Exception):
    """The layer that this pass measures has been reached."""


def _set_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


def _pass(model: nn.Module, batches: Batches) -> None:
    """Run all images through `model`, for what its layers and hooks see."""
    passed = False
    with torch.no_grad():
        for images in image_batches(batches, model_device(model)):
            model(images)
            passed = True
    if not passed:
        raise ValueError(NO_BATCHES)


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel of one layer, over samples and pixels: float64 (channels,)."""

    mean: Tensor
    std: Tensor


def repair(
    model_interp: nn.Module, model_a: nn.Module, model_b: nn.Module, alpha: float, batches: Batches
) -> nn.Module:
    """Undo the variance collapse of an interpolated network (REPAIR, Jordan et al., 2023, section 4).

    Every channel of every pre-activation gets the mean ``(1 - alpha) * mean_A + alpha * mean_B`` and the standard
    deviation (not variance) mixed likewise. Where a layer ends in BatchNorm, the channel is BatchNorm's output, and its
    affine parameters take the targets; elsewhere a BatchNorm that holds the targets is put behind the convolution or
    linear layer for one pass, and then fused into its weight and bias. In that pass each layer sees inputs that are
    corrected already. The classifier (the last linear or convolutional layer to run) stays as it is. Weights that are
    zero remain zero, so a mask still holds.

    The targets are met however the images are batched.

    Args:
        model_interp: the interpolated network; no model is changed.
        model_a: end point at alpha = 0: permuted already, if it was for the interpolation.
        model_b: end point at alpha = 1.
        alpha: where between the end points `model_interp` lies, in [0, 1].
        batches: images (N, C, H, W), labels ignored, training data usually; passed over as in `reset_batchnorm`, and
            twice more.

    Returns:
        A corrected copy of `model_interp` with the same architecture and names of tensors.

    Raises:
        ValueError: alpha out of range, batches that are empty or can be read only once, or a layer that has neither
            BatchNorm nor a bias to take up the shift.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    require_reiterable(batches, "repair()")
    require_plain_weights(model_interp)
    require_plain_weights(model_a)
    require_plain_weights(model_b)
    result = copy.deepcopy(model_interp)
    points = repair_points(result, batches)
    targets = mix_statistics(
        channel_statistics(model_a, points, batches), channel_statistics(model_b, points, batches), alpha
    )
    repair_in_place(result, targets, batches)
    return result


def repair_points(model: nn.Module, batches: Batches) -> tuple[str, ...]:
    """Find the layers whose output REPAIR corrects, in the order in which they run.

    They are the BatchNorm layers, and the convolutions and linear layers that do not feed one directly, except for the
    last: the classifier. Which layer feeds which is seen in one forward pass, so any architecture will do.

    Raises:
        ValueError: no batches, a layer that runs twice, or one that has neither BatchNorm nor a bias.
    """
    ran: list[str] = []
    sources: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, lest their ids are given to others
    normalised: set[str] = set()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ran.append(name)
            sources[id(output)] = (name, output)
            if isinstance(module, _BatchNorm) and id(inputs[0]) in sources:
                normalised.add(sources[id(inputs[0])][0])

        return hook

    watched: tuple[type[nn.Module], ...] = (_BatchNorm, *FUSIBLE)
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, watched)
    }
    with ExitStack() as hooks, torch.no_grad(), eval_mode(model):
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(watch(name)).remove)
        for images in image_batches(batches, model_device(model)):
            model(images[:2])
            break
    if not ran:
        raise ValueError("REPAIR needs at least one batch and a network with convolutional or linear layers")
    if len(set(ran)) < len(ran):
        raise ValueError(f"layers that run twice cannot be corrected: {', '.join(sorted(set(_repeated(ran))))}")
    classifier = next(name for name in reversed(ran) if isinstance(layers[name], FUSIBLE))
    points = tuple(name for name in ran if name not in normalised and name != classifier)
    for name in points:
        if getattr(layers[name], "bias", None) is None and not isinstance(layers[name], _BatchNorm):
            raise ValueError(f"layer {name!r} has neither BatchNorm nor a bias: REPAIR cannot shift its output")
    return points


def _repeated(names: Sequence[str]) -> Iterator[str]:
    return (name for index, name in enumerate(names) if name in names[:index])


def channel_statistics(model: nn.Module, points: Iterable[str], batches: Batches) -> dict[str, ChannelStatistics]:
    """Measure the outputs of the modules `points` in eval mode: name -> mean and standard deviation per channel."""
    moments = {name: UnitMoments() for name in points}

    def watch(collected: UnitMoments) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            collected.update(positions(output))

        return hook

    with ExitStack() as hooks, eval_mode(model):
        for name, collected in moments.items():
            hooks.callback(model.get_submodule(name).register_forward_hook(watch(collected)).remove)
        _pass(model, batches)
    return {
        name: ChannelStatistics(mean=collected.mean(), std=collected.variance().sqrt())
        for name, collected in moments.items()
    }


def mix_statistics(
    first: Mapping[str, ChannelStatistics], second: Mapping[str, ChannelStatistics], alpha: float
) -> dict[str, ChannelStatistics]:
    """Interpolate means and standard deviations: `first` at alpha = 0, `second` at alpha = 1."""
    return {
        name: ChannelStatistics(
            mean=torch.lerp(statistics.mean, second[name].mean.to(statistics.mean.device), alpha),
            std=torch.lerp(statistics.std, second[name].std.to(statistics.std.device), alpha),
        )
        for name, statistics in first.items()
    }


def repair_in_place(model: nn.Module, targets: Mapping[str, ChannelStatistics], batches: Batches) -> None:
    """Give the channels of `model`'s repair points the statistics `targets`, measured on `batches`."""
    norms: dict[str, _BatchNorm] = {}
    # BatchNorm's usual epsilon would leave a collapsed channel short of its target, and the layers after it see that.
    epsilons = {name: layer.eps for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    with ExitStack() as hooks, torch.no_grad():
        for name, target in targets.items():
            layer = model.get_submodule(name)
            if isinstance(layer, _BatchNorm):
                norms[name] = layer
            else:
                norms[name] = _norm_behind(layer)
                hooks.callback(layer.register_forward_hook(_through(norms[name])).remove)
            _set_output_statistics(norms[name], target)
            norms[name].eps = EPSILON
        recompute_statistics(model, norms.values(), batches)
    for name, norm in norms.items():
        layer = model.get_submodule(name)
        if layer is norm:
            _restore_epsilon(norm, epsilons[name])
        else:
            _fuse(layer, norm)


def _norm_behind(layer: nn.Module) -> _BatchNorm:
    norm = next(norm for kind, norm in NORM_BEHIND.items() if isinstance(layer, kind))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return norm(weight.shape[0], device=weight.device, dtype=weight.dtype)


def _through(norm: _BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = norm(output)
        return result

    return hook


def _set_output_statistics(norm: _BatchNorm, target: ChannelStatistics) -> None:
    if norm.affine:
        # A standard deviation has no sign, but a channel whose BatchNorm weight is negative must not be flipped.
        norm.weight.copy_(norm.weight.sign() * target.std)
        norm.bias.copy_(target.mean)


def _restore_epsilon(norm: _BatchNorm, epsilon: float) -> None:
    """Put `epsilon` back into `norm` without changing what it computes in eval mode."""
    if norm.affine:
        with torch.no_grad():
            norm.weight.mul_(_inverse_deviation(norm) / _inverse_deviation(norm, epsilon))
    norm.eps = epsilon


def _fuse(layer: nn.Module, norm: _BatchNorm) -> None:
    """Fold the affine map that `norm` applies in eval mode into `layer` before it."""
    weight, bias, mean = layer.weight, layer.bias, norm.running_mean
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    assert mean is not None
    with torch.no_grad():
        scale = torch.where(_varies(norm), norm.weight * _inverse_deviation(norm), 1.0)
        bias.copy_((bias - mean) * scale + norm.bias)
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))


def _inverse_deviation(norm: _BatchNorm, epsilon: float | None = None) -> Tensor:
    """Return what `norm` multiplies each channel by before its own weight; 1 where there is nothing to scale."""
    assert norm.running_var is not None
    inverse = (norm.running_var + (norm.eps if epsilon is None else epsilon)).rsqrt()
    return torch.where(_varies(norm), inverse, 1.0)


def _varies(norm: _BatchNorm) -> Tensor:
    """Return which channels vary by more than rounding: the others have no scale to correct, only a mean to set."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_var > (DEAD_RATIO * norm.running_mean).square()
