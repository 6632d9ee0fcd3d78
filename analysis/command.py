"""What the commands of this package have in common: their options, and errors in one line with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        return Path(str(arguments.out)).expanduser()
    storage: Path = local_folder(arguments.storage) or Path(DEFAULT_STORAGE)
    return storage / "report" / str(arguments.space)


def guarded(action: Callable[[], None]) -> int:
    """Run an action and return the exit code: 0, or 2 after one line on what the user can mend."""
    from analysis.load import AnalysisError, redact

    try:
        action()
    except (AnalysisError, OSError) as error:
        print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


def run_module(module: Any) -> None:
    """Write one table or figure, as the command line says, and leave with its exit code."""
    name = module.__name__.rpartition(".")[2]
    arguments = parser(name, (module.__doc__ or "").splitlines()[0]).parse_args()
    sys.exit(guarded(lambda: _write(module, name, arguments)))


def _write(module: Any, name: str, arguments: argparse.Namespace) -> None:
    from analysis import files, load

    load.quiet_retries()
    frame = module.load(arguments.space, load.working_tracking_uri(arguments.storage, arguments.tracking_uri))
    out = folder(arguments)
    paths = files.write_tables(module, name, frame, out)
    if hasattr(module, "figure") and not module.table(frame).empty:
        paths += files.write_figure(module.figure(frame), name, out)
    print(*paths, sep="\n")
    for note in module.notes(frame):
        print(note)
