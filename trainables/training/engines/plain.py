"""A network alone, in PyTorch, operation by operation. Other engines exchange its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

from trainables.training.loop import Training


class Trainer:
    """Trains a network alone; see :class:`trainables.training.engines.Trainer`."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Train the network as it is."""
        self.network = model
        self.forward: Callable[[Tensor], Tensor] = model
        """What computes the logits of a training step."""

    def profile(self, training: Training) -> Hashable | None:
        """Return None: the network is trained alone."""
        return None

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train the next epoch of one network."""
        (training,) = trainings
        # Sums stay on the device; reading one each step would make the host wait for every step.
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
        return [(float(total_loss), float(hits))]


def at_least_single(logits: Tensor) -> Tensor:
    """Return logits in single precision if they are less precise than that."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
