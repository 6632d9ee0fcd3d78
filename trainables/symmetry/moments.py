"""First and second moments of activations, accumulated batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

DEAD_RATIO = 1e-6
"""A unit counts as dead if its standard deviation is at most this share of its mean: float32 resolves no less."""

BLOCK = 1024
"""Positions that float32 adds up: over all of a batch (10^5) rounding would cost a correlation up to 10^-4."""


def positions(output: Tensor) -> Tensor:
    """Copy activations (N, units, ...) to float32 (positions, units): one row per sample and pixel.

    A copy even where a view would do, because a later in-place layer may overwrite `output`.
    """
    # Units outermost in memory: of the possible orders the one that is copied and summed fastest.
    units = output.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return units.flatten(1).float().T


class UnitMoments:
    """Mean and variance of each unit of one layer.

    Sums are kept of activations *shifted* by the first batch's means: a variance does not depend on the shift, and
    without it a unit with a large mean would lose its variance to rounding. Float32 adds up blocks of positions, and
    float64 the blocks.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._square = torch.empty(0)

    @torch.no_grad()
    def update(self, units: Tensor) -> Tensor:
        """Add activations (positions, units) and return them shifted."""
        if self.count == 0:
            # Rounded to float32, so that exactly the value subtracted is added back.
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
        """Return the mean of what `update` returned, float64 (units,). ValueError before the first update."""
        if self.count == 0:
            raise ValueError("no activations were added; at least one batch is needed")
        return self._sum / self.count

    def variance(self) -> Tensor:
        """Return the biased variance of each unit, float64 (units,), at least 0."""
        shifted_mean = self.shifted_mean()
        return (self._square / self.count - shifted_mean.square()).clamp(min=0)

    def dead(self) -> Tensor:
        """Return which units never vary, bool (units,)."""
        return self.variance() <= (DEAD_RATIO * self.mean()).square()


class ActivationMoments:
    """What matching needs to know of one group: the moments of A's units, of B's, and across.

    Like `UnitMoments` it works on shifted activations; their cross product is formed in float32, block by block of
    positions, and added up in float64. Scores have B's units as rows, so that an assignment of columns to rows *is*
    the permutation that moves A onto B.
    """

    def __init__(self) -> None:
        self.a = UnitMoments()
        self.b = UnitMoments()
        self._cross = torch.empty(0)

    @property
    def count(self) -> int:
        """Number of positions so far."""
        return self.b.count

    @torch.no_grad()
    def update(self, units_a: Tensor, units_b: Tensor) -> None:
        """Add one batch.

        Args:
            units_a: activations of A, float (positions, units of A).
            units_b: activations of B at the same positions, (positions, units of B); the moments live on its device.

        Raises:
            ValueError: the two differ in their number of positions.
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
        return -torch.outer(self.b.shifted_mean(), self.a.shifted_mean()) + self._cross / self.count

    def correlation(self) -> Tensor:
        """Return the Pearson correlation in [-1, 1], float64 (units of B, units of A); 0 for a dead unit."""
        scale_a = torch.where(self.a.dead(), 0.0, self.a.variance().rsqrt())
        scale_b = torch.where(self.b.dead(), 0.0, self.b.variance().rsqrt())
        return (self.covariance() * scale_b[:, None] * scale_a).clamp(-1, 1)

    def inner_product(self) -> Tensor:
        """Return the mean over positions of z_B z_A^T, not centred: float64 (units of B, units of A) (paper, Eq. 1)."""
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
