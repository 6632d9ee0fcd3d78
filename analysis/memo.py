"""Results that are computed once per frame while a report is written: its figures need the same numbers many times.

Frames can change, so nothing is remembered by default. A caller that opens :func:`remembered` promises that no frame
changes until it is closed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_known: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("known", default=None)
"""(function, id of a frame) -> the frame, whose id stays its own as long as it is kept alive, and the result."""


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Compute the functions marked :func:`once` only once per frame; the frames must not change."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def once(function: Callable[[pd.DataFrame], T]) -> Callable[[pd.DataFrame], T]:
    """Mark a function of a frame whose result may be remembered; each caller gets a copy."""

    @functools.wraps(function)
    def answer(frame: pd.DataFrame) -> T:
        known = _known.get()
        if known is None:
            return function(frame)
        if (function, id(frame)) not in known:
            known[function, id(frame)] = frame, function(frame)
        own: T = copy.copy(known[function, id(frame)][1])  # a copied frame shares its columns until one is written to
        return own

    return answer
