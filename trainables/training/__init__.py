"""Training and evaluation: the loop, the learning-rate schedule, and the engines that compute an epoch."""

from typing import Final

EVAL_BATCH: Final = 1000
"""Images per batch for evaluation and measurements, if they are small."""
EVAL_PIXELS: Final = EVAL_BATCH * 64**2
"""Pixels per batch for evaluation and measurements: activations take memory in proportion to them."""
HELD_OUTPUTS: Final = 10
"""While a correction measures a layer, forward passes that have paused there may hold this many times the memory of the
largest tensor in the pass of one batch. The observations of a match take about as much."""
CHECKPOINT_SECONDS: Final = 30.0
"""Seconds after which a job saves a checkpoint, unless the study says otherwise."""
SILENCE: Final = 12 * 3600.0
"""Seconds for which a trial or a worker may be silent, unless the study says otherwise."""
LEAST_MICRO_BATCH: Final = 16
"""Fewest images of a micro-batch: BatchNorm's statistics over fewer are poor."""


def eval_batch(image_size: int, micro_batches: int = 1) -> int:
    """Return the number of images per batch for evaluation and measurements, at least 1.

    Args:
        image_size: pixels a side.
        micro_batches: the number of micro-batches into which a job divides its batches.
    """
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // image_size**2) // micro_batches)


def correction_passes(layers: int, batches: int) -> float:
    """Return an estimate of the forward passes over all images in which a correction measures its layers, at least 1.

    Passes that are not held while they pause start again for every layer. The estimate assumes that a held pass has two
    tensors, as in a residual block, and that their sizes halve after each third of the layers.

    Args:
        layers: layers that the correction measures one after another.
        batches: batches of images.
    """
    if batches == 1:
        return 1.0
    passes = 0.0
    for layer in range(layers):
        held = min(1.0, HELD_OUTPUTS * 2 ** (3 * layer // layers) / (2 * batches))
        passes += (held + (1 - held) * (layer + 1)) / layers
    return passes
