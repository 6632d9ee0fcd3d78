"""The search spaces by name. To add one, build a ``SearchSpace`` in one of the files, or list a new file here."""

from __future__ import annotations

from collections.abc import Iterable

from search_spaces import (
    ablations,
    cifar10_two_cores,
    digits_quickstart,
    function_space,
    image_folder_study,
    other_architectures,
    resnet20,
)
from search_spaces.recipes import RECIPES, recipe
from search_spaces.space import SearchSpace
from trainables.checks import known

_FILES = (
    digits_quickstart,
    cifar10_two_cores,
    image_folder_study,
    resnet20,
    other_architectures,
    ablations,
    function_space,
)
"""The files of spaces, in the order of listings."""


def by_name(spaces: Iterable[SearchSpace]) -> dict[str, SearchSpace]:
    """Return spaces by name.

    Raises:
        ValueError: two spaces have one name: the later one would be run in the study of the earlier one.
    """
    found: dict[str, SearchSpace] = {}
    for space in spaces:
        if found.setdefault(space.name, space) is not space:
            raise ValueError(f"two search spaces are called {space.name!r}: give each a name= of its own")
    return found


SPACES = by_name(value for file in _FILES for value in vars(file).values() if isinstance(value, SearchSpace))


def get_space(name: str) -> SearchSpace:
    """Return the search space called `name`.

    Raises:
        ValueError: there is no such space; the message suggests the nearest name and lists all.
    """
    known("search space", name, SPACES)
    return SPACES[name]


__all__ = ["RECIPES", "SPACES", "SearchSpace", "get_space", "recipe"]
