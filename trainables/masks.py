"""Pruning masks: dicts of boolean tensors, ``True`` where a weight is kept.

A mask covers the prunable weights only, so its sparsity is over those; :func:`network_sparsity` counts the whole
network. Nothing here works in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = dict[str, Tensor]
"""Tensor name -> bool tensor of the tensor's shape, True = kept."""


def magnitude_mask(
    weights: Mapping[str, Tensor], sparsity: float, previous: Mapping[str, Tensor] | None = None
) -> Mask:
    """Prune the weights that are smallest in magnitude over all tensors together: global magnitude pruning.

    Exactly ``round(sparsity * n)`` of the n weights are pruned. Equal magnitudes are pruned in the order of `weights`,
    then of the flat index, so the result is the same on every device.

    Args:
        weights: the prunable weights.
        sparsity: share of weights to prune, in [0, 1), over all of `weights`.
        previous: mask of the same tensors; what it prunes stays pruned and counts towards `sparsity`.

    Returns:
        A mask of the same names, shapes and devices as `weights`.

    Raises:
        ValueError: a sparsity out of bounds or below that of `previous`, NaN among the weights, no weights at all, or
            a `previous` that does not fit the weights.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity!r}")
    if previous is not None:
        _check_same_layout(previous, weights)
    magnitudes = _flat_magnitudes(weights, previous)
    count = round(sparsity * len(magnitudes))
    already = int(np.count_nonzero(magnitudes < 0))
    if count < already:
        raise ValueError(
            f"sparsity {sparsity!r} prunes {count} of {len(magnitudes)} weights, fewer than the {already} that the "
            f"previous mask has pruned (sparsity {already / len(magnitudes):.6g})"
        )
    kept = torch.from_numpy(_all_but_smallest(magnitudes, count))
    pieces = torch.split(kept, [tensor.numel() for tensor in weights.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.device, copy=True)
        for (name, tensor), piece in zip(weights.items(), pieces, strict=True)
    }


def mask_sparsity(mask: Mapping[str, Tensor]) -> float:
    """Return the share of pruned weights among those that the mask covers, in [0, 1].

    Raises:
        ValueError: an empty mask, or a tensor that is not boolean.
    """
    return _count_pruned(mask) / _count(mask)


def network_sparsity(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> float:
    """Return the share of pruned weights among all parameters, in [0, 1].

    Args:
        mask: a mask of some of the parameters.
        tensors: all parameters of the network, without buffers: ``dict(model.named_parameters())``.

    Raises:
        ValueError: the mask names or shapes a tensor that `tensors` does not have.
    """
    _check_fits(mask, tensors)
    return _count_pruned(mask) / _count(tensors)


def apply_mask(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set pruned weights to zero.

    Args:
        mask: a mask of some of the tensors.
        tensors: a state dict or any part of it that has the masked tensors.

    Returns:
        The tensors under the same names and in the same order: new ones, +0.0 where pruned, for those with a mask; the
        very same objects for the others.

    Raises:
        ValueError: the mask names or shapes a tensor that `tensors` does not have.
    """
    _check_fits(mask, tensors)
    return {
        # Filling instead of multiplying: a product would leave -0.0, and NaN where a pruned weight is infinite.
        name: tensor.masked_fill(~mask[name].to(tensor.device), 0) if name in mask else tensor
        for name, tensor in tensors.items()
    }


def collapsed_layers(mask: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors of which no weight is kept: what is before them no longer reaches the output."""
    return tuple(name for name, kept in mask.items() if not kept.any())


def layer_densities(mask: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of kept weights of each tensor, in [0, 1]."""
    return {name: 1 - mask_sparsity({name: kept}) for name, kept in mask.items()}


def layerwise_random_mask(mask: Mapping[str, Tensor], generator: torch.Generator | int) -> Mask:
    """Draw a uniformly random mask that keeps exactly as many weights of each tensor as `mask` does.

    Args:
        mask: where the counts come from.
        generator: a CPU generator, or the seed of a new one.

    Returns:
        A mask of the same names, shapes and devices.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    drawn: Mask = dict.fromkeys(mask, torch.empty(0))
    for name, kept in sorted(mask.items()):  # so that the draw depends on what is in the dict, not on its order
        flat = torch.zeros(kept.numel(), dtype=torch.bool)
        flat[torch.randperm(kept.numel(), generator=generator)[: int(kept.sum())]] = True
        drawn[name] = flat.reshape(kept.shape).to(kept.device)
    return drawn


def mask_overlap(mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]) -> float:
    """Return intersection over union of the kept weights of two masks of the same tensors, in [0, 1].

    1 means equal masks. Two random masks that keep a share d of the weights have about ``d / (2 - d)``.

    Raises:
        ValueError: the masks differ in names or shapes.
    """
    _check_same_layout(mask_a, mask_b)
    pairs = [(kept, mask_b[name].to(kept.device)) for name, kept in mask_a.items()]
    union = sum(int((a | b).sum()) for a, b in pairs)
    return sum(int((a & b).sum()) for a, b in pairs) / union if union else 1.0


def _flat_magnitudes(weights: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> npt.NDArray[np.floating]:
    """Join all magnitudes into one vector on the CPU, -1 where `previous` has pruned."""
    _count(weights)
    pieces = []
    for name, tensor in weights.items():
        magnitude = tensor.detach().abs().reshape(-1).cpu()
        if magnitude.isnan().any():
            raise ValueError(f"tensor {name!r} has NaN weights, which have no magnitude to rank")
        # NumPy has no bfloat16; the step up to float32 is exact and keeps the order.
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        if previous is not None:
            magnitude = magnitude.masked_fill(~previous[name].reshape(-1).cpu(), -1)
        pieces.append(magnitude.numpy())
    return np.concatenate(pieces)


def _all_but_smallest(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.bool_]:
    """Return True for all but the `count` smallest values; of equal values the earlier one counts as smaller."""
    if count == 0:
        return np.ones(len(values), dtype=np.bool_)
    # Selecting takes linear time and, unlike sorting 68 million weights, no index vector of twice their size.
    threshold = np.partition(values, count - 1)[count - 1]
    kept: npt.NDArray[np.bool_] = values >= threshold
    ties = np.flatnonzero(values == threshold)
    kept[ties[: count - int(np.count_nonzero(~kept))]] = False
    return kept


def _count(tensors: Mapping[str, Tensor]) -> int:
    count = sum(tensor.numel() for tensor in tensors.values())
    if not count:
        raise ValueError("no weights: need at least one tensor with at least one element")
    return count


def _count_pruned(mask: Mapping[str, Tensor]) -> int:
    for name, kept in mask.items():
        if kept.dtype != torch.bool:
            raise ValueError(f"mask {name!r} must be a bool tensor, got {kept.dtype}")
    return sum(kept.numel() - int(kept.sum()) for kept in mask.values())


def _check_same_layout(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    _check_fits(mask, tensors)
    if missing := tensors.keys() - mask.keys():
        raise ValueError(f"the mask lacks {', '.join(sorted(missing))}; it has: {', '.join(mask)}")


def _check_fits(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, kept in mask.items():
        if name not in tensors:
            raise ValueError(f"mask {name!r} has no tensor; known: {', '.join(tensors)}")
        if kept.dtype != torch.bool or kept.shape != tensors[name].shape:
            raise ValueError(
                f"mask {name!r} must be a bool tensor of shape {tuple(tensors[name].shape)}, "
                f"got {kept.dtype} of shape {tuple(kept.shape)}"
            )
