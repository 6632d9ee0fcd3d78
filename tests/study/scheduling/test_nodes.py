"""A sweep over several nodes, of which some are lost: it ends complete, with the results of an undisturbed one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import TOKEN, Nodes, nodes
from studies import MARK, WORKERS, Study, assert_as_if_nothing_had_happened, assert_whole, wait_for_results
from waiting import HANG_SECONDS, wait_until

from study.plan import Plan
from study.scheduling.hosts import FAILURES
from study.scheduling.session import RECONNECT_VARIABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(study: Study) -> Iterator[Nodes]:
    """A head for the driver and two nodes for trials."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,  # a socket's path must be short
        nodes(Path(folder), {MARK: study.mark}) as cluster,
    ):
        for cpus in (0, 2, 2):
            cluster.add(cpus)
        study.arguments, study.prefix = ["--address", cluster.address], cluster.command(0)
        study.environment = TOKEN
        yield cluster


def workers(cluster: Nodes, node: int) -> list[int]:
    """Return the processes on a node that run trials."""
    paths = {pid: Path(f"/proc/{pid}/cmdline") for pid in cluster.processes(node)}
    return [pid for pid, path in paths.items() if path.exists() and path.read_bytes().startswith(WORKERS)]


@pytest.fixture
def alone(study: Study) -> Iterator[Nodes]:
    """A head for the driver, to which a test adds nodes for trials."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,
        nodes(Path(folder), {MARK: study.mark}) as cluster,
    ):
        cluster.add(0)
        study.arguments, study.prefix = ["--address", cluster.address], cluster.command(0)
        study.environment = TOKEN
        yield cluster


@contextlib.contextmanager
def halted(processes: list[int]) -> Iterator[None]:
    """Let processes stand still for a while."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_node_is_lost(study: Study, cluster: Nodes, undisturbed: Study, plan_of_studies: Plan) -> None:
    process = study.start()
    total = len(undisturbed.store.keys())
    seen: set[int] = set()

    def both_are_at_work() -> bool:
        seen.update(node for node in (1, 2) if workers(cluster, node))
        return seen == {1, 2} and len(study.store.keys()) >= total // 3

    wait_until(both_are_at_work, "a node gets no work", process)
    cluster.kill(1)
    published = study.store.keys()
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, (out, err)
    assert published < study.store.keys()
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_a_node_joins_a_running_sweep(study: Study, alone: Nodes, undisturbed: Study, plan_of_studies: Plan) -> None:
    early = alone.add(cpus=2)
    process = study.start()
    assert wait_for_results(study, process, 3)
    with halted(workers(alone, early)):  # or a quick machine ends the sweep before the other node is up
        late = alone.add(cpus=2)
        wait_until(lambda: workers(alone, late), "the late node gets no work", process)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, (out, err)
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_the_head_is_lost(study: Study, cluster: Nodes, undisturbed: Study, plan_of_studies: Plan) -> None:
    """The driver runs on the head and dies with it, the other nodes follow; elsewhere the work is taken up."""
    process = study.start()
    assert wait_for_results(study, process, len(undisturbed.store.keys()) // 3)
    for node in range(3):
        cluster.kill(node)
    process.communicate(timeout=HANG_SECONDS)
    assert process.returncode != 0
    assert_whole(study.store)
    study.arguments, study.prefix = (), ()
    study.finish()
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_the_cluster_is_lost_under_a_driver(
    study: Study, cluster: Nodes, undisturbed: Study, plan_of_studies: Plan
) -> None:
    """All of Ray dies but the driver lives: it ends by itself, with a message, before Ray ends it without one."""
    study.environment = {**TOKEN, RECONNECT_VARIABLE: "40"}
    process = study.start()
    assert wait_for_results(study, process, 3)
    cluster.kill_ray(0)
    cluster.kill(1)
    cluster.kill(2)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, (out, err)
    assert "published results are kept" in out + err
    assert_whole(study.store)
    study.arguments, study.prefix = (), ()
    study.finish()
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_a_node_that_does_not_reach_the_storage_gets_no_jobs(
    study: Study, alone: Nodes, undisturbed: Study, plan_of_studies: Plan
) -> None:
    """The storage is a directory that exists on each node, but on one of them, at first the only one, it is another."""
    study.store.root.mkdir(parents=True)
    alone.add(2, without=study.store.root)
    process = study.start()
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, (out, err)
    assert re.search(r"^the study ended early: no host is left; .* does not see the driver's storage at ", err, re.M)
    assert "a directory that all nodes share" in err
    assert re.search(r"^not run: \d+ jobs", err, re.M)
    assert study.store.keys() == set()
    alone.add(2)
    out, err = study.finish()
    assert re.search(r"^no more jobs for (\S+): \1 does not see the driver's storage at ", out, re.M), (out, err)
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)


def test_a_node_on_which_all_jobs_die_gets_no_more(
    study: Study, alone: Nodes, undisturbed: Study, plan_of_studies: Plan
) -> None:
    """PyTorch is broken there: not even the process of a trial begins, so the node is always free."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    alone.add(2, without=Path(found.origin).parent)
    alone.add(2)
    study.arguments = [*study.arguments, "--retries=1"]
    out, err = study.finish()
    assert re.search(r"^no more jobs for ", out, re.M), (out, err)
    assert len(re.findall(r"^again: ", out, re.M)) >= FAILURES, "every further attempt is a line"
    assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)
