"""Overlap of net A's mask with net B's own mask: permuted, as it is, and expected by chance."""

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
        permuted: A's permuted mask with B's mask.
        identity: A's unpermuted mask with B's mask.
        random: expected for random masks with the two masks' layer densities, which a permutation does not change.
    """

    permuted: float
    identity: float
    random: float


def overlaps(
    spec: PermutationSpec, permutation: Permutation, mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]
) -> Overlaps:
    """Compare A's mask, permuted and unpermuted, with the mask that pruning B itself finds.

    Args:
        spec: the network's permutation specification.
        permutation: the one that moves A onto B.
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
    """Return the expected :func:`mask_overlap` if each layer's kept weights were drawn at random.

    If two masks keep a and b of a layer's n weights, both keep a b / n of them on average. The result is the expected
    intersection over the expected union; the expected ratio approaches it as layers grow.

    Raises:
        ValueError: the masks differ in names or shapes.
    """
    mask_overlap(mask_a, mask_b)  # checks names and shapes
    kept = [(int(a.sum()), int(mask_b[name].sum()), a.numel()) for name, a in mask_a.items()]
    both = sum(a * b / n for a, b, n in kept if n)
    union = sum(a + b for a, b, _ in kept) - both
    return both / union if union else 1.0
