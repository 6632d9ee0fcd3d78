"""The only reader of stored documents: JSON that may be damaged or written by someone else. Torch-free.

The module ends with the kinds of documents that a study keeps. A reader gets a document whose fields exist and have the
right types, or :class:`Malformed`. Unknown fields are allowed: a later version of the study may have written them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from trainables import schema

Kind = type | re.Pattern[str] | Callable[[Any], None] | dict[str, Any] | list[Any] | tuple[Any, ...]
"""What a value should be:

- a type, or a pattern of text;
- ``{name: kind}``: an object with these fields; ``name?`` may be missing, ``*`` stands for all other fields;
- ``[kind]``: a list of any length; ``[kind, kind]``: a list of that length;
- ``(kind, kind)``: a value of either kind;
- a function that raises :class:`Malformed` for any other value.
"""
Document = dict[str, Any]

MAX_DEPTH: Final = 32
"""Levels of nesting; walking through a deeper document could exhaust the stack."""
LONGEST_SHOWN: Final = 40
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NULL = type(None)
_WORDS = {str: "text", bool: "true or false", list: "a list", dict: "an object", _NULL: "null"}
"""What messages call the types."""


class Malformed(ValueError):
    """A stored document is not of its kind."""


def parse(content: bytes | str, kind: Kind, *, exact: bool = False) -> Document:
    """Return the document in a file.

    Args:
        content: of the file.
        kind: what it should be, usually one of those below.
        exact: whether to keep lone surrogates, as in file names that are not UTF-8. They cannot be printed; otherwise
            question marks replace them.

    Raises:
        Malformed: it is truncated, not UTF-8, not JSON, ambiguous, nested too deeply, or has fields of another type.
    """
    try:
        written = content if isinstance(content, str) else content.decode()
        document: Document = json.loads(written, object_pairs_hook=_object)
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error
    if not exact and _HALF.search(written):
        document = json.loads(json.dumps(document, ensure_ascii=False).encode(errors="replace"))
    check(document, kind)
    check(document, dict)
    return document


def seal(content: bytes) -> bytes:
    """Return the content of a file that starts with its checksum."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(sealed: bytes) -> bytes:
    """Return the content that :func:`seal` was given.

    Raises:
        Malformed: the checksum is wrong.
    """
    checksum, _, content = sealed.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise Malformed("wrong checksum")
    return content


def _object(pairs: list[tuple[str, Any]]) -> Document:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise Malformed("a field occurs twice")
    return document


def check(value: Any, kind: Kind) -> None:
    """Raise :class:`Malformed`, which names the place, unless a value is of a kind."""
    if isinstance(kind, FunctionType):
        kind(value)
    elif isinstance(kind, type):
        if not isinstance(value, kind):
            raise Malformed(f"{_shown(value)} in place of {_WORDS[kind]}")
    elif isinstance(kind, re.Pattern):
        check(value, str)
        if not kind.fullmatch(value):
            raise Malformed(f"{_shown(value)} is not of the form {kind.pattern}")
    elif isinstance(kind, dict):
        check(value, dict)
        if missing := {name for name in kind if name[-1] not in "?*"} - value.keys():
            raise Malformed(f"without {', '.join(sorted(missing))}")
        others = kind.get("*", anything)
        for name, each in value.items():
            _check_inside(name, each, kind.get(name) or kind.get(f"{name}?", others))
    elif isinstance(kind, list):
        check(value, list)
        if len(kind) > 1 and len(value) != len(kind):
            raise Malformed(f"{len(value)} values in place of {len(kind)}")
        for index, each in enumerate(value):
            _check_inside(str(index), each, kind[index % len(kind)])
    elif isinstance(kind, tuple):
        for each in kind[:-1]:
            with contextlib.suppress(Malformed):
                return check(value, each)
        check(value, kind[-1])
    return None


def _check_inside(name: str, value: Any, kind: Kind) -> None:
    try:
        check(value, kind)
    except Malformed as error:
        raise Malformed(f"{ascii(name)[1:-1][:LONGEST_SHOWN]}: {error}") from None


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _WORDS[type(value)]
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    shown = ascii(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."


# --- kinds of values --------------------------------------------------------------------------------------------------
def anything(value: Any, depth: int = MAX_DEPTH) -> None:
    """Accept any value that is not nested too deeply."""
    if isinstance(value, dict | list):
        if not depth:
            raise Malformed("nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            anything(each, depth - 1)


def number(value: Any) -> None:
    """Accept any number that fits a float; a loss may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{_shown(value)} in place of a number")
    try:
        float(value)
    except OverflowError:
        raise Malformed("a number that is too large") from None


def within(low: float, high: float, *, whole: bool = False) -> Callable[[Any], None]:
    """Return a kind: a finite number between two bounds."""

    def bounded(value: Any) -> None:
        number(value)
        if not low <= value <= high or (whole and not isinstance(value, int)):
            raise Malformed(f"{_shown(value)} is no {'whole number' if whole else 'number'} from {low:g} to {high:g}")

    return bounded


# --- kinds of documents -----------------------------------------------------------------------------------------------
KEY_FORM: Final = "[0-9a-f]{64}"
"""Pattern of a key, and of any other sha256."""
ATTEMPT_FORM: Final = "[0-9a-f]{12}"
"""Pattern of the folder that an attempt at a result writes its files to."""
ARTIFACT_FORM: Final = r"[a-z][a-z0-9_]*\.(json|safetensors|txt)"
"""Pattern of the name of an artifact, and of the manifest."""

_key = re.compile(KEY_FORM)
_count = within(0, 2**53, whole=True)
_positive = within(1e-12, 1e15)
_seconds = within(0, 1e11)
"""A duration, or a time since 1970."""
_milliseconds = within(0, 1e14)
"""A time since 1970."""
_row = {"step": _count, "timestamp": _milliseconds, "*": number}
"""An epoch, or a point of a measurement: step, timestamp and metrics."""
_setting = (bool, str)
_scalar = (bool, number, str)
_rate = {
    "model": str,
    "width": _positive,
    "image_size": _positive,
    "images_per_second": _positive,
    "sparsity?": (_NULL, within(0, 1)),
    "compile_seconds?": _seconds,
    "conventional?": (_NULL, _positive),
}
"""The way of a rate is checked by ``trainables.training.way.Way``."""


def _files(value: Any) -> None:
    """Accept the list of a result's files: name -> checksum and size."""
    check(value, {"*": {"sha256": _key, "bytes": _count}})
    for name in value:
        check(name, re.compile(ARTIFACT_FORM))


MANIFEST: Final = {
    "key": _key,
    "files": _files,
    "attempt?": re.compile(ATTEMPT_FORM),
    "checksum?": _key,
    "kind?": str,
    "config?": {"task?": {"dataset?": str, "model?": str, "width?": _positive}},
    "parents?": {"*": _key},
    "finished?": _milliseconds,
    "environment?": {"host?": str, "commit?": str},
    "seconds?": _seconds,
    "epoch?": _count,
}
METRICS: Final = {"history": [_row], "final": {"*": number}}
PLANE: Final = {
    "networks": [str],
    "coordinates": [[number, number]],
    **{name: [number] for name in ("network_errors", "network_losses", "xs", "ys")},
    **{name: [[number]] for name in ("errors", "losses")},
}
CHECKPOINT: Final = {
    "format": str,
    "job": str,
    "document": {
        **dict.fromkeys(("train_seconds", "seconds"), _seconds),
        "epoch": _count,
        "history": [_row],
        "log": [str],
        f"{schema.MICRO_BATCHES}?": _count,
    },
}
LEASE: Final = {
    "token": str,
    "owner": str,
    "since": _seconds,
    "renewed": _seconds,
    "note": {"space?": str, "jobs?": _count, "out?": [str], "kind?": str, "epochs?": _count, "step?": _count},
}
FAILURE: Final = {"error": str, "at?": _milliseconds, "log?": str}
CHOICE: Final = {"settings": {"*": _setting}, "given": {"*": _setting}}
BENCHMARK: Final = {
    "measurements": [{"what": str, "settings": {"*": anything}, "rates": [_rate], "machine?": {"*": anything}}]
}
GPU_CHECK: Final = {
    **dict.fromkeys(("check", "error"), str),
    "ok": (bool, _NULL),
    "seconds": _seconds,
    "found": {"*": anything},
    "rows": [{"kind": str, "*": anything}],
    "on": {"*": anything},
}
FACTS: Final = {
    **dict.fromkeys(("dataset", "fingerprint", "source"), str),
    **dict.fromkeys(("num_classes", "in_channels", "train_images", "test_images"), _count),
    "image_size": (_NULL, _count),
}
PLACE: Final = {
    "stage": re.compile("|".join(schema.STAGES)),
    "width": within(2**-10, 2**10),
    "sparsity?": within(0, 1 - 2**-30),
    "matching?": {"*": _scalar},
    **{f"{name}?": str for name in (*schema.PLACE_TEXTS[1:], schema.ENGINE)},
    **{f"{name}?": _count for name in schema.PLACE_COUNTS},
    "match_epoch?": within(-1, 2**53, whole=True),
}
VARIED: Final = {"varied": ({"*": _scalar}, [{"*": (_NULL, *_scalar)}])}
SETTINGS: Final = {"*": anything}
START: Final = {
    "space": str,
    "recipe?": str,
    "command": str,
    "started": _milliseconds,
    "ended?": _milliseconds,
    "seconds": _seconds,
    "jobs": {"*": _seconds},
}
_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
RECORD: Final = {
    "space": str,
    "question": str,
    "recipe": str,
    "settings": SETTINGS,
    "starts": [
        {
            **dict.fromkeys(("id", "command"), str),
            **dict.fromkeys(("started", "ended"), _time),
            **dict.fromkeys(("jobs", "new_jobs"), _count),
            "estimated_seconds": _seconds,
            "end_noted": bool,
        }
    ],
}
