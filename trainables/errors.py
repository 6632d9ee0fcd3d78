"""Errors that recur at every attempt at a job, and errors that are the fault of a host. Torch-free."""

from __future__ import annotations

import re
from enum import Enum


class HostFault(ValueError):
    """Something that a job needs is missing or different on this host: data, storage, code, a GPU, a compiler.

    Other hosts may be able to compute the job, so the attempt does not count; this host gets no more jobs of the study.
    """


class WouldRecur(Exception):
    """A mixin for errors that recur at every attempt on every host, although their base class does not imply it."""


class Verdict(Enum):
    """What an error implies for further attempts at the job."""

    PASSING = "may not recur"
    RECURRING = "recurs at every attempt"
    OF_HOST = "recurs on this host"


RECURRING = (WouldRecur, ValueError, TypeError, AttributeError, NameError, ArithmeticError, AssertionError)
"""Types of errors about values, shapes and code, which do not change between attempts."""
OF_HOST = (HostFault, ImportError)
"""Types of errors about what is installed on a host."""
OF_HOST_BY_NAME = frozenset({"InvalidCxxCompiler", "CppCompileError", "TritonMissing"})
"""Names of further such types, which only PyTorch's compiler defines."""
_SHAPES = re.compile(
    r"shapes? .*(cannot be multiplied|is invalid for input)|must match the (size|existing size)|Sizes of tensors must"
    r"|size mismatch|expected input.* to have|Expected more than 1 value per channel|equal size|Kernel size can't be"
    r"|should be the same|must have the same dtype"
)
"""Messages of PyTorch's RuntimeErrors for tensors of incompatible shapes or types."""


def causes(error: BaseException, *, contexts: bool = False) -> list[BaseException]:
    """Return an error and its causes, outermost first; `contexts` adds errors during whose handling one was raised."""
    found = [error]
    while (cause := found[-1].__cause__ or (found[-1].__context__ if contexts else None)) and cause not in found:
        found.append(cause)
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def verdict(error: BaseException) -> Verdict:
    """Return what an error implies for further attempts at the job that it ended."""
    if any(isinstance(each, OF_HOST) or type(each).__name__ in OF_HOST_BY_NAME for each in causes(error)):
        return Verdict.OF_HOST
    if isinstance(error, RECURRING) or (type(error) is RuntimeError and _SHAPES.search(str(error))):
        return Verdict.RECURRING
    return Verdict.PASSING
