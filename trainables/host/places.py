"""Where a user's own files go, even on a machine that does not know the user: no HOME, no entry in /etc/passwd.

``Path.home``, ``Path.expanduser`` and ``getpass.getuser`` raise on such a machine; the project calls these functions.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

CACHE: Final = "sparse-symmetry-study"
DEFAULT_STORAGE: Final = "outputs"
"""Where studies keep their results by default; also what they keep on this machine beside an object store."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return `path` with a leading ``~`` expanded; unchanged if the user's home is unknown."""
    return Path(os.path.expanduser(path))


def located(place: str | os.PathLike[str], base: str | os.PathLike[str] = "") -> str:
    """Return what a user has given as the place of files: an absolute path, or a URI such as ``s3://bucket/prefix``.

    Args:
        place: a URI, which is returned unchanged unless it is ``file://``, or a path, whose leading ``~`` is expanded.
        base: what a path is relative to; by default, the current directory.
    """
    folder = folder_of(place)
    return os.fspath(place) if folder is None else os.path.abspath(Path(base, expanded(folder)))


def folder_of(place: str | os.PathLike[str]) -> Path | None:
    """Return the path that a path or a ``file://`` URI names; None for any other URI, such as ``s3://bucket/prefix``.

    In a URI, ``%20`` is a space, and ``?`` and ``#`` belong to the path, as in a path.
    """
    text = os.fspath(place)
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return None if is_uri(text) else Path(text)


def is_uri(place: str) -> bool:
    """Return whether a place is a URI rather than a path."""
    return "://" in place


def cache_folders() -> list[Path]:
    """Return folders for files that can be recreated, best one first; some of them may not be writable."""
    found = [temporary_folder()]
    base = os.environ.get("XDG_CACHE_HOME")
    home = expanded("~/.cache")
    if base or home.is_absolute():
        found.insert(0, Path(base or home) / CACHE)
    return found


def temporary_folder() -> Path:
    """Return this user's folder for temporary files; it may not exist."""
    return Path(tempfile.gettempdir(), f"{CACHE}-{os.getuid()}")


def trusted(folder: Path) -> bool:
    """Return whether the files in a folder may be used; any user may have created a temporary folder."""
    if folder != temporary_folder():
        return True
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()


def first_writable(folders: Iterable[Path], what: str) -> Path:
    """Return the first writable one of some folders, to keep something there; it is created if it is missing.

    Raises:
        ValueError: none of them is writable; the message says why.
    """
    refused: list[str] = []
    for folder in folders:
        try:
            folder.mkdir(mode=0o700 if folder == temporary_folder() else 0o777, parents=True, exist_ok=True)
            if not trusted(folder):
                refused.append(f"{folder} belongs to another user")
            elif os.access(folder, os.W_OK | os.X_OK):
                return folder
            else:
                refused.append(f"{folder} is read-only")
        except OSError as error:
            refused.append(str(error))
    raise ValueError(f"no place to keep {what} ({'; '.join(refused)}); set XDG_CACHE_HOME to a directory of yours")


def settle() -> None:
    """Set HOME and USER for this process and its children if the machine knows neither.

    MLflow cannot be imported without a home, and PyTorch's compiler names its cache after the user.
    """
    try:
        Path.home()
    except RuntimeError:
        try:
            home = str(first_writable([temporary_folder()], "files of a user without a home"))
        except ValueError:  # the folder belongs to another user
            home = tempfile.mkdtemp(prefix=f"{CACHE}-")
        os.environ["HOME"] = home
    if (name := user()) == f"uid{os.getuid()}":  # the machine does not know it
        os.environ["USER"] = name


def user() -> str:
    """Return the user's name, or ``uid1000`` where the machine does not know it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return f"uid{os.getuid()}"
