"""Forecast of a plan, printed before anything runs: jobs, epochs, estimated time, and what could train faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from study import fastest
from study.estimate import Estimates, estimate, rates_here, rates_on
from study.options import Options
from study.plan import Network, Plan
from study.scheduling.cards import CARDS, machines
from study.scheduling.simulation import Schedule, simulate
from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.host import cpu
from trainables.host.clock import duration
from trainables.host.processes import cores
from trainables.knobs import BF16
from trainables.storage.store import Store
from trainables.training.engines import CPU


def print_forecast(plan: Plan, store: Store, options: Options, unmeasured: Sequence[Network]) -> None:
    """Print the remaining jobs of a plan and how long they take with as many trials at a time as the options allow.

    This is the dry run. For the networks in `unmeasured`, ``--fastest`` has no choice yet.
    """
    published = store.keys()
    todo, estimates = plan.closure.todo(published), estimate(plan, store, published)
    schedule = _schedule(plan, todo, estimates, store, options) if todo and options.on else None
    shown = Estimates({**estimates.seconds, **schedule.alone}, 0) if schedule else estimates
    print_plan(plan, todo, shown, store, options)
    for line in fastest.lines({}, unmeasured):
        print(line)
    if schedule:
        print(*_on_machines(schedule, estimates, options), sep="\n")
    elif todo:
        number = slots(options, plan.space.workers)
        seconds = estimates.makespan(plan, todo, number)
        print(f"about {duration(seconds)} with {number} trial{'s' * (number > 1)} at a time ({estimates.basis})")


def _schedule(
    plan: Plan, todo: Mapping[str, set[int | None]], on_core: Estimates, store: Store, options: Options
) -> Schedule:
    """Lay a plan on the machines of ``--on``."""
    devices = machines(options.on or "")
    return simulate(
        plan,
        todo,
        devices,
        on_core,
        {name: rates_on(store, CARDS[name]) for name in devices if name != CPU},
        cpus=options.cpus_per_trial,
        gpus=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        nets_per_trial=options.nets_per_trial,
    )


def _on_machines(schedule: Schedule, on_core: Estimates, options: Options) -> list[str]:
    """Return lines on how long a plan takes on the machines of ``--on``, and on what that is based."""
    devices = machines(options.on or "")
    hours = schedule.seconds / 3600
    spent = {"GPU": sum(number for name, number in devices.items() if name != CPU), "core": devices.get(CPU, 0)}
    occupied = ", ".join(f"{number * hours:,.1f} {unit}-hours" for unit, number in spent.items() if number)
    part = f"{100 * schedule.measured:.0f} % of the jobs from measured rates, the others " if schedule.measured else ""
    on_cores = spent["core"] or options.gpus_per_trial == 0  # the trials compute on the cores beside the GPUs
    on_gpus = spent["GPU"] and options.gpus_per_trial != 0
    basis = {f"GPUs: {part}by arithmetic, not measured": on_gpus, f"cores: {on_core.basis}": on_cores}
    return [
        *(f"warning: {line}" for line in schedule.warnings),
        f"on {options.on}: about {duration(schedule.seconds)} (no schedule takes less than "
        f"{duration(schedule.bound)}); {occupied}, {100 * schedule.idle:.0f} % of them idle",
        f"({'; '.join(text for text, number in basis.items() if number)})",
    ]


def slots(options: Options, workers: int = 1) -> int:
    """Return how many trials of `workers` workers run at a time: as many as this machine has room for, unless limited.

    The size of a cluster is not known before it is joined, so its limit stands for it.
    """
    fit = max(1, int(cores() / (workers * (options.cpus_per_trial or 1.0))))
    most = options.max_concurrent or fit
    return most if options.cluster is not None else min(fit, most)


def print_plan(
    plan: Plan, todo: Mapping[str, set[int | None]], estimates: Estimates, store: Store, options: Options
) -> None:
    """Print the jobs of each kind (total, published, left to run, estimated time) and the networks that train slowly.

    Left are the outputs in `todo`, key of a job -> outputs, from ``plan.closure.todo(published)``.
    """
    space = plan.space
    print(f"{space.name}: {space.question}")
    print(f"  {'job':<8}{'total':>8}{'published':>11}{'to run':>8}{'epochs':>12}{'est. time':>14}")
    for kind in (*schema.STAGES, "all"):
        keys = [key for key, job in plan.jobs.items() if kind in (job.kind, "all")]
        left = [key for key in keys if key in todo]
        if keys:
            epochs, seconds = sum(plan.jobs[key].epochs_to(todo[key]) for key in left), estimates.total(left)
            row = f"{len(keys):>8}{len(keys) - len(left):>11}{len(left):>8}{epochs:>12,}{duration(seconds):>14}"
            print(f"  {kind:<8}{row}")
    print(
        f"{plan.requests} cells; sharing trains {plan.epochs:,} epochs "
        f"instead of {plan.separate_epochs:,} ({plan.separate_epochs / max(1, plan.epochs):.1f} times fewer)"
    )
    for name, facts in plan.facts.items():
        print(*facts.lines(name), sep="\n")
    for line in (
        *_shared(plan, todo),
        *_trained_again(plan, todo, store),
        *plan.notes,
        *fastest.lines(plan.ways),
        *_slow(plan, store, options),
    ):
        print(line)


def _shared(plan: Plan, todo: Mapping[str, set[int | None]]) -> list[str]:
    """Return a line on how many workers the jobs to run use, if some use several."""
    if plan.space.workers == 1:
        return []
    counts = Counter(plan.workers(key) for key in todo)
    parts = [f"{count:,} jobs with {number} each" for number, count in sorted(counts.items(), reverse=True)]
    whole = {
        job.config.recipe.engine.setting: None
        for key, job in plan.jobs.items()
        if key in todo and isinstance(job.config, TRAINING_CONFIGS) and plan.workers(key) == 1
    }
    why = (
        f"; {' and '.join(whole)} {'train' if len(whole) > 1 else 'trains'} each network in a single process"
        if whole
        else ""
    )
    return [f"workers: {', '.join(parts)}{why}"]


def _trained_again(plan: Plan, todo: Mapping[str, set[int | None]], store: Store) -> list[str]:
    """Return a line on the published dense nets that are trained again for further states, if there are any."""
    again = [key for key in todo if plan.jobs[key].kind == schema.DENSE and None not in todo[key] and key in store]
    if not again:
        return []
    nets = "1 dense net is" if len(again) == 1 else f"{len(again)} dense nets are"
    return [
        f"warning: {nets} trained again, for states at other epochs than those that were kept. Where training does not "
        "repeat to the bit (on a GPU without deterministic=true, or elsewhere than before), these are not states of "
        "the nets that were pruned and matched"
    ]


def _slow(plan: Plan, store: Store, options: Options) -> list[str]:
    """Return a line on each part of a plan that could be faster on this machine's CPU; none if trials run elsewhere."""
    if (
        options.on
        or options.cluster is not None
        or fastest.device_of_trials(options.gpus_per_trial, None, store) != CPU
    ):
        return []
    lines = fastest.advice(plan, rates_here(store), fastest.kept(plan.space, options.set))
    trained = [job.config for job in plan.jobs.values() if isinstance(job.config, TRAINING_CONFIGS)]
    if cpu.emulates_bf16() and any(config.recipe.precision == BF16 for config in trained):
        lines.append(
            f"warning: this CPU ({cpu.name()}) has none of {', '.join(cpu.BF16_FEATURES)} and emulates precision=bf16, "
            "which takes many times as long as fp32"
        )
    return lines
