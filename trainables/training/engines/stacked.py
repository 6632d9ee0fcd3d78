"""Engine that trains several networks of one architecture as a single network.

The forward and backward passes are those of a joint network in which each network has its own channels: convolutions
become grouped, matrix products become batched. Layers that are too small to keep a GPU busy grow by the number of
networks. Each network keeps its own batches, learning rate, optimiser and mask.

A network learns the same as alone, except that sums are added in another order. Its weights differ from those of the
network trained alone about as much as between two memory layouts of one network. The relative difference (of norms) in
double precision is 1e-14 after two epochs. In single precision it is 1e-8 at first and grows whenever rounding moves a
unit across the kink of its ReLU: a ResNet8 on the digits reaches 2e-5 to 2e-3 after three epochs (learning rates 0.02
to 0.08; another memory layout: 3e-5), with a training loss within 2e-4 nats. In bfloat16 it reaches 6e-4 to 5e-3, with
a loss within 2e-3 nats.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the conventional name
from torch import Tensor, nn

from trainables.training.engines import plain
from trainables.training.loop import Training

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Identity)
"""Layers that a joint network may contain: they act on each channel separately, or :class:`_Joint` widens them.

Operations between layers must act on each channel separately, too, as sums and means over positions do.
"""


class Trainer(plain.Trainer):
    """Trains a network together with others, or alone if there are none."""

    def profile(self, training: Training) -> Hashable | None:
        """Return architecture, device, precision and batches' shape.

        None if a layer's type is not in `_LAYERS`, or if batches are divided: a joint network computes whole ones.
        """
        if training.micro_batches > 1:
            return None
        model = training.model
        layers = [each for each in model.modules() if not list(each.children()) or list(each.parameters(recurse=False))]
        if not all(type(layer) in _LAYERS for layer in layers):
            return None
        return plain.likeness(training)

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train one or several networks for one epoch, several of them as a joint network."""
        if len(trainings) == 1:
            return super().train_epoch(trainings)
        first, number = trainings[0], len(trainings)
        with _joined([training.model for training in trainings]) as joint:
            # The sums stay on the device: reading them at each step would make the host wait for every step.
            total_losses, hits = torch.zeros(2, number, device=first.device)
            autocast = first.autocast()
            for batches in zip(*(training.steps() for training in trainings), strict=True):
                images = torch.cat([images for images, _ in batches], dim=1)
                labels = torch.stack([labels for _, labels in batches], dim=1)
                with autocast:
                    logits = joint.network(images).unflatten(1, (number, -1))
                single = plain.at_least_single(logits).flatten(0, 1)
                each = F.cross_entropy(single, labels.flatten(), reduction="none")
                losses = each.view_as(labels).mean(dim=0)
                joint.backward(losses.sum())  # the sum's gradients are those of each network's own loss
                for training in trainings:
                    training.update()
                total_losses += losses.detach()
                hits += (logits.detach().argmax(dim=2) == labels).sum(dim=0)
            losses_and_hits = torch.stack((total_losses, hits), dim=1).tolist()  # the host waits once
            return [(loss, right) for loss, right in losses_and_hits]


@contextmanager
def _joined(models: Sequence[nn.Module]) -> Iterator[_Joint]:
    """Make the networks' parameters slices of a joint network's parameters until the block ends.

    Optimisers and masks need no change: they still update the same parameter objects in place. Afterwards the networks'
    parameters are back in their own memory, with the new values.
    """
    joint = _Joint(models)
    own = [[parameter.data for parameter in model.parameters()] for model in models]
    for index, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.data, parameter.grad = joint.parameters[name][index], joint.gradients[name][index]
    try:
        yield joint
    finally:
        for index, (model, memory) in enumerate(zip(models, own, strict=True)):
            for parameter, data in zip(model.parameters(), memory, strict=True):
                parameter.data, parameter.grad = data.copy_(parameter.data), None
            for name, buffer in model.named_buffers():
                buffer.copy_(joint.buffers[name][index])


class _Joint:
    """A network that computes several networks at once, each in its own channels.

    Attributes:
        network: maps images (N, networks * C, H, W) to logits (N, networks * classes).
        parameters: name -> the parameters of all networks, (networks, ...); the joint network's are views of these.
        gradients: name -> gradients, shaped like the parameters.
        buffers: name -> the buffers of all networks, (networks, ...).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.parameters = _stacked([dict(model.named_parameters()) for model in models])
        self.gradients = {name: torch.empty_like(tensor) for name, tensor in self.parameters.items()}
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        self.network = copy.deepcopy(models[0]).train()
        for path, layer in list(self.network.named_modules()):
            if isinstance(layer, nn.Conv2d):
                layer.groups *= len(models)
            elif isinstance(layer, nn.Linear):
                self.network.set_submodule(path, _Linears())
        for name, tensor in self.parameters.items():
            layer, own_name = self._place(name)
            setattr(layer, own_name, nn.Parameter(tensor if isinstance(layer, _Linears) else tensor.flatten(0, 1)))
        for name, tensor in self.buffers.items():
            setattr(*self._place(name), tensor.view(-1))
        self._parameters = [self.network.get_parameter(name) for name in self.parameters]
        wide = zip(self.gradients.values(), self._parameters, strict=True)
        self._gradients = [gradient.view(parameter.shape) for gradient, parameter in wide]

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """Return the layer that holds a tensor, and the tensor's name in that layer."""
        path, _, own_name = name.rpartition(".")
        return self.network.get_submodule(path), own_name

    def backward(self, loss: Tensor) -> None:
        """Overwrite all gradients with those of `loss`."""
        torch._foreach_copy_(self._gradients, torch.autograd.grad(loss, self._parameters))


class _Linears(nn.Module):
    """The same linear layer of several networks, computed in one batched product."""

    weight: nn.Parameter
    """(networks, out, in)"""
    bias: nn.Parameter | None
    """(networks, out)"""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, networks * in) to (N, networks * out)."""
        each = features.reshape(len(features), len(self.weight), -1).transpose(0, 1)
        weight = self.weight.transpose(1, 2)
        sums = torch.bmm(each, weight) if self.bias is None else torch.baddbmm(self.bias[:, None], each, weight)
        return sums.transpose(0, 1).flatten(1)


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return name -> tensor (networks, ...) whose slices have the values and memory layout of the networks' tensors."""
    joint = {}
    for name, first in states[0].items():
        # torch.stack would lose the memory layout, which fused optimisers need to match that of their own state.
        joint[name] = torch.empty_strided(
            (len(states), *first.shape), (first.numel(), *first.stride()), dtype=first.dtype, device=first.device
        )
        torch._foreach_copy_(list(joint[name].unbind()), [state[name].detach() for state in states])
    return joint
