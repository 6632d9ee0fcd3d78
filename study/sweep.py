"""The sweep: one Ray Tune experiment over the jobs of a plan that are not in the store.

Modules that import ray are imported inside functions, because Ray reads parts of its environment on import.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from study.estimate import Estimates, estimate, on_gpus
from study.fastest import kept
from study.forecast import print_plan
from study.known_data import remember
from study.options import Options
from study.outcome import (
    note_failures,
    print_next_steps,
    print_results,
    print_undelivered,
    report_failures,
    report_missing,
)
from study.plan import Plan
from study.preference import ON_GPUS, as_options, preferring
from study.scheduling.address import ClusterError
from study.scheduling.states import DONE
from study.tracking.cell_runs import CellRuns
from study.tracking.delivery import Tracker
from study.tracking.labels import recipe_digest
from trainables import schema
from trainables.config import DETERMINISTIC_ON_CPU, TRAINING_CONFIGS
from trainables.host.clock import duration, now
from trainables.host.terminal import FAILURES, INTERRUPTED, OK
from trainables.knobs import UNKEYED
from trainables.storage.starts import noted
from trainables.storage.store import Lease, StorageError, Store
from trainables.training.engines import GPU

if TYPE_CHECKING:  # ray reads parts of its environment on import
    from study.scheduling.callback import StudyCallback
    from study.scheduling.cards import Card
    from study.scheduling.hosts import Hosts
    from study.scheduling.placement import Group, Need
    from study.scheduling.searcher import PlanSearcher
    from study.scheduling.session import Cluster

LAST_DELIVERY_SECONDS = 10.0
"""Seconds for the last deliveries to MLflow after an interrupt or the loss of the cluster."""
TABLE_SECONDS = 30.0
"""Seconds for reading the results after an interrupt or the loss of the cluster: the storage may be lost, too."""
SHOW_SECONDS = 2.0
"""Seconds between two messages on the runs still to be recorded; ten times as long outside a terminal."""
START_SECONDS = 20.0
"""Seconds that the tracker waits at first, unless a job reports earlier, so that it does not slow the first trials."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON or TensorBoard files per trial
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # never: results are in the store, Tune's snapshots only cost time
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once; what matters is published by then
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # the searcher limits how many trials wait for resources
    "RAY_memory_monitor_refresh_ms": "0",  # off: its kills end the whole experiment, the kernel's only one trial
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials without a GPU must not see one
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a header even at verbose=0
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""If this process joins a running cluster, the RAY_ variables affect this process only."""
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without a cluster Ray listens on the loopback device only
    "RAY_prestart_worker_first_driver": "0",  # Tune starts its own workers; prestarted ones would idle
}


def prepare_environment(address: str | None) -> None:
    """Set the variables that Ray, Tune and MLflow read when they are imported, except those that the user has set.

    Args:
        address: address of the cluster to join; None for a local Ray.
    """
    for name, value in (_ENVIRONMENT | ({} if address else _LOCAL_ENVIRONMENT)).items():
        os.environ.setdefault(name, value)


def run_sweep(plan: Plan, tracking_uri: str, store: Store, options: Options, command: str) -> int:
    """Run the jobs that are missing and return the exit code of ``study.run``.

    Args:
        plan: the study.
        tracking_uri: MLflow tracking URI, already checked.
        store: where results are kept.
        options: options of the command line.
        command: the command line itself, for the message on how to continue.

    Raises:
        ClusterError: there is no cluster, or it cannot run these trials; nothing was run.
        StorageError: the storage cannot be reached; what was published stays.
    """
    prepare_environment(options.cluster)
    published = store.keys()
    todo = plan.closure.todo(published)
    _clear_up(plan, store, todo)
    estimates = estimate(plan, store, published)
    print_plan(plan, todo, estimates, store, options)
    if todo:
        print(f"est. time: one job after another, {estimates.basis}")
    average = CellRuns(plan, tracking_uri, command).update
    tracker = Tracker(plan, store, tracking_uri, fresh=set(todo), average=average)
    tracker.start(START_SECONDS if todo else 0.0)
    sweep = _Sweep(plan, store, tracker, estimates, options, command)
    try:
        if todo:
            remember(plan, store)
            registration = store.register_study({"space": plan.space.name, "jobs": len(plan.jobs)})
            with registration, _termination_as_interrupt():
                sweep.run(todo, registration)
            sweep.clear_up()
    except BaseException as error:
        tracker.close(LAST_DELIVERY_SECONDS)
        if isinstance(error, KeyboardInterrupt):
            _print_results_in_time(plan, store)
        raise
    delivered, interrupted = _delivered(tracker)
    bad = sweep.report()
    missing = sweep.missing()
    if missing:
        report_missing(plan, missing, command)
        bad = True
    print(
        f"{sweep.done} jobs run, {len(plan.jobs) - len(todo)} were published before; {duration(sweep.seconds)}",
        flush=True,
    )
    print_results(plan, store)
    if not delivered:
        print_undelivered(plan, tracker, tracking_uri, command, interrupted=interrupted)
    print_next_steps(plan, store, tracking_uri, tracker.page)
    if interrupted:
        return INTERRUPTED
    return OK if delivered and not bad else FAILURES


def _print_results_in_time(plan: Plan, store: Store) -> None:
    """Print the table of a study that ends early, unless its storage takes too long."""
    table = threading.Thread(target=print_results, args=(plan, store), daemon=True)
    table.start()
    table.join(TABLE_SECONDS)


def _delivered(tracker: Tracker) -> tuple[bool, bool]:
    """Wait for tracking and show its progress; return whether all is recorded, and whether the user interrupted it."""
    shown_at, in_terminal = time.monotonic(), sys.stdout.isatty()
    pause, width = SHOW_SECONDS * (1 if in_terminal else 10), 0

    def show(left: int) -> None:
        nonlocal shown_at, width
        if left and time.monotonic() - shown_at >= pause:
            words = f"recording in MLflow: {left} run{'' if left == 1 else 's'} to go"
            print(words.ljust(width), end="\r" if in_terminal else "\n", flush=True)
            shown_at, width = time.monotonic(), len(words)

    try:
        return tracker.close(show=show), False
    except KeyboardInterrupt:
        return False, True
    finally:
        if in_terminal and width:
            print(" " * width, end="\r", flush=True)


class _Sweep:
    """One run of the command: from the cluster's resources to the report."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tracker: Tracker,
        estimates: Estimates,
        options: Options,
        command: str,
    ) -> None:
        self._plan, self._store, self._tracker = plan, store, tracker
        self._estimates, self._options, self._command = estimates, options, command
        self._searcher: PlanSearcher | None = None
        self._started = time.monotonic()
        self._ending = threading.Lock()
        self._ended: str | None = None

    @property
    def done(self) -> int:
        """Number of jobs that this sweep has completed."""
        return sum(state == DONE for state in self._searcher.state.values()) if self._searcher else 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def run(self, todo: dict[str, set[int | None]], registration: Lease) -> None:
        """Run the jobs; afterwards the searcher knows the outcome of each."""
        options, address = self._options, self._options.cluster
        print(f"starting Ray{f' on {address}' if address else ' on this machine'} ...", flush=True)
        # This process imports torch while Ray starts its processes. The thread must not import ray, because two threads
        # that import parts of one package may deadlock.
        threading.Thread(target=importlib.import_module, args=("trainables.jobs.execution",), daemon=True).start()
        from study.scheduling.session import connected

        with connected(address) as cluster:
            from study.progress import Progress
            from study.scheduling.hosts import Hosts
            from study.scheduling.looks import Looks
            from study.scheduling.searcher import AHEAD_CLUSTER, AHEAD_IN_GROWTH, AHEAD_LOCAL, PlanSearcher
            from study.scheduling.trials import run_trials

            max_silence = 3600.0 * options.max_silence
            surroundings = {
                "storage": self._store.uri,
                "data_dir": options.data_dir,
                **{name: getattr(self._plan.space, name) for name in UNKEYED},
                "checkpoint_seconds": options.checkpoint_seconds,
                "max_silence": max_silence,
                "study": registration.name,
            }
            hosts, looks = Hosts(cluster.nodes), Looks(self._plan, self._store, todo)
            needs, cards = _needs(self._plan, todo, cluster, hosts, options)
            if cards:
                _check_preference(self._plan, self._store, cards, options)
                self._estimates = self._on_gpus(todo, needs, cards)

            def say(line: str) -> None:
                progress.say(line)
                # --status reads the note. Replace it, do not change it in place: another thread renews the lease.
                registration.note = {**registration.note, "out": searcher.outs()}

            self._searcher = searcher = PlanSearcher(
                self._plan,
                todo,
                self._estimates,
                surroundings,
                options.retries,
                hosts=hosts,
                needs=needs,
                expected=cards[0] if cards else None,
                ahead=AHEAD_LOCAL if cluster.is_own else AHEAD_CLUSTER,
                ahead_in_growth=0 if cluster.is_own else AHEAD_IN_GROWTH,
                max_concurrent=options.max_concurrent,
                nets_per_trial=options.nets_per_trial,
                elastic=options.elastic,
                stored=looks.stored,
                free=looks.free,
                say=say,
            )
            progress = Progress(self._plan, searcher, self._estimates)
            for out in searcher.outs():
                say(f"no jobs for {out}")

            def attach(callback: StudyCallback) -> None:
                callback.attach(
                    searcher,
                    self._tracker,
                    progress,
                    max_silence=max_silence,
                    published=looks.published,
                )

            note = {
                "space": self._plan.space.name,
                "recipe": recipe_digest(self._plan.space, self._plan.ways),
                "command": self._command,
                "seconds": self._estimates.makespan(self._plan, todo, searcher.slots()),
                "jobs": {key: self._estimates.seconds[key] for key in self._plan.jobs if key in todo},
            }
            watched = cluster.watched(lambda reason: self._lose(reason, cluster))
            with noted(self._store, note), closing(looks), progress.shown(), watched:
                self._ended = run_trials(cluster, searcher, attach, self._plan.space.name)
                if self._ended is not None and (missing := cluster.missing()) is not None:
                    self._lose(f"{missing} is out of reach", cluster)
                if not searcher.unfinished():
                    self._tracker.last()  # it goes on while Ray ends, which takes seconds
        with contextlib.suppress(StorageError):  # the summary also names the failures
            note_failures(self._store, searcher, now())

    def _on_gpus(self, todo: Collection[str], needs: Mapping[Group, Need], cards: Sequence[Card]) -> Estimates:
        """Return the estimates for the cluster's GPUs, and print their sum: those for a core say nothing about GPUs."""
        from study.scheduling.placement import group

        plan = self._plan
        keys = [key for key in todo if needs[group(plan.jobs[key], plan.space.workers)].share is None]
        found = on_gpus(self._estimates, plan, keys, cards, self._store)
        if keys:
            jobs = f"{len(keys)} job{'' if len(keys) == 1 else 's'}"
            print(f"on GPUs: {jobs} in {duration(found.total(keys))}, one after another, {found.basis}", flush=True)
        return found

    @property
    def _halted(self) -> bool:
        """Whether the sweep was halted. Then the storage may be out of reach."""
        return self._searcher is not None and self._searcher.halted is not None

    def clear_up(self) -> None:
        """Remove leases and checkpoints of jobs whose processes or nodes died just after publishing."""
        if not self._halted:
            _clear_up(self._plan, self._store, self._plan.closure.todo(self._store.keys()))

    def missing(self) -> list[str]:
        """Return the keys of the jobs that were reported as published but are not in the store now."""
        state = self._searcher.state if self._searcher is not None else {}
        if self._halted:
            return []
        return [key for key in self._plan.closure.todo(self._store.keys()) if state.get(key, DONE) == DONE]

    def report(self) -> bool:
        """Print the failures; return whether there were any."""
        return self._searcher is not None and report_failures(self._plan, self._searcher, self._command, self._ended)

    def _lose(self, reason: str, cluster: Cluster) -> None:
        """End the process: the cluster is lost, and any call to it, even ``ray.shutdown``, may hang forever."""
        with self._ending:  # never released: two threads may get here, and the first one ends the process
            try:
                self._ended = f"{reason}; running jobs lose their work since their last checkpoints"
                self.report()
                self._tracker.close(LAST_DELIVERY_SECONDS)
                _print_results_in_time(self._plan, self._store)  # the storage may be lost with the cluster
                cluster.abandon()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)


def _clear_up(plan: Plan, store: Store, todo: Collection[str]) -> None:
    """Remove what dead processes have left of the jobs that are not in `todo`."""
    # Only dense nets have states beside their result, which another study may be computing.
    store.sweep(todo, {key for key, job in plan.jobs.items() if key not in todo and job.kind != schema.DENSE})


def _needs(
    plan: Plan, todo: dict[str, set[int | None]], cluster: Cluster, hosts: Hosts, options: Options
) -> tuple[dict[Group, Need], list[Card]]:
    """Return what the trials of each group need, and the kinds of GPUs, the smallest first; print the former.

    Raises:
        ClusterError: this machine is too small for one of the jobs, PyTorch cannot compute on any node's GPUs, or a job
            needs a GPU and gets none.
    """
    from study.scheduling.cards import GIB
    from study.scheduling.hosts import in_words
    from study.scheduling.placement import Pool, group, needs

    gpus = options.gpus_per_trial
    trained = [config for key in todo if isinstance(config := plan.jobs[key].config, TRAINING_CONFIGS)]
    if gpus != 0:
        precisions = {config.recipe.precision for config in trained if GPU in config.recipe.engine.devices}
        for node, problem in cluster.ask_nodes(precisions).items():
            hosts.exclude(node, problem)
    cards = cluster.know_cards(options.gpu_memory and options.gpu_memory * GIB) if gpus is None else []
    found, warnings = needs(
        plan,
        todo,
        cpus=options.cpus_per_trial,
        gpus=gpus,
        cards=cards,
        nets_per_trial=options.nets_per_trial,
    )
    expected, pool = (cards[0] if cards else None), Pool(hosts.available())
    asked = {each: pool.request(need, math.inf, expected).resources for each, need in found.items()}
    groups = [group(plan.jobs[key], plan.space.workers) for key in todo]
    counts = Counter((each.workers, tuple(asked[each].items())) for each in groups)
    if any(plan.jobs[key].config.task.deterministic for key in todo) and not any(
        each.get("GPU") for each in asked.values()
    ):
        raise ClusterError(DETERMINISTIC_ON_CPU)
    for workers, each in counts:
        places = hosts.places(dict(each), hosts.present())
        if places < (1 if options.elastic else workers):
            problem = f"a trial asks for {in_words(dict(each))}, but no node of the cluster has that much"
            if places:
                problem = (
                    f"a trial asks for {in_words(dict(each), workers)}, but the cluster has room for {places} of these "
                    "workers (--elastic makes do with fewer)"
                )
            if cluster.is_own:
                raise ClusterError(problem)
            warnings.append(f"{problem} now; waiting for room")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    shapes = "; ".join(
        f"{count} with {in_words(dict(each), workers)}" for (workers, each), count in counts.most_common()
    )
    hint = "" if cluster.is_own or hosts.room().get("GPU") or gpus is not None or cards else _NO_GPUS
    sharing = sum(config.recipe.engine.shares_trial for config in trained)
    together = f"; {sharing} networks may share a trial, up to {options.nets_per_trial} each" if sharing else ""
    more = ", more while GPUs are idle" if cards else ""
    print(f"trials: {shapes}{more}{together}{hint}", flush=True)
    return found, cards


def _check_preference(plan: Plan, store: Store, cards: Sequence[Card], options: Options) -> None:
    """Raise ClusterError if the plan lacks the settings for GPUs because the driver could not know of the GPUs.

    A GPU that nobody expected would otherwise train in the way of a CPU, and these settings enter the keys of jobs.
    """
    if options.fastest:
        return
    capability = min(card.capability for card in cards)
    preferred = preferring(plan, kept(plan.space, options.set), store, GPU, capability).space
    if changed := [name for name in ON_GPUS if getattr(preferred, name) != getattr(plan.space, name)]:
        raise ClusterError(
            f"the nodes have GPUs, which was unknown when this was planned: `{as_options(preferred, changed)}` trains "
            f"as is usual on GPUs, `{as_options(plan.space, changed)}` as planned"
        )


_NO_GPUS = " (the cluster has no GPUs now; if it starts machines with GPUs, --gpu-memory makes trials ask for them)"


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Make SIGTERM end the study as Ctrl-C does."""
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
