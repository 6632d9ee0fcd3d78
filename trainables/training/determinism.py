"""The deterministic switch: the same bits from run to run on the same kind of GPU. CPUs need none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import torch

_VARIABLE: Final = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACE: Final = ":4096:8"
"""Eight buffers of 4 MiB for each cuBLAS handle and stream: with buffers of a fixed size, cuBLAS is deterministic."""


def fix_workspace() -> None:
    """Give cuBLAS a workspace of a fixed size, unless the user has chosen one.

    PyTorch reads the variable before its first matrix product on a GPU, so a process calls this at its start.
    """
    os.environ.setdefault(_VARIABLE, _WORKSPACE)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Make PyTorch use only deterministic algorithms within the block, if `wanted`.

    An operation without such an algorithm raises RuntimeError. cuDNN's benchmark is off, because it chooses among
    deterministic algorithms by their speed, which differs from run to run.
    """
    if not wanted:
        yield
        return
    fix_workspace()
    cudnn, memory = torch.backends.cudnn, cast("Any", torch.utils.deterministic)  # its stubs lack the attribute
    before = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    # Filling memory before its first use would only take time: what is trained never reads it.
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
