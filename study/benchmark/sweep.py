"""Scheduling: the driver's time and memory per job, apart from computing the job.

The jobs of a real plan pass through the real searcher, Tuner, callback, store and tracker, but compute nothing.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from search_spaces import SearchSpace, get_space
from study.benchmark.contest import Budget, peak_memory
from study.benchmark.results import Figure
from study.plan import Plan, make_plan, override
from trainables.checks import bounded

SPACE = "digits_quickstart"
DELIVERY_SECONDS = 3600.0
MIN_JOBS = 100


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the sweeps.

    Attributes:
        jobs: least number of jobs of the larger sweep; the smaller one has a tenth.
    """

    jobs: int = 1000

    def __post_init__(self) -> None:
        bounded("jobs", self.jobs, f"[{MIN_JOBS}, inf)", whole=True)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a sweep.

    Attributes:
        jobs: number of jobs that were run.
        plan_seconds: time to make the plan.
        driver_seconds: processor time of all the driver's threads.
        wall_seconds: from the start of the first job to the end of the last one.
        delivery_seconds: from then until everything was in MLflow.
        start_memory: the driver's peak memory before the first job, MiB.
        memory: the driver's peak memory at the end, MiB.
        again: number of jobs that a second sweep over the same store would run.
    """

    jobs: int
    plan_seconds: float
    driver_seconds: float
    wall_seconds: float
    delivery_seconds: float
    start_memory: float
    memory: float
    again: int


def parts(setting: Setting) -> int:
    """Return the number of parts of the measurement."""
    return 2


def measure(setting: Setting, budget: Budget) -> Iterator[Figure]:
    """Run sweeps of two sizes, with and without MLflow; each takes minutes, so none is repeated.

    Raises:
        RuntimeError: a sweep failed.
    """
    for tracked in (False, True):
        kind = f"{'with' if tracked else 'without'} MLflow"
        if not budget.begins(f"sweeps of {setting.jobs // 10} and {setting.jobs} jobs {kind}"):
            continue
        small, large = (run_apart(jobs, tracked) for jobs in (setting.jobs // 10, setting.jobs))
        kind = f"{large.jobs} jobs {kind}"
        growth = 1024 * (large.memory - small.memory) / (large.jobs - small.jobs)
        yield Figure(name=f"driver time per job, {kind}", value=1000 * large.driver_seconds / large.jobs, unit="ms")
        yield Figure(name=f"wall time per job, {kind}", value=1000 * large.wall_seconds / large.jobs, unit="ms")
        yield Figure(name=f"peak memory of the driver, {kind}", value=large.memory, unit="MiB")
        yield Figure(name=f"peak memory before the first job, {kind}", value=large.start_memory, unit="MiB")
        yield Figure(name=f"memory growth per job beyond {small.jobs}, {kind}", value=growth, unit="KiB")
        yield Figure(name=f"jobs that a second sweep would run again, {kind}", value=large.again)
        if tracked:
            yield Figure(name=f"delivery to MLflow after the end, {kind}", value=large.delivery_seconds, unit="s")
        else:
            yield Figure(name=f"plan of {large.jobs} jobs", value=large.plan_seconds, unit="s")


def plan_of(jobs: int) -> tuple[Plan, float]:
    """Return a plan of at least `jobs` jobs, and the seconds that planning took."""
    space = get_space(SPACE)

    def of(seeds: int) -> SearchSpace:
        return override(space, [f"seeds={','.join(map(str, range(seeds)))}"])

    one, two = (len(make_plan(of(seeds)).jobs) for seeds in (1, 2))
    start = time.perf_counter()
    plan = make_plan(of(max(1, 1 + -(-(jobs - one) // (two - one)))))
    return plan, time.perf_counter() - start


# --- a sweep in its own process ---------------------------------------------------------------------------------------
def run_apart(jobs: int, tracked: bool) -> Cost:
    """Do what `run` does in a new process, whose peak memory is that of this sweep alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, jobs, tracked).result()


def run(jobs: int, tracked: bool) -> Cost:
    """Run a sweep of at least `jobs` trivial jobs on its own Ray, and return its cost.

    Raises:
        RuntimeError: a job failed, or delivery to MLflow was incomplete.
    """
    from study.estimate import estimate
    from study.scheduling.states import DONE
    from study.sweep import AHEAD_LOCAL, prepare_environment
    from study.tracking.delivery import Tracker
    from trainables.host.databases import default_tracking_uri
    from trainables.storage.store import Store

    prepare_environment(None)
    from study.benchmark.trivial import TrivialJob
    from study.scheduling.searcher import PlanSearcher
    from study.scheduling.session import connected
    from study.scheduling.trials import run_trials

    plan, plan_seconds = plan_of(jobs)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, connected(None) as cluster:
        store = Store(Path(folder, "outputs"))
        store.check_writable()
        todo = plan.closure.todo(set())
        estimates = estimate(plan, store, set())
        searcher = PlanSearcher(
            plan, todo, estimates, {"storage": store.uri}, room=cluster.resources, ahead=AHEAD_LOCAL
        )
        tracker = Tracker(plan, store, default_tracking_uri(store.root), fresh=set(todo)) if tracked else None
        start_memory = peak_memory()
        start, driver_start = time.perf_counter(), time.process_time()
        if tracker is not None:
            tracker.start()
        reason = run_trials(cluster, searcher, lambda each: each.attach(searcher, tracker), SPACE, TrivialJob)
        end = time.perf_counter()
        if reason is not None or set(searcher.state.values()) != {DONE}:
            raise RuntimeError(f"the sweep failed: {reason or dict(searcher.errors)}")
        if tracker is not None and not tracker.close(DELIVERY_SECONDS):
            raise RuntimeError(f"not everything reached MLflow: {tracker.behind}")
        return Cost(
            jobs=len(todo),
            plan_seconds=plan_seconds,
            driver_seconds=time.process_time() - driver_start,
            wall_seconds=end - start,
            delivery_seconds=time.perf_counter() - end,
            start_memory=start_memory,
            memory=peak_memory(),
            again=len(plan.closure.todo(store.keys())),
        )
