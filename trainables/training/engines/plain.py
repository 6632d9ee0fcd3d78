"""Engine that trains one network in eager PyTorch. The others extend it, and most only replace its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the conventional name
from torch import Tensor, nn

from trainables.training.loop import Training

_OF_EVERY_MODULE = vars(nn.Module()).keys()
"""Attributes of all modules: parameters, buffers, submodules and hooks."""
_HOOKS = tuple(name for name in _OF_EVERY_MODULE if "_hooks" in name and "state_dict" not in name)
"""Those of hooks that take part in a pass, and of their flags."""


class Trainer:
    """Trains one network, alone or together with others. Each :class:`~trainables.training.loop.Training` has one.

    The training owns what does not depend on the engine: batches, learning rate, optimiser, mask, evaluation, state.
    The trainer computes losses and gradients. The trainers of other engines extend this one and follow its rules:

    - It takes all batches of an epoch, in order, from :meth:`Training.steps`, which sets each step's learning rate.
    - It leaves the gradients of a batch in the parameters' ``grad`` and calls :meth:`Training.update`, which takes the
      optimiser's step and sets masked weights to zero again. If it trains a copy of the network, it does so by a copy
      of the training's optimiser, and copies both back at the end of the epoch.
    - Between epochs, the weights and buffers of ``Training.model`` are the network's state, which is evaluated, saved
      and restored, whatever memory the engine uses during an epoch.
    - On a CPU, equal states give bit-identical results, whatever else runs on the machine.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Prepare to train `model`, which is already on its device.

        Args:
            model: the network; its parameters and buffers stay the same objects.
            mask: name of a weight -> bool tensor, True where it is kept; weights without a mask are all kept.

        Raises:
            ValueError: the engine cannot train this network, or does not run on this machine.
        """
        self.network = model
        """The module evaluated after each epoch: the network, or a faster twin with the same parameters and buffers."""
        self.forward: Callable[[Tensor], Tensor] = model
        """Computes the logits of a training step: images (N, C, H, W) to (N, classes)."""
        self.loss_weight = 1.0
        """Factor on the loss whose gradients are computed."""

    def profile(self, training: Training) -> Hashable | None:
        """Return a value that networks must share to be trained together; None if this one must be trained alone."""
        return None

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train networks for one epoch; each may be at a different epoch.

        Args:
            trainings: this trainer's own training, or several with equal profiles that include it.

        Returns:
            For each, the sum of its steps' mean losses (nats) and the number of correctly classified images.
        """
        (training,) = trainings
        # The sums stay on the device: reading them at each step would make the host wait for every step.
        total_loss = torch.zeros((), device=training.device)
        total_hits = torch.zeros((), device=training.device)
        autocast = training.autocast()
        for images, labels in training.steps():
            loss, hits = compute_gradients(
                training.parameters, self.forward, images, labels, autocast, training.micro_batches, self.loss_weight
            )
            training.update()
            total_loss += loss
            total_hits += hits
        mean_losses, right = torch.stack((total_loss, total_hits)).tolist()  # the host waits once
        return [(mean_losses, right)]

    def release(self) -> None:
        """Free what the engine keeps for this network's next training step; such a step allocates it again."""


def compute_gradients(
    parameters: Iterable[Tensor],
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    autocast: torch.autocast,
    micro_batches: int = 1,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Leave the gradients of a batch's mean loss in the parameters' ``grad``, in place of earlier ones.

    Every image has the same weight in the sums over micro-batches, so they differ from those over the whole batch only
    in rounding, unless the network has BatchNorm, which normalises each micro-batch by its own statistics.

    Args:
        parameters: of the network. A network searches all its modules for them, at the cost of a small layer's pass.
        forward: the network's forward pass.
        images: (N, C, H, W).
        labels: int64 (N,).
        autocast: the precision of the forward pass.
        micro_batches: number of parts of the batch that are computed one after another, as many images in each; the
            device holds the activations of one of them at a time.
        weight: factor on the gradients.

    Returns:
        The mean loss (nats) and the number of correctly classified images, both of shape () on the device.
    """
    for parameter in parameters:
        parameter.grad = None
    if micro_batches == 1:
        return _add_gradients(forward, images, labels, autocast, weight)
    loss, hits = torch.zeros(2, device=labels.device).unbind()
    for part, its in zip(images.tensor_split(micro_batches), labels.tensor_split(micro_batches), strict=True):
        share = len(its) / len(labels)
        its_loss, its_hits = _add_gradients(forward, part, its, autocast, weight * share)
        loss += share * its_loss
        hits += its_hits
    return loss, hits


def _add_gradients(
    forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, autocast: torch.autocast, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Add `share` times the gradients of the images' mean loss to ``grad``; return the loss and the hits."""
    with autocast:
        logits = forward(images)
    loss = F.cross_entropy(at_least_single(logits), labels)
    loss.backward(torch.full_like(loss, share))  # type: ignore[no-untyped-call]
    return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()


def at_least_single(logits: Tensor) -> Tensor:
    """Return the logits in at least single precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def architecture(model: nn.Module) -> Hashable:
    """Return a value that two networks share only if they compute the same function of parameters and buffers.

    It has the type, attributes and hooks of every module, and the name and memory layout of every tensor. Attributes
    are compared as numbers, texts, lists, tuples and mappings of them; other objects, such as functions, are equal to
    themselves alone, so two networks with objects of their own share nothing.
    """
    modules = tuple((path, type(module), _attributes(module)) for path, module in model.named_modules())
    tensors = (*model.named_parameters(), *model.named_buffers())
    return modules, tuple((name, each.dtype, each.shape, each.stride()) for name, each in tensors)


def _attributes(module: nn.Module) -> Hashable:
    """Return the names and values of a module's own attributes, such as stride and padding, and its hooks."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    return _comparable(own), *(_comparable([*vars(module)[name].values()]) for name in _HOOKS)


def _comparable(value: object) -> Hashable:
    if isinstance(value, Mapping):
        return Mapping, tuple((repr(name), _comparable(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_comparable, value))
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else _Same(value)


@dataclass(frozen=True, eq=False)
class _Same:
    """An object that is equal to itself alone, however it compares: a tensor compares number by number."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def likeness(training: Training) -> tuple[Hashable, ...]:
    """Return what networks share whose steps are alike: architecture, device, precision and the batches' shape."""
    batches = training.batches
    network = architecture(training.model), training.device
    return *network, training.recipe.precision, batches.shape, batches.steps_per_epoch, training.micro_batches
