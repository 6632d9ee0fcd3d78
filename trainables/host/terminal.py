"""What every command shares: output that never fails, errors in one line, exit codes. Torch-free.

Characters that a terminal cannot print are spelled out. Output that a closed pipe, a full disk or a lost terminal does
not accept is dropped: a study goes on computing after ``| head`` has read enough, and the exit code tells the outcome.
"""

from __future__ import annotations

import codecs
import functools
import io
import os
import select
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, TextIO

from trainables.host.places import settle
from trainables.host.redaction import redact_text

OK, FAILURES, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

SPELLED_OUT: Final = "spelled-out"
"""Name of the error handler, for ``str.encode`` and streams, that spells out characters which an encoding lacks."""
_SPELLINGS: Final = {
    "±": "+-",
    "\N{MULTIPLICATION SIGN}": "x",
    "→": "->",
    "←": "<-",
    "·": "-",
    "•": "*",
    "≥": ">=",
    "≤": "<=",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "--",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{HORIZONTAL ELLIPSIS}": ".",  # rich cuts a line to its width with one of these
}
_BYTES: Final = range(0xDC80, 0xDD00)
"""Code points that represent bytes of a file name which is not valid text; they are written as these bytes."""


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Turn a function from arguments to exit code into a command.

    The command reads ``sys.argv`` if it is called without arguments, provides a home directory and output that never
    fails, and turns Ctrl-C into exit code 130. Other errors that the user can fix are for `main` to catch, see
    :func:`refused`.
    """

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        settle()
        forgive()
        sys.excepthook = _trace
        try:
            return main(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return INTERRUPTED

    return guarded


def refused(error: Exception, code: int = WRONG_REQUEST, advice: str = "") -> int:
    """Print an error that the user can fix, with advice, in one line without credentials; return the exit code."""
    text = " ".join(redact_text(str(error)).split()) or type(error).__name__
    print(f"error: {text}{f'; {advice}' if advice else ''}", file=sys.stderr)
    return code


def _trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, as Python does, but without credentials."""
    print(redact_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def forgive() -> None:
    """Make printing in this process never fail."""
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)


def printable(text: str, stream: TextIO) -> str:
    """Return a text as a stream will show it, to measure it before it is printed."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, SPELLED_OUT).decode(encoding, "replace")


def _spelled_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the replacement for the first character that an encoding lacks, and the index after that character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if ord(letter) in _BYTES:
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    kind, _, name = unicodedata.name(letter, "").rpartition(" LETTER ")
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode("ascii")
    if kind.startswith("GREEK"):
        plain = name.lower()
    elif name.startswith("BOX DRAWINGS"):
        plain = "-"
    return _SPELLINGS.get(letter, plain or "?"), error.start + 1


codecs.register_error(SPELLED_OUT, _spelled_out)


def _forgiving(stream: TextIO | None) -> Any:
    """Return a replacement for a standard stream that never fails; None stands for a stream that the shell closed."""
    if stream is None:  # opening a file here keeps the next opened one from getting the stream's descriptor
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, for example
        return stream
    if stream not in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(errors=SPELLED_OUT)
        return stream
    stream.flush()
    raw = _Forgiving(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=SPELLED_OUT,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Forgiving(io.FileIO):
    """A file descriptor that drops what it cannot write."""

    def write(self, data: Any, /) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError:  # the pipe is closed, the disk is full, the terminal is gone
                return memoryview(data).nbytes
            if written is not None:
                return written
            select.select([], [self], [])  # another process has made the shared descriptor non-blocking
