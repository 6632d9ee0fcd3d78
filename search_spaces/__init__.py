"""The search spaces by name. To add one, write a file that builds a ``SearchSpace`` and list it here."""

from __future__ import annotations

from search_spaces.ablations import EARLY_MATCHING, MASK_CONTROLS, MASK_TRANSFER, MATCH_IMAGES, MATCHER_ABLATION
from search_spaces.cifar10_two_cores import CIFAR10_TWO_CORES
from search_spaces.digits_quickstart import DIGITS_QUICKSTART
from search_spaces.function_space import ENSEMBLE_DIVERSITY, ENSEMBLE_DIVERSITY_CIFAR100, MODE_CONNECTIVITY
from search_spaces.other_architectures import RESNET50_IMAGENET_SWEEP, VGG11_REWIND_SWEEP
from search_spaces.recipes import RECIPES, recipe
from search_spaces.resnet20 import RESNET20_CIFAR100_WIDTH_SWEEP, RESNET20_WIDTH_SWEEP
from search_spaces.space import SearchSpace
from trainables.checks import known

SPACES: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        DIGITS_QUICKSTART,
        CIFAR10_TWO_CORES,
        RESNET20_WIDTH_SWEEP,
        RESNET20_CIFAR100_WIDTH_SWEEP,
        VGG11_REWIND_SWEEP,
        RESNET50_IMAGENET_SWEEP,
        EARLY_MATCHING,
        MATCHER_ABLATION,
        MATCH_IMAGES,
        MASK_CONTROLS,
        MASK_TRANSFER,
        MODE_CONNECTIVITY,
        ENSEMBLE_DIVERSITY,
        ENSEMBLE_DIVERSITY_CIFAR100,
    )
}


def get_space(name: str) -> SearchSpace:
    """Return the search space called `name`.

    Raises:
        ValueError: there is no such space; the message suggests the nearest name and lists all.
    """
    known("search space", name, SPACES)
    return SPACES[name]


__all__ = ["RECIPES", "SPACES", "SearchSpace", "get_space", "recipe"]
