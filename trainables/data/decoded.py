"""Decoded arrays on disk: written once per machine, memory-mapped by every process.

The arrays of a dataset are published by renaming a complete directory. Its name is made of the dataset, its path and
the state of its source files. So a reader sees all of it or nothing, and changed source files lead to another name. A
lock makes processes that need the same arrays wait for the first one to decode them. On a file system without locks,
all of them decode and the first to publish wins; only time is lost.

Every process verifies the checksums of the arrays before it uses them. This takes as long as reading them once, which
is less than an epoch. Damaged arrays are set aside and decoded again.

Arrays of an earlier state of the files are kept, because a process may still be reading them. The whole directory may
be deleted whenever nothing runs.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch

from trainables.data import cache
from trainables.data.dataset import Split
from trainables.host.places import first_writable, trusted

FORMAT: Final = 3
"""Incremented when the same source files would be decoded differently, or published in another form."""
_MANIFEST: Final = "manifest.json"
_BLOCK: Final = 2**24
"""Bytes that a thread reads at a time for a checksum."""
_THREADS: Final = 4

_DECODED: Final = {"state": str, "checksums": {"*": str}}
"""The kind of the manifest."""

_log = logging.getLogger(__name__)


def open_decoded(name: str, root: Path, state: str, decode: Callable[[Path], None]) -> tuple[Split, Split]:
    """Map the training and test arrays of a dataset, read-only; decode them first if they are missing or damaged.

    The source files lie in `root`; `state` is a digest that changes with them. `decode` writes
    ``{train,test}_{images,labels}.npy`` into an empty directory.
    """
    prefix = f"{name}-{cache.place(root)}-"
    published = f"{prefix}{FORMAT}-{hashlib.sha256(state.encode()).hexdigest()[:24]}"
    parents = cache.folders(root)
    for parent in filter(trusted, parents):
        if decoded := _verified(parent / published, state):
            return decoded
    parent = first_writable(parents, "decoded images")
    with cache.locked(parent / f"{prefix}lock") as alone:
        decoded = _verified(parent / published, state)
        if decoded is None:
            unfinished = f"{prefix}tmp-{socket.gethostname()}-"
            for left in parent.glob(f"{unfinished}*") if alone else ():  # by a process of this machine that died
                shutil.rmtree(left)
            _publish(Path(tempfile.mkdtemp(prefix=unfinished, dir=parent)), parent / published, state, decode)
            decoded = _verified(parent / published, state)
        if decoded is None:
            raise ValueError(f"{parent / published} is damaged as soon as it is written: is the disk in order?")
        return decoded


def _publish(unfinished: Path, published: Path, state: str, decode: Callable[[Path], None]) -> None:
    """Decode into a directory and rename it, after moving a damaged one out of the way."""
    try:
        if published.is_dir():  # processes that have mapped it keep what they see
            os.replace(published, unfinished)
            shutil.rmtree(unfinished)
            unfinished.mkdir()
        decode(unfinished)
        sums = {path.name: _checksum(path) for path in sorted(unfinished.glob("*.npy"))}
        cache.write_sealed(unfinished / _MANIFEST, {"state": state, "checksums": sums})
        unfinished.chmod(0o755)  # temporary directories are created private
        try:
            os.replace(unfinished, published)
        except OSError as error:
            # Another process was faster, without a lock: its directory is equally good and cannot be replaced.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _verified(directory: Path, state: str) -> tuple[Split, Split] | None:
    """Return published arrays; None if there are none or, after a warning, if they are damaged."""
    if not directory.is_dir():
        return None
    manifest = cache.read_sealed(directory / _MANIFEST, _DECODED)
    if manifest is None:
        damaged = [_MANIFEST]
    elif manifest["state"] != state:
        damaged = [f"{_MANIFEST}, which belongs to other images"]
    else:
        damaged = [file for file, expected in manifest["checksums"].items() if not _intact(directory / file, expected)]
    if damaged:
        _log.warning("decoded images in %s are damaged (%s) and decoded again", directory, ", ".join(damaged))
        return None
    return _mapped(directory, "train"), _mapped(directory, "test")


def _intact(path: Path, expected: str) -> bool:
    """Return whether a file exists and has this checksum."""
    try:
        return _checksum(path) == expected
    except OSError:  # missing, or the disk cannot read it
        return False


def _checksum(path: Path) -> str:
    """Return a digest of a file's content, computed block by block in several threads."""
    with path.open("rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size

        def block(start: int) -> bytes:
            return hashlib.sha256(os.pread(descriptor, _BLOCK, start)).digest()

        return hashlib.sha256(b"".join(pool.map(block, range(0, size, _BLOCK)))).hexdigest()


def _mapped(directory: Path, split: str) -> Split:
    images = np.load(directory / f"{split}_images.npy", mmap_mode="r")
    labels = torch.from_numpy(np.load(directory / f"{split}_labels.npy"))
    with warnings.catch_warnings():
        # Torch has no read-only tensors and says so; `Split` tells its readers not to write.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Split(images=torch.from_numpy(images), labels=labels)
