"""What is kept beside a dataset so that it need not be found out again: where, under a lock, and checked when read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from trainables.host.places import cache_folders

DIRECTORY: Final = ".decoded"

_log = logging.getLogger(__name__)


def folders(root: Path, cache_dir: Path | None) -> list[Path]:
    """Return where things about the dataset in `root` may be kept, best place first."""
    return [cache_dir] if cache_dir is not None else [root / DIRECTORY, *cache_folders()]


def place(root: Path) -> str:
    """Return what distinguishes the datasets of different directories in one folder."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`; yields false, after a warning, where the file system has no locks."""
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel gives it back when the process ends, however that happens
            alone = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            warnings.warn(f"{path}: no file locks here; processes may decode the same images twice", stacklevel=2)
            alone = False
        yield alone


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except PermissionError:  # another user has made it, in a folder that several may write to: reading is enough
        return path.open()


def write_sealed(path: Path, document: Any) -> None:
    """Write a document with its checksum; whoever reads meanwhile sees the old file or the new one."""
    text = json.dumps(document)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
            file.close()
            os.chmod(file.name, 0o644)  # it was created private
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_sealed(path: Path) -> Any:
    """Return a document that `write_sealed` wrote; None, after a line about damage, unless it is there and whole."""
    try:
        seal, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("%s cannot be read and is made again: %s", path, error)
        return None
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        _log.warning("%s is damaged and is made again", path)
        return None
    return json.loads(text)
