"""Recipes by name: how networks are trained, independently of the question.

``paper`` follows the paper's tables for CIFAR, which are the defaults of ``trainables.knobs``; ``paper_imagenet``
follows its tables for ImageNet. ``paper_code`` follows the released code and depends on the model. ``short`` shows the
ordering of the methods in a tenth of the epochs. On the command line ``--set recipe=short`` sets all knobs of a recipe
at once, except those that the space itself varies; later ``--set`` options override them. The rewind epochs belong to
the space: with fewer epochs, set them, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trainables.knobs import SETTINGS

PAPER: dict[str, Any] = {name: knob.default for name, knob in SETTINGS.items() if knob.recipe}

PAPER_CODE: dict[str, Any] = {
    **PAPER,
    # The code reads the pruning optimiser's settings from a section that its configurations lack, so it is plain SGD.
    "imp_momentum": 0.0,
    "imp_weight_decay": 0.0,
    # "Epoch k" is saved after k + 1 epochs; sparse training still lasts for 200 - k.
    "rewind_offset": 1,
    # Pruning stops within half a point of the target: a nominal 95 % is 94.5 %.
    "prune_tolerance": 0.005,
    # The third residual stream is observed after the second of its three blocks.
    "stream_taps": "paper_code",
    # All training images, shuffled and augmented.
    "match_images": 0,
    "match_augment": True,
}

PAPER_IMAGENET: dict[str, Any] = {
    **PAPER,
    # Paper, tables 3 and 4. Schedule and torchvision's initialisation are the code's: steps at epochs 31 and 62 with a
    # warm-up, restarted for sparse nets, and a constant learning rate in pruning rounds.
    "epochs": 80,
    "batch_size": 1024,
    "lr": 0.4,
    "sparse_lr": 0.4,
    "weight_decay": 1e-4,
    "schedule": "steps_paper_code",
    "warmup_epochs": 5.0,
    "init": "fan_out",
    "imp_epochs": 20,
    "imp_lr": 0.04,
    "imp_schedule": "constant",
    "imp_weight_decay": 1e-4,
    "match_images": 25_600,
}

PAPER_CODE_IMAGENET: dict[str, Any] = {
    **PAPER_IMAGENET,
    "epochs": 90,
    "batch_size": 256,
    # The code divides its learning rates of 0.4 and 0.02 by ten before it applies them.
    "lr": 0.04,
    "sparse_lr": 0.04,
    "imp_lr": 0.002,
    # "Epoch k" is saved after k + 1 epochs; here sparse training lasts for 89 - k.
    "rewind_offset": 1,
    "rewind_offset_counts": True,
    "prune_tolerance": 0.005,
    # 50 batches, shuffled and augmented.
    "match_images": 12_800,
    "match_augment": True,
}

SHORT: dict[str, Any] = {
    **PAPER,
    # Stronger weight decay keeps learning rate x weight decay x steps at the paper's value (1.6). Otherwise training
    # does not forget the initialisation: the largest weights are those that were initialised large, and no permutation
    # can align the masks of two nets.
    "weight_decay": 2e-3,
    "epochs": 20,
    "schedule": "one_cycle",
    "warmup_epochs": 2.0,
    "lr": 0.2,
    "sparse_lr": 0.1,
    "imp_epochs": 2,
    "imp_lr": 0.02,
}

RECIPES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper_code": PAPER_CODE,
    "paper_imagenet": PAPER_IMAGENET,
    "short": SHORT,
}

_ONE_TAP = {**PAPER_CODE, "stream_taps": "end"}
_OF_MODEL: dict[str, dict[str, dict[str, Any]]] = {
    "paper_code": {
        "resnet8": _ONE_TAP,
        "mlp": _ONE_TAP,
        # The code's tolerance for VGG11, less than five weights: it prunes to the target itself.
        "vgg11": {**_ONE_TAP, "prune_tolerance": 5e-7},
        "vgg11_bn": {**_ONE_TAP, "prune_tolerance": 5e-7},
        "resnet50": PAPER_CODE_IMAGENET,
    }
}
"""Recipe -> model -> the settings for that model, where they differ from ``RECIPES``."""


def recipe(name: str, models: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a recipe for the models of a space.

    Raises:
        ValueError: the models have different settings under this recipe.
    """
    models = list(models)
    first, *others = (_OF_MODEL.get(name, {}).get(model, RECIPES[name]) for model in models)
    if any(other != first for other in others):
        raise ValueError(f"recipe {name!r} is not the same for models {', '.join(models)}: run a study of each")
    return first
