"""What this machine's CPU is and can do. Torch-free: a plan is made without importing torch."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

WIDEST_REGISTER: Final = 16
"""Single-precision numbers in the widest vector register of a CPU (AVX-512)."""
BF16_FEATURES: Final = ("avx512_bf16", "amx_bf16", "bf16")
"""Names, in Linux' list, of what multiplies bfloat16 in hardware: x86 with AVX-512 or AMX, ARM. A CPU that has none of
them converts every factor, which takes many times as long as single precision."""


def features() -> frozenset[str] | None:
    """Return what this machine's CPU has, in Linux' words; None where the system does not say."""
    for field in ("flags", "Features"):
        if line := _line(field):
            return frozenset(line.split())
    return None


def name() -> str:
    """Return the name of the CPU's model."""
    return _line("model name") or platform.processor() or platform.machine()


def emulates_bf16() -> bool:
    """Return whether this CPU is known to have no instructions for bfloat16."""
    found = features()
    return found is not None and found.isdisjoint(BF16_FEATURES)


def _line(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")
