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
class Rate:
    """How fast one trial trains: by itself, or of ``training`` while as many run as the machine takes.

    Attributes:
        model: a name of ``MODELS``.
        width: its width.
        precision: a name of ``PRECISIONS``.
        image_size: pixels a side.
        images_per_second: of one trial, training only.
        compiled: whether its network was compiled.
        kernels: a name of ``KERNELS``.
        stacked: whether it trained several networks as one; their images are counted together.
        sparsity: of the mask that the sparse kernels trained under, in (0, 1); None for others: it does not matter.
        compile_seconds: that compiling takes each job once its code is on the disk.
        conventional: images per second of the conventional loop on the same cores, measured in turns with it.
    """

    model: str
    width: float
    precision: str
    image_size: int
    images_per_second: float
    compiled: bool = False
    kernels: str = "dense"
    stacked: bool = False
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
    try:
        entries = [each for each in _read(path) if cpu is None or each.get("machine", {}).get("cpu") == cpu]
        return [Rate(**rate) for entry in entries for rate in entry["rates"]]
    except TypeError as error:
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
    precision: str,
    *,
    image_size: int,
    compiled: bool = False,
    kernels: str = "dense",
    stacked: bool = False,
    sparsity: float | None = None,
) -> Rate | None:
    """Return the rate of a model that is trained so, at the nearest width; None if there is none.

    Of several at one width it is that of the nearest image size, then of the nearest sparsity, then the latest.
    """
    asked = (model, precision, compiled, kernels, stacked)
    fitting = [
        rate for rate in rates if (rate.model, rate.precision, rate.compiled, rate.kernels, rate.stacked) == asked
    ]

    def distance(rate: Rate) -> tuple[float, float, float]:
        apart = abs((rate.sparsity or 0.0) - (sparsity or 0.0))
        return _ratio(rate.width, width), _ratio(rate.image_size, image_size), apart

    return min(reversed(fitting), key=distance, default=None)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
