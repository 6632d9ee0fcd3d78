"""Where files are kept: a local or shared directory, or an object store, with the same operations. Torch-free.

Paths are relative to the storage, with ``/`` between their parts. Single files are written atomically: no reader sees
half a file, and if two processes create the same path, exactly one succeeds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote

from trainables.storage.local import LocalStorage
from trainables.storage.patience import StorageError, patiently

if TYPE_CHECKING:
    from trainables.storage.objects import ObjectStorage

    Storage = LocalStorage | ObjectStorage

__all__ = ["LocalStorage", "StorageError", "open_storage", "patiently"]


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Return the storage at a directory or a URI such as ``s3://bucket/prefix``; nothing is read or created.

    Raises:
        ValueError: an unknown scheme, a scheme whose library is not installed, or credentials in the URI.
    """
    text = os.fspath(location)
    if text.startswith("file://"):
        return LocalStorage(unquote(text.removeprefix("file://")))
    if "://" not in text:
        return LocalStorage(text)
    from trainables.storage.objects import ObjectStorage  # imports fsspec, which a local study does not need

    return ObjectStorage(text)
