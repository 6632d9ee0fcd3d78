"""A search space: a named question, the axes of its grid, and the recipe that trains its networks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainables.checks import known
from trainables.host.places import DEFAULT_STORAGE, located
from trainables.knobs import SETTINGS, Scalar, by_limit, plain_values

if TYPE_CHECKING:

    class _Settings:
        """The settings of a space; ``trainables.knobs`` defines their names and values."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _Settings = dataclasses.make_dataclass(
        "_Settings",
        [(name, knob.kind, knob.space_default) for name, knob in SETTINGS.items()],
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class SearchSpace(_Settings):
    """A question and its grid: every combination of the axes' values is one cell, and cells share jobs.

    Besides the attributes below, a space has a value for each knob of ``trainables.knobs``, by default the paper's for
    ResNet20 on CIFAR-10. Axes, and any other knob with several values, are tuples.

    Attributes:
        name: unique; also names the MLflow experiment.
        question: the question that the space answers, in one line.
        rewind_epochs_of_width: (width, rewind epochs) pairs: at these widths the grid has only these of its rewind
            epochs. ``param_space`` ignores them and has all rewind epochs at every width.
        preferred: (setting, value) pairs that ``python -m study.run`` uses wherever it can (see ``study.preference``).
            ``cells`` and ``param_space`` ignore them, so that they do not depend on a machine.
    """

    name: str
    question: str
    rewind_epochs_of_width: tuple[tuple[float, tuple[int, ...]], ...] = ()
    preferred: tuple[tuple[str, Scalar], ...] = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            name: str,
            question: str,
            rewind_epochs_of_width: tuple[tuple[float, tuple[int, ...]], ...] = (),
            preferred: tuple[tuple[str, Scalar], ...] = (),
            **settings: Any,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Check every setting by itself; ``trainables.config.Cell`` checks combinations, cell by cell.

        Raises:
            ValueError: an axis without values or with repeated ones, a value out of bounds, or an unknown name.
        """
        for name, knob in by_limit(SETTINGS):
            value = plain_values(getattr(self, name))
            limit = {knob.limit: min(_values(getattr(self, knob.limit)))} if knob.limit else {}
            values = tuple(knob.checked(each, name, **limit) for each in _values(value))
            if not values:
                raise ValueError(f"{name} of space {self.name!r} has no values")
            if len(set(values)) != len(values):
                raise ValueError(f"{name} of space {self.name!r} repeats a value: {', '.join(map(str, values))}")
            object.__setattr__(self, name, values if knob.axis or isinstance(value, tuple) else values[0])
        for name, value in self.preferred:
            known(f"setting preferred by space {self.name!r}", name, SETTINGS)
            SETTINGS[name].checked(value)
        for width, epochs in self.rewind_epochs_of_width:
            if not epochs or not set(epochs) <= set(self.rewind_epoch):
                raise ValueError(
                    f"rewind epochs at width {width:g} must be some of {', '.join(map(str, self.rewind_epoch))}, "
                    f"got {', '.join(map(str, epochs)) or 'none'}"
                )

    def cells(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping per cell: name of a ``trainables.config.Cell`` field -> value."""
        axes = {knob.name: _values(getattr(self, name)) for name, knob in SETTINGS.items()}
        of_width = dict(self.rewind_epochs_of_width)
        for values in itertools.product(*axes.values()):
            cell = dict(zip(axes, values, strict=True))
            if cell["rewind_epoch"] in of_width.get(cell["width"], self.rewind_epoch):
                yield cell

    def param_space(self, *, storage: str = DEFAULT_STORAGE, data_dir: str | None = None) -> dict[str, Any]:
        """Return the space for a plain ``ray.tune.Tuner`` around one of the four Trainables.

        Axes become Tune's ``grid_search``. The method is left out, because each Trainable is one method.

        Args:
            storage: directory or URI of the store; paths are made absolute, because a trial runs in its own working
                directory.
            data_dir: directory or URI of the datasets that do not come with a library.
        """
        space: dict[str, Any] = {"storage": located(storage)}
        if data_dir is not None:
            space["data_dir"] = located(data_dir)
        for name, knob in SETTINGS.items():
            values = _values(getattr(self, name))
            space[knob.name] = values[0] if len(values) == 1 else {"grid_search": list(values)}
        del space["method"]
        return space


def _values(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
