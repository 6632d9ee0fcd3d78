"""What can be trained, and how one job is computed.

The four Ray Tune Trainables are imported on first use, so that planning needs neither ray nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.tune import LTH, Dense, Naive, Permuted

__all__ = ["LTH", "Dense", "Naive", "Permuted"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainables import tune

        return getattr(tune, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
