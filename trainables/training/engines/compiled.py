"""A network alone, its forward and backward passes compiled by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainables.training.engines import GPU, plain


class Trainer(plain.Trainer):
    """Trains a network alone by compiled code, which shares its parameters and buffers; evaluation is not compiled."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Compile the network's forward pass; the code is made when the first batch comes."""
        super().__init__(model, mask)
        # PyTorch gives up compiling after a few networks of different shapes: without the reset, earlier jobs of this
        # process would decide about this one. Compiling the same network again takes seconds, its code is on the disk.
        torch.compiler.reset()
        on_gpu = next(model.parameters()).device.type == GPU
        # A small network keeps a GPU waiting for its next kernel; CUDA graphs launch all of them at once.
        self.forward = torch.compile(model, mode="reduce-overhead" if on_gpu else "default")
