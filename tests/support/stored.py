"""Where a store keeps the files of a result: for tests that damage them."""

from __future__ import annotations

from pathlib import Path

from trainables.schema import MANIFEST
from trainables.storage.store import Store


def location(store: Store, key: str, name: str) -> str:
    """Return the path, within the storage, of a file of a published result."""
    folder = "" if name == MANIFEST else f"{store.manifest(key)['attempt']}/"
    return f"store/{key[:2]}/{key}/{folder}{name}"


def file_of(store: Store, key: str, name: str) -> Path:
    """Return a file of a published result in a local store."""
    return store.root / location(store, key, name)
