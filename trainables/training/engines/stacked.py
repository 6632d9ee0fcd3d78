"""Several networks of one architecture trained as one.

The forward and the backward pass are those of a joint network, in which each of the networks has channels of its own:
convolutions in groups, products of matrices in batches. Layers that are too small to keep a GPU busy become as many
times larger. Everything else stays each network's own: its batches, its learning rate, its optimiser and its mask.

A network learns what it learns alone, except that sums are added up in another order: weights differ from those of the
same network alone as they do between two of its layouts in memory. In double precision that is 1e-14 of their length
after two epochs. In single precision it is 1e-8 at first and grows wherever rounding puts a unit on the other side of
its kink; a ResNet8 on the digits is at 2e-5 to 2e-3 after three epochs (learning rates 0.02 to 0.08; in another layout:
3e-5), its training loss within 2e-4 nats. In bfloat16 it is 6e-4 to 5e-3, and 2e-3 nats.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

from trainables.training.engines import plain
from trainables.training.loop import Training

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Identity)
"""What a joint network may consist of: layers that work on each channel by itself, or are widened here.

What a network does to its activations between them must be of that kind, too; sums and means over positions are.
"""


class Trainer(plain.Trainer):
    """Trains a network together with others, or alone while there are none."""

    def profile(self, training: Training) -> Hashable | None:
        """Return what must be equal; None for a network with a layer that cannot be widened."""
        model = training.model
        layers = [each for each in model.modules() if not list(each.children()) or list(each.parameters(recurse=False))]
        if not all(type(layer) in _LAYERS for layer in layers):
            return None
        tensors = tuple((tensor.dtype, tensor.stride()) for tensor in model.state_dict().values())
        # In words, a network has the sizes, strides and paddings of all its layers.
        network = type(model), str(model), tensors, training.device
        return *network, training.recipe.precision, training.batches.shape, training.batches.steps_per_epoch

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train the next epoch of several networks as one."""
        if len(trainings) == 1:
            return super().train_epoch(trainings)
        first, number = trainings[0], len(trainings)
        with _joined([training.model for training in trainings]) as joint:
            # Sums stay on the device; reading one each step would make the host wait for every step.
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
                joint.backward(losses.sum())  # of all, so that each net gets the gradients of its own
                for training in trainings:
                    training.update()
                total_losses += losses.detach()
                hits += (logits.detach().argmax(dim=2) == labels).sum(dim=0)
            return list(zip(total_losses.tolist(), hits.tolist(), strict=True))


@contextmanager
def _joined(models: Sequence[nn.Module]) -> Iterator[_Joint]:
    """Let the networks' parameters be slices of a joint network's until the block ends.

    Their optimisers and masks know nothing of it: they work on the same tensors as before, in place. Afterwards the
    networks have their own memory again.
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
    """A network that computes what several networks do, each in channels of its own.

    Attributes:
        network: maps images (N, networks * C, H, W) to logits (N, networks * classes).
        parameters: name -> those of the networks, (networks, ...); the joint network's are views of them.
        gradients: like the parameters.
        buffers: like the parameters.
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
        """Return the layer that has a tensor, and the tensor's name there."""
        path, _, own_name = name.rpartition(".")
        return self.network.get_submodule(path), own_name

    def backward(self, loss: Tensor) -> None:
        """Replace all gradients by those of a loss."""
        torch._foreach_copy_(self._gradients, torch.autograd.grad(loss, self._parameters))


class _Linears(nn.Module):
    """The linear layers of several networks."""

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
    """Return joint tensors of which the slices have the contents, and the memory layout, of those given."""
    joint = {}
    for name, first in states[0].items():
        # torch.stack would lose the layout, which fused optimisers require to be that of their own state.
        joint[name] = torch.empty_strided(
            (len(states), *first.shape), (first.numel(), *first.stride()), dtype=first.dtype, device=first.device
        )
        torch._foreach_copy_(list(joint[name].unbind()), [state[name].detach() for state in states])
    return joint
