"""Chooses the fastest way to train each network of a plan; the ways are timed alternately.

On a GPU, as many trials are timed at once as a study places there; on a CPU, one on one thread. The machine that starts
a study may differ from the cluster's nodes: ``python -m study.benchmark fastest --space NAME --storage URI``, run on a
node like those that train, measures there and keeps the choices that ``python -m study.run --fastest`` then uses.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from search_spaces import get_space
from study import fastest
from study.benchmark import results
from study.benchmark.contest import Team, in_turns, machine, ready
from study.benchmark.results import Rate
from study.benchmark.settings import CLASSES, Training
from study.benchmark.workloads import OurTrial, images_on_disk, rate
from study.estimate import benchmark_file, image_size, masked, multiply_adds_per_image
from study.fastest import Choice
from study.options import parse_options
from study.plan import Network, Plan, make_plan, override
from study.scheduling.cards import Card, card_of
from study.scheduling.placement import needs
from trainables.config import TRAINING_CONFIGS
from trainables.graph import Job
from trainables.host.clock import duration
from trainables.host.devices import problem, seen
from trainables.host.terminal import OK, refused
from trainables.host.toolchain import find_compiler
from trainables.host.version import project_commit
from trainables.storage.store import StorageError, Store
from trainables.training.engines import CPU, ENGINES, GPU
from trainables.training.way import Way, in_words

REPEATS: Final = 3
MULTIPLY_ADDS: Final = {CPU: 6e10, GPU: 3e13}
"""Multiply-adds of a run's forward and backward passes, which take about a second."""
PIXELS: Final = 2**26
"""Maximum number of pixels of a run's images, per channel; the images are written to the disk."""
MOST_STEPS: Final = 50
COMPILED_FROM: Final = 20.0
"""Mean training seconds per job from which compiled ways are tried: compiling takes a minute, then seconds per job."""


def measure(choice: Choice, plan: Plan, store: Store) -> None:
    """Measure the networks without a choice, choose a way for each, and keep the choices with the results.

    Args:
        choice: the choices so far.
        plan: a plan of the same space.
        store: where choices are kept.

    Raises:
        ValueError: the device is missing on this machine, or no way that is left open can train one of the networks.
    """
    if choice.device == GPU and (reason := problem()) is not None:
        raise ValueError(f"{reason}; with --gpus-per-trial 0 trials compute on CPUs")
    out = benchmark_file(store)
    results.set_aside(out)
    surroundings, commit = machine(), project_commit()
    for network in choice.missing:
        if not (jobs := fastest.training_jobs(plan, network)):
            continue
        ways = choice.candidates(
            network,
            compiler=choice.device == GPU or find_compiler() is not None,
            sparsity=max(map(masked, jobs)),
        )
        if choice.device == GPU:
            ways = [way for way in ways if problem([way.precision]) is None]
        if not ways:
            given = in_words(choice.kept)
            raise ValueError(f"{fastest.called(network)} cannot be trained with {given} on {choice.device}")
        rates: Mapping[Way, Rate] = {}
        if len(ways) > 1:
            setting = setting_for(plan, jobs, choice.device)
            rates = _rates(plan, jobs, setting, ways, trials_on(this_card(), plan, jobs) if choice.device == GPU else 1)
            found = list(rates.values())
            results.store(out, "fastest", asdict(setting), found, machine=surroundings, commit=commit)
        totals = {way: fastest.seconds(plan, jobs, way, rates) for way in rates}
        evidence = {
            "seconds": {in_words(way.settings): round(total, 1) for way, total in totals.items()},
            "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "machine": surroundings,
        }
        path = fastest.file(choice.device, network, choice.kept)
        held = fastest.keep(store, path, fastest.quickest(totals) if totals else ways[0], choice.kept, evidence)
        print(*_lines(network, rates, totals), *fastest.lines({network: held}), sep="\n", flush=True)


def setting_for(plan: Plan, jobs: Sequence[Job], device: str) -> Training:
    """Return the setting in which a network of a plan is timed.

    Batch size and image size are those of the job that trains on the most images. The batch size is reduced to what a
    run of about a second affords, in multiples that suit every engine. The sparsity is that of the densest mask that
    some engine gains from, because sparser masks gain more; 0 means that there is no such mask. As many test images are
    evaluated per training image as in an epoch.
    """
    job = max(jobs, key=lambda job: plan.closure.epochs_of(job.key) * plan.facts[job.config.task.dataset].train_images)
    assert isinstance(job.config, TRAINING_CONFIGS)
    task, size = job.config.task, image_size(plan, job)
    images = images_in_a_second(task.model, task.width, size, device)
    multiple = math.lcm(*(engine.batch_multiple for engine in ENGINES.values()))
    batch = max(CLASSES, min(job.config.recipe.batch_size, max(multiple, images // multiple * multiple)))
    gains_from = [engine.gains_from for engine in ENGINES.values() if engine.gains_from]
    sparsities = [sparsity for each in jobs if any((sparsity := masked(each)) >= least for least in gains_from)]
    steps = max(1, min(MOST_STEPS, images // batch))
    facts = plan.facts[task.dataset]
    return Training(
        model=task.model,
        width=task.width,
        sparsity=min(sparsities, default=0.0),
        batch_size=batch,
        image_size=size,
        device=device,
        steps=steps,
        test_images=max(CLASSES, round(steps * batch * facts.test_images / facts.train_images)),
    )


def images_in_a_second(model: str, width: float, image_size: int, device: str) -> int:
    """Return how many images a run trains on to take about a second, as far as the disk affords them."""
    affordable = MULTIPLY_ADDS[device] / (3 * multiply_adds_per_image(model, width, image_size))
    return int(min(affordable, PIXELS / image_size**2))


def this_card() -> Card:
    """Return the kind of the first GPU of this machine."""
    first = seen()[0]
    return card_of(first.name, first.memory)


def trials_on(card: Card, plan: Plan, jobs: Sequence[Job]) -> int:
    """Return how many trials of the same network a study places on a busy GPU."""
    found, _ = needs(plan, [job.key for job in jobs], cpus=None, gpus=None, cards=[card])
    share = max(need.share_of(card) for need in found.values())
    return round(1 / share) if share else 1  # 0: the plan's own way of training needs no GPU


def _rates(plan: Plan, jobs: Sequence[Job], setting: Training, ways: Sequence[Way], trials: int) -> dict[Way, Rate]:
    """Return the rate of a trial beside others, in every way that works here and may pay off.

    Args:
        plan: the plan.
        jobs: its jobs that train the network.
        setting: what is timed.
        ways: of training.
        trials: number of trials at a time.
    """
    size, what = setting.image_size, fastest.called((setting.model, setting.width))
    images = f"in batches of {setting.batch_size} images of {size} x {size} pixels"
    print(f"measuring {what} {images}; its {len(jobs)} jobs, one after the other, take", flush=True)
    with images_on_disk(setting.images, size, setting.test_images) as folder, ExitStack() as stack:

        def enter(entering: Iterable[Way]) -> dict[Way, Team]:
            each = [(way, Team(stack, str(way), OurTrial, setting, folder, way, count=trials)) for way in entering]
            return ready(each)

        teams = enter(way for way in ways if not way.engine.compiles or way == ways[0])
        first = {way: rate(setting, way, trials * team.first) for way, team in teams.items()}
        shortest = min((fastest.seconds(plan, jobs, way, first) for way in _complete(first)), default=float("inf"))
        if shortest >= COMPILED_FROM * len(jobs):
            teams |= enter(way for way in ways[1:] if way.engine.compiles)
        if not teams:
            raise ValueError(f"{what} cannot be trained here in any of the ways that are left")
        found = {}
        for way, seconds in in_turns({way: team.seconds for way, team in teams.items()}, range(REPEATS)).items():
            each = statistics.median(seconds)
            lost = trials * setting.images * (teams[way].seconds("run afresh") - each) if way.engine.compiles else 0.0
            found[way] = rate(setting, way, trials * each, max(0.0, lost))
    return {way: found[way] for way in _complete(found)}


def _complete(rates: Mapping[Way, Rate]) -> list[Way]:
    """Return the ways whose rate without a mask is known, too."""
    return [way for way in rates if way.at(0.0) in rates]


def _lines(network: Network, rates: Mapping[Way, Rate], totals: Mapping[Way, float]) -> Iterator[str]:
    """Yield a line on each way: its settings, images per second, total time, and compile time."""
    for way, total in totals.items():
        its = rates[way]
        compiling = f", compiling takes each {its.compile_seconds:.1f} s" if way.engine.compiles else ""
        speed = f"{its.images_per_second:,.0f} images/s"
        yield f"  {in_words(way.settings):<46}{speed:>18}{duration(total):>14}{compiling}"
    if not totals:
        yield f"{fastest.called(network)} can be trained in one way only"


# --- the command line -------------------------------------------------------------------------------------------------
def main(argv: Sequence[str]) -> int:
    """Run ``python -m study.benchmark fastest`` and return the exit code: 0, or 2 for a wrong request."""
    try:
        options = parse_options(
            argv,
            "study.benchmark fastest",
            "Measure what `python -m study.run --fastest` takes on a cluster of machines like this one.",
            names=("space", "set", "storage", "data_dir", "gpus_per_trial"),
        )
        store = Store(options.storage)
        store.check_writable()
        space = override(get_space(options.space or ""), options.set)
        device = fastest.device_of_trials(options.gpus_per_trial, None, store)
        choice = fastest.choice(space, options.set, store, device)
        for line in fastest.lines(choice.ways):
            print(line, flush=True)
        measure(choice, make_plan(space, options.data_dir, choice.ways), store)
    except (ValueError, StorageError, OSError) as error:
        return refused(error)
    return OK
