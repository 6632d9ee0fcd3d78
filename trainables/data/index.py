"""An index of a dataset's files: digest of the content, and kind of picture. Every file is examined once.

The index is kept beside the data. Files are recognised by path, size and times. A file that was written a moment ago
could change again within the same tick of the clock, so it is not entered yet.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from trainables.data import cache
from trainables.data.pictures import Picture, examine
from trainables.host.places import first_writable, trusted
from trainables.storage.documents import number

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FORMAT: Final = 3
"""Incremented when files would be judged differently."""
RECENT_NS: Final = 2 * 10**9
"""Age at which a file's times are reliable: some file systems have a resolution of 2 s."""
_THREADS: Final = 16
"""They mostly wait for the disk."""
_FILES_PER_TASK: Final = 64

_INDEX: Final = {"format": number, "pillow": str, "files": list}
"""The kind of the document; its checksum vouches for the rows, of which there may be a million."""

_log = logging.getLogger(__name__)


class FileState(NamedTuple):
    """A file as its directory lists it: path below the root with forward slashes, size in bytes, times of change (ns).

    A program that sets `mtime_ns` back changes `ctime_ns` by doing so.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


def look_at(root: Path, states: Sequence[FileState]) -> list[Picture]:
    """Return what some files are; files that have not changed since they were examined are not read again.

    A file that cannot be read is a picture with a problem.
    """
    known = _read(root)
    if any(state not in known for state in states):
        with _locked(root) as known:  # after a wait, the other process has done the work
            for gone in known.keys() - set(states):
                del known[gone]
            new = [state for state in states if state not in known]

            def examined(part: Sequence[FileState]) -> list[tuple[FileState, Picture]]:
                return [(state, examine(root / state.path)) for state in part]

            for pictures in in_parts(examined, new, _FILES_PER_TASK, _THREADS):
                known.update(pictures)
    return [known[state] for state in states]


def remember(root: Path, problems: Mapping[FileState, str]) -> None:
    """Enter problems of pictures that were found later: file -> the problem, or "" to examine it again."""
    with _locked(root) as known:
        for state in problems.keys() & known.keys():
            picture = known.pop(state)
            if problems[state]:
                known[state] = picture._replace(problem=problems[state])


def in_parts(
    work: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item], size: int, threads: int
) -> Iterator[_Result]:
    """Yield what `work` returns for every `size` items, computed in threads; an error cancels the parts not begun."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(work, (items[start : start + size] for start in range(0, len(items), size)))
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[dict[FileState, Picture]]:
    """Give the index, to be changed by this process alone; keep it even after an error: it may be the work of minutes.

    Files that cannot be read, or could change unnoticed, are left out of what is kept.
    """
    folder = first_writable(cache.folders(root), f"what is known of the files in {root}")
    with cache.locked(folder / f"{_name(root)}.lock"):
        known = _read(root)
        try:
            yield known
        finally:
            now = time.time_ns()
            kept = [
                (state, picture)
                for state, picture in known.items()
                if picture.digest and abs(now - max(state.mtime_ns, state.ctime_ns)) > RECENT_NS
            ]
            try:
                document = {"format": FORMAT, "pillow": _pillow(), "files": kept}
                cache.write_sealed(folder / _name(root), document)
            except OSError as error:  # a full disk, for example; the data can be used all the same
                _log.warning("what is known of a dataset's files is not kept, and found out again next time: %s", error)


def _read(root: Path) -> dict[FileState, Picture]:
    """Return the index; without problems that another version of Pillow found, which this one may not have.

    It is put together from all folders, because the first one may be somebody else's; what was written last counts.
    """
    found = []
    for path in (folder / _name(root) for folder in cache.folders(root) if trusted(folder)):
        with contextlib.suppress(OSError):  # no file, or a place that holds none
            written, document = path.stat().st_mtime_ns, cache.read_sealed(path, _INDEX)
            if document is not None and document["format"] == FORMAT:
                found.append((written, document))
    known: dict[FileState, Picture] = {}
    for _, document in sorted(found, key=itemgetter(0)):
        pictures = {FileState(*state): Picture(*picture) for state, picture in document["files"]}
        same = document["pillow"] == _pillow()
        known |= {state: picture for state, picture in pictures.items() if same or not picture.problem}
    return known


def _name(root: Path) -> str:
    return f"index-{cache.place(root)}.json"


def _pillow() -> str:
    import PIL

    return PIL.__version__
