"""Results of benchmarks, as text and as a file. Torch-free: a dry run reads the file to estimate time.

The file is JSON: ``{"measurements": [...]}``, with one entry per kind of measurement and settings. Each has its time
(UTC), commit and machine. Repeating a measurement replaces its entry only. An entry has ``comparisons`` (seconds of
both ways for each repeat, their ratios and the median ratio), ``figures`` (single numbers with a unit) and ``rates``
(training images per second of a trial, for estimates and choices).
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
"""Name of the file of measurements; ``study.estimate.benchmark_file`` says where it is."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways of doing the same work, timed alternately.

    Attributes:
        name: the work, and what it is compared with.
        ours: seconds of our way, for each repeat.
        other: seconds of the other way, for each repeat.
    """

    name: str
    ours: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return other / ours for each repeat: above 1, ours was faster."""
        return tuple(other / ours for ours, other in zip(self.ours, self.other, strict=True))

    def line(self) -> str:
        """Return the result as one line: median, smallest and largest ratio, and the median seconds of both ways."""
        middle, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        seconds = f"{statistics.median(self.ours):.2f} s against {statistics.median(self.other):.2f} s"
        return f"{self.name:<90} {middle:5.2f}x [{low:.2f}, {high:.2f}]   {seconds}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A single number, as opposed to a comparison.

    Attributes:
        name: what the number measures.
        value: the number, in `unit`.
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
    """Training speed of one trial in a way; the trial ran alone or beside as many others as the machine takes.

    Attributes:
        model: a name of ``MODELS``.
        width: width multiplier of the network.
        image_size: side length of the images, pixels.
        images_per_second: training images per second of the trial, summed over all networks that it trains at once.
        sparsity: sparsity of the mask, in (0, 1), for engines whose speed depends on it; None for others.
        compile_seconds: compile time of each job once the machine has the code on its disk.
        conventional: images per second of the conventional loop on the same cores, timed alternately with ours; None if
            it was not measured.
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
    """The results of one measurement.

    Attributes:
        what: the kind of measurement, by its name on the command line.
        settings: the settings that were measured.
        comparisons: comparisons of two ways.
        figures: single numbers.
        rates: training speeds for estimates and choices.
    """

    what: str
    settings: dict[str, Any]
    comparisons: Sequence[Comparison] = ()
    figures: Sequence[Figure] = ()
    rates: Sequence[Rate] = ()

    def document(self) -> dict[str, Any]:
        """Return the measurement as JSON data for the file."""
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
    """Add a measurement to a file; it replaces an earlier one of the same kind and settings.

    Raises:
        ValueError: the file exists and is not a file of measurements.
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
    """Rename the file of measurements if it is damaged, and log a warning."""
    try:
        check_readable(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
        path.rename(aside)
        _log.warning("%s: set aside as %s", error, aside.name)


def check_readable(path: Path) -> None:
    """Raise ValueError if the file exists and no measurement can be added to it."""
    if path.exists():
        _read(path)


def read_rates(path: Path, cpu: str | None = None) -> list[Rate]:
    """Return the rates in a file, an empty list if there is none; with `cpu`, only those measured on that CPU model.

    Raises:
        ValueError: the file exists and is not a file of measurements, or it has rates of another version.
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
    """Return the rate of a model trained this way at the nearest width; None if the model has no rate in this way.

    Ties in width are broken by the nearest image size, then the nearest sparsity, then the latest measurement.
    """
    fitting = [rate for rate in rates if rate.model == model and Way.of(rate) == way]

    def distance(rate: Rate) -> tuple[float, float, float]:
        apart = abs((rate.sparsity or 0.0) - (sparsity or 0.0))
        return _ratio(rate.width, width), _ratio(rate.image_size, image_size), apart

    return min(reversed(fitting), key=distance, default=None)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
