"""How much of net B's own mask the mask of net A covers, as it is, permuted, and by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from trainables.masks import mask_overlap
from trainables.symmetry.permutations import Permutation, PermutationSpec, apply_permutation


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlaps:
    """Intersection over union of the kept weights, in [0, 1].

    Attributes:
        permuted: of A's mask, permuted, and B's.
        identity: of A's mask as it is and B's.
        random: expected of two random masks with their layer densities, which a permutation does not change.
    """

    permuted: float
    identity: float
    random: float


def overlaps(
    spec: PermutationSpec, permutation: Permutation, mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]
) -> Overlaps:
    """Compare the mask of A, before and after it is permuted, with B's own.

    Args:
        spec: the network's permutation specification.
        permutation: what moves A onto B.
        mask_a: mask of A.
        mask_b: mask of B, over the same tensors.

    Raises:
        ValueError: the masks differ in names or shapes, or do not fit the specification.
    """
    return Overlaps(
        permuted=mask_overlap(apply_permutation(spec, permutation, mask_a), mask_b),
        identity=mask_overlap(mask_a, mask_b),
        random=expected_overlap(mask_a, mask_b),
    )


def expected_overlap(mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]) -> float:
    """Return what :func:`mask_overlap` is expected to be if each layer's kept weights were drawn at random.

    In a layer of n weights of which the masks keep a and b, a b / n are kept by both on average. The result is the
    ratio of the means of intersection and union, which the mean of the ratio approaches as layers grow.

    Raises:
        ValueError: the masks differ in names or shapes.
    """
    mask_overlap(mask_a, mask_b)  # the same demands on the masks
    kept = [(int(a.sum()), int(mask_b[name].sum()), a.numel()) for name, a in mask_a.items()]
    both = sum(a * b / n for a, b, n in kept if n)
    union = sum(a + b for a, b, _ in kept) - both
    return both / union if union else 1.0
