"""The sweep itself: one Ray Tune experiment over the jobs of a plan that are not in the store."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study.estimate import duration, estimate
from study.labels import run_name
from study.plan import Plan
from study.progress import Progress
from study.searcher import BLOCKED, DONE, FAILED, PlanSearcher
from study.tracking import Tracker, redact
from trainables.store import Store

DELIVERY_SECONDS = 120.0
"""How long the end of a study waits for a slow tracking server; what is missing is delivered by the next start."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # per-trial CSV, JSON and TensorBoard files that nobody reads
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the store is the truth: Tune's own snapshots only cost time
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once; everything that matters is published
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # its kills end the whole experiment, the kernel's only a trial
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials without a GPU must not see one
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a header even when told to be silent
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class ClusterError(ValueError):
    """The cluster cannot be reached, or is too small for a single trial."""


def run_sweep(
    plan: Plan, store: Store, tracking_uri: str, data_dir: str | None, options: argparse.Namespace, command: str
) -> int:
    """Run what is missing and return the exit code of ``study.run``.

    Args:
        plan: the study.
        store: where results are kept.
        tracking_uri: MLflow tracking URI, already checked.
        data_dir: directory of the datasets.
        options: of the command line.
        command: the command line itself, for the message on how to retry.
    """
    from study.run import print_plan

    store.sweep()
    published = store.keys()
    todo = plan.closure.todo(published)
    estimates = estimate(plan, store, published)
    print_plan(plan, todo, estimates)
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    tracker = Tracker(plan, store, tracking_uri, fresh=set(todo))
    tracker.start()
    searcher = None
    started = time.monotonic()
    try:
        if todo:
            surroundings = {"storage": store.uri, "data_dir": data_dir}
            searcher = PlanSearcher(plan, todo, estimates, surroundings, options.retries)
            with _termination_as_interrupt():
                _fit(plan, store, searcher, tracker, estimates, options)
    finally:
        delivered = tracker.close(DELIVERY_SECONDS)
    failures = _report_failures(plan, searcher, command) if searcher else False
    done = sum(state == DONE for state in searcher.state.values()) if searcher else 0
    print(
        f"{done} jobs run, {len(plan.jobs) - len(todo)} were published before; {duration(time.monotonic() - started)}"
    )
    if not delivered:
        reason = tracker.behind or "the server is slow"
        print(f"warning: not everything reached {redact(tracking_uri)} ({reason}); the same command delivers the rest")
    elif not failures:
        _print_results(plan, tracking_uri)
    _print_next_steps(plan, store, tracking_uri)
    return 1 if failures else 0


def _fit(
    plan: Plan, store: Store, searcher: PlanSearcher, tracker: Tracker, estimates: Any, options: argparse.Namespace
) -> None:
    import ray
    from ray import tune

    from study.callback import StudyCallback
    from trainables.tune import PlannedJob

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # failures are reported by job at the end
    print(f"starting Ray{f' on {options.address}' if options.address else ' on this machine'} ...", flush=True)
    _start_ray(options.address)
    try:
        resources, slots = _resources(options)
        directory = store.root / "ray"
        name = f"{plan.space.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        progress = Progress(plan, searcher, estimates, slots)
        callback = StudyCallback()
        tuner = tune.Tuner(
            tune.with_resources(PlannedJob, tune.PlacementGroupFactory([resources])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=slots,
                trial_name_creator=lambda trial: f"{trial.trial_id}",
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(directory),
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher tries again
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        callback.attach(searcher, tracker, progress)
        with progress:
            tuner.fit()
        shutil.rmtree(directory / name, ignore_errors=True)
    finally:
        ray.shutdown()


def _start_ray(address: str | None) -> None:
    import ray

    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"Ray cluster {address or 'on this machine'}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # in place of Ray's own handler, which aborts the process


def _resources(options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Return what a trial asks for and how many fit on the cluster as it is now."""
    import ray

    cluster = ray.cluster_resources()
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) else 0.0
    for name, asked in (("CPU", options.cpus_per_trial), ("GPU", gpus)):
        if asked > cluster.get(name, 0):
            raise ClusterError(f"a trial asks for {asked:g} {name}s, the whole cluster has {cluster.get(name, 0):g}")
    fit = cluster["CPU"] / options.cpus_per_trial
    if gpus:
        fit = min(fit, cluster["GPU"] / gpus)
    resources = {"CPU": options.cpus_per_trial} | ({"GPU": gpus} if gpus else {})
    return resources, options.max_concurrent or max(1, int(fit))


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the study as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _report_failures(plan: Plan, searcher: PlanSearcher, command: str) -> bool:
    """Name what failed, what it blocked, and how to try again; return whether there was anything."""
    state = searcher.state
    failed = [key for key, each in state.items() if each == FAILED]
    blocked = [key for key, each in state.items() if each == BLOCKED]
    unfinished = [key for key, each in state.items() if each not in (DONE, FAILED, BLOCKED)]
    for key in failed:
        victims = sum(searcher.errors[other] == key for other in blocked)
        name = run_name(plan.jobs[key], plan.cells[key])
        print(f"failed: {name} ({key[:12]}): {searcher.errors[key]}; it blocked {victims} jobs", file=sys.stderr)
    if unfinished:
        print(f"Ray Tune ended before {len(unfinished)} jobs had run", file=sys.stderr)
    if failed or unfinished:
        print(f"to retry just these: {command}", file=sys.stderr)
    return bool(failed or unfinished)


def _print_results(plan: Plan, tracking_uri: str) -> None:
    from analysis.load import runs
    from analysis.summary import short_table

    frame = runs(plan.space.name, tracking_uri)
    print()
    print(short_table(frame[frame["key"].isin(list(plan.jobs))]))
    print()


def _print_next_steps(plan: Plan, store: Store, tracking_uri: str) -> None:
    where = f" --storage {_relative(store.root)}" if store.root != Path("outputs").absolute() else ""
    if not tracking_uri.endswith(f"{store.root}/mlflow.db"):
        where += f" --tracking-uri {redact(tracking_uri)}"
    print(f"report:  python -m analysis.report --space {plan.space.name}{where}")
    if tracking_uri.startswith("sqlite:"):
        print(f"browse:  mlflow ui --backend-store-uri {tracking_uri}")
    else:
        print(f"browse:  {redact(tracking_uri)}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
