"""Pruning masks: dicts of boolean tensors, ``True`` where a weight is kept.

A mask covers the prunable weights only, and :func:`mask_sparsity` is over those; :func:`network_sparsity` is over all
parameters. No function here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = dict[str, Tensor]
"""Weight name -> bool tensor of the weight's shape, True where the weight is kept."""


def magnitude_mask(
    weights: Mapping[str, Tensor], sparsity: float, previous: Mapping[str, Tensor] | None = None
) -> Mask:
    """Prune the smallest weights by magnitude over all tensors together (global magnitude pruning; paper, section 4).

    Exactly ``round(sparsity * n)`` of the n weights are pruned. Ties are pruned in the order of `weights`, then by flat
    index, so the result is the same on every device.

    Args:
        weights: name -> prunable weight.
        sparsity: share of all weights in `weights` to prune, in [0, 1).
        previous: mask of the same tensors; weights that it prunes stay pruned and count towards `sparsity`.

    Returns:
        A mask with the names, shapes and devices of `weights`.

    Raises:
        ValueError: `sparsity` is out of bounds or below that of `previous`, a weight is NaN, there are no weights, or
            `previous` differs from `weights` in names or shapes.
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
    """Return the share of pruned weights among the weights that the mask covers, in [0, 1].

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
        ValueError: `tensors` lacks a tensor that `mask` has, or has it in another shape.
    """
    check_fits(mask, tensors)
    return _count_pruned(mask) / _count(tensors)


def apply_mask(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set pruned weights to zero.

    Args:
        mask: a mask of some of the tensors.
        tensors: a state dict, or any part of it that contains the masked tensors.

    Returns:
        The tensors under the same names and in the same order. Masked ones are new, with +0.0 where pruned; the others
        are the same objects as in `tensors`.

    Raises:
        ValueError: `tensors` lacks a tensor that `mask` has, or has it in another shape.
    """
    check_fits(mask, tensors)
    return {
        # Fill instead of multiplying: a product would give -0.0, and NaN where a pruned weight is infinite.
        name: tensor.masked_fill(~mask[name].to(tensor.device), 0) if name in mask else tensor
        for name, tensor in tensors.items()
    }


def collapsed_layers(mask: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors that keep no weight, so that no signal passes through their layer."""
    return tuple(name for name, kept in mask.items() if not kept.any())


def layerwise_random_mask(mask: Mapping[str, Tensor], generator: torch.Generator | int) -> Mask:
    """Draw a uniformly random mask that keeps exactly as many weights of each tensor as `mask` does.

    Args:
        mask: provides the counts.
        generator: a CPU generator, or the seed of a new one.

    Returns:
        A mask of the same names, shapes and devices.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    drawn: Mask = dict.fromkeys(mask, torch.empty(0))
    for name, kept in sorted(mask.items()):  # sorted, so that the draw does not depend on the dict's order
        flat = torch.zeros(kept.numel(), dtype=torch.bool)
        flat[torch.randperm(kept.numel(), generator=generator)[: int(kept.sum())]] = True
        drawn[name] = flat.reshape(kept.shape).to(kept.device)
    return drawn


def mask_overlap(mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]) -> float:
    """Return the intersection over union of two masks' kept weights, in [0, 1].

    1 means equal masks. Two random masks that keep a share d of the weights overlap by about ``d / (2 - d)``.

    Raises:
        ValueError: the masks differ in names or shapes.
    """
    _check_same_layout(mask_a, mask_b)
    pairs = [(kept, mask_b[name].to(kept.device)) for name, kept in mask_a.items()]
    union = sum(int((a | b).sum()) for a, b in pairs)
    return sum(int((a & b).sum()) for a, b in pairs) / union if union else 1.0


def expected_overlap(mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]) -> float:
    """Return the expected :func:`mask_overlap` if each layer's kept weights were drawn at random.

    If two masks keep a and b of a layer's n weights, both keep a b / n of them on average. The result is the expected
    intersection over the expected union; the expected ratio approaches it as layers grow.

    Raises:
        ValueError: the masks differ in names or shapes.
    """
    _check_same_layout(mask_a, mask_b)
    kept = [(int(a.sum()), int(mask_b[name].sum()), a.numel()) for name, a in mask_a.items()]
    both = sum(a * b / n for a, b, n in kept if n)
    union = sum(a + b for a, b, _ in kept) - both
    return both / union if union else 1.0


def _flat_magnitudes(weights: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> npt.NDArray[np.floating]:
    """Concatenate all magnitudes into one vector on the CPU, with -1 where `previous` prunes."""
    _count(weights)
    pieces = []
    for name, tensor in weights.items():
        magnitude = tensor.detach().abs().reshape(-1).cpu()
        if magnitude.isnan().any():
            raise ValueError(f"tensor {name!r} has NaN weights, which have no magnitude to rank")
        # NumPy has no bfloat16; converting to float32 is exact and keeps the order.
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        if previous is not None:
            magnitude = magnitude.masked_fill(~previous[name].reshape(-1).cpu(), -1)
        pieces.append(magnitude.numpy())
    return np.concatenate(pieces)


def _all_but_smallest(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.bool_]:
    """Return False for the `count` smallest values, else True; of equal values, the earlier ones become False first."""
    if count == 0:
        return np.ones(len(values), dtype=np.bool_)
    # Partitioning takes linear time and, unlike sorting 68 million weights, no index vector of twice their size.
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
    check_fits(mask, tensors)
    if missing := tensors.keys() - mask.keys():
        raise ValueError(f"the mask lacks {', '.join(sorted(missing))}; it has: {', '.join(mask)}")


def check_fits(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `tensors` has a tensor of the same name and shape for each bool tensor of the mask."""
    for name, kept in mask.items():
        if name not in tensors:
            raise ValueError(f"mask {name!r} has no tensor; known: {', '.join(tensors)}")
        if kept.dtype != torch.bool or kept.shape != tensors[name].shape:
            raise ValueError(
                f"mask {name!r} must be a bool tensor of shape {tuple(tensors[name].shape)}, "
                f"got {kept.dtype} of shape {tuple(kept.shape)}"
            )
