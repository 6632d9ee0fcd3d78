"""The file of checks that were made: JSON, one line per check, appended as soon as the check ends. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from study.benchmark.gpu.sections import Outcome
from study.benchmark.results import Comparison, Figure, Rate, Row
from trainables.storage import documents

_ROWS: Final[dict[str, Any]] = {kind.__name__: kind for kind in (Comparison, Figure, Rate)}
_WORDS: Final = {True: "ok", False: "FAILED", None: ""}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A check that was made.

    Attributes:
        check: its name.
        on: what its result depends on: card, driver, versions and code.
        seconds: that it took.
        outcome: what it found.
        error: why it found nothing; empty if it did not fail.
    """

    check: str
    on: Mapping[str, Any]
    seconds: float
    outcome: Outcome = field(default_factory=Outcome)
    error: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether what was checked holds; None for a mere measurement."""
        return False if self.error else self.outcome.ok

    def text(self) -> str:
        """Return the line in words."""
        facts = ", ".join(f"{name} {_short(value)}" for name, value in self.outcome.found.items())
        return f"{_WORDS[self.ok]:<7}{self.check:<44}{self.seconds:>7.1f} s   {self.error or facts}".rstrip()

    def dump(self) -> str:
        """Return the line as JSON."""
        rows = [{"kind": type(row).__name__, **asdict(row)} for row in self.outcome.rows]
        document = {
            "check": self.check,
            "ok": self.ok,
            "seconds": round(self.seconds, 2),
            "found": dict(self.outcome.found),
            "rows": rows,
            "error": self.error,
            "on": dict(self.on),
        }
        return json.dumps(document)

    @staticmethod
    def load(content: str) -> Line:
        """Return the line of a JSON text.

        Raises:
            ValueError: it is of another kind or version.
        """
        document = documents.parse(content, documents.GPU_CHECK)
        outcome = Outcome(ok=document["ok"], found=document["found"], rows=[*map(_row, document["rows"])])
        named = {name: document[name] for name in ("check", "on", "seconds", "error")}
        return Line(outcome=outcome, **named)


def _row(document: dict[str, Any]) -> Any:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
    try:
        return _ROWS[str(fields.pop("kind"))](**fields)
    except (KeyError, TypeError) as error:
        raise documents.Malformed(f"no result of a benchmark: {error}") from error


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Record:
    """The lines of a file that belong to one card, driver, code and set of versions; the latest line of a check counts.

    Attributes:
        lines: name of a check -> its line.
    """

    def __init__(self, path: Path, on: Mapping[str, Any]) -> None:
        """Read the file if it exists.

        Raises:
            ValueError: the file is something else.
            OSError: it cannot be read.
        """
        self._path, self._on = path, dict(on)
        own = json.loads(json.dumps(self._on))
        self.lines = {line.check: line for line in read(path) if line.on == own}

    @property
    def done(self) -> set[str]:
        """Names of the checks that need not be repeated: those that did not end with an error."""
        return {name for name, line in self.lines.items() if not line.error}

    def add(self, check: str, seconds: float, outcome: Outcome | None = None, error: str = "") -> Line:
        """Append a line to the file, and return it."""
        line = Line(check=check, on=self._on, seconds=seconds, outcome=outcome or Outcome(), error=error)
        self.lines[check] = line
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line.dump()}\n")
        return line

    @property
    def rows(self) -> list[Row]:
        """What goes into the file of measurements."""
        return [row for line in self.lines.values() for row in line.outcome.rows]

    def report(self) -> Iterator[str]:
        """Yield the lines of a table: all checks, comparisons and figures, and last what failed."""
        yield from (line.text() for line in self.lines.values())
        yield from (row.line() for row in self.rows if not isinstance(row, Rate))
        failed = [line for line in self.lines.values() if line.ok is False]
        yield f"{len(self.lines)} checks, {len(failed)} failed"
        yield from (line.text() for line in failed)


def read(path: Path) -> list[Line]:
    """Return the lines of a file, none if it does not exist; a last line that a killed process left is removed.

    Raises:
        ValueError: the file is something else.
        OSError: it cannot be read.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = [Line.load(line) for line in whole.decode().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is not a file of GPU checks ({error})") from error
    if content and not lines and not content.startswith(b'{"check"'):
        raise ValueError(f"{path} is not a file of GPU checks")
    if whole != content:
        path.write_bytes(whole)
    return lines
