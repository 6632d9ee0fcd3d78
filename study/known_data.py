"""Facts about datasets, which studies leave in their storage for machines that lack the data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from study.plan import Plan, reading_of
from trainables.data import check_dataset
from trainables.data.dataset import DatasetFacts, Reading
from trainables.data.registry import get_entry
from trainables.host.places import is_uri
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.store import FACTS_OF_DATA, Store


def remember(plan: Plan, store: Store) -> None:
    """Record the facts about the plan's datasets for :func:`known_facts`."""
    for name, facts in plan.facts.items():
        if get_entry(name).needs_data_dir:
            content = json.dumps(dataclasses.asdict(facts) | {"dataset": name}, indent=1).encode()
            store.storage.write(_path(name, reading_of(plan.space)), content)


def known_facts(store: Store, name: str, data_dir: str | None, reading: Reading) -> DatasetFacts:
    """Return the facts about a dataset: those of the data in `data_dir`, else those that a study has recorded.

    If a study has recorded facts about the data in `data_dir`, a bucket is not fetched, and a directory need not exist
    on this machine. Without `data_dir` and recorded facts, they are those of the dataset as it was published.

    Raises:
        ValueError: as :func:`check_dataset`, if neither is known.
    """
    entry = get_entry(name)
    if not entry.needs_data_dir:
        return check_dataset(name, data_dir, reading)
    if data_dir is not None and not is_uri(data_dir):
        data_dir = str(Path(data_dir).absolute())
        if Path(data_dir).exists():
            return check_dataset(name, data_dir, reading)
    recorded = _recorded(store, _path(name, reading))
    if recorded is not None and (data_dir is None or recorded.source.startswith(data_dir.rstrip("/") + "/")):
        return recorded
    is_one_thing = None not in (entry.num_classes, entry.train_images, entry.test_images)
    return entry.facts() if is_one_thing and data_dir is None else check_dataset(name, data_dir, reading)


def recorded_versions(store: Store) -> set[str]:
    """Return the fingerprints of all data on which studies have recorded facts; only those of images in folders."""
    found = (_recorded(store, path) for path in store.storage.names(FACTS_OF_DATA))
    return {facts.fingerprint for facts in found if facts and facts.fingerprint}


def _recorded(store: Store, path: str) -> DatasetFacts | None:
    if (content := store.storage.read(path)) is None:
        return None
    try:
        document = documents.parse(content, documents.FACTS)
    except Malformed as error:
        store.set_aside(path, content, str(error))
        return None
    fields = {field.name for field in dataclasses.fields(DatasetFacts)} - {"warnings"}
    return DatasetFacts(**{field: document[field] for field in fields})


def _path(name: str, reading: Reading) -> str:
    sized = f"{name} {reading.image_size}" if reading.image_size else name
    return f"{FACTS_OF_DATA}/{hashlib.sha256(sized.encode()).hexdigest()[:12]}.json"
