"""Memory that a training step or a measured batch frees stays in this process, because the next one allocates it again.

By default the C library returns each step's activations to the kernel, which zeroes the pages when the next step
allocates them: that takes a tenth of a ResNet20's training time on a CPU. Results are unaffected.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BLOCK: Final = 32 * 2**20
"""Bytes from which a block has its own mapping, which is unmapped when freed; the largest value that glibc accepts."""
_NEVER: Final = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether its C library supports that (glibc does)."""
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back() -> None:
    """Return free memory to the system, for example when a job has ended and the next one may need less."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


@cache
def _function(name: str) -> Any:
    """Return the C library's function of this name; None if there is none."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # TypeError: Windows cannot open the C library by None
        return None
