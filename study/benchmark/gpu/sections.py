"""The sections of the GPU benchmark, and what their checks return. Torch-free, for ``--help``.

Each section runs in a process of its own. Its function takes the scale and a stack that ends what it starts, and
returns its checks by name; nothing is computed before a check is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from study.benchmark.results import Row
from trainables.training.engines import CPU, GPU


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check found.

    Attributes:
        ok: whether what was checked holds; None for a mere measurement.
        found: name -> number or text.
        rows: what goes into the file of measurements.
    """

    ok: bool | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()


Checks = dict[str, Callable[[], Outcome]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A group of checks.

    Attributes:
        module: of this package.
        function: of the module, which returns the checks.
        seconds: time limit. All sections fit into 8 minutes on a data-centre GPU, because most need less.
        about: what is checked.
        width: the width of the networks, if the function takes one.
    """

    module: str
    function: str
    seconds: float
    about: str
    width: float | None = None


ENVIRONMENT: Final = "environment"
SECTIONS: Final[dict[str, Section]] = {
    ENVIRONMENT: Section(module="environment", function="environment", seconds=90, about="card, driver and versions"),
    "jobs": Section(
        module="correctness",
        function="jobs",
        seconds=90,
        about="every kind of job, every model and every way of training against the CPU",
    ),
    **{
        f"width{width:g}": Section(
            module="speed",
            function="training",
            seconds=100,
            about=f"training at width {width:g} in every way that does not compile, against the conventional loop",
            width=width,
        )
        for width in (1.0, 4.0, 16.0)
    },
    "determinism": Section(
        module="correctness", function="determinism", seconds=50, about="the same bits from run to run"
    ),
    "processes": Section(
        module="speed", function="processes", seconds=70, about="several trials on the GPU, a process each"
    ),
    "memory": Section(
        module="memory", function="memory", seconds=40, about="memory of a process and of matching, against predictions"
    ),
    "out_of_memory": Section(
        module="memory", function="out_of_memory", seconds=50, about="errors of a full GPU are recognised"
    ),
    "passes": Section(
        module="speed", function="passes", seconds=40, about="rates of the loader, of evaluation and of matching"
    ),
    "launches": Section(
        module="speed", function="launches", seconds=50, about="kernels and launches of a step, by PyTorch's profiler"
    ),
    "compiling": Section(
        module="speed", function="compiling", seconds=120, about="ways of training that compile", width=1.0
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the measurements. The defaults are for a GPU, ``REDUCED`` tests the command itself on a CPU.

    Attributes:
        device: ``CPU`` or ``GPU``.
        model: a name of ``MODELS``.
        widths: width of a section -> the width that is measured; sections of other widths are left out.
        batch_size: images per training step.
        image_size: side of the images, pixels.
        least_steps: training steps per run, at least.
        most_steps: training steps per run, at most.
        nets: width of a section -> networks that a process trains at once, if the engine can.
        processes: numbers of processes on the GPU.
        images: images to match on and to evaluate.
        rounds: how often each way is timed.
    """

    device: str = GPU
    model: str = "resnet20"
    widths: Mapping[float, float] = field(default_factory=lambda: {1.0: 1.0, 4.0: 4.0, 16.0: 16.0})
    batch_size: int = 128
    image_size: int = 32
    least_steps: int = 10
    most_steps: int = 50
    nets: Mapping[float, int] = field(default_factory=lambda: {1.0: 8, 4.0: 4, 16.0: 2})
    processes: tuple[int, ...] = (1, 2, 4, 8)
    images: int = 10_000
    rounds: int = 3

    @property
    def sections(self) -> list[str]:
        """Names of the sections that this scale has, in order."""
        return [name for name, each in SECTIONS.items() if each.width is None or each.width in self.widths]


REDUCED: Final = Scale(
    device=CPU,
    model="resnet8",
    widths={1.0: 0.25},
    batch_size=16,
    image_size=8,
    least_steps=2,
    most_steps=2,
    nets={1.0: 2},
    processes=(1, 2),
    images=100,
    rounds=2,
)
