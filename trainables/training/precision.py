"""PyTorch settings behind a recipe's precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 (10-bit mantissa) in convolutions and matrix products on GPUs, for the block.

    PyTorch's default allows it in convolutions and forbids it in matrix products. CPUs are unaffected.
    """
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    convolutions.allow_tf32 = matrices.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before
