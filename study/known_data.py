"""Facts about datasets, which studies leave in their storage for machines that lack the data."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from study.plan import Plan, reading_of
from trainables.data import check_dataset
from trainables.data.dataset import DatasetFacts, Reading
from trainables.data.registry import get_entry
from trainables.host.places import is_uri
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.store import Store


def remember(plan: Plan, store: Store) -> None:
    """Record the facts about the plan's datasets for :func:`known_facts`."""
    for name, facts in plan.facts.items():
        if get_entry(name).needs_data_dir:
            content = json.dumps(dataclasses.asdict(facts) | {"dataset": name}, indent=1).encode()
            store.storage.write(_path(name, reading_of(plan.space)), content)


def known_facts(store: Store, name: str, data_dir: str | None, reading: Reading) -> DatasetFacts:
    """Return the facts about a dataset: those of the data in `data_dir`, else those that a study has recorded.

    If a study has recorded facts, data in a bucket are not fetched, and a directory need not hold the data on this
    machine. If no study has recorded any and there is no `data_dir`, they are those of the dataset as it was published.

    Raises:
        ValueError: as :func:`check_dataset`, if neither is known.
    """
    entry = get_entry(name)
    if not entry.needs_data_dir:
        return check_dataset(name, data_dir, reading)
    recorded = _recorded(store, name, reading)
    if data_dir is not None and not is_uri(data_dir):
        try:
            return check_dataset(name, data_dir, reading)
        except ValueError:
            if recorded is None:
                raise
            return recorded
    if recorded is not None and (data_dir is None or recorded.source.startswith(data_dir.rstrip("/") + "/")):
        return recorded
    is_one_thing = None not in (entry.num_classes, entry.train_images, entry.test_images)
    return entry.facts() if is_one_thing and data_dir is None else check_dataset(name, data_dir, reading)


def _recorded(store: Store, name: str, reading: Reading) -> DatasetFacts | None:
    path = _path(name, reading)
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
    return f"data/{hashlib.sha256(sized.encode()).hexdigest()[:12]}.json"
