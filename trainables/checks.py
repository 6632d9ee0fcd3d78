"""Checks of names and numbers from users; messages have the value and the accepted values. Torch-free."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache


def known(what: str, name: object, names: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `names`; the message suggests the nearest and lists them all."""
    if isinstance(name, str) and isinstance(names, Mapping) and name in names:
        return
    listed = list(names)
    if name not in listed:
        raise ValueError(f"unknown {what} {name!r}{suggestion(name, listed)}")


def suggestion(name: object, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?); known: x, y``, the end of the message on a name that is not in `names`."""
    listed = list(names)
    near = difflib.get_close_matches(str(name), listed, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{hint}; known: {', '.join(listed) or 'none'}"


def bounded(what: str, value: object, interval: str, *, whole: bool = False, **ends: float) -> None:
    """Raise ValueError unless `value` is a number in `interval`; the message gives value and interval.

    Args:
        what: name of the value.
        value: the value to check.
        interval: in mathematical notation: ``[0, 1)`` contains 0 but not 1; ``0 or [2, 100]`` also allows 0.
        whole: whether only whole numbers are accepted.
        **ends: name -> value of each end that the interval names.
    """
    zero, low, above_low, high, below_high = _parsed(interval)
    lowest, highest = (float(ends.get(end, end)) for end in (low, high))
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
        inside = (value > lowest if above_low else value >= lowest) and (
            value < highest if below_high else value <= highest
        )
        if inside or (zero and value == 0):
            return
    article, named = "0 or " * zero, "".join(f" with {name}={end}" for name, end in ends.items())
    kind = "a whole number" if whole else "a number"
    raise ValueError(f"{what} must be {article}{kind} in {interval.removeprefix('0 or ')}{named}, got {value!r}")


def from_environment(variable: str, interval: str, unit: str) -> float | None:
    """Return the number in an environment variable; None if it is not set.

    Raises:
        ValueError: it is no number in `interval`, which is as in :func:`bounded`.
    """
    if (text := os.environ.get(variable)) is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{variable} must be a number of {unit}, got {text!r}") from None
    bounded(variable, number, interval)
    return number


@lru_cache
def _parsed(interval: str) -> tuple[bool, str, bool, str, bool]:
    """Return whether 0 is also allowed, then the two ends of an interval, each with whether it is excluded."""
    bare = interval.removeprefix("0 or ")
    low, high = bare[1:-1].split(", ")
    return bare != interval, low, bare[0] == "(", high, bare[-1] == ")"
