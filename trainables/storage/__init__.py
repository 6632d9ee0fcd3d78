"""Where files are kept: a local or shared directory, or an object store, with the same operations. Torch-free."""

from __future__ import annotations

import os

from trainables.host.places import is_uri, located
from trainables.storage.base import Storage
from trainables.storage.local import LocalStorage
from trainables.storage.patience import StorageError, patiently

__all__ = ["LocalStorage", "Storage", "StorageError", "open_storage", "patiently"]


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Return the storage at a directory or a URI such as ``s3://bucket/prefix``; nothing is read or created.

    Raises:
        ValueError: an unknown scheme, a scheme whose library is not installed, or credentials in the URI.
    """
    if not is_uri(place := located(location)):
        return LocalStorage(place)
    from trainables.storage.objects import ObjectStorage  # imports fsspec, which a local study does not need

    return ObjectStorage(place)
