"""A search space: a named question, the axes of its grid, and the recipe that its networks are trained by.

Pure data on the standard library alone. Names of models, datasets, methods and matchers are checked by the planner,
which knows them; what can be said without it is checked here, when the space is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Scalar = bool | int | float | str

AXES = ("model", "dataset", "width", "sparsity", "rewind_epoch", "method", "matcher", "seeds")
"""Fields that always hold a tuple of values. Any other setting becomes an axis when it is given one."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Every combination of the axes' values is one cell of the grid; cells share whatever jobs they can.

    The defaults are the paper's settings for ResNet20 on CIFAR-10. Fields mean what they mean in
    ``trainables.config.Cell``; the ones listed in ``AXES`` hold tuples here.

    Attributes:
        name: unique, also the name of the MLflow experiment.
        question: one line: what the space is there to find out.
        seeds: numbers of seed pairs; pair s trains net A from seed 2 s and net B from seed 2 s + 1.
    """

    name: str
    question: str
    model: tuple[str, ...] = ("resnet20",)
    dataset: tuple[str, ...] = ("cifar10",)
    width: tuple[float, ...] = (1.0,)
    sparsity: tuple[float, ...] = (0.9,)
    rewind_epoch: tuple[int, ...] = (10,)
    method: tuple[str, ...] = ("dense", "lth", "naive", "permuted")
    matcher: tuple[str, ...] = ("activation",)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.08
    sparse_lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    precision: str = "fp32"
    augment: bool = True
    shortcut: str = "conv3x3"
    pruner: str = "imp_finetune"
    prune_fraction: float = 0.2
    imp_epochs: int = 50
    imp_lr: float = 0.01
    imp_momentum: float = 0.0
    imp_weight_decay: float = 0.0
    prune_shortcuts: bool = False
    prune_classifier: bool = True
    match_images: int = 10_000
    stream_taps: str = "end"
    interpolation_points: int = 0
    correction: str = "bn_reset"

    def __post_init__(self) -> None:
        """Check structure and bounds.

        Raises:
            ValueError: an axis without values or with repeated ones, or a value out of bounds.
        """
        for field in self.settings():
            value = getattr(self, field.name)
            if isinstance(value, list) or (field.name in AXES and not isinstance(value, tuple)):
                value = tuple(value) if isinstance(value, list) else (value,)
                object.__setattr__(self, field.name, value)
            if isinstance(value, tuple):
                self._check_axis(field.name, value)
            for each in value if isinstance(value, tuple) else (value,):
                if field.name in _BOUNDS and not _BOUNDS[field.name][0](each):
                    raise ValueError(f"{field.name} must be {_BOUNDS[field.name][1]}, got {each!r}")
        shortest = min(_values(self.epochs))
        for epoch in self.rewind_epoch:
            if epoch >= shortest:
                raise ValueError(
                    f"rewind_epoch must be a whole number in [0, {shortest - 1}], below the {shortest} dense epochs, "
                    f"got {epoch}"
                )

    def _check_axis(self, name: str, values: tuple[Scalar, ...]) -> None:
        if not values:
            raise ValueError(f"{name} of space {self.name!r} has no values")
        if len(set(values)) != len(values):
            raise ValueError(f"{name} of space {self.name!r} repeats a value: {', '.join(map(str, values))}")

    @classmethod
    def settings(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Return the fields that can be set: all but name and question."""
        return tuple(field for field in dataclasses.fields(cls) if field.name not in ("name", "question"))

    def cells(self) -> Iterator[dict[str, Scalar]]:
        """Yield one flat mapping per cell, keys as in ``trainables.config.Cell``."""
        names = [field.name for field in self.settings()]
        axes = [_values(getattr(self, name)) for name in names]
        for values in itertools.product(*axes):
            cell = dict(zip(names, values, strict=True))
            cell["seed"] = cell.pop("seeds")
            yield cell

    def param_space(self, *, storage: str = "outputs", data_dir: str | None = None) -> dict[str, Any]:
        """Return the space for a plain ``ray.tune.Tuner`` around one of the four Trainables.

        Axes become Tune's ``grid_search``; the method is the Trainable's, so it is left out.

        Args:
            storage: directory of the store, made absolute here because a trial runs in a directory of its own.
            data_dir: directory of the datasets that do not come with a library.
        """
        space: dict[str, Any] = {"storage": os.path.abspath(os.path.expanduser(storage))}
        if data_dir is not None:
            space["data_dir"] = os.path.abspath(os.path.expanduser(data_dir))
        for field in self.settings():
            if field.name == "method":
                continue
            values = _values(getattr(self, field.name))
            name = "seed" if field.name == "seeds" else field.name
            space[name] = values[0] if len(values) == 1 else {"grid_search": list(values)}
        return space


def _values(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": (lambda value: _number(value) and value > 0, "a number above 0"),
    "sparsity": (lambda value: _number(value) and 0 <= value < 1, "a number in [0, 1)"),
    "rewind_epoch": (lambda value: _whole(value, 0), "a whole number of at least 0"),
    "seeds": (lambda value: _whole(value, 0), "a whole number of at least 0"),
    "epochs": (lambda value: _whole(value, 1), "a whole number of at least 1"),
}
"""Field -> what its values must be. Bounds that depend on a model or a dataset are in ``trainables.config``."""
