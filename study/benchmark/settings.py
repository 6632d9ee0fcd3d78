"""The settings of the measurements, which are also the options of the command line. Torch-free, for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

from trainables.checks import bounded, known
from trainables.config import Recipe
from trainables.host.cpu import emulates_bf16
from trainables.host.nvidia import gpus
from trainables.host.processes import cores
from trainables.host.toolchain import find_compiler
from trainables.knobs import BF16, CPU_PRECISIONS, KNOBS, PRECISIONS
from trainables.models import check_width
from trainables.training.engines import CPU, GPU, Engine
from trainables.training.way import WAYS, Way

CLASSES: Final = 10
"""Number of classes of the training images."""


def option(default: Any, meaning: str, interval: str | None = None) -> Any:
    """Return a field of settings that is also an option of the command line.

    Args:
        default: the default, or a function that returns it.
        meaning: of the option, for ``--help``.
        interval: of whole numbers that are accepted, as :func:`bounded` takes it; None for other values.
    """
    origin = "default_factory" if callable(default) else "default"
    return field(metadata={"help": meaning, "interval": interval}, **{origin: default})


def _device() -> str:
    return GPU if gpus() else CPU


def _precisions() -> tuple[str, ...]:
    """Return the precisions to measure by default: those that this machine supports without emulation."""
    return tuple(PRECISIONS) if _device() == GPU else cpu_precisions()


def cpu_precisions() -> tuple[str, ...]:
    """Return the precisions that this machine's CPU supports without emulation."""
    return tuple(each for each in CPU_PRECISIONS if each != BF16 or not emulates_bf16())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a measurement; a wrong value raises ValueError.

    Attributes:
        needs: libraries that the measurement needs, apart from PyTorch.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            value, interval = getattr(self, each.name), each.metadata["interval"]
            if interval is not None:
                bounded(each.name, value, interval, whole=True)
            elif each.name in KNOBS:
                KNOBS[each.name].checked(value)


@dataclass(frozen=True, kw_only=True)
class _Network(Settings):
    model: str = option("resnet20", "network to train and to match")
    width: float = option(1.0, "its width")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width(self.model, self.width)


@dataclass(frozen=True, kw_only=True)
class Training(_Network):
    """Training: the network, its data and the ways to measure."""

    sparsity: float = option(0.9, "sparsity, in [0, 1), of the mask that it trains under")
    batch_size: int = option(128, "images per training step", f"[{CLASSES}, inf)")
    image_size: int = option(32, "side of the square training images, pixels", "[1, inf)")
    steps: int = option(10, "training steps per run", "[1, inf)")
    test_images: int = option(CLASSES, "test images that our trials evaluate after each run", f"[{CLASSES}, inf)")
    device: str = option(_device, "cpu or cuda")
    precisions: tuple[str, ...] = option(_precisions, "precisions of our trials; the conventional loop has fp32")
    trials: int = option(8, "trials that a grid trains at a time, on a CPU at most one per core", "[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        known("device", self.device, (CPU, GPU))
        if not self.precisions:
            raise ValueError(f"no precision to measure in; known: {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            KNOBS["precision"].checked(precision)

    @property
    def ways(self) -> list[Way]:
        """The ways to measure our trial: in each precision and, if they can be used, on engines that use the mask."""
        found = [way for way in WAYS if way.precision in self.precisions and way.fits(self.model, self.batch_size)]
        return [way for way in found if way.engine.selected_by is None or self._can_use_mask(way.engine)]

    def _can_use_mask(self, engine: Engine) -> bool:
        possible = self.device in engine.devices and not (engine.needs_compiler and find_compiler() is None)
        return engine.gains_from > 0 and self.sparsity > 0 and possible

    @property
    def images(self) -> int:
        """Number of images per run."""
        return self.batch_size * self.steps

    def recipe(self) -> Recipe:
        """Return a recipe with more epochs than any measurement trains."""
        return Recipe(
            epochs=10**6,
            batch_size=self.batch_size,
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="constant",
        )


@dataclass(frozen=True, kw_only=True)
class Matching(_Network):
    """Matching: the networks and images to match."""

    images: int = option(1000, "random RGB images of 32 x 32 pixels to match on", "[1, inf)")
    threads: int = option(1, "CPU threads for matching", "[1, inf)")


@dataclass(frozen=True, kw_only=True)
class Sweep(Settings):
    """Scheduling: the size of the sweeps."""

    needs: ClassVar[tuple[str, ...]] = ("ray", "mlflow")

    jobs: int = option(1000, "least number of trivial jobs in a sweep; another one has a tenth", "[100, inf)")


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """Loading images: the images and the processes that decode them."""

    pictures: int = option(512, "JPEG files to load", "[64, inf)")
    side: int = option(224, "side of the squares that they become, pixels", "[8, 1024]")
    loaders: int = option(cores, "worker processes that decode them", "[1, inf)")


KINDS: Final[dict[str, type[Settings]]] = {"training": Training, "matching": Matching, "sweep": Sweep, "data": Data}
"""What can be measured: module of this package, whose function ``parts`` measures it -> its settings."""
