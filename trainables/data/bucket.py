"""Datasets in an object store: every node fetches a copy, which all its processes share. Torch-free.

A copy has the same files as the bucket, each fetched by a request of its own. So it is read like any folder, has
the same fingerprint, and a fetch that was killed continues with the missing files. An archive would take fewer
requests, but twice the disk, and a single new image would make it another archive.

The name of a copy is made of its URI and a digest of the bucket's listing: paths, sizes and versions. After a
change in the bucket there is a new copy, which takes unchanged files from the earlier one. A copy gets its name
once it is complete. Every process lists the bucket when it opens the dataset. Whether the data are the planned ones
is decided by the fingerprint, which is computed from the contents.

Copies may take a limited number of bytes. The least recently used ones make room for others, except those that a
living process has opened: it holds a lock on them until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from trainables.checks import from_environment
from trainables.data import cache
from trainables.data.index import in_parts
from trainables.host.places import cache_folders, expanded, first_writable
from trainables.storage import Storage, StorageError
from trainables.storage.base import Version

FOLDER_VARIABLE: Final = "STUDY_DATA_CACHE"
"""Environment variable that names the folder of a node's copies; by default, ``data`` in the user's cache."""
LIMIT_VARIABLE: Final = "STUDY_DATA_CACHE_GIB"
"""Environment variable: GiB that all copies of a node may take, with their decoded images."""
SHARE_OF_DISK: Final = 0.5
"""What they may take by default, as a share of the disk that they lie on."""
_THREADS: Final = 16
"""Objects that are fetched at the same time; all of them are in memory."""
_OBJECTS_PER_TASK: Final = 16
_NAMED: Final = 5
"""Most objects that a message names."""
_PARTIAL: Final = ".partial"
_COPY: Final = re.compile(rf"[0-9a-f]{{12}}-[0-9a-f]{{24}}({re.escape(_PARTIAL)})?")
"""Name of a copy."""
_LISTING: Final = ".listing.json"
_FETCHING: Final = ".fetching"
"""Folder of files that are being written, in a copy that is not complete."""
_LISTED: Final = {"files": dict}
"""The kind of the listing; its checksum vouches for the entries, of which there may be a million."""

Files = Mapping[str, Version]
"""Path below the prefix of a dataset -> version of the object."""

_held: dict[Path, tuple[TextIO, str]] = {}
"""The copies that this process has opened: a lock, held until the process ends, and the URI."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Objects:
    """Some of the objects below a prefix.

    Attributes:
        storage: has the bucket.
        prefix: below the storage's root; may be empty.
        chosen: takes the paths of all visible objects, relative to the prefix, and returns those that are meant.
    """

    storage: Storage
    prefix: str
    chosen: Callable[[Collection[str]], Collection[str]]

    @property
    def uri(self) -> str:
        """The prefix as a URI."""
        return f"{self.storage.uri}/{self.prefix}".rstrip("/")

    def listed(self) -> Files:
        """Return the objects that are there now."""
        start = f"{self.prefix}/" if self.prefix else ""
        found = {path.removeprefix(start): each for path, each in self.storage.versions(self.prefix).items()}
        # A name such as "../x" must not lead out of the copy; object stores also list folders, as "x/".
        visible = {path for path in found if not any(part[:1] in ("", ".") for part in path.split("/"))}
        return {path: found[path] for path in sorted(self.chosen(visible))}

    def read(self, path: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        return self.storage.read(f"{self.prefix}/{path}" if self.prefix else path)


def local_copy(objects: Objects, files: Files) -> Path:
    """Return the folder with this node's copy of some objects; what it lacks is fetched, by one process of the node.

    Args:
        objects: which are meant.
        files: what `objects` has just listed.

    Raises:
        ValueError: there is no room, the folder's file system has no locks, or objects change while they are fetched.
        StorageError: the bucket cannot be read.
        OSError: the disk cannot be written.
    """
    folder = _folder()
    listing = "\n".join(f"{path}\0{version.size}\0{version.tag}" for path, version in files.items())
    copy = folder / f"{_digest(objects.uri)[:12]}-{_digest(listing)[:24]}"
    if not _hold(copy, objects.uri):
        with cache.locked(folder / "fetching.lock"):
            while not _hold(copy, objects.uri):  # after a wait, the other process has done the work
                _fetch(objects, files, copy)
    return copy


def by_uri(text: str) -> str:
    """Return a text in which the files of copies are named as they are called in the bucket."""
    for copy, (_, uri) in _held.items():
        text = re.sub(re.escape(str(copy)) + f"(?!/{re.escape(cache.DIRECTORY)})", uri.replace("\\", r"\\"), text)
    return text


@contextlib.contextmanager
def named_by_uri() -> Iterator[None]:
    """Apply :func:`by_uri` to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        if (text := by_uri(str(error))) == str(error):
            raise
        raise ValueError(text) from error


def _folder() -> Path:
    """Return the folder of all copies, which exists."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return first_writable([expanded(given).absolute()], f"copies of datasets, {FOLDER_VARIABLE}={given},")
    folder = first_writable(cache_folders(), "copies of datasets") / "data"
    folder.mkdir(exist_ok=True)
    return folder


def _hold(copy: Path, uri: str) -> bool:
    """Keep a copy from being removed as long as this process lives; return whether it is complete."""
    if copy not in _held:
        lock = cache.open_lock(_lock(copy))
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in cache.NO_LOCKS:
                raise
            wanted = f"set {FOLDER_VARIABLE} to a folder on a local disk"
            raise ValueError(f"{copy.parent} has no file locks: {wanted}") from error
        _held[copy] = lock, uri
    if copy.is_dir():
        os.utime(_lock(copy))
        return True
    _held.pop(copy)[0].close()
    return False


def _fetch(objects: Objects, files: Files, copy: Path) -> None:
    """Make a copy. Only the process that holds the lock on all of them may do so."""
    partial = copy.with_name(copy.name + _PARTIAL)
    for folder in {(partial / path).parent for path in files}:
        folder.mkdir(parents=True, exist_ok=True)
    cache.write_sealed(partial / _LISTING, {"files": files})
    _link(files, partial)
    missing = [path for path in files if not _is_whole(partial / path, files[path].size)]
    _make_room(partial, objects.uri, files, sum(files[path].size for path in missing))
    if missing:
        size = sum(files[path].size for path in missing)
        _log.warning("fetching %s files (%s bytes) of %s to %s", f"{len(missing):,}", f"{size:,}", objects.uri, copy)
    writing = partial / _FETCHING
    shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed
    writing.mkdir()

    def fetch(paths: Sequence[str]) -> list[str]:
        differ = []
        for path in paths:
            content = objects.read(path)
            if content is None or len(content) != files[path].size:
                differ.append(path)
            else:
                temporary = writing / secrets.token_hex(8)
                temporary.write_bytes(content)
                temporary.rename(partial / path)
        return differ

    differ = [path for part in in_parts(fetch, missing, _OBJECTS_PER_TASK, _THREADS) for path in part]
    if changed := sorted({path for path, _ in files.items() ^ objects.listed().items()}):
        for path in changed:
            (partial / path).unlink(missing_ok=True)
        raise ValueError(f"objects in {objects.uri} changed while they were fetched: {_some(changed)}")
    if differ:
        raise StorageError(f"{objects.uri}: objects differ in size from the bucket's listing: {_some(differ)}")
    writing.rmdir()
    os.sync()  # a crash of the machine must not leave a complete copy with empty files
    partial.rename(copy)


def _is_whole(path: Path, size: int) -> bool:
    """Return whether a file has its size: a crash of the machine may have left it empty."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _link(files: Files, partial: Path) -> None:
    """Take unchanged files from other copies of the same URI."""
    for other in partial.parent.glob(f"{partial.name.partition('-')[0]}-*"):
        if other == partial or (listing := cache.read_sealed(other / _LISTING, _LISTED)) is None:
            continue
        for path, version in listing["files"].items():
            if path in files and [*files[path]] == version:
                with contextlib.suppress(OSError):  # it is there, or the other copy lacks it: it will be fetched
                    os.link(other / path, partial / path)


def _make_room(partial: Path, uri: str, files: Files, missing: int) -> None:
    """Remove the copies that were not used for the longest time until `missing` bytes more are allowed and free.

    Raises:
        ValueError: that is not possible.
    """
    folder, whole = partial.parent, sum(version.size for version in files.values())
    limit = _limit(folder)
    if whole > limit:
        raise ValueError(
            f"{uri} has {whole:,} bytes; copies in {folder} may take {limit:,}: "
            f"set {LIMIT_VARIABLE} (GiB), or {FOLDER_VARIABLE} to a folder on a larger disk"
        )
    sizes = {each: _bytes(each) for each in folder.iterdir() if _COPY.fullmatch(each.name)}

    def fits() -> bool:
        return sum(sizes.values()) + missing <= limit and missing <= shutil.disk_usage(folder).free

    for each in sorted(sizes.keys() - {partial}, key=_last_use):
        if not fits() and _removed(each):
            del sizes[each]
    if not fits():
        raise ValueError(
            f"{uri} needs {missing:,} more bytes in {folder}: {shutil.disk_usage(folder).free:,} are free on the disk, "
            f"and copies that are in use have {sum(sizes.values()):,} of the {limit:,} that {LIMIT_VARIABLE} allows"
        )


def _removed(copy: Path) -> bool:
    """Remove a copy, complete or not, unless a process has opened it; return whether it was removed."""
    with cache.open_lock(_lock(copy)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        partial = copy.with_name(copy.name.removesuffix(_PARTIAL) + _PARTIAL)
        copy.rename(partial)  # a process that is killed in the middle must not leave half of a complete copy
        shutil.rmtree(partial)
    return True


def _limit(folder: Path) -> int:
    """Return how many bytes all copies may take."""
    given = from_environment(LIMIT_VARIABLE, "(0, 1048576]", "GiB")
    return round(SHARE_OF_DISK * shutil.disk_usage(folder).total if given is None else given * 2**30)


def _bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; a file that several copies have counts once altogether."""
    states = (os.lstat(os.path.join(above, name)) for above, _, names in os.walk(folder) for name in names)
    return sum(state.st_size // state.st_nlink for state in states)


def _lock(copy: Path) -> Path:
    """Return the file whose lock processes hold that use a copy; its time is the last use."""
    return copy.with_name(f"{copy.name.removesuffix(_PARTIAL)}.lock")


def _last_use(copy: Path) -> float:
    """Return when a process last opened a copy, in seconds since 1970; 0 if that is not known."""
    return _lock(copy).stat().st_mtime if _lock(copy).exists() else 0.0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
