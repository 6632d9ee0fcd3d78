"""Settings for all tests, and results of a tiny study that many of them read."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch, ray or mlflow; subprocesses inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_LOGGING_LEVEL="WARNING",
    RAY_USAGE_STATS_ENABLED="0",
)

import pytest
import torch
from pretended_cuda import pretended_cuda
from studies import Study, planned
from tiny_study import METHODS, publish, tiny_cell

from study.plan import Plan
from trainables.graph import Ref, measurements, target
from trainables.host.processes import cores
from trainables.jobs.publishing import Context
from trainables.storage.store import Store

torch.set_num_threads(1)

COMPUTING = ("test_methods", "test_seeding", "test_stacked_trials")
"""Modules that compute with PyTorch, though it has no name in them."""
AROUND_IT = (
    "test_benchmark",
    "test_errors",
    "test_judged_data",
    "test_resources",
    "test_sweep",
    "test_tune",
    "test_usage",
)
"""Modules that name PyTorch, but test what is around it."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what computes with PyTorch: its rounding differs with the processor and PyTorch's version."""
    for item in items:
        module = item.getparent(pytest.Module)
        if module is None or module.obj.__name__ in AROUND_IT:
            continue
        if hasattr(module.obj, "torch") or module.obj.__name__ in COMPUTING:
            item.add_marker(pytest.mark.numeric)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share all tests among up to four cores where pytest-xdist is installed; a part of them stays in one process."""
    of_a_worker = hasattr(config, "workerinput")
    alone = of_a_worker or config.args_source is pytest.Config.ArgsSource.ARGS or config.getoption("usepdb")
    if config.pluginmanager.hasplugin("xdist") and config.getoption("numprocesses") is None and not alone:
        config.option.numprocesses, config.option.dist = min(4, cores()), "loadfile"


@pytest.fixture(autouse=True)
def gpu_of_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """The GPU of a test that is marked ``gpu``: this machine's, or a pretended one where there is none."""
    if request.node.get_closest_marker("gpu") is None or torch.cuda.is_available():
        yield
        return
    with pretended_cuda():
        yield


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """An empty store, with a checkpoint after every epoch."""
    return Context(store=Store(tmp_path / "outputs"), checkpoint_seconds=0.0)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny study of all methods, computed once; not to be changed."""
    store = Store(tmp_path_factory.mktemp("published"))
    roots = [Ref(target(tiny_cell(method))) for method in METHODS]
    roots += [Ref(job) for job in measurements(tiny_cell("permuted"))]
    publish(roots, Context(store=store))
    return store


@pytest.fixture
def own_copy(published: Store, tmp_path: Path) -> Store:
    """A copy of the tiny study that a test may damage."""
    root = tmp_path / "copy"
    shutil.copytree(published.root, root)
    return Store(root)


# --- studies that are run as users run them ---------------------------------------------------------------------------
@pytest.fixture(scope="session")
def plan_of_studies() -> Plan:
    """The plan of every ``studies.Study``."""
    return planned()


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """A study that has not begun; its processes end with the test."""
    each = Study(tmp_path)
    yield each
    each.kill_all()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The same study, run in peace once for all of pytest's processes; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "undisturbed"
    each, done = Study(folder), base / "undisturbed.done"
    with (base / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this is closed
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                each.finish()
            except BaseException:
                each.kill_all()  # the next process starts over in the same folder
                raise
            done.touch()
    yield each
    each.kill_all()
