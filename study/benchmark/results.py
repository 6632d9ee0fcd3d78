"""What was measured, in words and in a file. Torch-free: a dry run reads the file to estimate time.

The file is JSON: ``{"measurements": [...]}``, one entry per kind of measurement and its settings, each with the time
(UTC), the commit and the machine it is from. Measuring the same again replaces the entry and leaves the others. An
entry has ``comparisons`` (seconds of both ways, repeat by repeat, their ratios and the median ratio), ``figures``
(single numbers with their unit) and ``rates`` (images per second that a trial trains, for estimates).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = "benchmark.json"
"""Beside the results of a study that is kept in a local directory."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways to do one thing, timed in turns.

    Attributes:
        name: what was done, and against what.
        ours: seconds of each repeat.
        other: seconds of the other way, repeat by repeat.
    """

    name: str
    ours: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return how many times faster ours was, repeat by repeat."""
        return tuple(other / ours for ours, other in zip(self.ours, self.other, strict=True))

    def line(self) -> str:
        """Return the result as one line: median, smallest and largest ratio, and the median seconds behind them."""
        middle, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        seconds = f"{statistics.median(self.ours):.2f} s against {statistics.median(self.other):.2f} s"
        return f"{self.name:<72} {middle:5.2f}x [{low:.2f}, {high:.2f}]   {seconds}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that is no ratio of two ways.

    Attributes:
        name: what it is.
        value: in `unit`.
        unit: empty for a count.
    """

    name: str
    value: float
    unit: str = ""

    def line(self) -> str:
        """Return the figure as one line."""
        return f"{self.name:<72} {self.value:,.4g} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one trial trains while as many run as the machine takes.

    Attributes:
        model: a name of ``MODELS``.
        width: its width.
        precision: a name of ``PRECISIONS``.
        image_size: pixels a side.
        images_per_second: of one trial, training only.
    """

    model: str
    width: float
    precision: str
    image_size: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that one kind of measurement found out.

    Attributes:
        what: its name on the command line.
        settings: what was asked for.
        comparisons: ratios.
        figures: other numbers.
        rates: for estimates.
    """

    what: str
    settings: dict[str, Any]
    comparisons: Sequence[Comparison] = ()
    figures: Sequence[Figure] = ()
    rates: Sequence[Rate] = ()

    def lines(self) -> list[str]:
        """Return what to print."""
        return [*(each.line() for each in self.comparisons), *(each.line() for each in self.figures)]

    def document(self) -> dict[str, Any]:
        """Return what to store."""
        return {
            "what": self.what,
            "settings": self.settings,
            "comparisons": [
                {**asdict(each), "ratios": each.ratios, "median_ratio": statistics.median(each.ratios)}
                for each in self.comparisons
            ],
            "figures": [asdict(each) for each in self.figures],
            "rates": [asdict(each) for each in self.rates],
        }


def store(path: Path, measurement: Measurement, machine: dict[str, Any], commit: str | None) -> None:
    """Add a measurement to a file, in place of an earlier one of the same kind and settings.

    Raises:
        ValueError: the file is there and is something else.
    """
    entry = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": machine,
        **json.loads(json.dumps(measurement.document())),
    }
    kept = [
        each
        for each in (_read(path) if path.exists() else [])
        if (each["what"], each["settings"]) != (entry["what"], entry["settings"])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"measurements": [*kept, entry]}, file, indent=1)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def check_readable(path: Path) -> None:
    """Raise ValueError if there is a file that a measurement cannot be added to."""
    if path.exists():
        _read(path)


def read_rates(path: Path) -> list[Rate]:
    """Return the rates in a file; none if there is no such file.

    Raises:
        ValueError: the file is there and is no benchmark.
    """
    if not path.exists():
        return []
    try:
        return [Rate(**rate) for entry in _read(path) for rate in entry["rates"]]
    except TypeError as error:
        raise ValueError(f"{path} has rates of another version: {error}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["measurements"]
        for entry in entries:
            if not {"what", "settings", "rates"} <= entry.keys():
                raise KeyError("what, settings or rates")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no benchmark's result ({type(error).__name__}: {error})") from error
    return entries


def nearest(rates: Iterable[Rate], model: str, width: float, precision: str) -> Rate | None:
    """Return the rate of a model at the nearest width and in the same precision; None if there is none."""
    fitting = [rate for rate in rates if (rate.model, rate.precision) == (model, precision)]
    return min(fitting, key=lambda rate: max(rate.width, width) / min(rate.width, width), default=None)
