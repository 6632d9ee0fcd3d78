"""The method table: what distinguishes dense, LTH, naive and permuted training, and the controls.

All methods train in the same way. They differ only in the net from which training starts, the net whose mask it uses,
and the transform of that mask. A method is therefore a row of this table and has no code path of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.checks import known


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """One way to change a mask before a net is trained under it.

    Attributes:
        description: one line for listings.
        drawn: whether the new mask is drawn at random; each pair of nets, and each member of an ensemble, then has a
            draw of its own.
    """

    description: str
    drawn: bool = False


PERMUTE = "permute"
TRANSFORMS: dict[str, Transform] = {
    "none": Transform(description="the mask as it is"),
    PERMUTE: Transform(description="the mask permuted by the match of A onto B"),
    "shuffle": Transform(description="the mask permuted by a random permutation of the same groups", drawn=True),
    "layerwise_random": Transform(
        description="a random mask with the same number of weights in every layer", drawn=True
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        label: name in tables and figures.
        init: net from whose state at the rewind epoch training starts: ``a``, ``b``, or ``fresh``, an initialisation
            drawn independently of A and B and taken at epoch 0, whatever the rewind epoch. ``final``: no training
            follows pruning.
        mask: net whose mask is used, ``a`` or ``b``; None for dense training.
        transform: a name of ``TRANSFORMS``.

    Raises:
        ValueError: the transform is unknown, or a match is to permute a mask other than A's or for a net other than B.
    """

    label: str
    init: Literal["a", "b", "fresh", "final"]
    mask: Literal["a", "b"] | None
    transform: str = "none"

    def __post_init__(self) -> None:
        known("transform", self.transform, TRANSFORMS)
        if self.aligned and (self.init, self.mask) != ("b", "a"):
            raise ValueError(
                f"the match moves A's units onto B's: {self.label} needs init b and mask a, got {self.init} and "
                f"{self.mask}"
            )

    @property
    def aligned(self) -> bool:
        """Whether the mask is permuted by the match of A onto B."""
        return self.transform == PERMUTE


METHODS: dict[str, Method] = {
    "dense": Method(label="Dense", init="a", mask=None),
    "imp": Method(label="IMP", init="final", mask="a"),
    "lth": Method(label="LTH", init="a", mask="a"),
    "naive": Method(label="Naive", init="b", mask="a"),
    "permuted": Method(label="Permuted", init="b", mask="a", transform=PERMUTE),
    "shuffled": Method(label="Shuffled", init="b", mask="a", transform="shuffle"),
    "layerwise_random": Method(label="Layerwise random", init="b", mask="a", transform="layerwise_random"),
    "own_mask": Method(label="Own mask", init="b", mask="b"),
    "reinit": Method(label="Reinit", init="fresh", mask="a"),
}
COMPARED = ("lth", "naive", "permuted")
"""The methods that a study is about, in the order of the table."""


# --- matching -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, slots=True)
class Matcher:
    """One way to find the permutation of A's hidden units that aligns A with B.

    Attributes:
        description: one line for listings.
        solve: ``module:function`` that maps a ``trainables.symmetry.matching.Problem`` to a permutation; imported on
            first use, because a plan needs only the names.
        needs_data: whether the matcher compares activations and so needs training images.
        drawn: whether the permutation is drawn at random; members of an ensemble then have draws of their own.
    """

    description: str
    solve: str
    needs_data: bool = False
    drawn: bool = False


MATCHERS: dict[str, Matcher] = {
    "activation": Matcher(
        description="linear assignment on the Pearson correlation of activations",
        solve="trainables.symmetry.matching:by_correlation",
        needs_data=True,
    ),
    "activation_inner": Matcher(
        description="linear assignment on the raw inner product of activations (paper, Eq. 1)",
        solve="trainables.symmetry.matching:by_inner_product",
        needs_data=True,
    ),
    "weight": Matcher(
        description="coordinate descent on the inner product of weights, without data (Git Re-Basin, section 3.2)",
        solve="trainables.symmetry.weight_matching:by_weights",
    ),
    "identity": Matcher(
        description="control: every unit stays where it is", solve="trainables.symmetry.matching:identity"
    ),
    "random": Matcher(
        description="control: a uniformly random permutation",
        solve="trainables.symmetry.matching:random",
        drawn=True,
    ),
}
