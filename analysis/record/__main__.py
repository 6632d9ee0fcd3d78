"""Keeping a record of a study: ``python -m analysis.record --space NAME`` (see ``analysis.record.update``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import command
from analysis.record import folder, readme, update
from trainables.host import terminal
from trainables.host.places import expanded
from trainables.storage.store import Store


@terminal.command
def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 2 if the request cannot be answered."""
    said = "Add a study's runs to its record, and draw the record's figures and tables."
    options = command.parser("record", said, out=f"{folder.RECORDS}/NAME/")
    options.add_argument(
        "--readme", metavar="FILE", help="then write the tables of results that this page has marks for"
    )
    return command.guarded(options.parse_args(argv), _update)


def _update(arguments: argparse.Namespace) -> None:
    uri = command.tracking_uri(arguments)
    out = expanded(arguments.out) if arguments.out else Path(folder.RECORDS, arguments.space)
    store = None if folder.is_record(uri) else Store(arguments.storage)
    update.add(arguments.space, uri, store, out)
    print(*update.draw(arguments.space, out), sep="\n")
    if arguments.readme:
        page = expanded(arguments.readme)
        text = page.read_text(encoding="utf-8")
        page.write_text(readme.refreshed(text, page.parent), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
