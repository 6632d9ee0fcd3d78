"""What errors imply for further attempts at a job: they recur, a host is at fault, memory is lacking. Torch-free."""

from __future__ import annotations

import errno
import re
import traceback
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
    OUT_OF_GPU_MEMORY = "recurs unless the job gets more memory of a GPU"
    OUT_OF_HOST_MEMORY = "recurs unless the host has more memory left for the job"


RECURRING = (WouldRecur, ValueError, TypeError, AttributeError, NameError, ArithmeticError, AssertionError)
"""Types of errors about values, shapes and code, which do not change between attempts."""
OF_HOST = (HostFault, ImportError)
"""Types of errors about what is installed on a host."""
OF_HOST_BY_NAME = frozenset({"InvalidCxxCompiler", "CppCompileError", "TritonMissing"})
"""Names of further such types, which only PyTorch's compiler defines."""
_UNUSABLE_GPU = re.compile(
    r"no kernel image is available|unsupported toolchain|No CUDA GPUs are available"
    r"|Found no NVIDIA driver|driver on your system is too old|driver version is insufficient"
)
"""Messages of RuntimeErrors for a GPU that the installed PyTorch or driver cannot use."""
_GPU_MEMORY = re.compile(
    r"out of memory|OUT_OF_MEMORY|CU[A-Z]+_(STATUS_)?(\w*ALLOC(ATION)?_FAILED|NOT_INITIALIZED)"
    r"|unable to find an engine to execute this computation"
)
"""Messages of RuntimeErrors for a full GPU: from PyTorch's allocator, CUDA and Triton; from libraries that cannot
allocate a workspace or create a handle; and from cuDNN when no algorithm gets the workspace that it needs."""
_HOST_MEMORY = re.compile(r"DefaultCPUAllocator|std::bad_alloc|Cannot allocate memory")
"""Messages of PyTorch's RuntimeErrors for a host without free memory."""
_OF_CUDA = re.compile(r"CUDA (driver )?error|cuDNN error|CU[A-Z]+_STATUS_")
"""Messages of RuntimeErrors from CUDA and its libraries."""
_USES = re.compile(
    r"shapes? .*(cannot be multiplied|is invalid for input)|must match the (size|existing size)|Sizes of tensors must"
    r"|size mismatch|expected input.* to have|Expected more than 1 value per channel|equal size|Kernel size can't be"
    r"|should be the same|must have the same dtype|does not have a deterministic implementation"
    r"|Deterministic behavior was enabled"
)
"""Messages of PyTorch's RuntimeErrors for tensors of incompatible shapes or types, and for operations that are not
deterministic where they have to be."""


def causes(error: BaseException, *, contexts: bool = False) -> list[BaseException]:
    """Return an error and its causes, outermost first; `contexts` adds errors during whose handling one was raised."""
    found = [error]
    while cause := found[-1].__cause__ or (found[-1].__context__ if contexts else None):
        if any(cause is each for each in found):
            break
        found.append(cause)
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def verdict(error: BaseException) -> Verdict:
    """Return what an error implies for further attempts at the job that it ended."""
    for each in causes(error, contexts=True):
        if (lacking := _memory(each)) is not None:
            return lacking
    if any(_is_of_host(each) for each in causes(error)):
        return Verdict.OF_HOST
    if isinstance(error, RECURRING) or (type(error) is RuntimeError and _USES.search(str(error))):
        return Verdict.RECURRING
    return Verdict.PASSING


def _memory(error: BaseException) -> Verdict | None:
    """Return which memory an error says is lacking; None if it says no such thing."""
    is_runtime, message = isinstance(error, RuntimeError), str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Verdict.OUT_OF_HOST_MEMORY
    if is_runtime and _HOST_MEMORY.search(message):
        return Verdict.OUT_OF_HOST_MEMORY
    if is_runtime and (type(error).__name__ == "OutOfMemoryError" or _GPU_MEMORY.search(message)):
        return Verdict.OUT_OF_GPU_MEMORY
    return None


def _is_of_host(error: BaseException) -> bool:
    by_type = isinstance(error, OF_HOST) or type(error).__name__ in OF_HOST_BY_NAME
    return by_type or (isinstance(error, RuntimeError) and bool(_UNUSABLE_GPU.search(str(error))))


def is_of_cuda(error: BaseException) -> bool:
    """Return whether an error comes from CUDA and its :func:`verdict` does not say what the job lacks.

    Most such errors (illegal accesses, failed assertions and launches, uncorrectable memory) are sticky: CUDA raises
    them again at every later call of the process.
    """
    return verdict(error) is Verdict.PASSING and any(
        isinstance(each, RuntimeError) and (type(each).__name__ == "AcceleratorError" or _OF_CUDA.search(str(each)))
        for each in causes(error, contexts=True)
    )


def release(error: BaseException) -> None:
    """Clear the local variables of all functions that an error has ended; their tensors may occupy a GPU's memory."""
    for each in causes(error, contexts=True):
        traceback.clear_frames(each.__traceback__)
