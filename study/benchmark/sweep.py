"""Scheduling: the driver's time and memory per job, apart from computing the job.

The jobs of a real plan pass through the real searcher, Tuner, callback, store and tracker, but compute nothing.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from search_spaces import SearchSpace, get_space
from study.benchmark.contest import MEBIBYTE, Part
from study.benchmark.results import Figure, Row
from study.benchmark.settings import Sweep
from study.plan import Plan, make_plan, override
from trainables.host import usage

SPACE = "digits_quickstart"
DELIVERY_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a sweep.

    Attributes:
        jobs: number of jobs that were run.
        memory: the driver's peak memory at the end, MiB.
        figures: name -> number and unit.
    """

    jobs: int
    memory: float
    figures: dict[str, tuple[float, str]]


def parts(setting: Sweep, stack: ExitStack) -> dict[str, Part]:
    """Return the sweeps of two sizes without and with MLflow, title -> sweeps."""
    sizes, kinds = (setting.jobs // 10, setting.jobs), {"without MLflow": False, "with MLflow": True}
    return {
        f"sweeps of {sizes[0]} and {sizes[1]} jobs {kind}": partial(_measure, sizes, kind, tracked)
        for kind, tracked in kinds.items()
    }


def _measure(sizes: tuple[int, int], kind: str, tracked: bool, rounds: Iterable[int]) -> Iterator[Row]:
    """Run sweeps of two sizes; each takes minutes, so none is repeated.

    Raises:
        RuntimeError: a sweep failed.
    """
    small, large = (run_apart(jobs, tracked) for jobs in sizes)
    growth = 1024 * (large.memory - small.memory) / (large.jobs - small.jobs)
    figures = {**large.figures, f"memory growth per job beyond {small.jobs}": (growth, "KiB")}
    for name, (value, unit) in figures.items():
        yield Figure(name=f"{name}, {large.jobs} jobs {kind}", value=value, unit=unit)


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
    from study.sweep import prepare_environment
    from study.tracking.delivery import Tracker
    from trainables.host.databases import default_tracking_uri
    from trainables.storage.store import Store

    prepare_environment(None)
    from study.benchmark.trivial import TrivialJob
    from study.scheduling.hosts import Hosts
    from study.scheduling.searcher import PlanSearcher
    from study.scheduling.session import connected
    from study.scheduling.trials import run_trials

    plan, plan_seconds = plan_of(jobs)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, connected(None) as cluster:
        store = Store(Path(folder, "outputs"))
        store.check_writable()
        todo = plan.closure.todo(set())
        estimates = estimate(plan, store, set())
        hosts = Hosts(cluster.nodes)
        searcher = PlanSearcher(plan, todo, estimates, {"storage": store.uri}, hosts=hosts)
        tracker = Tracker(plan, store, default_tracking_uri(store.root), fresh=set(todo)) if tracked else None
        start_memory = usage.peak_memory() / MEBIBYTE
        start, driver_start = time.perf_counter(), time.process_time()
        if tracker is not None:
            tracker.start()
        reason = run_trials(cluster, searcher, lambda each: each.attach(searcher, tracker), SPACE, TrivialJob)
        end = time.perf_counter()
        if reason is not None or set(searcher.state.values()) != {DONE}:
            raise RuntimeError(f"the sweep failed: {reason or dict(searcher.errors)}")
        if tracker is not None and not tracker.close(DELIVERY_SECONDS):
            raise RuntimeError(f"not everything reached MLflow: {tracker.behind}")
        driver_seconds, delivery_seconds = time.process_time() - driver_start, time.perf_counter() - end
        memory = usage.peak_memory() / MEBIBYTE
        figures = {
            "plan": (plan_seconds, "s"),
            "driver time per job": (1000 * driver_seconds / len(todo), "ms"),
            "wall time per job": (1000 * (end - start) / len(todo), "ms"),
            "peak memory of the driver": (memory, "MiB"),
            "peak memory before the first job": (start_memory, "MiB"),
            **({"delivery to MLflow after the end": (delivery_seconds, "s")} if tracked else {}),
            "jobs that a second sweep would run again": (len(plan.closure.todo(store.keys())), ""),
        }
        return Cost(jobs=len(todo), memory=memory, figures=figures)
