"""The current time as results, notes and MLflow keep it, and durations as people read them. Torch-free."""

from __future__ import annotations

import time


def now() -> int:
    """Return the current time in ms since 1970, MLflow's unit."""
    return round(1000 * time.time())


def duration(seconds: float) -> str:
    """Return a duration in readable units: 48 s, 3 min 5 s, 42 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
