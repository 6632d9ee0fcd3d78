"""The kernels are compiled on and for this machine when first needed, and then cached.

They use the same instruction set as PyTorch, so ``ATEN_CPU_CAPABILITY`` restricts both. Results are bit-identical on
one machine, and equal up to rounding across register widths.

The name of a cached library ends with the digest of its content, which is verified before loading: code damaged on the
disk would kill the process with a signal, at every attempt.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.host import cpu
from trainables.host.places import cache_folders, first_writable
from trainables.host.toolchain import compiler

SOURCE = Path(__file__).with_name("sparse.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")
RESTRICTIONS = {"AVX512": (), "AVX2": ("-mno-avx512f",), "DEFAULT": ("-mno-avx",)}
"""PyTorch's CPU capability on x86 -> flags that keep the compiler within it."""

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64

_log = logging.getLogger(__name__)


class Activations(ctypes.Structure):
    """A tensor (blocks, channels, height, width, lanes) as the kernels take it."""

    _fields_ = (("data", _POINTER), *((name, _NUMBER) for name in ("blocks", "channels", "height", "width")))

    @classmethod
    def from_param(cls, tensor: Tensor) -> Activations:
        """Convert the argument of a kernel."""
        assert tensor.is_contiguous(), f"kernels want numbers in a row, got strides {tensor.stride()}"
        return cls(tensor.data_ptr(), *tensor.shape[:4])


class Taps(ctypes.Structure):
    """Addresses of the arrays that list a layer's kept weights; ``sparse.cpp`` explains them."""

    _fields_ = (*((name, _POINTER) for name in ("pointer", "offset", "index", "paired")), ("groups", _NUMBER))

    def __init__(self, *arrays: np.ndarray, groups: int) -> None:
        """List the weights; the arrays must be contiguous, and live as long as their addresses."""
        super().__init__(*(array.ctypes.data for array in arrays), groups)
        self._arrays = arrays


_FLAG, _REAL = ctypes.c_bool, ctypes.c_float
_ARGUMENTS = {
    "sparse_convolve": (Activations, _NUMBER, _NUMBER, Activations, _NUMBER, Taps, _POINTER, _NUMBER, _POINTER),
    "sparse_weight_gradients": (Activations, _NUMBER, _NUMBER, Activations, Taps, _POINTER, _NUMBER, _POINTER),
    "normalize": (
        *(Activations, _POINTER, _POINTER, _POINTER, _REAL, _REAL, _FLAG, _FLAG, _POINTER),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _NUMBER),
    ),
    "normalize_gradients": (
        *(_POINTER, _POINTER, Activations, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _FLAG),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _NUMBER),
    ),
}
"""Kernel -> types of its arguments. Tensors of a known shape are passed as addresses, which costs least."""


Call = Callable[[], None]


def prepared(kernel: str, *arguments: Any) -> Call:
    """Return a call of a kernel whose arguments are converted once.

    A tensor's memory must live as long as the call. ``Activations`` and addresses may be changed between two calls.
    """
    function = library()[kernel]  # of its own: it converts nothing
    function.restype = None
    return partial(function, *map(_converted, _ARGUMENTS[kernel], arguments))


def _converted(kind: type[Any], argument: Any) -> Any:
    if isinstance(argument, kind):
        return argument
    if kind is Activations:
        return Activations.from_param(argument)
    return kind(argument.data_ptr()) if isinstance(argument, Tensor) else kind(argument)


@cache
def library() -> ctypes.CDLL:
    """Return the kernels, compiling them if they are not in this machine's cache.

    Raises:
        ValueError: there is no C++ compiler, it fails, or the cache cannot be written.
    """
    _share_openmp()
    kernels = ctypes.CDLL(str(_built(compiler("kernels='sparse'"))))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, None
    return kernels


def lanes() -> int:
    """Return the number of images that a vector register holds side by side, one float each: 16, 8 or 4."""
    return ctypes.c_int32.in_dll(library(), "register_lanes").value


def _flags() -> tuple[str, ...]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return (*FLAGS, *(RESTRICTIONS.get(torch.backends.cpu.get_cpu_capability(), ()) if x86 else ()))


def _built(program: str) -> Path:
    """Return the library for this source, compiler and processor; compile it if it is not in the cache."""
    flags = _flags()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    # Nodes may share a home directory, but not the code. Where their features are not listed, they are taken for alike.
    processor = cpu.features() or platform.processor()
    made_of = "\0".join((SOURCE.read_text(encoding="utf-8"), version, *flags, platform.machine(), processor))
    folder = first_writable(cache_folders(), "compiled kernels")
    name = f"sparse-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    try:
        if found := _verified(folder, name):
            return found
        # All trials of a node may compile at once: each builds its own file, and a rename publishes only whole files.
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own, f"{name}.so")
            command = [program, *flags, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"kernels='sparse': {program} failed: {done.stderr.strip()[-2000:]}")
            return made.rename(folder / f"{name}-{_digest(made)}.so")
    except OSError as error:
        raise ValueError(f"kernels='sparse' are kept in {folder} (see XDG_CACHE_HOME): {error}") from error


def _verified(folder: Path, name: str) -> Path | None:
    """Return the library of this name whose content matches its digest, None if there is none; remove damaged ones."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            if path.name == f"{name}-{_digest(path)}.so":
                return path
        except FileNotFoundError:  # another process removed the damaged file
            continue
        _log.warning("the compiled kernels %s are damaged: removed, to be compiled again", path)
        path.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _share_openmp() -> None:
    """Make the kernels link to PyTorch's OpenMP: a second runtime's threads would compete with PyTorch's threads."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: the linker chooses
        return
    for path in dict.fromkeys(line.split(maxsplit=5)[-1] for line in maps if "/libgomp" in line):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
