"""Engine that trains one network on a CPU with custom kernels, which skip masked weights.

Activations of several images of the batch are adjacent in memory: as many as a vector register of the CPU holds floats.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from trainables.training.engines import plain
from trainables.training.engines.sparse_cpu.lanes import OnLanes
from trainables.training.engines.sparse_cpu.program import Program


class Trainer(plain.Trainer):
    """Trains and evaluates one network with the sparse kernels."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Replace the network's forward pass, and raise what ``OnLanes`` raises; parameters and buffers stay."""
        super().__init__(model, mask)
        self.network = self.forward = OnLanes(model, mask)

    def release(self) -> None:
        """Free the activations of a batch, which the network keeps from one step to the next."""
        for module in self.network.modules():
            if isinstance(module, Program):
                module.release()
