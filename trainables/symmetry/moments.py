"""First and second moments of activations, accumulated batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

DEAD_RATIO = 1e-6
"""A unit counts as dead if its standard deviation is at most this fraction of its mean, the resolution of float32."""

BLOCK = 1024
"""Number of positions summed in float32; over a whole batch (10^5) rounding would change correlations by 10^-4."""


def positions(output: Tensor) -> Tensor:
    """Copy activations (N, units, ...) to float32 (positions, units): one row per sample and pixel.

    The result is always a copy, because a later in-place layer may overwrite `output`.
    """
    # With units outermost in memory, copying and summing are fastest.
    units = output.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return units.flatten(1).float().T


class UnitMoments:
    """Mean and variance of each unit of one layer.

    The sums are over activations *shifted* by the first batch's means: the variance does not depend on the shift, and
    without it a unit with a large mean would lose its variance to rounding. Blocks of positions are summed in float32,
    the blocks in float64. The statistics raise ValueError before the first update.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._square = torch.empty(0)

    @torch.no_grad()
    def update(self, units: Tensor) -> Tensor:
        """Add activations (positions, units) and return them shifted."""
        if self.count == 0:
            # Round the shift to float32: `mean` must add back exactly the value that was subtracted.
            self._shift = (_block_sum(units.float()) / len(units)).float().double()
            self._sum = torch.zeros_like(self._shift)
            self._square = torch.zeros_like(self._shift)
        shifted = units.float() - self._shift.float()
        self.count += len(shifted)
        self._sum += _block_sum(shifted)
        self._square += _block_sum(shifted.square())
        return shifted

    def mean(self) -> Tensor:
        """Return the mean of each unit, float64 (units,)."""
        return self._shift + self.shifted_mean()

    def shifted_mean(self) -> Tensor:
        """Return the mean of the shifted activations, float64 (units,)."""
        if self.count == 0:
            raise ValueError("no activations were added; at least one batch is needed")
        return self._sum / self.count

    def variance(self) -> Tensor:
        """Return the biased variance of each unit, float64 (units,), at least 0."""
        shifted_mean = self.shifted_mean()
        return (self._square / self.count - shifted_mean.square()).clamp(min=0)

    def dead(self) -> Tensor:
        """Return which units vary by no more than rounding (`DEAD_RATIO`), bool (units,)."""
        return self.variance() <= (DEAD_RATIO * self.mean()).square()


class ActivationMoments:
    """The moments of one group that matching needs: of A's units, of B's units, and of both together.

    Like `UnitMoments` it works on shifted activations. Their cross product is computed in float32 per block of
    positions and summed in float64. Scores have B's units as rows, so that an assignment of columns to rows *is* the
    permutation that moves A onto B.
    """

    def __init__(self) -> None:
        self.a = UnitMoments()
        self.b = UnitMoments()
        self._cross = torch.empty(0)

    @torch.no_grad()
    def update(self, units_a: Tensor, units_b: Tensor) -> None:
        """Add one batch.

        Args:
            units_a: activations of A, float (positions, units of A).
            units_b: activations of B at the same positions, (positions, units of B); the moments stay on its device.

        Raises:
            ValueError: the numbers of positions differ.
        """
        if len(units_a) != len(units_b):
            raise ValueError(f"A has {len(units_a)} positions and B {len(units_b)}: they need the same inputs")
        shifted_a = self.a.update(units_a.to(units_b.device))
        shifted_b = self.b.update(units_b)
        with torch.autocast(units_b.device.type, enabled=False):  # a caller's bfloat16 would coarsen the product
            product = _cross_product(shifted_b, shifted_a)
        self._cross = product if self._cross.numel() == 0 else self._cross.add_(product)

    def covariance(self) -> Tensor:
        """Return the biased covariance, float64 (units of B, units of A)."""
        return -torch.outer(self.b.shifted_mean(), self.a.shifted_mean()) + self._cross / self.b.count

    def correlation(self) -> Tensor:
        """Return the Pearson correlation in [-1, 1], float64 (units of B, units of A); 0 for a dead unit."""
        scale_a = torch.where(self.a.dead(), 0.0, self.a.variance().rsqrt())
        scale_b = torch.where(self.b.dead(), 0.0, self.b.variance().rsqrt())
        return (self.covariance() * scale_b[:, None] * scale_a).clamp(-1, 1)

    def inner_product(self) -> Tensor:
        """Return the uncentred mean of z_B z_A^T over positions, float64 (units of B, units of A) (paper, Eq. 1)."""
        return self.covariance() + torch.outer(self.b.mean(), self.a.mean())


def _block_sum(rows: Tensor) -> Tensor:
    """Return the sum over positions of float32 (positions, units), float64 (units,)."""
    whole = len(rows) // BLOCK * BLOCK
    sums = rows[:whole].reshape(-1, BLOCK, rows.shape[1]).sum(dim=1)
    return sums.sum(dim=0, dtype=torch.float64) + rows[whole:].sum(dim=0)


def _cross_product(rows_b: Tensor, rows_a: Tensor) -> Tensor:
    """Return ``rows_b.T @ rows_a`` of float32 (positions, units), float64 (units of B, units of A)."""
    whole = len(rows_b) // BLOCK * BLOCK
    blocks_b = rows_b[:whole].reshape(-1, BLOCK, rows_b.shape[1])
    blocks_a = rows_a[:whole].reshape(-1, BLOCK, rows_a.shape[1])
    products = torch.bmm(blocks_b.transpose(1, 2), blocks_a)
    return products.sum(dim=0, dtype=torch.float64) + rows_b[whole:].T @ rows_a[whole:]
