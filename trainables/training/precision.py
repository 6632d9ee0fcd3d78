"""What the precisions of a recipe mean to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Let GPUs round the factors of products to TensorFloat-32 (10 bits of mantissa) or not, until the block ends.

    PyTorch's own default is to do so in convolutions, and not in products of matrices. CPUs know nothing of it.
    """
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    convolutions.allow_tf32 = matrices.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before
