"""Engines: what trains an epoch of one network, or of several at once, under their masks.

An engine is a module, or a package, in this folder with a class ``Trainer`` that satisfies the protocol of that name,
and a row of ``ENGINES``, which says what a plan has to know of it. The plan, the placement of trials and the training
loop ask the engine that the settings of a job select (``trainables.training.way.Way.engine``); none knows one by name.

Engines add up sums in different orders, so their results differ in rounding: what selects an engine is part of a job's
key. Torch-free; the modules of the engines import torch, and are imported when a network is trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, cast

from trainables.host.cpu import WIDEST_REGISTER

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainables.training.loop import Training

CPU, GPU = "cpu", "cuda"
"""Kinds of devices, as PyTorch calls them."""


class Trainer(Protocol):
    """Trains one network, alone or together with others. Each :class:`~trainables.training.loop.Training` has one.

    The training owns what does not depend on the engine: batches, learning rate, optimiser, mask, evaluation, state.
    The trainer computes losses and gradients, within these rules:

    - It draws the batches of an epoch from :meth:`Training.steps`, all of them, in their order. Each is there once
      the learning rate of its step is set.
    - With the gradients of a batch in the parameters' ``grad`` it calls :meth:`Training.update`, which takes the
      optimiser's step and sets masked weights to zero again.
    - Between epochs, the weights and buffers of ``Training.model`` are the network's state: what is evaluated, saved
      and restored, whatever memory the engine used meanwhile.
    - On a CPU, equal states give equal bits, whatever else runs on the machine.
    """

    network: nn.Module
    """What is evaluated after each epoch: the network itself, or a faster one with the same parameters and buffers."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Prepare to train `model`, which lies on its device already.

        Args:
            model: the network; its parameters and buffers remain those of the training.
            mask: name of a weight -> bool tensor, True where it is kept; other weights are kept.

        Raises:
            ValueError: the engine cannot train this network, or not on this machine.
        """

    def profile(self, training: Training) -> Hashable | None:
        """Return what must be equal for networks to be trained at once; None for one that has to be trained alone."""

    def train_epoch(self, trainings: Sequence[Training]) -> list[tuple[float, float]]:
        """Train the next epoch of some networks, which need not be the same epoch.

        Args:
            trainings: the one that this trainer belongs to, or several of equal profiles, among them that one.

        Returns:
            For each, the sum of the mean losses of its steps (nats) and the number of correctly classified images.
        """


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a plan has to know of an engine.

    Attributes:
        description: one line.
        module: name of its module in this package.
        selected_by: the setting of a ``Way``, and its value, by which users choose this engine; None for the engine
            that trains where no setting chooses another.
        goes_with: setting -> the values that this engine can be combined with; other settings may have any value.
        devices: the kinds of devices that it computes on.
        needs_compiler: whether it needs a C++ compiler on a CPU.
        compiles: whether it compiles each network: that takes a minute once, and seconds in every job.
        shares_trial: whether one trial trains several networks with it at once.
        gains_from: sparsity of the mask from which it is used; jobs with denser masks, or none, do without. 0 for an
            engine whose speed does not depend on the mask.
        batch_multiple: batches are whole multiples of this. It must not depend on the machine: a space that is valid
            on one machine is valid on all.
        convolutions_only: whether it trains convolutional networks only.
    """

    description: str
    module: str
    selected_by: tuple[str, bool | str] | None = None
    goes_with: Mapping[str, tuple[bool | str, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = (CPU, GPU)
    needs_compiler: bool = False
    compiles: bool = False
    shares_trial: bool = False
    gains_from: float = 0.0
    batch_multiple: int = 1
    convolutions_only: bool = False

    @property
    def setting(self) -> str:
        """What selects it, for messages."""
        return "the plain engine" if self.selected_by is None else "{}={!r}".format(*self.selected_by)

    def trainer(self) -> type[Trainer]:
        """Import the engine and return its trainers' class."""
        return cast("type[Trainer]", importlib.import_module(f"{__name__}.{self.module}").Trainer)


ENGINES: Final[dict[str, Engine]] = {
    "plain": Engine(description="PyTorch, operation by operation", module="plain"),
    "compiled": Engine(
        description="code that torch.compile makes of the network",
        module="compiled",
        selected_by=("compiled", True),
        needs_compiler=True,
        compiles=True,
    ),
    "sparse_cpu": Engine(
        description="our own C++ kernels for CPUs, which leave masked weights out",
        module="sparse_cpu",
        selected_by=("kernels", "sparse"),
        goes_with={"precision": ("fp32",)},
        devices=(CPU,),
        needs_compiler=True,
        gains_from=0.7,
        batch_multiple=WIDEST_REGISTER,  # images side by side in a register; narrower registers hold a fraction
        convolutions_only=True,
    ),
    "stacked": Engine(
        description="several networks as one, in which each has channels of its own",
        module="stacked",
        selected_by=("stacked", True),
        shares_trial=True,
    ),
}
