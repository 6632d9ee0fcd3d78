"""Engine that trains one network in eager PyTorch. Other engines replace its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the conventional name
from torch import Tensor, nn

from trainables.training.loop import Training


class Trainer:
    """Trains one network; see :class:`trainables.training.engines.Trainer`."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Use the network itself for training and evaluation."""
        self.network = model
        self.forward: Callable[[Tensor], Tensor] = model
        """Computes the logits of a training step: images (N, C, H, W) to (N, classes)."""

    def profile(self, training: Training) -> Hashable | None:
        """Return None: this engine trains networks one at a time."""
        return None

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train the next epoch of one network."""
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
        return [(float(total_loss), float(hits))]


def at_least_single(logits: Tensor) -> Tensor:
    """Return the logits in at least single precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
