"""Run a study: ``python -m study.run --space digits_quickstart``.

Plans the jobs of a search space, skips those that are in the store, runs the others as one Ray Tune experiment and
records everything in MLflow. Running the same command again continues where it stopped.

Exit codes: 0 every job of the plan is published and recorded; 1 some failed, were blocked by a failure or are not
recorded; 2 the request is wrong, nothing was started; 130 interrupted, what was published stays.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from search_spaces import SPACES, SearchSpace, get_space
from study import fastest
from study.estimate import Estimates, duration, estimate, rates_here, slower_ways
from study.plan import Plan, make_plan, override
from study.scheduling.address import cluster_address
from study.tracking.delivery import check_tracking, default_tracking_uri
from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.graph import Ref
from trainables.host import cpu
from trainables.host.places import expanded
from trainables.host.redaction import redact
from trainables.host.terminal import FAILURES, INTERRUPTED, OK, command, refused
from trainables.storage.errors import announced
from trainables.storage.store import StorageError, Store
from trainables.training.engines.sparse_cpu.compiler import compiler, find_compiler

LEAST = 1e-4
"""Ray counts resources in ten-thousandths."""


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            return _list_spaces()
        store = Store(options.storage)
        data_dir = os.path.abspath(expanded(options.data_dir)) if options.data_dir else None
        if options.clean:
            return _clean(store, data_dir, options)
        if options.space is None:
            raise ValueError("which space? --space NAME, or --list to see them")
        if options.verify and (options.dry_run or options.status):
            raise ValueError("--verify sets damaged results aside, --dry-run and --status change nothing: choose one")
        space = override(get_space(options.space), options.set)
        # An object store holds no database: that stays where the driver runs.
        uri = options.tracking_uri or default_tracking_uri(store.root if store.is_local else Path("outputs").absolute())
        choice = _choice(space, store, options) if options.fastest else None
        plan = make_plan(space, data_dir, choice.ways if choice else None)
        if options.status:
            from study.status import lines, status

            print(*lines(status(plan, store)), *_unmeasured(choice), sep="\n")
            return OK
        cluster_address(options.address)
        if options.dry_run:
            return _dry_run(plan, store, choice, options)
        if choice and choice.missing:
            _refuse_on_a_cluster(choice, options)
        with announced(_waits):
            if options.tracking_uri:
                check_tracking(uri, space.name)
            store.check_writable()
            if not options.tracking_uri:  # it lies in the storage, which says better what is wrong
                check_tracking(uri, space.name)
        if choice and choice.missing:
            from study.benchmark.ways import measure  # torch: only now that the request is known to be right

            measure(choice, plan, store)
            plan = make_plan(space, data_dir, _choice(space, store, options).ways)
        _check_kernels(plan, store, options)
        if options.verify:
            _verify(plan, store)
    except (ValueError, StorageError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        return _interrupted()
    try:
        from study.sweep import ClusterError, run_sweep  # likewise, and ray

        return run_sweep(plan, store, uri, data_dir, options, _command(arguments))
    except ClusterError as error:
        return refused(error)
    except (StorageError, OSError) as error:
        return refused(error, FAILURES, "what was published stays, the same command continues")
    except KeyboardInterrupt:
        return _interrupted()


def _waits(line: str) -> None:
    print(f"waiting: {line}", file=sys.stderr, flush=True)


def _interrupted() -> int:
    print("\ninterrupted; the same command continues", file=sys.stderr)
    return INTERRUPTED


def _command(arguments: Sequence[str]) -> str:
    """Return the command line for messages, without the password of a tracking server."""
    return shlex.join(["python", "-m", "study.run", *map(redact, arguments)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study.run",
        description="Run a search space: train what is not in the store yet, log everything to MLflow.",
        epilog="Running the same command again continues where it stopped.",
    )
    add = parser.add_argument
    add("--space", metavar="NAME", help="the search space; --list shows all")
    add("--list", action="store_true", help="list the search spaces")
    add("--dry-run", action="store_true", help="print the plan and stop")
    add(
        "--status", action="store_true", help="print where the study stands and stop; also while it runs, from anywhere"
    )
    add("--clean", action="store_true", help="list the results that no space needs, and remove them if confirmed")
    add("--verify", action="store_true", help="read every published file first; damaged results are computed again")
    add("--yes", action="store_true", help="confirm --clean beforehand")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the space; commas separate the values of an axis (--set seeds=0,1 --set epochs=5)",
    )
    add(
        "--fastest",
        action="store_true",
        help="train each network with the precision, compilation, kernels and stacking measured to train it quickest, "
        "as far as --set leaves them open; measured here unless that was done before",
    )
    add(
        "--storage",
        default="outputs",
        type=_filled,
        metavar="DIR|URI",
        help="where results are kept: a directory that all nodes see, or s3://, gs://, az:// (default: %(default)s)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow tracking store (default: sqlite:///STORAGE/mlflow.db)")
    add("--data-dir", metavar="DIR", help="where the datasets are that do not come with a library")
    add(
        "--address",
        metavar="ADDR",
        help="Ray cluster to run on, auto or host:port (default: RAY_ADDRESS, else a Ray of its own on this machine)",
    )
    add("--max-concurrent", type=_positive(int), metavar="N", help="trials at the same time (default: what fits)")
    add(
        "--gpus-per-trial",
        type=_gpus,
        metavar="X",
        help="GPUs of a trial, may be a fraction (default: what its job's memory needs, 1/8 to 1, if there are any)",
    )
    add(
        "--gpu-memory",
        type=_positive(float),
        metavar="GIB",
        help="memory of the smallest GPU (default: the nodes are asked; needed if the cluster has no GPU nodes yet)",
    )
    add("--cpus-per-trial", type=_positive(float), metavar="N", default=1.0, help="CPUs of a trial (default: 1)")
    add(
        "--nets-per-trial",
        type=_positive(int),
        metavar="N",
        default=8,
        help="networks that a trial trains as one at most, where the space says stacked=true (default: 8)",
    )
    add(
        "--retries",
        type=_positive(int, zero=True),
        metavar="N",
        default=3,
        help="attempts at a job after one that died without getting further than those before (default: 3)",
    )
    add(
        "--checkpoint-seconds",
        type=_positive(float, zero=True),
        metavar="S",
        default=30.0,
        help="a job is saved at the first end of an epoch after so long; if it is killed, it loses at most that and "
        "one epoch (default: 30)",
    )
    add(
        "--max-silence",
        type=_positive(float, zero=True),
        metavar="H",
        default=12.0,
        help="a trial that ends neither an epoch nor a measurement for so many hours is taken for hung, ended and "
        "tried again; 0: never (default: 12)",
    )
    return parser


def _filled(text: str) -> str:
    if not text.strip():  # a variable of the shell that is not set; the current directory would be filled instead
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _gpus(text: str) -> float:
    value = float(text)
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"must be within 0 and 1, or a whole number, got {text}")
    return value


_gpus.__name__ = "number"  # argparse names it in its messages


def _positive(kind: type, *, zero: bool = False):  # type: ignore[no-untyped-def] # an argparse type
    def parse(text: str) -> float:
        value: float = kind(text)
        if isinstance(value, float) and not (math.isfinite(value) and (value == 0 or abs(value) >= LEAST)):
            raise argparse.ArgumentTypeError(f"must be a finite number, 0 or at least {LEAST:g}, got {text}")
        if value < 0 or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"must be {'at least 0' if zero else 'above 0'}, got {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # argparse names it in its messages
    return parse


def _list_spaces() -> int:
    width = max(map(len, SPACES))
    for space in SPACES.values():
        print(f"{space.name:<{width}}  {space.question}")
    return OK


def _choice(space: SearchSpace, store: Store, options: argparse.Namespace) -> fastest.Choice:
    """Return what --fastest has chosen so far."""
    device = fastest.device_of_trials(options.gpus_per_trial, cluster_address(options.address), store)
    return fastest.choice(space, options.set, store, device)


def _unmeasured(choice: fastest.Choice | None) -> list[str]:
    """Return a line on each network that nothing has been chosen for yet."""
    return fastest.lines({}, choice.missing) if choice else []


def _slow(plan: Plan, store: Store, options: argparse.Namespace) -> list[str]:
    """Return a line on whatever of a plan is slow on this machine's CPU, or could be faster, if trials run on it."""
    address = cluster_address(options.address)
    if address is not None or fastest.device_of_trials(options.gpus_per_trial, address, store) != fastest.CPU:
        return []
    trained = [job.config for job in plan.jobs.values() if isinstance(job.config, TRAINING_CONFIGS)]
    rates = rates_here(store)
    lines = slower_ways(plan, rates) + fastest.faster_ways(plan, rates, fastest.kept(plan.space, options.set))
    if cpu.emulates_bf16() and any(config.recipe.precision == "bf16" for config in trained):
        lines.append(
            f"warning: this CPU ({cpu.name()}) has none of {', '.join(cpu.BF16_FEATURES)} and emulates precision=bf16, "
            "which takes many times as long as fp32"
        )
    return lines


def _refuse_on_a_cluster(choice: fastest.Choice, options: argparse.Namespace) -> None:
    """Raise ValueError if trials run on machines other than this one, of which measurements here would say nothing."""
    if cluster_address(options.address) is None:
        return
    named = ["--space", options.space, "--storage", options.storage, *(f"--set={each}" for each in options.set)]
    named += [f"--data-dir={options.data_dir}"] if options.data_dir else []
    named += [f"--gpus-per-trial={options.gpus_per_trial:g}"] if options.gpus_per_trial is not None else []
    raise ValueError(
        f"nothing has been measured for {', '.join(map(fastest.called, choice.missing))}: run "
        f"`{shlex.join(['python', '-m', 'study.benchmark', 'fastest', *named])}` on a node like those that train"
    )


def _clean(store: Store, data_dir: str | None, options: argparse.Namespace) -> int:
    from study import clean

    named = override(get_space(options.space), options.set) if options.space else None
    clean.check_idle(store)
    choices = fastest.chosen(store)
    given = fastest.kept(named, options.set) if named else {}
    plans, missing = clean.plan_all(named, data_dir, choices, given)
    found = clean.surplus(store, plans, clean.datasets(missing), fastest.unreadable(store, choices))
    print(*clean.lines(found, missing), sep="\n")
    if not found.keys and not found.leftovers:
        return OK
    if not options.yes and (not sys.stdin.isatty() or input("remove them? [y/N] ").strip().lower() not in ("y", "yes")):
        print("nothing was removed; --yes confirms")
        return OK
    clean.remove(store, found)
    print("removed")
    return OK


def _check_kernels(plan: Plan, store: Store, options: argparse.Namespace) -> None:
    """Raise ValueError if jobs that are still to run want kernels that this machine cannot compile, and run here."""
    if find_compiler() is not None or cluster_address(options.address) is not None:
        return
    trained = {key: job.config for key, job in plan.jobs.items() if isinstance(job.config, TRAINING_CONFIGS)}
    sparse = {key for key, config in trained.items() if config.recipe.kernels == "sparse"}
    if sparse and sparse & plan.closure.todo(store.keys()).keys():
        compiler()


def _verify(plan: Plan, store: Store) -> None:
    outputs = {ref.key: ref for job in plan.jobs.values() for ref in (Ref(job), *(parent for _, parent in job.parents))}
    published = sorted(outputs.keys() & store.keys())
    damaged = store.verify(published)
    for key in damaged:  # also states at rewind epochs, which are not needed once they have led to a result
        plan.closure.add(outputs[key])
    print(*damaged.values(), f"{len(published)} results verified, {len(damaged)} damaged", sep="\n")


def _dry_run(plan: Plan, store: Store, choice: fastest.Choice | None, options: argparse.Namespace) -> int:
    published = store.keys()
    todo = plan.closure.todo(published)
    estimates = estimate(plan, store, published)
    print_plan(plan, todo, estimates, store, options)
    for line in _unmeasured(choice):
        print(line)
    slots = options.max_concurrent or max(1, int((os.cpu_count() or 1) / options.cpus_per_trial))
    if todo:
        seconds = estimates.makespan(plan, todo, slots)
        print(f"about {duration(seconds)} with {slots} trials at a time ({estimates.basis})")
    return OK


def print_plan(
    plan: Plan, todo: dict[str, set[int | None]], estimates: Estimates, store: Store, options: argparse.Namespace
) -> None:
    """Print the jobs by kind: how many, how many are published, what is left and what it costs; and what is slow."""
    space = plan.space
    print(f"{space.name}: {space.question}")
    print(f"  {'job':<8}{'total':>8}{'published':>11}{'to run':>8}{'epochs':>12}{'est. time':>14}")
    for kind in (*schema.STAGES, "all"):
        keys = [key for key, job in plan.jobs.items() if kind in (job.kind, "all")]
        left = [key for key in keys if key in todo]
        if keys:
            epochs, seconds = sum(plan.jobs[key].epochs for key in left), estimates.total(left)
            row = f"{len(keys):>8}{len(keys) - len(left):>11}{len(left):>8}{epochs:>12,}{duration(seconds):>14}"
            print(f"  {kind:<8}{row}")
    print(
        f"{plan.requests} cells; sharing trains {plan.epochs:,} epochs "
        f"instead of {plan.separate_epochs:,} ({plan.separate_epochs / max(1, plan.epochs):.1f} times fewer)"
    )
    for name, facts in plan.facts.items():
        print(*facts.lines(name), sep="\n")
    for line in (*fastest.lines(plan.ways), *_slow(plan, store, options)):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
