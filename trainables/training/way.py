"""How a network's training is computed, as opposed to what it learns. Torch-free: plans, choices and reports use it.

A new setting needs a field of :class:`Way`, a row of ``trainables.knobs``, and the engine that it selects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

from trainables.knobs import KNOBS, of_knob, written
from trainables.models import MODELS
from trainables.training.engines import ENGINES, Engine

Setting = bool | str
"""The value of a setting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a network's training is computed. Every setting affects rounding, so it is part of the job's key.

    The settings are knobs; ``trainables.knobs`` documents their values and meaning.
    """

    precision: str = of_knob("precision")
    compiled: bool = of_knob("compiled")
    kernels: str = of_knob("kernels")
    stacked: bool = of_knob("stacked")
    graphs: bool = of_knob("graphs")

    def __post_init__(self) -> None:
        """Check that an engine computes this way.

        Raises:
            ValueError: a value is unknown, or settings exclude each other; the message names them.
        """
        _engine(_values_of(self))

    @staticmethod
    def of(source: object) -> Way:
        """Return the way that a cell, a recipe or a rate describes in the fields named like the settings.

        Raises:
            ValueError: the settings exclude each other.
        """
        return Way(**dict(zip(SETTINGS, _values_of(source), strict=True)))

    @property
    def settings(self) -> dict[str, Any]:
        """Name of each setting -> its value."""
        return dict(zip(SETTINGS, _values_of(self), strict=True))

    @property
    def engine(self) -> Engine:
        """The engine that trains this way."""
        return _engine(_values_of(self))

    def __str__(self) -> str:
        """Return the way in words: its precision, then every setting that is not at its default."""
        words = [self.precision]
        for name, value in self.settings.items():
            if name != "precision" and value != KNOBS[name].neutral:
                words.append(name if value is True else f"on {value} {name}")
        return " ".join(words)

    def at(self, sparsity: float) -> Self:
        """Return how a job trains under a mask of this sparsity (0 without a mask).

        Below the engine's ``gains_from``, the setting that selects the engine falls back to its default.
        """
        engine = self.engine
        if engine.selected_by is None or sparsity >= engine.gains_from:
            return self
        name, _ = engine.selected_by
        changed: dict[str, Any] = {name: KNOBS[name].neutral}
        return dataclasses.replace(self, **changed)

    def fits(self, model: str, batch_size: int) -> bool:
        """Return whether a network (a name of ``MODELS``) can be trained this way in batches of this size."""
        engine = self.engine
        known = MODELS[model].convolutional or not engine.convolutions_only
        return known and batch_size % engine.batch_multiple == 0

    def check_fits(self, model: str, batch_size: int) -> None:
        """Raise ValueError unless the network :meth:`fits`; the message names the setting that rules it out."""
        if not self.fits(model, batch_size):
            engine = self.engine
            networks = "convolutional networks" if engine.convolutions_only else "networks"
            raise ValueError(
                f"{engine.setting} trains {networks} in batches of whole multiples of {engine.batch_multiple} images, "
                f"got model={model!r} and batch_size={batch_size}"
            )


SETTINGS: Final = tuple(field.name for field in dataclasses.fields(Way))
"""Names of the settings, in the order of the fields."""
_values_of = operator.attrgetter(*SETTINGS)


@cache
def _engine(values: tuple[Setting, ...]) -> Engine:
    """Return the engine that `values`, in the order of ``SETTINGS``, select; it raises what ``Way`` raises."""
    settings = dict(zip(SETTINGS, values, strict=True))
    for name, value in settings.items():
        KNOBS[name].checked(value)
    selected = [engine for engine in ENGINES.values() if engine.selected_by in [*settings.items()]]
    if len(selected) > 1:
        both = " and ".join(engine.setting for engine in selected)
        raise ValueError(f"{both} exclude each other: each selects an engine of its own")
    engine = next(iter(selected), ENGINES["plain"])
    for name, allowed in engine.goes_with.items():
        if settings[name] not in allowed:
            raise ValueError(
                f"{engine.setting} goes with {name} {', '.join(map(repr, allowed))} only, got {settings[name]!r}"
            )
    return engine


def _ways() -> Iterator[Way]:
    for values in itertools.product(*(KNOBS[name].values or (False, True) for name in SETTINGS)):
        settings: dict[str, Any] = dict(zip(SETTINGS, values, strict=True))
        with contextlib.suppress(ValueError):  # settings that exclude each other
            yield Way(**settings)


WAYS: Final = tuple(_ways())
"""All valid ways, in the order of their settings' values."""


def in_words(settings: Mapping[str, Setting]) -> str:
    """Return settings as ``NAME=VALUE``, the form that ``--set`` takes."""
    return " ".join(f"{name}={written(settings[name])}" for name in SETTINGS if name in settings)
