"""The NVIDIA GPUs of this machine, as its driver and kernel name them. Torch-free: importing torch takes seconds."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainables.knobs import BF16, TF32

NATIVE: Final = {TF32: (8, 0), BF16: (8, 0)}
"""Precision -> the least compute capability of the GPUs that multiply in it. Older ones emulate bf16, which is slower
than single precision, and ignore TF32."""
_MAJOR, _MINOR = 75, 76
"""The driver's numbers of the attributes that make up a GPU's compute capability."""
_KERNEL: Final = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each GPU that the kernel's module has found."""
_FILES: Final = Path("/dev")
"""Has a file ``nvidia0`` and so on for each GPU that this machine or container has been given."""
_HIDDEN: Final = ("", "-1", "NoDevFiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` with which a user, or Ray, hides all GPUs from a process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as its driver names it, such as ``NVIDIA A100-SXM4-40GB``.
        memory: bytes.
        capability: its compute capability, such as (8, 0).
    """

    name: str
    memory: int
    capability: tuple[int, int]

    def __str__(self) -> str:
        """Return name and architecture, such as ``Tesla V100-SXM2-16GB (sm_70)``."""
        return "{} (sm_{}{})".format(self.name, *self.capability)


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use; none if the driver cannot be used, see :func:`check_driver`."""
    driver = _driver()
    if driver is None or driver.cuInit(0):
        return []
    return [_gpu(driver, index) for index in range(_value(driver.cuDeviceGetCount))]


def capability_here() -> tuple[int, int] | None:
    """Return the least compute capability of these GPUs; None if there are none."""
    return min((gpu.capability for gpu in gpus()), default=None)


def check_driver() -> None:
    """Check that the driver can be used if this process has been given a GPU.

    A container or a job of a cluster may have been given none on a machine that has some; it computes on CPUs.

    Raises:
        ValueError: the process has been given a GPU, but the driver cannot be used; the message names both.
    """
    found = _in_kernel()
    if not found or not _given() or os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in _HIDDEN:
        return
    driver = _driver()
    if driver is None:
        reason = "its library libcuda.so.1 is missing"
    elif code := driver.cuInit(0):
        text = ctypes.c_char_p()
        reason = "unknown error" if driver.cuGetErrorString(code, ctypes.byref(text)) else (text.value or b"").decode()
    else:
        return
    raise ValueError(
        f"this machine has {', '.join(found)}, but its driver cannot be used ({reason}): repair the driver until "
        "`nvidia-smi` lists the GPU, or compute on CPUs (--gpus-per-trial 0)"
    )


def driver_version() -> tuple[int, int] | None:
    """Return the newest version of CUDA that the driver supports, such as (12, 4); None if there is no driver."""
    driver = _driver()
    if driver is None or not (version := _value(driver.cuDriverGetVersion)):
        return None
    return version // 1000, version % 1000 // 10


def mps_runs() -> bool:
    """Return whether NVIDIA's Multi-Process Service runs here, so that processes compute on a GPU side by side."""
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return Path(folder, "control").exists()


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _value(ask: Any, *arguments: Any) -> int:
    """Return the number that a function of the driver writes to its first argument; 0 if it fails."""
    number = ctypes.c_int()
    return 0 if ask(ctypes.byref(number), *arguments) else number.value


def _gpu(driver: Any, index: int) -> Gpu:
    device = _value(driver.cuDeviceGet, index)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = (_value(driver.cuDeviceGetAttribute, attribute, device) for attribute in (_MAJOR, _MINOR))
    return Gpu(name=name.value.decode(), memory=memory.value, capability=(major, minor))


def _given() -> bool:
    """Return whether this process may open the file of any GPU."""
    for file in _FILES.glob("nvidia[0-9]*"):
        try:
            os.close(os.open(file, os.O_RDWR))
        except OSError:  # a container shows no such file; under Slurm, the kernel denies it
            continue
        return True
    return False


def _in_kernel() -> list[str]:
    """Return the names of the GPUs that the kernel's module has found, also of those that others have been given."""
    names = []
    for file in sorted(_KERNEL.glob("*/information")):
        fields = dict(line.partition(":")[::2] for line in file.read_text(encoding="utf-8").splitlines())
        names.append(fields.get("Model", "an NVIDIA GPU").strip())
    return names
