"""An index of a dataset's files: digest of the content, and kind of picture. Every file is examined once.

The index is kept beside the data. Files are recognised by path, size and times. A file that was written a moment ago
could change again within the same tick of the clock, so it is not entered yet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from trainables.data import cache
from trainables.data.pictures import Picture, examine
from trainables.host.places import first_writable, trusted
from trainables.storage.documents import array, fields, number, text

FORMAT: Final = 1
"""Incremented when files would be judged differently."""
RECENT_NS: Final = 2 * 10**9
"""Age at which a file's times are reliable: some file systems have a resolution of 2 s."""
_THREADS: Final = 16
"""They mostly wait for the disk."""
_FILES_PER_TASK: Final = 64

_INDEX: Final = fields({"format": number, "pillow": text, "files": array})
"""Check of the document; its checksum vouches for the rows, of which there may be a million."""

_log = logging.getLogger(__name__)


class FileState(NamedTuple):
    """A file as its directory lists it: path below the root with forward slashes, size in bytes, times of change (ns).

    A program that sets `mtime_ns` back changes `ctime_ns` by doing so.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


def look_at(root: Path, states: Sequence[FileState], cache_dir: Path | None) -> list[Picture]:
    """Return what some files are; files that have not changed since they were examined are not read again.

    A file that cannot be read is a picture with a problem.
    """
    name = f"index-{cache.place(root)}.json"
    known = _read(root, name, cache_dir)
    if any(state not in known for state in states):
        folder = first_writable(cache.folders(root, cache_dir), f"what is known of the files in {root}")
        with cache.locked(folder / f"{name}.lock"):  # after a wait, the other process has done the work
            known |= _read(root, name, cache_dir)
            fresh: dict[FileState, Picture] = {}
            try:
                for state, picture in _examined(root, [state for state in states if state not in known]):
                    fresh[state] = picture
            finally:  # keep the work of minutes even if the rest is interrupted
                known |= fresh
                settled = [state for state in states if state in known and known[state].digest and _settled(state)]
                _write(folder / name, {state: known[state] for state in settled})
    return [known[state] for state in states]


def remember(root: Path, problems: Mapping[FileState, str], cache_dir: Path | None) -> None:
    """Enter problems of pictures that were found later: file -> the problem, or "" to examine it again."""
    name = f"index-{cache.place(root)}.json"
    folder = first_writable(cache.folders(root, cache_dir), f"what is known of the files in {root}")
    with cache.locked(folder / f"{name}.lock"):
        known = _read(root, name, cache_dir)
        for state in problems.keys() & known.keys():
            picture = known.pop(state)
            if problems[state]:
                known[state] = picture._replace(problem=problems[state])
        _write(folder / name, known)


def _settled(state: FileState) -> bool:
    return abs(time.time_ns() - max(state.mtime_ns, state.ctime_ns)) > RECENT_NS


def _examined(root: Path, states: Sequence[FileState]) -> Iterator[tuple[FileState, Picture]]:
    def part(start: int) -> list[Picture]:
        return [_examine(root / state.path) for state in states[start : start + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for start, pictures in zip(
                range(0, len(states), _FILES_PER_TASK),
                pool.map(part, range(0, len(states), _FILES_PER_TASK)),
                strict=True,
            ):
                yield from zip(states[start : start + _FILES_PER_TASK], pictures, strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _examine(path: Path) -> Picture:
    try:
        return examine(path)
    except OSError as error:
        return Picture("", "", 0, 0, "", error.strerror or str(error))


def _read(root: Path, name: str, cache_dir: Path | None) -> dict[FileState, Picture]:
    """Return the index; without problems that another version of Pillow found, which this one may not have."""
    for folder in cache.folders(root, cache_dir):
        document = cache.read_sealed(folder / name, _INDEX) if trusted(folder) else None
        if document is not None and document["format"] == FORMAT:
            known = {FileState(*state): Picture(*picture) for state, picture in document["files"]}
            if document["pillow"] != _pillow():
                known = {state: picture for state, picture in known.items() if not picture.problem}
            return known
    return {}


def _write(path: Path, known: Mapping[FileState, Picture]) -> None:
    try:
        cache.write_sealed(path, {"format": FORMAT, "pillow": _pillow(), "files": list(known.items())})
    except OSError as error:  # a full disk, for example; the data can be used all the same
        _log.warning("what is known of a dataset's files is not kept, and found out again next time: %s", error)


def _pillow() -> str:
    import PIL

    return PIL.__version__
