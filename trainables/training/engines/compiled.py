"""Engine that trains one network, with forward and backward passes compiled by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainables.training.engines import GPU, plain


class Trainer(plain.Trainer):
    """Trains one network with compiled code that shares its parameters and buffers; evaluation is not compiled."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Set the network up for compilation, which happens at the first batch."""
        super().__init__(model, mask)
        # PyTorch stops compiling after a few networks of different shapes. The reset keeps earlier jobs of this process
        # from using up that limit. Recompiling the same network takes only seconds, because its code is on the disk.
        torch.compiler.reset()
        on_gpu = next(model.parameters()).device.type == GPU
        # With a small network, a GPU mostly waits for kernel launches; a CUDA graph launches all kernels at once.
        self.forward = torch.compile(model, mode="reduce-overhead" if on_gpu else "default")
