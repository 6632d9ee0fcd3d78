"""Engines train one network, or several together, for an epoch under their masks.

An engine consists of a module or package in this folder, whose class ``Trainer`` is or extends that of the plain
engine, of a row of ``ENGINES`` with what a plan needs to know, and of the value of a setting that selects it, such as a
row of ``KERNELS`` in ``trainables.knobs``. The plan, the placement of trials and the training loop get the engine from
a job's settings (``trainables.training.way.Way.engine``); none of them names an engine.

Engines sum in different orders, so their results differ in rounding: the setting that selects an engine is part of a
job's key. This module is torch-free; an engine's module imports torch and is imported when a network is trained.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from trainables.host.cpu import WIDEST_REGISTER

if TYPE_CHECKING:
    from trainables.training.engines import plain

TrainerFactory = Callable[..., "plain.Trainer"]
"""Makes the trainer of a network under a mask."""
CPU, GPU = "cpu", "cuda"
"""Kinds of devices, by their PyTorch names."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a plan needs to know about an engine.

    Attributes:
        module: its module in this package.
        selected_by: the setting of a ``Way``, and its value, that select this engine; None for the default engine.
        goes_with: setting -> the values that this engine supports; settings not named here may have any value.
        devices: the kinds of devices that it runs on.
        needs_compiler: whether it needs a C++ compiler on a CPU.
        compiles: whether it compiles each architecture, which takes a minute once and seconds in every process.
        launches_once: whether a training step on a GPU is launched as a whole, not kernel by kernel.
        shares_trial: whether one trial can train several networks with it at once.
        holds_memory: whether it keeps the memory of a step, and copies of the networks, while they are evaluated.
        shared: module of its trainer where several workers train a network, each its part of every batch; empty if one
            process must train the network whole.
        repeatable: whether a network gets the bits that it gets alone, whichever networks train with it.
        gains_from: least mask sparsity, in [0, 1), at which it is used; jobs below that use the default engine. 0 for
            an engine whose speed does not depend on the mask.
        gain: about how many times faster than the plain engine it trains a network whose layers have at least
            ``WIDEST_REGISTER`` channels: a first guess, for estimates without a measurement.
        fills_registers: whether a register of the CPU holds one channel of several images. Elsewhere it holds several
            channels of one image, so that networks with few channels leave it partly empty.
        batch_multiple: batch sizes must be multiples of this. It must not depend on the machine, so that a space valid
            on one machine is valid on all.
        convolutions_only: whether it trains only convolutional networks.
    """

    module: str
    selected_by: tuple[str, bool | str] | None = None
    goes_with: Mapping[str, tuple[bool | str, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = (CPU, GPU)
    needs_compiler: bool = False
    compiles: bool = False
    launches_once: bool = False
    shares_trial: bool = False
    holds_memory: bool = False
    shared: str = ""
    repeatable: bool = True
    gains_from: float = 0.0
    gain: float = 1.0
    fills_registers: bool = False
    batch_multiple: int = 1
    convolutions_only: bool = False

    @property
    def setting(self) -> str:
        """The setting that selects it, for messages."""
        return "the plain engine" if self.selected_by is None else "{}={!r}".format(*self.selected_by)

    def trainer(self) -> type[plain.Trainer]:
        """Import the engine and return its trainer class."""
        return cast("type[plain.Trainer]", importlib.import_module(f"{__name__}.{self.module}").Trainer)

    def worker_trainer(self) -> TrainerFactory:
        """Import the module of its workers, and return their trainer class."""
        return cast("TrainerFactory", importlib.import_module(f"{__name__}.{self.shared}").Trainer)


ENGINES: Final[dict[str, Engine]] = {
    "plain": Engine(module="plain", shared="data_parallel"),
    "compiled": Engine(
        module="compiled",
        selected_by=("compiled", True),
        needs_compiler=True,
        compiles=True,
    ),
    "sparse_cpu": Engine(
        module="sparse_cpu",
        selected_by=("kernels", "sparse"),
        goes_with={"precision": ("fp32",)},
        devices=(CPU,),
        needs_compiler=True,
        gains_from=0.7,
        gain=2.0,
        fills_registers=True,
        batch_multiple=WIDEST_REGISTER,  # images per register; narrower registers hold a fraction of that
        convolutions_only=True,
    ),
    "stacked": Engine(
        module="stacked",
        selected_by=("stacked", True),
        shares_trial=True,
        repeatable=False,
    ),
    "cuda_graph": Engine(
        module="cuda_graph",
        selected_by=("graphs", True),
        devices=(GPU,),
        launches_once=True,
        shares_trial=True,
        holds_memory=True,
    ),
}


def free_idle_memory() -> None:
    """Free the memory that the engines of this process keep for further networks."""
    for engine in ENGINES.values():
        if engine.holds_memory and (module := sys.modules.get(f"{__name__}.{engine.module}")) is not None:
            module.Trainer.free_idle_memory()
