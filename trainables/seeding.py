"""Seeds by purpose: a root seed, a purpose and counters determine every random draw of a study.

``seed + epoch`` would give neighbouring seeds the same streams, and ``hash()`` differs between processes. A sha256 over
a canonical text has neither fault and gives the same number on every platform.
"""

from __future__ import annotations

import hashlib
import json
import operator
from typing import Final

SEED_BITS: Final = 63
"""Derived seeds fit a signed 64-bit integer, the widest type that every random generator in use accepts."""


def derive_seed(root: int, purpose: str, *counters: int) -> int:
    """Return the seed for one purpose, for example ``derive_seed(seed, "order", epoch)``.

    Args:
        root: seed of the job, any integer.
        purpose: names the use of the draws; different purposes give independent streams.
        counters: further coordinates, such as the epoch.

    Returns:
        An integer in [0, 2**63), a pure function of the arguments.

    Raises:
        ValueError: `purpose` is empty.
        TypeError: `root` or a counter is not an integer.
    """
    if not purpose:
        raise ValueError("purpose of a seed must not be empty")
    # JSON separates items unambiguously, so ("a", 1, 2) and ("a", 12) give different texts.
    text = json.dumps([operator.index(root), purpose, *map(operator.index, counters)])
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
