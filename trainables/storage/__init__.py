"""Where files are kept: a local or shared directory, or an object store; one set of operations for both. Torch-free.

Paths are relative to the storage, with ``/`` between their parts. Every operation happens as a whole or not at all:
no reader sees half a file, and of two processes that create one path exactly one is told that it did.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote

from trainables.storage.errors import StorageError, patiently
from trainables.storage.local import LocalStorage

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
    from trainables.storage.objects import ObjectStorage  # brings fsspec along, which a local study does not need

    return ObjectStorage(text)
