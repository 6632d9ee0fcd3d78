"""Memory and processor use of a long job, under names that MLflow shows on its page of system metrics."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

from trainables import schema

SAMPLE_SECONDS = 30.0
"""Between two samples; shorter jobs have none."""


class Usage:
    """Samples of the memory and the processor time of one job, from its start on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":  # its peak is this job's then, not that of the process
            torch.cuda.reset_peak_memory_stats(device)
        self._wall, self._busy = time.monotonic(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Return the metrics since the last sample, or {} if it was less than ``SAMPLE_SECONDS`` ago."""
        wall, busy = time.monotonic(), time.process_time()
        if wall - self._wall < SAMPLE_SECONDS:
            return {}
        metrics = {
            schema.SYSTEM_MEMORY: peak_memory() / 1e6,
            schema.SYSTEM_CPU: 100.0 * (busy - self._busy) / (wall - self._wall),
        }
        self._wall, self._busy = wall, busy
        if self._device.type == "cuda":
            metrics[schema.SYSTEM_GPU_MEMORY] = torch.cuda.max_memory_allocated(self._device) / 1e6
        return metrics


def peak_memory() -> float:
    """Return the peak memory of this process, in bytes."""
    try:
        # getrusage would include the parent's memory at the time it started this process.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024.0 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
