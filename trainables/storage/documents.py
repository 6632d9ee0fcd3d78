"""The only reader of stored documents: JSON that may be damaged or written by someone else. Torch-free.

``KINDS`` lists every kind of document that a study keeps, with a check of its fields. A reader gets a document whose
fields exist and have the right types, or :class:`Malformed`. Unknown fields are allowed: a later version of the study
may have written them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], None]
"""Raises :class:`Malformed` unless a value is what it should be."""
Document = dict[str, Any]

MAX_DEPTH: Final = 32
"""Levels of nesting; walking through a deeper document could exhaust the stack."""
LONGEST_SHOWN: Final = 40
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Malformed(ValueError):
    """A stored document is not of its kind."""


def parse(content: bytes | str, kind: Check) -> Document:
    """Return the document in a file.

    Args:
        content: of the file.
        kind: one of ``KINDS``.

    Raises:
        Malformed: it is truncated, not UTF-8, not JSON, ambiguous, nested too deeply, or has fields of another type.
    """
    text, document = _loaded(content)
    if _HALF.search(text):  # a lone surrogate, as in file names that are not UTF-8, cannot be printed
        document = json.loads(json.dumps(document, ensure_ascii=False).encode(errors="replace"))
    return _checked(document, kind)


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as the bytes of a file that starts with its checksum."""
    text = json.dumps(document).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def unseal(content: bytes, kind: Check) -> Document:
    """Return the document that :func:`seal` was given. File names in it that are not UTF-8 stay as they are.

    Raises:
        Malformed: the checksum is wrong, or as :func:`parse`.
    """
    checksum, _, text = content.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise Malformed("wrong checksum")
    return _checked(_loaded(text)[1], kind)


def _loaded(content: bytes | str) -> tuple[str, Any]:
    try:
        text = content if isinstance(content, str) else content.decode()
        return text, json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _checked(document: Any, kind: Check) -> Document:
    kind(document)
    if not isinstance(document, dict):
        raise Malformed(f"{_shown(document)} in place of an object")
    return document


def _object(pairs: list[tuple[str, Any]]) -> Document:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise Malformed("a field occurs twice")
    return document


# --- checks of single values ----------------------------------------------------------------------------------------
def anything(value: Any, depth: int = MAX_DEPTH) -> None:
    """Accept any value that is not nested too deeply."""
    if isinstance(value, dict | list):
        if not depth:
            raise Malformed("nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            anything(each, depth - 1)


def text(value: Any) -> None:
    """Accept a string."""
    if not isinstance(value, str):
        raise Malformed(f"{_shown(value)} in place of text")


def flag(value: Any) -> None:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise Malformed(f"{_shown(value)} in place of true or false")


def number(value: Any) -> None:
    """Accept any number that fits a float; a loss may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{_shown(value)} in place of a number")
    try:
        float(value)
    except OverflowError:
        raise Malformed("a number that is too large") from None


def within(low: float, high: float, *, whole: bool = False) -> Check:
    """Return a check for a finite number between two bounds."""

    def check(value: Any) -> None:
        number(value)
        if not low <= value <= high or (whole and not isinstance(value, int)):
            raise Malformed(f"{_shown(value)} is no {'whole number' if whole else 'number'} from {low:g} to {high:g}")

    return check


def matching(pattern: str) -> Check:
    """Return a check for a string that matches a pattern."""
    form = re.compile(pattern)

    def check(value: Any) -> None:
        text(value)
        if not form.fullmatch(value):
            raise Malformed(f"{_shown(value)} is not of the form {pattern}")

    return check


def any_of(*checks: Check) -> Check:
    """Return a check that accepts what any of several checks accepts."""

    def check(value: Any) -> None:
        for each in checks[:-1]:
            try:
                return each(value)
            except Malformed:
                continue
        return checks[-1](value)

    return check


def array(value: Any) -> None:
    """Accept a list, whatever is in it."""
    if not isinstance(value, list):
        raise Malformed(f"{_shown(value)} in place of a list")


def nothing(value: Any) -> None:
    """Accept null."""
    if value is not None:
        raise Malformed(f"{_shown(value)} in place of null")


# --- checks of several values ---------------------------------------------------------------------------------------
def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return a check for an object with these fields; others may be there, too."""
    known = {**required, **(optional or {})}

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{_shown(value)} in place of an object")
        if missing := required.keys() - value.keys():
            raise Malformed(f"without {', '.join(sorted(missing))}")
        for name, each in value.items():
            _inside(name, known.get(name, anything), each)

    return check


def mapping(of: Check, names: Check = text) -> Check:
    """Return a check for an object whose values all pass one check."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{_shown(value)} in place of an object")
        for name, each in value.items():
            names(name)
            _inside(name, of, each)

    return check


def several(of: Check, count: int | None = None) -> Check:
    """Return a check for a list, of `count` values if given, that all pass one check."""

    def check(value: Any) -> None:
        array(value)
        if count is not None and len(value) != count:
            raise Malformed(f"{len(value)} values in place of {count}")
        for index, each in enumerate(value):
            _inside(str(index), of, each)

    return check


def _inside(name: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except Malformed as error:
        raise Malformed(f"{ascii(name)[1:-1][:LONGEST_SHOWN]}: {error}") from None


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    shown = ascii(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."


# --- the kinds ------------------------------------------------------------------------------------------------------
KEY_FORM: Final = "[0-9a-f]{64}"
"""Pattern of a key, and of any other sha256."""
ATTEMPT_FORM: Final = "[0-9a-f]{12}"
"""Pattern of the folder that an attempt at a result writes its files to."""
ARTIFACT_FORM: Final = r"[a-z][a-z0-9_]*\.(json|safetensors|txt)"
"""Pattern of the name of an artifact, and of the manifest."""

_key = matching(KEY_FORM)
_count = within(0, 2**53, whole=True)
_sparsity = within(0, 1 - 2**-30)
_positive = within(1e-12, 1e15)
_seconds = within(0, 1e11)
"""A duration, or a time since 1970."""
_milliseconds = within(0, 1e14)
"""A time since 1970."""
_setting = any_of(flag, text)
_rate = fields(
    {"model": text, "width": _positive, "image_size": _positive, "images_per_second": _positive},
    {
        "sparsity": any_of(nothing, within(0, 1)),
        "compile_seconds": _seconds,
        "conventional": any_of(nothing, _positive),
    },
)
"""The way of a rate is checked by ``trainables.training.way.Way``."""


def _row(value: Any) -> None:
    """Accept an epoch, or a point of a measurement: step, timestamp and metrics."""
    mapping(number)(value)
    fields({"step": _count, "timestamp": _milliseconds})(value)


MANIFEST: Final = fields(
    {
        "key": _key,
        "files": mapping(fields({"sha256": _key, "bytes": _count}), names=matching(ARTIFACT_FORM)),
    },
    {
        "attempt": matching(ATTEMPT_FORM),
        "checksum": _key,
        "kind": text,
        "config": fields({}, {"task": fields({}, {"dataset": text, "model": text, "width": _positive})}),
        "parents": mapping(_key),
        "finished": _milliseconds,
        "environment": fields({}, {"host": text}),
        "seconds": _seconds,
        "epoch": _count,
    },
)
METRICS: Final = fields({"history": several(_row), "final": mapping(number)})
PLANE: Final = fields(
    {
        "networks": several(text),
        "coordinates": several(several(number, 2)),
        **dict.fromkeys(("network_errors", "network_losses", "xs", "ys"), several(number)),
        **dict.fromkeys(("errors", "losses"), several(several(number))),
    }
)
CHECKPOINT: Final = fields(
    {"epoch": _count, "train_seconds": _seconds, "seconds": _seconds, "history": several(_row), "log": several(text)}
)
LEASE: Final = fields(
    {
        "token": text,
        "owner": text,
        "since": _seconds,
        "renewed": _seconds,
        "note": fields(
            {}, {"space": text, "jobs": _count, "out": several(text), "kind": text, "epochs": _count, "step": _count}
        ),
    }
)
FAILURE: Final = fields({"error": text}, {"at": _milliseconds, "environment": anything, "log": text})
CHOICE: Final = fields({"settings": mapping(_setting), "given": mapping(_setting)})
BENCHMARK: Final = fields(
    {
        "measurements": several(
            fields(
                {"what": text, "settings": mapping(anything), "rates": several(_rate)}, {"machine": mapping(anything)}
            )
        )
    }
)
_scalar = any_of(flag, number, text)
PLACE: Final = fields({"width": within(2**-10, 2**10)}, {"sparsity": _sparsity, "matching": mapping(_scalar)})
VARIED: Final = fields({"varied": mapping(_scalar)})

KINDS: Final[Mapping[str, Check]] = {
    "manifest of a result": MANIFEST,
    "metrics of a result": METRICS,
    "plane of a result": PLANE,
    "checkpoint": CHECKPOINT,
    "lease": LEASE,
    "note of a failure": FAILURE,
    "choice of --fastest": CHOICE,
    "benchmark": BENCHMARK,
    "place of a run in the grid": PLACE,
    "varied settings of a run": VARIED,
}
