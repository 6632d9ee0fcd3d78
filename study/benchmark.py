"""What this machine does: ``python -m study.benchmark [matching]``.

Every figure is a ratio of two ways to do the same thing, measured in one process, in turns, so that a machine whose
speed drifts slows both. The median over the repeats is what to quote; the smallest and the largest show the noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from trainables.config import bounded, known
from trainables.matching import activation_moments
from trainables.models import MODELS, build_model, check_width
from trainables.permutations import PermutationSpec, permutation_spec


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways to do one thing, timed in turns.

    Attributes:
        name: what was done.
        ours: seconds of each repeat.
        other: seconds of the other way, repeat by repeat.
        ratios: other / ours of each repeat: how many times faster ours is.
    """

    name: str
    ours: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return how many times faster ours was, repeat by repeat."""
        return tuple(other / ours for ours, other in zip(self.ours, self.other, strict=True))

    def line(self) -> str:
        """Return the result as one line."""
        middle, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        seconds = f"{statistics.median(self.ours):.2f} s against {statistics.median(self.other):.2f} s"
        return f"{self.name:<46} {middle:5.1f}x [{low:.1f}, {high:.1f}]   {seconds}"


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], repeats: int) -> Comparison:
    """Time two ways in turns, after one uncounted run of each."""
    times: dict[Callable[[], object], list[float]] = {ours: [], other: []}
    for repeat in range(repeats + 1):
        for way, seconds in times.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return Comparison(name=name, ours=tuple(times[ours]), other=tuple(times[other]))


def matching(model: str, width: float, images: int, repeats: int) -> Comparison:
    """Compare one pass for all permutation groups with one pass per group, as the paper's code makes them.

    Both collect the same moments of the same activations; the assignments that follow are the same and not timed.

    Args:
        model: a name of ``MODELS``.
        width: its width.
        images: random RGB images of 32 x 32 pixels.
        repeats: counted repeats of each way.

    Raises:
        ValueError: an unknown model, or a width that it does not have.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model_a, model_b = (build_model(model, width=width).to(device) for _ in range(2))
    batches = list(torch.split(torch.randn(images, 3, 32, 32, device=device), 250))
    spec = permutation_spec(model_a)
    alone = [one_group(spec, group) for group in spec.groups]
    return compare(
        f"matching {model} x{width:g}, {len(alone)} groups, {images} images",
        lambda: activation_moments(model_a, model_b, spec, batches),
        lambda: [activation_moments(model_a, model_b, each, batches) for each in alone],
        repeats,
    )


def one_group(spec: PermutationSpec, group: str) -> PermutationSpec:
    """Return the specification of one permutation group by itself."""
    axes = {name: tuple(each if each == group else None for each in groups) for name, groups in spec.axes.items()}
    return PermutationSpec(axes=axes, sizes={group: spec.sizes[group]}, taps={group: spec.taps[group]})


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=("matching", "all"))
    parser.add_argument("--model", default="resnet20", help="default: %(default)s")
    parser.add_argument("--width", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark.json"), help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        known("model", options.model, MODELS)
        check_width(options.model, options.width)
        for name in ("images", "repeats", "threads"):
            bounded(name, getattr(options, name), 1, whole=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    results = [matching(options.model, options.width, options.images, options.repeats)]
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    for result in results:
        print(result.line())
    document = {"machine": machine(), "results": [{**asdict(each), "ratios": each.ratios} for each in results]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
