"""Trials on a real Ray: which die, hang, run out of memory or of storage, and a cluster that is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from checkout import SUPPORT
from failing_trials import FORMS, WIDTHS, Breaks, RunsOut
from gpu_errors import GPU_FULL
from one_node import ask
from stub_trials import Dies, FindsNoStorage, Freezes, NeedsHalfAGpu, Raises, Stub, Together
from tiny_study import assignments, python, tiny_space
from waiting import HANG_SECONDS, wait_until

from search_spaces import get_space
from study.estimate import Estimates
from study.forecast import slots
from study.options import Options
from study.plan import Plan, make_plan
from study.scheduling import callback as callback_module
from study.scheduling import searcher as searcher_module
from study.scheduling import session
from study.scheduling.address import ClusterError, cluster_address
from study.scheduling.callback import StudyCallback
from study.scheduling.hosts import Hosts
from study.scheduling.searcher import PlanSearcher
from study.scheduling.session import Cluster, connected
from study.scheduling.states import DONE, FAILED, NOT_RUN
from study.scheduling.trials import RESTARTS, run_trials
from trainables.storage.store import Store
from trainables.training import LEAST_MICRO_BATCH


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray on this machine whose GPU exists on paper only; its processes know this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        ray.init(
            address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        yield Cluster(is_own=True, scratch=tmp_path_factory.mktemp("scratch"))
        ray.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher_module, "FIRST_PAUSE", 0.1)
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "100",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space(method=("dense",), seeds=(0, 1), epochs=2))


class Sweep:
    """The jobs of a plan on a cluster, and what the attempts at them have noted."""

    def __init__(self, cluster: Cluster, plan: Plan, folder: Path, **options: Any) -> None:
        self.cluster, self.plan, self.folder = cluster, plan, folder
        self.searcher = PlanSearcher(
            plan,
            plan.closure.todo(set()),
            Estimates(dict.fromkeys(plan.jobs, 1.0), 0),
            {"notes": str(folder)},
            **{"retries": 2, "hosts": Hosts(cluster.nodes), **options},
        )

    def run(self, trainable: type[Stub], attach: Callable[[StudyCallback], None] | None = None) -> str | None:
        return run_trials(
            self.cluster, self.searcher, attach or (lambda each: each.attach(self.searcher)), "tiny", trainable
        )

    def attempts(self) -> list[list[float]]:
        """Return for each job the share of a GPU of each attempt at it."""
        notes = [self.folder / key for key in self.plan.jobs]
        return [[float(line) for line in each.read_text().splitlines()] if each.exists() else [] for each in notes]

    def states(self) -> set[str]:
        return set(self.searcher.state.values())


# --- outcomes ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_jobs_whose_processes_die_twice_are_done_in_the_end(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path)
    assert sweep.run(Dies) is None
    assert sweep.states() == {DONE}, sweep.searcher.errors
    assert all(len(each) == 3 for each in sweep.attempts())
    assert list(cluster.scratch.iterdir()) != [], "Tune's files are in the scratch directory"


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_process_that_stands_still_is_killed_by_the_driver(
    cluster: Cluster, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """It cannot notice that by itself; if its job is published, the driver need not wait, and it is done."""
    for name in ("ROUND_SECONDS", "GRACE_SECONDS", "STILL_SECONDS"):
        monkeypatch.setattr(callback_module, name, 0.5)
    lines: list[str] = []
    sweep = Sweep(cluster, plan, tmp_path, say=lines.append)

    def answer(key: str) -> Future[bool]:
        future: Future[bool] = Future()
        future.set_result(True)
        return future

    def attach(callback: StudyCallback) -> None:
        if published:
            callback.attach(sweep.searcher, max_silence=HANG_SECONDS, published=answer)
        else:
            callback.attach(sweep.searcher, max_silence=0.5)

    assert sweep.run(Freezes, attach) is None
    assert sweep.states() == {DONE}, sweep.searcher.errors
    assert all(len(each) == (1 if published else 2) for each in sweep.attempts())
    assert all(re.search(r"nothing was heard of it for \d+ s \(--max-silence\)", line) for line in lines), lines
    assert len(lines) == (0 if published else len(plan.jobs))


@pytest.mark.slow
def test_exception_is_named_without_its_trace(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path, retries=1)
    assert sweep.run(Raises) is None
    assert sweep.states() == {FAILED}
    assert set(sweep.searcher.errors.values()) == {"ValueError: no such luck"}
    assert all(len(each) == 2 for each in sweep.attempts())


@pytest.mark.slow
def test_trial_out_of_memory_gets_a_larger_share(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path, needs=ask(plan, CPU=1.0, GPU=0.125), retries=0)
    assert sweep.run(NeedsHalfAGpu) is None
    assert sweep.states() == {DONE}, sweep.searcher.errors
    for shares in sweep.attempts():
        assert shares == sorted(shares)
        assert shares[-1] == 0.5


@pytest.mark.slow
def test_every_form_of_a_full_memory_is_told_from_a_death(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"epochs": 2, "batch_size": LEAST_MICRO_BATCH}  # which cannot be divided
    plan = make_plan(tiny_space(method=("dense",), seeds=(0,), width=WIDTHS, **settings))
    sweep = Sweep(cluster, plan, tmp_path, needs=ask(plan, CPU=1.0, GPU=1.0), retries=0)
    assert sweep.run(RunsOut) is None
    assert sweep.states() == {FAILED}
    for key, job in plan.jobs.items():
        of_gpu = FORMS[WIDTHS.index(job.config.task.width)] in GPU_FULL
        said = "out of memory: " if of_gpu else "the host is out of memory: "
        assert sweep.searcher.errors[key].startswith(said)
        assert (key in sweep.searcher.recurring) == of_gpu
    assert sweep.attempts() == [[1.0]] * len(FORMS)
    used = {(tmp_path / f"{key}.pid").read_text() for key in plan.jobs}
    assert len(used) < len(FORMS), "the process goes on with other jobs"


@pytest.mark.slow
def test_process_whose_gpu_is_broken_gets_no_other_job(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path, needs=ask(plan, CPU=1.0, GPU=0.5), max_concurrent=1)
    assert sweep.run(Breaks) is None
    assert sweep.states() == {DONE}, sweep.searcher.errors
    assert all(len(each) == 3 for each in sweep.attempts())
    used = Counter(pid for key in plan.jobs for pid in (tmp_path / f"{key}.pid").read_text().split()[:2])
    assert set(used.values()) == {1}, "each error was the last of its process"


@pytest.mark.slow
def test_storage_that_is_away_ends_the_sweep(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path, retries=1, max_concurrent=1)
    assert sweep.run(FindsNoStorage) is None
    assert sweep.states() == {NOT_RUN}
    assert sweep.searcher.halted == "storage /data: No space left on device"
    assert sum(map(len, sweep.attempts())) <= 2 * len(plan.jobs)


@pytest.mark.slow
def test_jobs_that_share_a_trial_end_one_by_one(cluster: Cluster, tmp_path: Path) -> None:
    plan = make_plan(tiny_space(method=("dense", "lth"), seeds=(0, 1, 2, 3), stacked=True))
    sweep = Sweep(cluster, plan, tmp_path, nets_per_trial=4)
    assert sweep.run(Together) is None
    assert sweep.states() == {DONE}, sweep.searcher.errors
    assert all(len(each) == 1 for each in sweep.attempts())
    assert max(number for (number,) in sweep.attempts()) > 1


@pytest.mark.slow
def test_experiment_that_tune_gives_up_on_is_begun_anew(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path)
    begun = []

    def attach(callback: StudyCallback) -> None:
        callback.attach(sweep.searcher)
        begun.append(callback)
        if len(begun) == 1:
            callback.on_trial_result = broken  # type: ignore[method-assign]

    assert sweep.run(Stub, attach) is None
    assert len(begun) == 2
    assert sweep.states() == {DONE}, sweep.searcher.errors


def broken(**_: Any) -> None:
    raise OSError("a thing that nobody expected")


@pytest.mark.slow
def test_after_some_experiments_the_sweep_ends_with_the_reason(cluster: Cluster, plan: Plan, tmp_path: Path) -> None:
    sweep = Sweep(cluster, plan, tmp_path, retries=99)
    begun = []

    def attach(callback: StudyCallback) -> None:
        callback.attach(sweep.searcher)
        callback.on_trial_start = broken  # type: ignore[method-assign]
        begun.append(callback)

    reason = sweep.run(Stub, attach)
    assert reason is not None
    assert "a thing that nobody expected" in reason
    assert len(begun) == RESTARTS + 1
    assert set(sweep.searcher.unfinished()) == plan.jobs.keys()


# --- the cluster ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_fits_on_a_node(cluster: Cluster) -> None:
    assert Hosts(cluster.nodes).fit({"CPU": 2, "GPU": 1})
    assert not Hosts(cluster.nodes).fit({"CPU": 3})
    assert not Hosts(cluster.nodes).fit({"CPU": 1, "GPU": 1.5})
    assert Hosts(cluster.nodes).room()["CPU"] == 2
    assert cluster.missing() is None


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that PyTorch does not see")
def test_gpus_that_torch_does_not_see_are_named_before_anything_runs(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"PyTorch .* sees no GPU, because .*--gpus-per-trial 0"):
        cluster.ask_nodes(["fp32"])


def test_a_node_that_cannot_even_say_what_it_has_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster.__new__(Cluster)
    cluster._asked, cluster._problems = {"broken": "broken", "lost": "lost"}, {}
    failures = {
        "broken": ray.exceptions.RayTaskError("ask", "", ImportError("No module named 'torch'")),
        "lost": ray.exceptions.NodeDiedError("gone"),
    }

    def get(answer: str) -> None:
        raise failures[answer]

    monkeypatch.setattr(ray, "wait", lambda answers, **_: (answers, []))
    monkeypatch.setattr(ray, "get", get)
    assert cluster._gpus_answered(0.0) == {"broken": None}
    assert cluster._problems == {"broken": "its GPUs cannot be asked: No module named 'torch'"}


def test_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(session, "_reach", lambda address: None)
    monkeypatch.setattr(session.services, "find_bootstrap_address", lambda folder: "10.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for address, message in {
        "10.0.0.1:6379": r"^Ray cluster 10.0.0.1:6379: cannot connect; if it asks for a token, set RAY_AUTH_MODE=token",
        "auto": r"^Ray cluster auto: cannot connect$",
    }.items():
        with pytest.raises(ClusterError, match=message), connected(address):
            raise AssertionError("there is nothing to connect to")


def test_auto_joins_no_ray_that_another_program_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(session.services, "find_bootstrap_address", lambda folder: None)
    with pytest.raises(ClusterError, match=r"^Ray cluster auto: no `ray start` has"), connected("auto"):
        raise AssertionError("this process has started it")


def test_address_where_nothing_answers_is_an_error_before_ray_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(session, "REACH_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ClusterError, match=f"^Ray cluster {address}: nothing answers there"), connected(address):
        raise AssertionError("there is nothing to connect to")


def test_address_where_something_else_listens_is_an_error_before_ray_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(session, "REACH_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=f"^Ray cluster {address}: .* does not answer as Ray"),
            connected(address),
        ):
            raise AssertionError("there is nothing to connect to")


def test_a_local_ray_and_its_forecast_have_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0}, raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "Cluster", lambda **_: "connected")
    with connected(None):
        assert given["num_cpus"] == slots(Options(space="tiny")) == 1
        assert slots(Options(space="tiny", max_concurrent=64)) == 1, "a limit is no capacity"
        assert slots(Options(space="tiny", max_concurrent=64, address="10.0.0.1:6379")) == 64, "of unknown size"


@pytest.mark.parametrize("failures", [1, 99])
def test_ray_that_starts_too_slowly_is_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: int
) -> None:
    """Ray raises a bare Exception when its node is not up after 30 s, which is seen on a busy machine."""
    begun, pauses = [], []

    def start(**_: Any) -> None:
        begun.append(1)
        if len(begun) <= failures:
            raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session.time, "sleep", pauses.append)
    monkeypatch.setattr(session, "Cluster", lambda **_: "connected")
    if failures == 1:
        with connected(None) as cluster:
            assert cluster == "connected"
    else:
        with (
            pytest.raises(ClusterError, match=r"^Ray cluster on this machine: The current node timed out"),
            connected(None),
        ):
            raise AssertionError("there is nothing to connect to")
    assert pauses == list(session.START_PAUSES)[:failures]
    assert pauses == sorted(pauses)
    assert capsys.readouterr().err.count("Ray has not started (The current node timed out during startup.)") == len(
        pauses
    )


def refuse(**_: Any) -> None:
    raise ConnectionError("cannot connect\nand much more about it")


@pytest.mark.parametrize(
    ("answers", "patience", "lost"),
    [
        ([True, True, True], 0.0, 0),
        ([False, False, True, False, True], 3600.0, 0),
        ([True, False], 0.0, 1),
        ([False, False, False, False], 0.0, 1),
    ],
)
def test_cluster_is_given_up_once_and_only_after_a_long_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[bool], patience: float, lost: int
) -> None:
    asked, ended = iter(answers), threading.Event()

    def answer(endpoint: tuple[str, int]) -> bool:
        assert endpoint == ("10.0.0.1", 6379)
        result = next(asked, None)
        if result is None:
            ended.set()
        return result is not False

    def give_up(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    reasons: list[str] = []
    monkeypatch.setattr(session, "PROBE_SECONDS", 0.001)
    monkeypatch.setattr(session, "_answers", answer)
    monkeypatch.setenv(session.RECONNECT_VARIABLE, str(2 * patience))
    cluster = object.__new__(Cluster)
    cluster._endpoints = {"the head": ("10.0.0.1", 6379)}
    with cluster.watched(give_up):
        assert ended.wait(HANG_SECONDS)
    watchers = [thread for thread in threading.enumerate() if thread.name == "cluster-watch"]  # none, if it has ended
    for watcher in watchers:
        watcher.join(HANG_SECONDS)
    assert not any(watcher.is_alive() for watcher in watchers)
    assert len(reasons) == lost
    assert all(reason.startswith("the head has been out of reach for ") for reason in reasons)


def test_cluster_that_is_away_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PROBE_SECONDS", 0.001)
    cluster = object.__new__(Cluster)
    cluster._endpoints = {"the head": ("10.0.0.1", 6379)}
    answers = iter([False, False, True])
    monkeypatch.setattr(session, "_answers", lambda endpoint: next(answers))
    assert cluster.comes_back()
    monkeypatch.setattr(session, "_answers", lambda endpoint: False)
    monkeypatch.setenv(session.RECONNECT_VARIABLE, "0.02")
    assert not cluster.comes_back()


def test_nodes_are_the_last_known_ones_while_the_cluster_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([4.0, ray.exceptions.RaySystemError("no head"), 8.0])

    def ask() -> list[dict[str, Any]]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return [{"NodeID": "a", "Alive": True, "NodeManagerHostname": "host-a", "Resources": {"CPU": answer}}]

    monkeypatch.setattr(ray, "nodes", ask)
    monkeypatch.setattr(session, "REFRESH_SECONDS", 0.0)
    cluster = object.__new__(Cluster)
    cluster._nodes, cluster._asks_nodes = (0.0, {}), False
    assert [Hosts(cluster.nodes).room()["CPU"] for _ in range(3)] == [4.0, 4.0, 8.0]


def test_what_answers_is_a_port_that_somebody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert session._answers(address)
    assert not session._answers(address)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="reads Linux's /proc")
def test_study_whose_head_is_killed_ends_with_a_message(tmp_path: Path, short_folder: str) -> None:
    settings = [f"--set={each}" for each in assignments(get_space("digits_quickstart"), epochs=400)]
    arguments = ["--space", "digits_quickstart", *settings, "--storage", str(tmp_path / "outputs")]
    # Ray itself would end the process after so many seconds, without a word; the study is quicker by half of them.
    environment = {session.RECONNECT_VARIABLE: "40", "TMPDIR": short_folder}
    process = python("-m", "study.run", *arguments, env=environment, cwd=tmp_path)
    store = Store(tmp_path / "outputs")
    wait_until(store.leases, "no trial begins", process)
    (head,) = [pid for pid in descendants(process.pid) if named(pid) == "gcs_server"]
    os.kill(head, signal.SIGKILL)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, err
    assert re.search(
        r"^the study ended early: the head of the Ray cluster has been out of reach for \d+ s; ", err, re.M
    )
    assert re.search(r"^not run: \d+ jobs ", err, re.M)
    assert re.search(r"^to run the remaining jobs \(published results are kept\): python -m study.run ", err, re.M)
    assert "Traceback" not in err
    assert not list(Path(short_folder).glob("study-*")), "nothing is left of what nobody needs"


@pytest.fixture
def short_folder() -> Iterator[str]:
    """A directory for Ray, whose sockets take only short paths."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def named(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# --- addresses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "environment", "address"),
    [
        (None, None, None),
        (None, "", None),
        ("local", "head:6379", None),
        (None, "head:6379", "head:6379"),
        ("auto", None, "auto"),
        ("auto", "head:6379", "head:6379"),
        ("10.0.0.1:6379", "head:6379", "10.0.0.1:6379"),
    ],
)
def test_which_cluster_is_meant(asked: str | None, environment: str | None, address: str | None) -> None:
    variables = {} if environment is None else {"RAY_ADDRESS": environment}
    assert cluster_address(asked, variables) == address


@pytest.mark.parametrize("address", ["ray://user:secret@head:10001", "http://head:8265", "https://head"])
def test_client_addresses_are_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(ClusterError, match=r"^--address \w+://... .*ray job submit") as caught:
        cluster_address(address, {})
    assert "secret" not in str(caught.value)
    for asked in (None, "auto"):
        with pytest.raises(ClusterError, match=r"^RAY_ADDRESS .*unset RAY_ADDRESS"):
            cluster_address(asked, {"RAY_ADDRESS": address})


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:65536"])
def test_address_without_a_host_or_a_port(address: str) -> None:
    with pytest.raises(ClusterError, match=f"takes auto or host:port, got '{address}'"):
        cluster_address(address, {})


# --- what listens -----------------------------------------------------------------------------------------------------
LISTENERS = """
import json, os, socket
from pathlib import Path
from study.sweep import prepare_environment
prepare_environment(None)
from study.scheduling.session import connected
import ray

def descendants(root):
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                pass
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found

def sockets(pid):
    try:
        for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
            try:
                yield os.readlink(descriptor)
            except OSError:
                pass
    except OSError:
        pass

def listening():
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(raw[at:at + 4][::-1] for at in range(0, size, 4))
                yield f"socket:[{fields[9]}]", socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, words)

with connected(None):
    ray.get(ray.remote(lambda: 1).remote())
    ours = {link for pid in descendants(os.getpid()) for link in sockets(pid)}
    print(json.dumps([address for link, address in listening() if link in ours]))
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
@pytest.mark.slow
def test_local_ray_listens_on_the_loopback_device_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    answer = subprocess.run(
        [sys.executable, "-c", LISTENERS], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert answer.returncode == 0, answer.stderr
    addresses = json.loads(answer.stdout.splitlines()[-1])
    assert len(addresses) >= 4, "head, raylet, driver, worker"
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
