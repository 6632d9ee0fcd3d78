"""What is worked out of a frame once, while a report is written: its figures ask for the same numbers many times.

Frames can be changed, so nothing is remembered by itself. Whoever opens :func:`remembered` says that they are not,
until it is closed.
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
_Answers = dict[tuple[Callable[..., Any], int], tuple[Any, Any]]
"""Function and identity of a frame -> the frame, which so stays alive and keeps its identity, and what came of it."""
_known: ContextVar[_Answers | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Let every function marked :func:`once` work out its answer once per frame; the frames must not change."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def once(function: Callable[[pd.DataFrame], T]) -> Callable[[pd.DataFrame], T]:
    """Mark a function of a frame whose answer may be remembered; each caller gets a copy of its own."""

    @functools.wraps(function)
    def answer(frame: pd.DataFrame) -> T:
        known = _known.get()
        if known is None:
            return function(frame)
        place = function, id(frame)
        if place not in known:
            known[place] = frame, function(frame)
        own: T = copy.copy(known[place][1])  # of a data frame, a copy that shares what nobody writes to
        return own

    return answer
