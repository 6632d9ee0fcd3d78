"""The benchmark's command line; its subcommand ``fastest`` has its own parser in ``ways``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.benchmark import results, table
from study.benchmark.results import Comparison, Figure, Measurement, Rate
from study.tracking.contents import project_commit
from trainables.checks import bounded
from trainables.host.terminal import OK, command, refused
from trainables.knobs import CPU_PRECISIONS, PRECISIONS

WHAT = ("training", "matching", "sweep")
OPTIONS = {
    "model": (str, "resnet20", "network to train and to match"),
    "width": (float, 1.0, "its width"),
    "sparsity": (float, 0.9, "sparsity of the mask that it trains under"),
    "steps": (int, 10, "training steps per run"),
    "trials": (int, 8, "trials that a grid trains at a time"),
    "images": (int, 1000, "images for matching"),
    "threads": (int, 1, "CPU threads for matching"),
    "jobs": (int, 1000, "trivial jobs in a sweep"),
}
"""Option -> type, default, meaning. Each measurement uses the options that its ``Setting`` has a field for."""


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code: 0, or 2 for an invalid request."""
    if arguments[:1] == ["fastest"]:
        from study.benchmark.ways import main as choose

        return choose(arguments[1:])
    if arguments == ["table"]:
        print(*table.lines(table.measured()), sep="\n")
        return OK
    options = _parser().parse_args(arguments)
    asked = WHAT if options.what == "all" else (options.what,)
    modules = {what: importlib.import_module(f"study.benchmark.{what}") for what in asked}
    try:
        results.check_readable(options.out)
        bounded("repeats", options.repeats, "[1, inf)", whole=True)
        bounded("minutes", options.minutes, "(0, inf)")
        settings = {what: _setting(module.Setting, options) for what, module in modules.items()}
    except (ValueError, OSError) as error:
        return refused(error)
    from study.benchmark.contest import Budget, machine

    surroundings = machine()
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    parts = sum(module.parts(settings[what]) for what, module in modules.items())
    budget = Budget(60 * options.minutes, parts, options.repeats)
    for what, module in modules.items():
        print(f"measuring {what}", flush=True)
        rows: dict[type, list[Any]] = {Comparison: [], Figure: [], Rate: []}
        try:
            for row in module.measure(settings[what], budget):
                rows[type(row)].append(row)
                if not isinstance(row, Rate):
                    print(row.line(), flush=True)
        finally:  # an error or Ctrl-C must not lose what was measured before it
            if any(rows.values()):
                measurement = Measurement(
                    what=what,
                    settings=dataclasses.asdict(settings[what]),
                    comparisons=rows[Comparison],
                    figures=rows[Figure],
                    rates=rows[Rate],
                )
                results.store(options.out, measurement, surroundings, project_commit())
    return OK


def _setting(kind: type, options: argparse.Namespace) -> Any:
    """Return the setting of a measurement, from the options that it has a field for."""
    known = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(options).items() if value is not None}
    return kind(**{name: value for name, value in given.items() if name in known})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study.benchmark",
        description="Measure this machine: ratios of two ways to do the same work, timed alternately.",
        epilog="python -m study.benchmark fastest --space NAME: measure the settings that study.run --fastest uses. "
        "python -m study.benchmark table: print the README's table of the measured machines.",
    )
    parser.add_argument("what", nargs="?", default="all", choices=(*WHAT, "all"))
    for name, (kind, default, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument(
        "--precisions",
        type=lambda text: tuple(text.split(",")),
        metavar="P,...",
        help=f"precisions of our trials (default: {','.join(CPU_PRECISIONS)}, on a GPU {','.join(PRECISIONS)})",
    )
    parser.add_argument("--repeats", type=int, default=5, help="most rounds per contest (default: %(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="time limit for all measurements together: contests run fewer rounds, at least one, and contests that do "
        "not fit are named and skipped (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs", results.FILE), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
