"""What was measured, in words and in a file. Torch-free: a dry run reads the file to estimate time.

The file is JSON: ``{"measurements": [...]}``, one entry per kind of measurement and its settings, each with the time
(UTC), the commit and the machine it is from. Measuring the same again replaces the entry and leaves the others. An
entry has ``comparisons`` (seconds of both ways, repeat by repeat, their ratios and the median ratio), ``figures``
(single numbers with their unit) and ``rates`` (images per second that a trial trains, for estimates and choices).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import secrets
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trainables.storage import documents
from trainables.training.way import Way

_log = logging.getLogger(__name__)

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
        return f"{self.name:<90} {middle:5.2f}x [{low:.2f}, {high:.2f}]   {seconds}"


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
        return f"{self.name:<90} {self.value:,.4g} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Rate(Way):
    """How fast one trial trains a network in a way: by itself, or with as many others as the machine takes.

    Attributes:
        model: a name of ``MODELS``.
        width: its width.
        image_size: pixels a side.
        images_per_second: of one trial, training only; those of all networks that it trains at once.
        sparsity: of the mask, in (0, 1), for engines whose speed depends on it; None for others.
        compile_seconds: compilation in each job, once the machine has the code on its disk.
        conventional: images per second of the conventional loop on the same cores, measured in turns with it.
    """

    model: str
    width: float
    image_size: int
    images_per_second: float
    sparsity: float | None = None
    compile_seconds: float = 0.0
    conventional: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that one kind of measurement found out.

    Attributes:
        what: its name on the command line.
        settings: what was asked for.
        comparisons: ratios.
        figures: other numbers.
        rates: for estimates and choices.
    """

    what: str
    settings: dict[str, Any]
    comparisons: Sequence[Comparison] = ()
    figures: Sequence[Figure] = ()
    rates: Sequence[Rate] = ()

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


def set_aside(path: Path) -> None:
    """Rename a file in the place of the study's own measurements if it is damaged, and say so."""
    try:
        check_readable(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
        path.rename(aside)
        _log.warning("%s: set aside as %s", error, aside.name)


def check_readable(path: Path) -> None:
    """Raise ValueError if there is a file that a measurement cannot be added to."""
    if path.exists():
        _read(path)


def read_rates(path: Path, cpu: str | None = None) -> list[Rate]:
    """Return the rates in a file; none if there is no such file. With `cpu`, those that were measured on that model.

    Raises:
        ValueError: the file is there and is no benchmark.
    """
    if not path.exists():
        return []
    entries = [each for each in _read(path) if cpu is None or each.get("machine", {}).get("cpu") == cpu]
    try:
        return [Rate(**rate) for entry in entries for rate in entry["rates"]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has rates of another version: {error}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = documents.parse(path.read_bytes(), documents.BENCHMARK)["measurements"]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no benchmark's result ({type(error).__name__}: {error})") from error
    return entries


def nearest(
    rates: Sequence[Rate],
    model: str,
    width: float,
    way: Way,
    *,
    image_size: int,
    sparsity: float | None = None,
) -> Rate | None:
    """Return the rate of a model that is trained this way, at the nearest width; None if there is none.

    Of several at one width, return that of the nearest image size, then of the nearest sparsity, then the latest.
    """
    fitting = [rate for rate in rates if rate.model == model and Way.of(rate) == way]

    def distance(rate: Rate) -> tuple[float, float, float]:
        apart = abs((rate.sparsity or 0.0) - (sparsity or 0.0))
        return _ratio(rate.width, width), _ratio(rate.image_size, image_size), apart

    return min(reversed(fitting), key=distance, default=None)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
