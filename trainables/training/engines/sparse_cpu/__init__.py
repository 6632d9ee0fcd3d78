"""A network alone on a CPU, on kernels of ours that leave masked weights out.

Activations lie in memory with several images of the batch side by side, as many as a register of the CPU holds numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from trainables.training.engines import plain
from trainables.training.engines.sparse_cpu.lanes import on_lanes


class Trainer(plain.Trainer):
    """Trains and evaluates a network alone, on the sparse kernels."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Exchange the network's forward pass; its parameters and buffers stay.

        Raises:
            ValueError: the network is not on a CPU or has layers of other kinds, or there is no C++ compiler.
        """
        super().__init__(model, mask)
        self.network = self.forward = on_lanes(model, mask)
