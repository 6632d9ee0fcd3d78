"""One figure or table of a study: ``python -m analysis.figures FIGURE --space NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from analysis import command, load
from analysis.drawing import files
from analysis.figures import accuracy_table
from analysis.figures.table import FIGURES, loader
from analysis.write import ACCURACY
from trainables.host import terminal

MODULES: dict[str, Any] = {ACCURACY: accuracy_table, **FIGURES}


@terminal.command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    options = command.parser("figures", "Write one figure of a study with its table.")
    names = ", ".join(MODULES)
    options.add_argument("figure", choices=list(MODULES), metavar="FIGURE", help=f"one of {names}")
    arguments = options.parse_args(argv)
    return command.guarded(arguments, _write)


def _write(arguments: argparse.Namespace) -> None:
    name, module = arguments.figure, MODULES[arguments.figure]
    tracking_uri = command.tracking_uri(arguments)
    frame = loader(module)(arguments.space, tracking_uri)
    out, empty = command.folder(arguments), module.table(frame).empty
    if empty and (reason := command.unfinished(load.runs(arguments.space, tracking_uri))):
        raise load.AnalysisError(f"nothing to show of {arguments.space!r}: {reason}")
    paths = files.write_tables(module, name, frame, out)
    if hasattr(module, "figure") and not empty:
        paths += files.write_figure(lambda: module.figure(frame), name, out)
    print(*paths, sep="\n")
    for note in module.notes(frame):
        print(note)


if __name__ == "__main__":
    sys.exit(main())
