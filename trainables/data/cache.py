"""Files kept beside a dataset to save work: where they lie, locks on them, checksums in them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from trainables.host.places import cache_folders
from trainables.storage import documents
from trainables.storage.documents import Document, Kind, Malformed

DIRECTORY: Final = ".decoded"
NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without locks."""

_log = logging.getLogger(__name__)


def folders(root: Path) -> list[Path]:
    """Return the folders that files about the dataset in `root` may be kept in, best one first."""
    return [root / DIRECTORY, *cache_folders()]


def place(root: Path) -> str:
    """Return a short digest of a dataset's directory, to tell the files of several datasets in one folder apart."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock on file `path`; yields false, after a warning, if the file system has no locks."""
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when the process ends, even if it is killed
            alone = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"{path}: no file locks here; processes may do the same work twice", stacklevel=2)
            alone = False
        yield alone


def open_lock(path: Path) -> TextIO:
    """Open a file to be locked; create it if it is missing."""
    try:
        return path.open("a+")
    except PermissionError:  # created by another user in a shared folder; opening it for reading is enough
        return path.open()


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document with its checksum, atomically."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(documents.seal(json.dumps(document).encode()))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_sealed(path: Path, kind: Kind) -> Document | None:
    """Return a document that `write_sealed` wrote; None if there is none or, after a warning, if it is damaged."""
    try:
        return documents.parse(documents.unseal(path.read_bytes()), kind, exact=True)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, Malformed) as error:
        _log.warning("%s cannot be used (%s) and is made again", path, error)
    return None
