"""``python -m trainables.data --download cifar10 --data-dir DIR``: the only way in which data is ever downloaded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainables.data import check_dataset, get_entry
from trainables.data.layout import has_archive
from trainables.data.registry import DOWNLOADABLE
from trainables.host.places import is_uri, located
from trainables.host.redaction import redact
from trainables.host.terminal import OK, command, refused


@command
def main(arguments: Sequence[str]) -> int:
    """Download one dataset; return 0, or 2 if that was not possible."""
    parser = argparse.ArgumentParser(prog="python -m trainables.data", description="Download a dataset.")
    parser.add_argument("--download", metavar="NAME", required=True, help=f"one of: {', '.join(DOWNLOADABLE)}")
    parser.add_argument("--data-dir", metavar="DIR", required=True, help="directory to put it in")
    options = parser.parse_args(arguments)
    try:
        place = located(options.data_dir)
        if is_uri(place):
            raise ValueError(f"--data-dir {redact(place)}: download to a directory, and copy that to the bucket")
        _download(options.download, Path(place))
    except (ValueError, OSError) as error:
        return refused(error)
    return OK


def _download(name: str, data_dir: Path) -> None:
    entry = get_entry(name)
    if not entry.needs_data_dir:
        print(f"{name} needs no download")
        return
    if name not in DOWNLOADABLE:
        raise ValueError(f"{name} cannot be downloaded, only: {', '.join(DOWNLOADABLE)}")
    from trainables.data.on_disk import download  # imports torch

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # `find_source` looks first in the folder of this name, so an archive there is the one to repair.
        download(name, data_dir / name if has_archive(name, data_dir / name) else data_dir)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"downloading {name} to {data_dir} failed: {error}. Without a network, put the archive there "
            "from another machine and run the same command, which then only unpacks it"
        ) from error
    facts = check_dataset(name, data_dir)
    print(*facts.lines(name), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
