"""Training and evaluation: the loop, the learning-rate schedule, and the engines that compute an epoch."""

EVAL_BATCH = 1000
"""Images per batch for evaluation and measurements."""
