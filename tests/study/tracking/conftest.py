"""Plans of the tiny study, and databases for its runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic_runs import with_tables
from tiny_study import tiny_space
from tracked import SPACE, Logged, by_key, log_all

from study.plan import Plan, make_plan
from trainables.host.databases import default_tracking_uri
from trainables.storage.store import Store


@pytest.fixture(scope="session")
def plan() -> Plan:
    return make_plan(SPACE)


@pytest.fixture(scope="module")
def dense_plan() -> Plan:
    """A study of a single job, for what does not take more."""
    return make_plan(tiny_space(method="dense"))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A database without runs."""
    return default_tracking_uri(with_tables(tmp_path))


@pytest.fixture(scope="session")
def logged(plan: Plan, published: Store, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A study logged once: tracking URI and runs by key; not to be changed."""
    uri = default_tracking_uri(with_tables(tmp_path_factory.mktemp("logged")))
    log_all(plan, published, uri)
    return uri, by_key(uri)


@pytest.fixture
def logged_uri(logged: Logged, tmp_path: Path) -> str:
    """A copy of the logged study's database that a test may change."""
    shutil.copy(logged[0].removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)
