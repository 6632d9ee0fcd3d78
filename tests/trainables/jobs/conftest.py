"""The tests of jobs poll leases often enough not to wait for them."""

from __future__ import annotations

import pytest

from trainables.storage import LocalStorage


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "poll_seconds", 0.02)
