"""What a storage keeps of each start of a driver."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from trainables.storage import StorageError
from trainables.storage.starts import noted, starts
from trainables.storage.store import Store

KEY = "ab" * 32
NOTE: dict[str, Any] = {"space": "tiny", "command": "python -m study.run", "seconds": 12.5, "jobs": {KEY: 1.5}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


def test_a_start_is_kept_with_its_end_however_it_ends(store: Store) -> None:
    before = round(1000 * time.time())
    with noted(store, NOTE):
        (running,) = starts(store, "tiny").values()
    with pytest.raises(KeyboardInterrupt), noted(store, NOTE):
        raise KeyboardInterrupt
    with noted(store, {**NOTE, "space": "another"}):
        pass
    assert running == {**NOTE, "started": running["started"]}, "a driver that is killed leaves this"
    first, second = starts(store, "tiny").values()
    assert before <= first["started"] <= first["ended"] <= second["started"] <= second["ended"]
    assert starts(store, "a space that never ran") == {}


def test_damaged_starts_and_files_of_others_are_left_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with noted(store, NOTE):
        pass
    (path,) = store.storage.names("starts")
    store.storage.write(f"starts/{'0' * 12}.json", b"{")
    store.storage.write("starts/.DS_Store", b"{")
    assert [f"starts/{name}.json" for name in starts(store, "tiny")] == [path]
    assert f"starts/{'0' * 12}.json is damaged" in caplog.text
    assert set(store.storage.names("starts")) == {path, "starts/.DS_Store"}


def test_a_start_whose_end_cannot_be_kept_is_left_without_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("gone")

    with noted(store, NOTE):
        monkeypatch.setattr(store.storage, "write", fail)
    assert "ended" not in next(iter(starts(store, "tiny").values()))
