"""Decoded arrays on disk: written once per machine, mapped by every process.

A directory of arrays is published under a name made of the dataset, its place and the state of its source files, by
renaming a complete directory. So a reader sees all of it or nothing, and changed source files ask for another name.
A lock makes processes that want the same arrays at the same time wait for the first instead of decoding, too; where
the file system has no locks they all decode, the first to publish wins, and nothing is lost but time.

Arrays of an earlier state of the files are not removed, as a process may still be reading them; the whole directory
may be deleted whenever nothing runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainables.data.dataset import Split
from trainables.places import cache_folders, first_writable, trusted

FORMAT: Final = 1
"""Raised whenever the same source files would be decoded differently."""
MANIFEST: Final = "manifest.json"
DIRECTORY: Final = ".decoded"

Decode = Callable[[Path], Sequence[str]]
"""Writes ``{train,test}_{images,labels}.npy`` into an empty directory and returns the names of the classes."""


class Decoded:
    """Two splits and the names of their classes, mapped from a published directory."""

    def __init__(self, directory: Path) -> None:
        """Map the arrays of `directory`, read-only, without reading them."""
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.train, self.test = (
            Split(
                images=_map(directory / f"{split}_images.npy"),
                labels=torch.from_numpy(np.load(directory / f"{split}_labels.npy")),
            )
            for split in ("train", "test")
        )


def open_decoded(name: str, root: Path, state: str, cache_dir: Path | None, decode: Decode) -> Decoded:
    """Map the decoded arrays of a dataset; decode them first if nobody has.

    Args:
        name: of the dataset.
        root: where its source files lie.
        state: digest of the source files.
        cache_dir: where to keep the arrays; by default ``<root>/.decoded``, or the user's cache where `root` is
            read-only.
        decode: called at most once.
    """
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    prefix = f"{name}-{place}-"
    published = f"{prefix}{FORMAT}-{state[:24]}"
    for parent in _parents(root, cache_dir):
        if trusted(parent) and (parent / published / MANIFEST).is_file():
            return Decoded(parent / published)
    parent = first_writable(_parents(root, cache_dir), "decoded images")
    with _locked(parent / f"{prefix}lock") as alone:
        if not (parent / published / MANIFEST).is_file():
            unfinished = f"{prefix}tmp-{socket.gethostname()}-"
            if alone:  # so these were left behind by a process of this machine that died
                _remove(parent.glob(f"{unfinished}*"))
            _publish(Path(tempfile.mkdtemp(prefix=unfinished, dir=parent)), parent / published, decode)
    return Decoded(parent / published)


def _publish(unfinished: Path, published: Path, decode: Decode) -> None:
    try:
        class_names = decode(unfinished)
        (unfinished / MANIFEST).write_text(json.dumps({"class_names": list(class_names)}), encoding="utf-8")
        unfinished.chmod(0o755)  # it was created private
        try:
            os.replace(unfinished, published)
        except OSError as error:
            # Another process without a lock was faster: its directory cannot be replaced and is as good.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _parents(root: Path, cache_dir: Path | None) -> list[Path]:
    """Return where decoded arrays may lie, best place first."""
    if cache_dir is not None:
        return [cache_dir]
    return [root / DIRECTORY, *cache_folders()]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`; yields false, after a warning, where the file system has no locks."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel gives it back when the process ends, however that happens
            alone = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            warnings.warn(f"{path}: no file locks here; processes may decode the same images twice", stacklevel=2)
            alone = False
        yield alone


def _remove(directories: Iterator[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory)


def _map(path: Path) -> Tensor:
    array = np.load(path, mmap_mode="r")
    with warnings.catch_warnings():
        # Torch has no read-only tensors and says so; `Split` tells its readers not to write.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
