"""Training and evaluation: the loop, the learning-rate schedule, and the engines that compute an epoch."""

from typing import Final

EVAL_BATCH: Final = 1000
"""Images per batch for evaluation and measurements, if they are small."""
EVAL_PIXELS: Final = EVAL_BATCH * 64**2
"""Pixels per batch for evaluation and measurements: activations take memory in proportion to them."""
LEAST_MICRO_BATCH: Final = 16
"""Fewest images of a micro-batch: BatchNorm's statistics over fewer are poor."""


def eval_batch(image_size: int, micro_batches: int = 1) -> int:
    """Return the number of images per batch for evaluation and measurements, at least 1.

    Args:
        image_size: pixels a side.
        micro_batches: the number of micro-batches into which a job divides its batches.
    """
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // image_size**2) // micro_batches)
