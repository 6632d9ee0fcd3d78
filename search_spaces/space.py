"""A search space: a named question, the axes of its grid, and the recipe that its networks are trained by.

Pure data, without any library. Names of models, datasets, methods and matchers are checked by the planner,
which knows them; what can be said without it is checked here, when the space is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainables.scalars import plain_values

Scalar = bool | int | float | str

AXES = ("model", "dataset", "width", "sparsity", "rewind_epoch", "method", "matcher", "match_epoch", "seeds")
"""Fields that always hold a tuple of values. Any other setting becomes an axis when it is given one."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Every combination of the axes' values is one cell of the grid; cells share whatever jobs they can.

    The defaults are the paper's settings for ResNet20 on CIFAR-10. Fields mean what they mean in
    ``trainables.config.Cell``; the ones listed in ``AXES`` hold tuples here.

    Attributes:
        name: unique, also the name of the MLflow experiment.
        question: one line: what the space is there to find out.
        rewind_epochs_of_width: (width, rewind epochs) pairs; at such a width the grid has these of its rewind epochs
            only. A ``param_space`` has them all.
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
    rewind_epochs_of_width: tuple[tuple[float, tuple[int, ...]], ...] = ()
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.08
    sparse_lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    precision: str = "fp32"
    compiled: bool = False
    kernels: str = "dense"
    stacked: bool = False
    augment: bool = True
    init: str = "default"
    shortcut: str = "conv3x3"
    pruner: str = "imp_finetune"
    prune_fraction: float = 0.2
    imp_epochs: int = 50
    imp_lr: float = 0.01
    imp_momentum: float = 0.9
    imp_weight_decay: float = 5e-4
    imp_schedule: str = ""
    prune_shortcuts: bool = False
    prune_classifier: bool = True
    match_images: int | tuple[int, ...] = 10_000
    match_augment: bool = False
    stream_taps: str = "end"
    interpolation_points: int = 0
    correction: str = "bn_reset"
    rewind_offset: int = 0
    rewind_offset_counts: bool = False
    prune_tolerance: float = 0.0
    sparse_schedule: str = "restart"
    match_epoch: tuple[int, ...] = (-1,)
    mask_dataset: str = ""
    member: int = 0
    members: int = 0
    imp_path: bool = False
    plane_resolution: int = 0
    mask_overlap: bool = False

    def __post_init__(self) -> None:
        """Check structure and bounds.

        Raises:
            ValueError: an axis without values or with repeated ones, or a value out of bounds.
        """
        for field in self.settings():
            value = plain_values(getattr(self, field.name))
            is_axis = field.name in AXES or isinstance(value, list | tuple)
            values = tuple(value) if isinstance(value, list | tuple) else (value,)
            if is_axis:
                self._check_axis(field.name, values)
            for each in values:
                if field.name in _BOUNDS and not _BOUNDS[field.name][0](each):
                    raise ValueError(f"{field.name} must be {_BOUNDS[field.name][1]}, got {each!r}")
            if isinstance(_values(field.default)[0], float):  # 1 and 1.0 are one setting
                values = tuple(float(each) if _is_number(each) else each for each in values)
            object.__setattr__(self, field.name, values if is_axis else values[0])
        self._check_lengths(min(_values(self.epochs)))
        for width, epochs in self.rewind_epochs_of_width:
            if not epochs or not set(epochs) <= set(self.rewind_epoch):
                raise ValueError(
                    f"rewind epochs at width {width:g} must be some of {', '.join(map(str, self.rewind_epoch))}, "
                    f"got {', '.join(map(str, epochs)) or 'none'}"
                )

    def _check_lengths(self, epochs: int) -> None:
        for epoch in self.rewind_epoch:
            if not _in(0, epochs - 1, whole=True)[0](epoch):
                raise ValueError(
                    f"rewind_epoch must be a whole number in [0, {epochs - 1}], below the {epochs} dense epochs, "
                    f"got {epoch!r}"
                )
        for name, (fits, bounds) in {
            "warmup_epochs": _in(0, epochs),
            "match_epoch": _in(-1, epochs, whole=True),
        }.items():
            for value in _values(getattr(self, name)):
                if not fits(value):
                    raise ValueError(f"{name} must be {bounds}, got {value!r}")

    def _check_axis(self, name: str, values: tuple[Scalar, ...]) -> None:
        if not values:
            raise ValueError(f"{name} of space {self.name!r} has no values")
        if len(set(values)) != len(values):
            raise ValueError(f"{name} of space {self.name!r} repeats a value: {', '.join(map(str, values))}")

    @classmethod
    def settings(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Return the fields that can be set: all but name and question, and what only shapes the grid."""
        fixed = ("name", "question", "rewind_epochs_of_width")
        return tuple(field for field in dataclasses.fields(cls) if field.name not in fixed)

    def cells(self) -> Iterator[dict[str, Scalar]]:
        """Yield one flat mapping per cell, keys as in ``trainables.config.Cell``."""
        names = [field.name for field in self.settings()]
        axes = [_values(getattr(self, name)) for name in names]
        of_width = dict(self.rewind_epochs_of_width)
        for values in itertools.product(*axes):
            cell = dict(zip(names, values, strict=True))
            if cell["rewind_epoch"] not in of_width.get(cell["width"], self.rewind_epoch):
                continue
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in(
    low: float, high: float = math.inf, *, whole: bool = False, above_low: bool = False, below_high: bool = False
) -> tuple[Callable[[Any], bool], str]:
    """Return a check that a value is a number between `low` and `high`, and its bounds in words."""

    def fits(value: Any) -> bool:
        if not _is_number(value) or (whole and not isinstance(value, int)):
            return False
        return bool((value > low if above_low else value >= low) and (value < high if below_high else value <= high))

    interval = f"{'(' if above_low else '['}{low}, {high}{')' if below_high or math.isinf(high) else ']'}"
    return fits, f"{'a whole number' if whole else 'a number'} in {interval}"


_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": _in(0.25, 32),
    "sparsity": _in(0, 1, below_high=True),
    "seeds": _in(0, 499_999_999, whole=True),
    "epochs": _in(1, whole=True),
    "batch_size": _in(1, whole=True),
    "lr": _in(0, 100, above_low=True),
    "sparse_lr": _in(0, 100, above_low=True),
    "momentum": _in(0, 1, below_high=True),
    "weight_decay": _in(0, 1),
    "prune_fraction": _in(0.001, 1, below_high=True),
    "imp_epochs": _in(0, whole=True),
    "imp_lr": _in(0, 100, above_low=True),
    "imp_momentum": _in(0, 1, below_high=True),
    "imp_weight_decay": _in(0, 1),
    "match_images": _in(0, whole=True),
    "interpolation_points": _in(0, 101, whole=True),
    "rewind_offset": _in(0, 1, whole=True),
    "prune_tolerance": _in(0, 0.1),
    "member": _in(0, 99, whole=True),
    "members": _in(0, 100, whole=True),
    "plane_resolution": _in(0, 201, whole=True),
}
"""Field -> what its values must be; a test holds them equal to those of ``trainables.config``, which also knows the
bounds that depend on a model or a dataset."""
