"""How networks are trained and evaluated: the loop, the schedule, and the engines that compute an epoch."""

EVAL_BATCH = 1000
"""Images per batch for evaluation and measurements."""
