"""The current time as results, notes and MLflow keep it. Torch-free."""

from __future__ import annotations

import time


def now() -> int:
    """Return the current time in ms since 1970, MLflow's unit."""
    return round(1000 * time.time())
