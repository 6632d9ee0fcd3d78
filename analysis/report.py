"""The command ``python -m analysis.report --space NAME``, which writes a study's report (see ``analysis.write``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis import command
from trainables.host import terminal

WATCH_SECONDS = 60


@terminal.command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    options = command.parser("report", "Write a study's tables and figures as one self-contained page.")
    options.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"rewrite it when there are new results, until the study has ended (default: every {WATCH_SECONDS} s)",
    )
    options.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="log the report to MLflow, too, in its experiment's run 'study' (default: yes)",
    )
    arguments = options.parse_args(argv)
    return command.guarded(arguments, _write)


def _seconds(text: str) -> int:
    seconds = int(text) if text.isdecimal() else 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of seconds, at least 1, got {text!r}")
    return seconds


def _write(arguments: argparse.Namespace) -> None:
    from analysis import load, write  # here: --help needs neither pandas nor matplotlib

    space, tracking_uri, out = arguments.space, command.tracking_uri(arguments), command.folder(arguments)
    if arguments.watch:
        from analysis.watch import watch

        watch(space, tracking_uri, arguments.storage, out, arguments.watch, logged=arguments.log)
        return
    frame = load.runs(space, tracking_uri)
    written = write.write_files(frame, space, tracking_uri, out)
    print(written[0], flush=True)
    if reason := command.unfinished(frame):
        print(f"warning: {reason}", file=sys.stderr)
    if arguments.log:
        write.log(frame, space, tracking_uri, written)


if __name__ == "__main__":
    sys.exit(main())
