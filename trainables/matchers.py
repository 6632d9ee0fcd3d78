"""Names of the matching methods, free of torch so that a plan can be checked and printed without it."""

from __future__ import annotations

from typing import Final

MATCHER_NAMES: Final[dict[str, str]] = {
    "activation": "linear assignment on the Pearson correlation of activations",
    "activation_inner": "linear assignment on the raw inner product of activations (paper, Eq. 1)",
    "weight": "coordinate descent on the inner product of weights, without data (Git Re-Basin, section 3.2)",
    "identity": "control: every unit stays where it is",
    "random": "control: a uniformly random permutation",
}
"""Method -> what it does. ``trainables.symmetry.matching.MATCHERS`` has the same names."""
DATA_MATCHERS: Final = ("activation", "activation_inner")
"""Those that compare activations, and so need training images."""
