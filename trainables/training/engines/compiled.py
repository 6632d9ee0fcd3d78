"""Engine that trains one network, with forward and backward passes compiled by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.training.engines import plain


class Trainer(plain.Trainer):
    """Trains one network with compiled code that shares its parameters and buffers; evaluation is not compiled."""

    compiled_for: ClassVar[Hashable] = None
    """The architecture that this process has last compiled; its next network uses the same code."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Set the network up for compilation, which happens at the first batch of an architecture."""
        super().__init__(model, mask)
        if (architecture := plain.architecture(model)) != Trainer.compiled_for:
            # PyTorch stops compiling after a few networks of different shapes. The reset keeps earlier jobs of this
            # process from using up that limit.
            torch.compiler.reset()
            Trainer.compiled_for = architecture
        # Static shapes: after batches of another size, PyTorch's code for any size would round differently.
        self.forward = torch.compile(model, dynamic=False)
