"""Run a study: ``python -m study.run --space digits_quickstart``.

The command plans the jobs of a search space, skips those in the store, runs the others as one Ray Tune experiment and
records everything in MLflow. Running the same command again continues where it stopped.

Exit codes: 0: every job of the plan is published and recorded. 1: some jobs failed, were blocked by a failure, were not
run or are not recorded. 2: the request is wrong and no job was started. 130: interrupted; published results stay.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial

from search_spaces import SPACES, SearchSpace, get_space
from study import fastest
from study.clean import offer_cleaning
from study.forecast import print_forecast
from study.known_data import known_facts
from study.options import Options, parse_options
from study.plan import Network, Plan, make_plan, override
from study.preference import preferring
from study.scheduling.address import ClusterError
from study.scheduling.cards import CARDS, machines
from study.scheduling.placement import check_shares, group
from study.status import print_status
from study.sweep import run_sweep
from study.tracking.destination import check_tracking
from trainables.config import DETERMINISTIC_ON_CPU, TRAINING_CONFIGS
from trainables.graph import Ref
from trainables.host.databases import default_tracking_uri
from trainables.host.nvidia import capability_here, check_driver
from trainables.host.redaction import redact
from trainables.host.terminal import FAILURES, INTERRUPTED, OK, command, refused
from trainables.host.toolchain import compiler, find_compiler
from trainables.storage.patience import announced
from trainables.storage.store import StorageError, Store
from trainables.training.engines import CPU, GPU


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    try:
        options = parse_options(
            arguments,
            "study.run",
            "Run a search space: train what is not in the store yet, log everything to MLflow.",
            "Running the same command again continues where it stopped.",
        )
        if options.list:
            width = max(map(len, SPACES))
            print(*(f"{space.name:<{width}}  {space.question}" for space in SPACES.values()), sep="\n")
            return OK
        store = Store(options.storage)
        with announced(lambda line: print(f"waiting: {line}", file=sys.stderr, flush=True)):
            prepared = _answer(store, options)
    except (ValueError, StorageError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        return _interrupted()
    if prepared is None:
        return OK
    try:
        return run_sweep(*prepared, store, options, shlex.join(["python", "-m", "study.run", *map(redact, arguments)]))
    except ClusterError as error:
        return refused(error)
    except (StorageError, OSError) as error:
        return refused(error, FAILURES, "published results are kept; the same command continues")
    except KeyboardInterrupt:
        return _interrupted()


def _answer(store: Store, options: Options) -> tuple[Plan, str] | None:
    """Answer a request that trains nothing; check any other request and return its plan and tracking URI.

    Raises:
        ValueError: the request is wrong.
        StorageError: the storage cannot be read or written.
    """
    if options.clean:
        offer_cleaning(store, options)
        return None
    space = override(get_space(options.space or ""), options.set)
    # An object store cannot hold the database, so it stays on the driver's machine.
    uri = options.tracking_uri or default_tracking_uri(store.beside.absolute())
    choice = _choice(space, store, options) if options.fastest else None
    unmeasured = choice.missing if choice else ()
    ways = choice.ways if choice else None
    if options.status:
        plan = make_plan(space, options.data_dir, ways, partial(known_facts, store))
        print_status(_preferring(plan, store, options), store, unmeasured)
        return None
    plan = make_plan(space, options.data_dir, ways)
    on_cluster = options.cluster is not None
    if options.dry_run:
        plan = _preferring(plan, store, options)
        _check_device(plan, store, options)
        print_forecast(plan, store, options, unmeasured)
        return None
    if unmeasured and on_cluster:
        _refuse_to_measure(unmeasured, options)
    if options.tracking_uri:
        check_tracking(uri, space.name)
    store.check_writable()
    if not options.tracking_uri:  # the database lies in the storage, whose own check has the better message
        check_tracking(uri, space.name)
    if choice and unmeasured:
        from study.benchmark.ways import measure  # imports torch, so only after the request has been checked

        measure(choice, plan, store)
        plan = make_plan(space, options.data_dir, _choice(space, store, options).ways)
    plan = _preferring(plan, store, options)
    _check_device(plan, store, options)
    if not on_cluster:
        _check_machine(plan, store, options)
    if options.verify:
        _verify(plan, store)
    return plan, uri


def _interrupted() -> int:
    print("\ninterrupted; the same command continues", file=sys.stderr)
    return INTERRUPTED


def _choice(space: SearchSpace, store: Store, options: Options) -> fastest.Choice:
    """Return the choices of ``--fastest`` so far."""
    device = _device(options) or fastest.device_of_trials(options.gpus_per_trial, options.cluster, store)
    return fastest.choice(space, options.set, store, device)


def _device(options: Options) -> str | None:
    """Return the kind of device of the machines that ``--on`` names; None without the option."""
    if options.on is None:
        return None
    return CPU if machines(options.on).keys() == {CPU} or options.gpus_per_trial == 0 else GPU


def _device_of_trials(store: Store, options: Options) -> str | None:
    """Return the kind of device on which the trials would run; None if only the cluster knows."""
    if options.on is not None:
        return _device(options)
    device = fastest.device_of_trials(options.gpus_per_trial, None, store)
    if options.cluster is None:
        return device
    return GPU if device == GPU or options.gpu_memory else None  # it is not asked: the options or this node say so


def _preferring(plan: Plan, store: Store, options: Options) -> Plan:
    """Return the plan with the settings that its space prefers, as far as they can be used."""
    if options.fastest:
        return plan
    if options.on is None:
        capability = capability_here()
    else:
        cards = [CARDS[name] for name in machines(options.on) if name != CPU]
        capability = min((card.capability for card in cards), default=None)
    device = _device_of_trials(store, options)
    return preferring(plan, fastest.kept(plan.space, options.set), store, device, capability)


def _check_device(plan: Plan, store: Store, options: Options) -> None:
    """Raise ValueError if unpublished jobs cannot run on the devices that the options give to them.

    They would run on CPUs with a setting that has an effect on GPUs only, or their workers would share a GPU.
    """
    todo = plan.closure.todo(store.keys())
    check_shares({group(plan.jobs[key], plan.space.workers) for key in todo}, options.gpus_per_trial)
    if _device_of_trials(store, options) == CPU and any(plan.jobs[key].config.task.deterministic for key in todo):
        raise ValueError(DETERMINISTIC_ON_CPU)


def _refuse_to_measure(unmeasured: Sequence[Network], options: Options) -> None:
    """Raise ValueError: the trials run on other machines, so measurements on this one would be meaningless."""
    words = options.arguments({"space", "storage", "set", "data_dir", "gpus_per_trial"})
    raise ValueError(
        f"nothing has been measured for {', '.join(map(fastest.called, unmeasured))}: run "
        f"`{shlex.join(['python', '-m', 'study.benchmark', 'fastest', *words])}` on a node like those that train"
    )


def _check_machine(plan: Plan, store: Store, options: Options) -> None:
    """Raise ValueError if unpublished jobs need what this machine, where they would run, lacks.

    That is a C++ compiler, or a driver for the GPU that it has: without one, they would run on the CPU unnoticed.
    """
    todo = plan.closure.todo(store.keys())
    if todo and options.gpus_per_trial != 0:
        check_driver()
    device = fastest.device_of_trials(options.gpus_per_trial, None, store)
    if find_compiler() is not None:
        return
    trained = {key: job.config for key, job in plan.jobs.items() if isinstance(job.config, TRAINING_CONFIGS)}
    engines = {key: config.recipe.engine for key, config in trained.items()}
    needy = {key for key, each in engines.items() if each.needs_compiler and (device == CPU or GPU not in each.devices)}
    for key in needy & todo.keys():
        compiler(engines[key].setting)


def _verify(plan: Plan, store: Store) -> None:
    """Read every published file of the plan, set damaged results aside and plan them again."""
    outputs = {ref.key: ref for job in plan.jobs.values() for ref in (Ref(job), *(parent for _, parent in job.parents))}
    published = sorted(outputs.keys() & store.keys())
    damaged = store.verify(published)
    for key in damaged:  # also states at rewind epochs, although nothing needs them once the dependent results exist
        plan.closure.add(outputs[key])
    print(*damaged.values(), f"{len(published)} results verified, {len(damaged)} damaged", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
