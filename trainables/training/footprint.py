"""The memory that a network needs, found without allocating it: PyTorch's ``meta`` device computes only shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from trainables.config import Task
from trainables.training.evaluation import observed


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Sizes of a network and its activations, counted in numbers: times four gives bytes in float32.

    Attributes:
        parameters: number of parameters.
        kept: per image, what a training step saves in the forward pass for the backward pass.
        largest: per image, the largest output of a layer.
        tapped: per image, the outputs that activation matching compares, over all permutation groups.
        correlations: entries of the unit-by-unit correlation matrices, over all permutation groups.
    """

    parameters: int
    kept: int
    largest: int
    tapped: int
    correlations: int


@cache
def footprint(task: Task, *, image_size: int, num_classes: int, in_channels: int) -> Footprint:
    """Return the footprint of a task's network for square images of `image_size` pixels a side."""
    images = 2  # BatchNorm needs more than one
    kept: dict[int, Tensor] = {}
    outputs: dict[str, int] = {}
    with torch.device("meta"):
        model = task.network(image_size=image_size, num_classes=num_classes, in_channels=in_channels)
        own = {_storage(tensor) for tensor in model.state_dict().values()}

        def note(module: str, _input: Tensor, output: Tensor) -> None:
            outputs[module] = output.numel() // images

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor  # the reference keeps its storage id unique
            return tensor

        modules = [module for module, _ in model.named_modules()]
        with observed(model, modules, note), saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(torch.empty(images, in_channels, image_size, image_size))
            cross_entropy(logits, torch.zeros(images, dtype=torch.long))
    spec = model.permutation_spec()
    return Footprint(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        kept=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // (4 * images),
        largest=max(outputs.values()),
        tapped=sum(outputs[tap] for tap in spec.taps.values()),
        correlations=sum(units**2 for units in spec.sizes.values()),
    )


def _storage(tensor: Tensor) -> int:
    """Return the id of a tensor's storage, which views share."""
    return int(tensor.untyped_storage()._cdata)
