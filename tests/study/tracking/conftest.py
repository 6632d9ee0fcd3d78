"""Plans of the tiny study, and databases for its runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny_study import tiny_space
from tracked import (
    SPACE,
    by_key,
    log_all,
)

from study.plan import Plan, make_plan
from trainables.host.databases import default_tracking_uri
from trainables.storage.store import Store


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SPACE)


@pytest.fixture(scope="module")
def dense_plan() -> Plan:
    """A study of a single job, for what does not take more."""
    return make_plan(tiny_space(method="dense"))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs; making one takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture(scope="module")
def logged(
    plan: Plan, published: Store, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Run]]:
    """A study logged once: tracking URI and runs by key."""
    folder = tmp_path_factory.mktemp("logged")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = default_tracking_uri(folder)
    log_all(plan, published, uri)
    return uri, by_key(uri)
