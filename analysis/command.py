"""What the commands of this package have in common: their options, and errors in one line with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.host.places import expanded
from trainables.host.terminal import OK, command, refused

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_STORAGE = "outputs"


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every command has."""
    options = argparse.ArgumentParser(prog=f"python -m analysis.{program}", description=description)
    options.add_argument(
        "--space", required=True, metavar="NAME", help="search space, the name of its MLflow experiment"
    )
    options.add_argument(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="PATH|URI",
        help=f"where the study keeps its results (default: {DEFAULT_STORAGE}/)",
    )
    options.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow tracking URI (default: sqlite:///STORAGE/mlflow.db)"
    )
    options.add_argument("--out", metavar="DIR", help="folder to write to (default: STORAGE/report/NAME/)")
    return options


def folder(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to; beside the default storage if the storage itself is not a local folder."""
    from analysis.load import local_folder

    if arguments.out:
        return expanded(str(arguments.out))
    storage: Path = local_folder(arguments.storage) or Path(DEFAULT_STORAGE)
    return storage / "report" / str(arguments.space)


def guarded(action: Callable[[], None]) -> int:
    """Run an action and return the exit code: 0, or 2 after one line on what the user can mend."""
    from analysis.records import AnalysisError

    try:
        action()
    except (AnalysisError, OSError) as error:
        return refused(error)
    return OK


def unfinished(runs: pd.DataFrame) -> str:
    """Return in words that no job of a study has finished, and what became of them; empty if any has."""
    from trainables.schema import FINISHED

    states = runs["status"].value_counts()
    if FINISHED in states:
        return ""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    errors = [error.strip().splitlines()[0] for error in runs["error"] if error.strip()]
    first = f"; the first error: {errors[0]}" if errors else ""
    return f"none of its {len(runs)} jobs on record has finished ({counts}){first}"


def run_module(module: Any) -> None:
    """Write one table or figure, as the command line says, and leave with its exit code."""

    @command
    def main(arguments: Sequence[str]) -> int:
        name = module.__name__.rpartition(".")[2]
        options = parser(f"figures.{name}", (module.__doc__ or "").splitlines()[0]).parse_args(arguments)
        return guarded(lambda: _write(module, name, options))

    sys.exit(main())


def _write(module: Any, name: str, arguments: argparse.Namespace) -> None:
    from analysis import load
    from analysis.drawing import files

    load.quiet_retries()
    tracking_uri = load.working_tracking_uri(arguments.storage, arguments.tracking_uri)
    frame = module.load(arguments.space, tracking_uri)
    out, empty = folder(arguments), module.table(frame).empty
    if empty and (reason := unfinished(load.runs(arguments.space, tracking_uri))):
        raise load.AnalysisError(f"nothing to show of {arguments.space!r}: {reason}")
    paths = files.write_tables(module, name, frame, out)
    if hasattr(module, "figure") and not empty:
        paths += files.write_figure(module.figure(frame), name, out)
    print(*paths, sep="\n")
    for note in module.notes(frame):
        print(note)
