"""Common parts of this package's commands: options, and errors of one line with exit code 2."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.drawing.media import DEFAULT, STYLES, drawing_for
from trainables.host.databases import default_tracking_uri
from trainables.host.places import DEFAULT_STORAGE, expanded, folder_of
from trainables.host.terminal import OK, refused

if TYPE_CHECKING:
    import pandas as pd


def parser(program: str, description: str, *, out: str | None = "STORAGE/report/NAME/") -> argparse.ArgumentParser:
    """Return a parser with the options that every command has.

    Args:
        program: name of the command.
        description: what it does.
        out: the default of ``--out``, in words; None for a command that writes no files.
    """
    options = argparse.ArgumentParser(prog=f"python -m analysis.{program}", description=description, allow_abbrev=False)
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
        "--tracking-uri",
        metavar="URI",
        help=f"MLflow tracking URI (default: mlflow.db in the storage, or in {DEFAULT_STORAGE}/ for an object store)",
    )
    if out is None:
        options.set_defaults(style=DEFAULT)
        return options
    options.add_argument("--out", metavar="DIR", help=f"folder to write to (default: {out})")
    options.add_argument(
        "--style",
        choices=list(STYLES),
        default=DEFAULT,
        help=f"what figures are sized for (default: {DEFAULT}); paper: text and column widths, 8-point labels",
    )
    return options


def folder(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to: ``--out``, or a folder in the storage (in the default storage if not local)."""
    if arguments.out:
        return expanded(str(arguments.out))
    return _local(arguments.storage) / "report" / str(arguments.space)


def tracking_uri(arguments: argparse.Namespace) -> str:
    """Return ``--tracking-uri``, or else the URI of the database that ``study.run`` fills for ``--storage``.

    From then on, requests to an unreachable tracking server fail in seconds instead of minutes.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if arguments.tracking_uri:
        return str(arguments.tracking_uri)
    return default_tracking_uri(_local(arguments.storage))


def _local(storage: str) -> Path:
    """Return a path or ``file://`` URI as a path; the default storage for an object store, which holds no database."""
    found = folder_of(storage)
    return Path(DEFAULT_STORAGE) if found is None else expanded(found)


def guarded(arguments: argparse.Namespace, action: Callable[[argparse.Namespace], None]) -> int:
    """Run an action in the style asked for; return the exit code: 0, or 2 after printing an error of one line."""
    from analysis.sources import AnalysisError

    try:
        with drawing_for(*STYLES[arguments.style]):
            action(arguments)
    except (AnalysisError, OSError) as error:
        return refused(error)
    return OK


def unfinished(runs: pd.DataFrame) -> str:
    """Return a message that no job has finished, with the number of jobs by status; empty if any job has finished."""
    from trainables.schema import FINISHED

    states = runs["status"].value_counts()
    if FINISHED in states:
        return ""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    errors = [error.strip().splitlines()[0] for error in runs["error"] if error.strip()]
    first = f"; the first error: {errors[0]}" if errors else ""
    return f"none of its {len(runs)} jobs on record has finished ({counts}){first}"
