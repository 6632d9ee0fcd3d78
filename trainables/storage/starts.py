"""Starts of a study's driver: when it ran, and how long its jobs were expected to take. Torch-free.

A storage keeps a document per start for good, so that the time of a study that was interrupted can be compared with its
estimate (``analysis.record``).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from trainables.host.clock import now
from trainables.storage import StorageError, documents
from trainables.storage.documents import Document, Malformed
from trainables.storage.lease import RELEASE_SECONDS
from trainables.storage.store import STARTS, Store

_PATH: Final = re.compile(rf"{STARTS}/(?P<name>[0-9a-f]{{12}})\.json")


@contextlib.contextmanager
def noted(store: Store, note: Mapping[str, Any]) -> Iterator[None]:
    """Keep a document of a start; its end is added at the end, unless the driver is killed.

    Args:
        store: where the study keeps its results.
        note: ``space``; ``recipe``, the digest of its settings other than the axes of every grid; ``command``, the
            command line without passwords; ``seconds``, the estimated time until all jobs are published; ``jobs``, the
            key of each job to run -> estimated seconds of its own work.

    Raises:
        StorageError: the storage cannot be written.
    """
    path, document = f"{STARTS}/{secrets.token_hex(6)}.json", {**note, "started": now()}
    store.storage.write(path, json.dumps(document).encode())

    def end() -> None:
        with contextlib.suppress(StorageError):  # as if the driver had been killed
            store.storage.write(path, json.dumps({**document, "ended": now()}).encode())

    try:
        yield
    finally:  # in a thread, so that a storage that is out of reach does not hold up the driver
        last = threading.Thread(target=end, name="end of start", daemon=True)
        last.start()
        last.join(RELEASE_SECONDS)


def starts(store: Store, space: str) -> dict[str, Document]:
    """Return the documents of a space's starts, the earliest first: name -> what ``noted`` kept.

    Times are in ms since 1970; ``ended`` is missing after a kill, and while the driver runs. Damaged documents are set
    aside.

    Raises:
        StorageError: the storage cannot be read.
    """
    found = {}
    for path in store.storage.names(STARTS):
        if not (named := _PATH.fullmatch(path)) or (content := store.storage.read(path)) is None:
            continue
        try:
            document = documents.parse(content, documents.START)
        except Malformed as error:
            store.set_aside(path, content, str(error))
            continue
        if document["space"] == space:
            found[named["name"]] = document
    return dict(sorted(found.items(), key=lambda each: each[1]["started"]))
