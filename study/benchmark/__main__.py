"""The benchmark's command line; its subcommands ``fastest`` and ``gpu`` have parsers of their own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path

from study.benchmark import results, table
from study.benchmark.results import Rate, Row
from study.benchmark.settings import KINDS
from trainables.checks import bounded
from trainables.host.places import DEFAULT_STORAGE
from trainables.host.terminal import OK, command, refused
from trainables.host.version import project_commit


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code: 0, or 2 for an invalid request."""
    if arguments[:1] == ["fastest"]:
        from study.benchmark.ways import main as choose

        return choose(arguments[1:])
    if arguments[:1] == ["gpu"]:
        from study.benchmark.gpu.command import main as check

        return check(arguments[1:])
    if arguments == ["table"]:
        print(*table.lines(table.measured()), sep="\n")
        return OK
    options = _parser().parse_args(arguments)
    asked = []
    for what in (each for each in KINDS if options.what in (each, "all")):
        if missing := [library for library in KINDS[what].needs if find_spec(library) is None]:
            words = f"{what} is not measured: it needs {' and '.join(missing)}"
            if options.what == what:
                return refused(ValueError(words))
            print(words)
        else:
            asked.append(what)
    try:
        results.read(options.out)
        bounded("repeats", options.repeats, "[1, inf)", whole=True)
        bounded("minutes", options.minutes, "(0, inf)")
        settings = {
            what: KINDS[what](**{each.name: getattr(options, each.name) for each in fields(KINDS[what])})
            for what in asked
        }
    except (ValueError, OSError) as error:
        return refused(error)
    from study.benchmark.contest import Budget, machine

    surroundings = machine()
    print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    with ExitStack() as stack:
        modules = {what: importlib.import_module(f"study.benchmark.{what}") for what in asked}
        parts = {what: modules[what].parts(settings[what], stack) for what in asked}
        budget = Budget(60 * options.minutes, sum(map(len, parts.values())), options.repeats)
        for what, its in parts.items():
            print(f"measuring {what}", flush=True)
            rows: list[Row] = []
            try:
                for row in budget.measure(its):
                    rows.append(row)
                    if not isinstance(row, Rate):
                        print(row.line(), flush=True)
            finally:  # an error or Ctrl-C must not lose what was measured before it
                if rows:
                    about = asdict(settings[what])
                    results.store(options.out, what, about, rows, machine=surroundings, commit=project_commit())
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study.benchmark",
        description="Measure this machine: ratios of two ways to do the same work, timed alternately.",
        epilog="python -m study.benchmark gpu: check and measure a GPU in 8 minutes. "
        "python -m study.benchmark fastest --space NAME: measure the settings that study.run --fastest uses. "
        "python -m study.benchmark table: print the README's table of the measured machines.",
    )
    parser.add_argument("what", nargs="?", default="all", choices=(*KINDS, "all"))
    options = {each.name: (each, getattr(kind(), each.name)) for kind in KINDS.values() for each in fields(kind)}
    for name, (each, default) in options.items():
        several = isinstance(default, tuple)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=(lambda text: tuple(text.split(","))) if several else type(default),
            default=default,
            metavar=f"{name[0].upper()},..." if several else None,
            help=f"{each.metadata['help']} (default: {','.join(default) if several else default})",
        )
    parser.add_argument("--repeats", type=int, default=5, help="most rounds per contest (default: %(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="time limit for all measurements together: contests run fewer rounds, at least one, and contests that do "
        "not fit are named and skipped (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path(DEFAULT_STORAGE, results.FILE), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
