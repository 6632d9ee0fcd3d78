"""Name and features of this machine's CPU. Torch-free: a plan is made without importing torch."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

WIDEST_REGISTER: Final = 16
"""Single-precision numbers in the widest vector register of a CPU (AVX-512)."""
BF16_FEATURES: Final = ("avx512_bf16", "amx_bf16", "bf16")
"""Linux's names of the features that multiply bfloat16 in hardware: x86 with AVX-512 or AMX, ARM. A CPU without any of
them converts every factor, which is many times slower than single precision."""


def name() -> str:
    """Return the model name of the CPU."""
    return _line("model name") or platform.processor() or platform.machine()


def features() -> str:
    """Return Linux's names of the CPU's features, separated by spaces; empty where the system does not list them."""
    return _line("flags") or _line("Features")


def emulates_bf16() -> bool:
    """Return whether this CPU is known to lack instructions for bfloat16."""
    listed = features()
    return bool(listed) and set(listed.split()).isdisjoint(BF16_FEATURES)


def _line(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")
