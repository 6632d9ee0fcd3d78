"""Engine that trains one network in eager PyTorch. The others extend it, and most only replace its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the conventional name
from torch import Tensor, nn

from trainables.training.loop import Training


class Trainer:
    """Trains one network, alone or together with others. Each :class:`~trainables.training.loop.Training` has one.

    The training owns what does not depend on the engine: batches, learning rate, optimiser, mask, evaluation, state.
    The trainer computes losses and gradients. The trainers of other engines extend this one and follow its rules:

    - It takes all batches of an epoch, in order, from :meth:`Training.steps`, which sets each step's learning rate.
    - It leaves the gradients of a batch in the parameters' ``grad`` and calls :meth:`Training.update`, which takes the
      optimiser's step and sets masked weights to zero again.
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
        hits = torch.zeros((), device=training.device)
        autocast = training.autocast()
        for images, labels in training.steps():
            with autocast:
                logits = self.forward(images)
            loss = F.cross_entropy(at_least_single(logits), labels)
            training.model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            training.update()
            total_loss += loss.detach()
            hits += (logits.detach().argmax(dim=1) == labels).sum()
        loss, right = torch.stack((total_loss, hits)).tolist()  # the host waits once
        return [(loss, right)]


def at_least_single(logits: Tensor) -> Tensor:
    """Return the logits in at least single precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
