"""The networks of the study: a table of facts that needs no torch, and the function that builds them.

Only :func:`build_model` imports torch, so a plan can name, check and cost models without it. A new model takes one
file beside this one and one entry in ``MODELS``; the tests run over that table.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from trainables.checks import known

if TYPE_CHECKING:
    from trainables.models.network import Network

MIN_WIDTH, MAX_WIDTH = 0.25, 32.0
SHORTCUT_KERNELS: dict[str, int] = {"conv3x3": 3, "conv1x1": 1}
"""Kind of shortcut -> the side of its convolution's kernel."""
SHORTCUTS: dict[str, str] = {
    "conv3x3": "3 x 3 (the paper's code)",
    "conv1x1": "1 x 1 (the usual one)",
}
STREAM_TAPS: dict[str, str] = {
    "end": "at the end of each stage",
    "paper_code": "the third one after the second block of its stage, as in the paper's code",
}
INITS: dict[str, str] = {
    "default": "the model's own",
    "fan_in": "convolutions and linear layers from N(0, 2 / fan-in) (the paper's code for ResNet20)",
    "fan_out": "convolutions from N(0, 2 / fan-out), linear layers as in PyTorch (torchvision's ResNets)",
    "pytorch": "as PyTorch initialises its layers (the paper's code for VGG11)",
}
"""Initialisation -> the distribution it draws the weights of a new network from."""
SMALL_IMAGE = 64
"""Largest side, in pixels, of an image that counts as small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """Facts about a model that are known without building it.

    Attributes:
        description: one line for listings.
        module: module of this package whose function of the model's name builds it; imported only for that.
        base_channels: channel counts of the hidden layers at width 1; a valid width makes all of them whole numbers.
        mult_adds: multiply-adds of the convolutions and linear layers for one RGB image at width 1 with the default
            options and 10 classes; proportional to about width squared times the image's area.
        inner_weights: prunable weights at width 1 between the first layer and the classifier; proportional to width
            squared.
        corrected_layers: layers whose statistics a correction measures: all with BatchNorm, or in a network without it
            all but the classifier.
        shortcut_weights: weights of 1x1 shortcut convolutions at width 1; proportional to width squared.
        first_kernel: side of the first convolution's kernel.
        reference_image_size: side in pixels of the image that `mult_adds` assumes.
        init: the name in ``INITS`` of the model's own initialisation.
        convolutional: whether the model has convolutions.
        batchnorm: whether it has BatchNorm.
        options: architecture option -> its allowed values; the factory holds the default.
    """

    description: str
    module: str
    base_channels: tuple[int, ...]
    mult_adds: int
    inner_weights: int
    corrected_layers: int
    shortcut_weights: int = 0
    first_kernel: int = 3
    reference_image_size: int = 32
    init: str = "pytorch"
    convolutional: bool = True
    batchnorm: bool = True
    options: Mapping[str, Sequence[object]] = field(default_factory=dict)


MODELS: dict[str, ModelEntry] = {
    "resnet20": ModelEntry(
        description="CIFAR ResNet with 3 stages of 3 basic blocks (the paper's)",
        module="resnet",
        base_channels=(16, 32, 64),
        mult_adds=42_910_336,
        inner_weights=267_264,
        corrected_layers=21,
        shortcut_weights=2_560,
        init="fan_in",
        options={"shortcut": tuple(SHORTCUTS), "stream_taps": tuple(STREAM_TAPS)},
    ),
    "resnet8": ModelEntry(
        description="the same family with 1 basic block per stage, for quick experiments on small images",
        module="resnet",
        base_channels=(16, 32, 64),
        mult_adds=14_598_784,
        inner_weights=73_728,
        corrected_layers=9,
        shortcut_weights=2_560,
        init="fan_in",
        options={"shortcut": tuple(SHORTCUTS)},
    ),
    "vgg11": ModelEntry(
        description="VGG11 without BatchNorm, one linear layer (the paper's)",
        module="vgg",
        batchnorm=False,
        base_channels=(64, 128, 256, 512),
        mult_adds=152_769_536,
        inner_weights=9_216_000,
        corrected_layers=8,
    ),
    "vgg11_bn": ModelEntry(
        description="VGG11 with BatchNorm, one linear layer",
        module="vgg",
        base_channels=(64, 128, 256, 512),
        mult_adds=152_769_536,
        inner_weights=9_216_000,
        corrected_layers=8,
    ),
    "resnet50": ModelEntry(
        description="torchvision's ResNet50 (the paper's ImageNet net; init fan_out is torchvision's, too)",
        module="resnet",
        base_channels=(64, 128, 256, 512, 1024, 2048),
        mult_adds=4_087_156_736,
        inner_weights=20_676_608,
        corrected_layers=53,
        shortcut_weights=2_768_896,
        first_kernel=7,
        reference_image_size=224,
        init="fan_in",
        options={"small_images": (False, True)},
    ),
    "mlp": ModelEntry(
        description="3 hidden layers of 512 units on the flattened image",
        module="mlp",
        base_channels=(512,),
        mult_adds=2_102_272,
        inner_weights=524_288,
        corrected_layers=3,
        convolutional=False,
        batchnorm=False,
        options={"image_size": range(1, 513)},
    ),
}


def build_model(
    name: str,
    *,
    width: float = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    init: str = "default",
    **options: object,
) -> Network:
    """Build a freshly initialised network; the initialisation draws from torch's global random generator.

    Args:
        name: a name in ``MODELS``.
        width: multiplier of the hidden layers' channels, in [0.25, 32].
        num_classes: number of logits, at least 1.
        in_channels: channels of the images, at least 1.
        init: a name in ``INITS``.
        **options: architecture options of the model, see ``MODELS[name].options``.

    Returns:
        A module that maps images (N, in_channels, H, W) to logits (N, num_classes).

    Raises:
        ValueError: an unknown name or option, or a value out of bounds.
    """
    entry = model_entry(name)
    check_width(name, width)
    check_options(name, **options)
    for what, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count < 1:
            raise ValueError(f"{what} must be at least 1, got {count!r}")
    known("init", init, INITS)
    factory = getattr(importlib.import_module(f"{__name__}.{entry.module}"), name)
    model = cast("Network", factory(width=width, num_classes=num_classes, in_channels=in_channels, **options))
    if init not in ("default", entry.init):
        model.initialise(init)
    return model


def model_entry(name: str) -> ModelEntry:
    """Return the entry of `name`.

    Raises:
        ValueError: no such model; the message lists the known names and suggests the nearest.
    """
    known("model", name, MODELS)
    return MODELS[name]


def check_width(name: str, width: float) -> None:
    """Check that model `name` can be built at `width`.

    Raises:
        ValueError: a width outside [0.25, 32], or one that gives a layer a fraction of a channel; the message names
            the nearest valid widths.
    """
    step = Fraction(1, math.gcd(*model_entry(name).base_channels))
    if not MIN_WIDTH <= width <= MAX_WIDTH:  # also true of NaN
        nearest = [MIN_WIDTH if width < MIN_WIDTH else MAX_WIDTH]
        problem = "is out of bounds"
    elif (Fraction(width) / step).denominator != 1:
        below = math.floor(Fraction(width) / step) * step
        nearest = [float(below), float(below + step)]
        problem = "gives a layer a fraction of a channel"
    else:
        return
    raise ValueError(
        f"width {width!r} of model {name!r} {problem}: widths go from {MIN_WIDTH:g} to {MAX_WIDTH:g} in steps of "
        f"{step}; nearest: {' and '.join(f'{w:g}' for w in nearest)}"
    )


def image_options(name: str, image_size: int) -> dict[str, object]:
    """Return the options of model `name` that its images' side of `image_size` pixels determines."""
    options = model_entry(name).options
    follow: dict[str, object] = {"image_size": image_size, "small_images": image_size <= SMALL_IMAGE}
    return {option: value for option, value in follow.items() if option in options}


def check_options(name: str, **options: object) -> None:
    """Check architecture options of model `name`.

    Raises:
        ValueError: an option that the model does not have, or a value that the option does not take.
    """
    taken = model_entry(name).options
    for option, value in options.items():
        if option not in taken:
            raise ValueError(f"model {name!r} has no option {option!r}; its options: {', '.join(taken) or 'none'}")
        allowed = taken[option]
        if type(value) is not type(allowed[0]) or value not in allowed:
            span = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(repr, allowed))
            raise ValueError(f"option {option} of model {name!r} cannot be {value!r}; it takes: {span}")
