"""Which errors would come again, so that trying a job again is in vain; and which are those of a host. Torch-free."""

from __future__ import annotations

import re
from enum import Enum


class HostFault(ValueError):
    """What a job needs is missing or different on this host: its data, the storage, the code, a GPU, a compiler.

    Other hosts may compute the job, so it is not charged for the attempt; this host gets no more of the study's jobs.
    """


class WouldRecur(Exception):
    """A trait of errors whose own type does not say it: the job fails in this way at every attempt on every host."""


class Verdict(Enum):
    """What an error says about further attempts at the job."""

    PASSING = "may not come again"
    RECURRING = "comes again at every attempt"
    OF_HOST = "comes again on this host"


RECURRING = (WouldRecur, ValueError, TypeError, AttributeError, NameError, ArithmeticError, AssertionError)
"""Types of errors about values, shapes and code, which are the same at the next attempt."""
OF_HOST = (HostFault, ImportError)
"""Types of errors about what a host has."""
OF_HOST_BY_NAME = frozenset({"InvalidCxxCompiler", "CppCompileError", "TritonMissing"})
"""The same, of classes that only PyTorch's compiler knows."""
_SHAPES = re.compile(
    r"shapes? .*(cannot be multiplied|is invalid for input)|must match the (size|existing size)|Sizes of tensors must"
    r"|size mismatch|expected input.* to have|Expected more than 1 value per channel|equal size|Kernel size can't be"
    r"|should be the same|must have the same dtype"
)
"""PyTorch raises RuntimeError where shapes or types of tensors do not go together."""


def verdict(error: BaseException) -> Verdict:
    """Return what an error says about further attempts at the job that it has ended."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(each, OF_HOST) or type(each).__name__ in OF_HOST_BY_NAME for each in causes):
        return Verdict.OF_HOST
    if isinstance(error, RECURRING) or (type(error) is RuntimeError and _SHAPES.search(str(error))):
        return Verdict.RECURRING
    return Verdict.PASSING
