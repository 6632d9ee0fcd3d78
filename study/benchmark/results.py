"""Results of benchmarks, as text and as a file. Torch-free: a dry run reads the file to estimate time.

The file is JSON: ``{"measurements": [...]}``, with one entry per kind of measurement and settings. Each has its time
(UTC), commit and machine. Repeating a measurement on a machine of the same kind replaces its entry only. An entry has
``comparisons`` (seconds of both ways for each repeat, their ratios and the median ratio), ``figures`` (single numbers
with a unit) and ``rates`` (training images per second of a trial, for estimates and choices).
"""

from __future__ import annotations

import datetime
import json
import logging
import secrets
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trainables.storage import documents
from trainables.storage.local import LocalStorage
from trainables.training.engines import CPU
from trainables.training.way import Way

_log = logging.getLogger(__name__)

FILE: Final = "benchmark.json"
"""Name of the file of measurements; ``study.estimate.benchmark_file`` says where it is."""


KIND: Final = ("device", "cpu", "instructions", "mps")
"""What tells kinds of machines apart: a file that several share keeps the measurements of each."""


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
        compile_seconds: time that a process takes to compile the network once the machine has the code on its disk.
            Estimates count it for every job, because each may be the first of its process.
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


Row = Comparison | Figure | Rate


def store(
    path: Path,
    what: str,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    machine: Mapping[str, Any],
    commit: str | None,
) -> None:
    """Add the rows of a measurement to a file; they replace those of the same `what`, settings and kind of machine.

    Raises:
        ValueError: the file exists and is not a file of measurements.
        StorageError: the file cannot be written.
    """
    comparisons = [each for each in rows if isinstance(each, Comparison)]
    entry = {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": machine,
        "what": what,
        "settings": json.loads(json.dumps(settings)),
        "comparisons": [
            {**asdict(each), "ratios": each.ratios, "median_ratio": statistics.median(each.ratios)}
            for each in comparisons
        ],
        "figures": [asdict(each) for each in rows if isinstance(each, Figure)],
        "rates": [asdict(each) for each in rows if isinstance(each, Rate)],
    }
    kept = [each for each in read(path) if _subject(each) != _subject(entry)]
    content = json.dumps({"measurements": [*kept, entry]}, indent=1)
    LocalStorage(path.parent).write(path.name, content.encode())


def _subject(entry: Mapping[str, Any]) -> list[object]:
    """Return what an entry of a file is about."""
    machine = entry.get("machine", {})
    return [entry["what"], entry["settings"], *map(machine.get, KIND)]


def set_aside(path: Path) -> None:
    """Rename the file of measurements if it is damaged, and log a warning."""
    try:
        read(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
        path.rename(aside)
        _log.warning("%s: set aside as %s", error, aside.name)


def read_rates(path: Path, **machine: str) -> list[Rate]:
    """Return the rates in a file.

    Args:
        path: the file.
        **machine: what the rates were measured on, such as the model of the ``cpu`` or, as ``device``, the name of a
            GPU or "cpu", which is also meant where a file does not say; others are left out.

    Raises:
        ValueError: the file exists and is not a file of measurements, or it has rates of another version.
    """
    entries = [each for each in read(path) if machine.items() <= {"device": CPU, **each.get("machine", {})}.items()]
    try:
        return [Rate(**rate) for entry in entries for rate in entry["rates"]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has rates of another version: {error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """Return the measurements in a file, an empty list if there is none.

    Raises:
        ValueError: the file exists and is not a file of measurements.
    """
    if not path.exists():
        return []
    try:
        entries: list[dict[str, Any]] = documents.parse(path.read_bytes(), documents.BENCHMARK)["measurements"]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a benchmark result ({type(error).__name__}: {error})") from error
    return entries
