"""``--fastest``: for each network, the way of training that measured fastest among those that ``--set`` leaves open.

A way affects the bits of a result and therefore its key, so a choice is made once and kept with the results, in one
file per kind of device, network and settings given. Later studies with these, for any space and on any machine, get the
same choice and share the same jobs. To choose again, remove the file. ``study.benchmark.ways`` measures.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from search_spaces import SearchSpace, recipe
from study.benchmark.results import Rate
from study.estimate import image_size, masked
from study.plan import Network, Plan, Ways
from trainables.config import TRAINING_CONFIGS
from trainables.graph import Job
from trainables.host.cpu import emulates_bf16
from trainables.host.nvidia import gpus
from trainables.knobs import BF16, CPU_PRECISIONS, written
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.store import FASTEST, Store
from trainables.training.engines import CPU, GPU
from trainables.training.way import SETTINGS, WAYS, Setting, Way, in_words

TIE: Final = 1.05
"""Ways within this factor of the fastest count as ties: a second measurement might reverse them."""

NOTABLE: Final = 1.1
"""A plan mentions a way if it is faster than the space's own by more than this factor."""

_FILE = re.compile(rf"{FASTEST}/[a-z]+/(.+?)-x([0-9]+(?:\.[0-9]+)?)(-.*)?\.json")

_log = logging.getLogger(__name__)

Kept = Mapping[str, Setting]
"""Setting -> the value that the user has given."""


def left_open(space: SearchSpace, network: Network, given: Kept) -> list[Way]:
    """Return the ways to train a network that the given settings leave open."""
    return [way for way in WAYS if given.items() <= way.settings.items() and fits(way, space, network)]


def fits(way: Way, space: SearchSpace, network: Network) -> bool:
    """Return whether a network can be trained this way in every batch size of a space, and as repeatably as it asks."""
    model, _ = network
    batches = space.batch_size if isinstance(space.batch_size, tuple) else (space.batch_size,)
    repeats = way.engine.repeatable or space.deterministic in (False, (False,))
    return repeats and all(way.fits(model, batch_size) for batch_size in batches)


# --- what is asked ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Choice:
    """The ways that have been chosen for a space.

    Attributes:
        space: the space with the overrides of the command line.
        kept: settings that the command line fixes.
        device: ``CPU`` or ``GPU``.
        ways: network -> the settings chosen for it.
        missing: networks without a choice.
    """

    space: SearchSpace
    kept: Kept
    device: str
    ways: Ways
    missing: tuple[Network, ...]

    @property
    def current(self) -> Way:
        """The space's own way."""
        return Way.of(self.space)

    def candidates(self, network: Network, *, compiler: bool, sparsity: float) -> list[Way]:
        """Return the ways to train a network that the user's settings leave open, the space's own first.

        Args:
            network: a network of the space.
            compiler: whether the compiler that some engines need is available.
            sparsity: sparsity, in [0, 1), of the sparsest mask that the network is trained under; engines that gain
                nothing from it are left out.
        """
        possible = [
            way
            for way in left_open(self.space, network, self.kept)
            if self.device in way.engine.devices
            and sparsity >= way.engine.gains_from
            and (compiler or not way.engine.needs_compiler)
        ]
        if self.device == CPU and "precision" not in self.kept:
            possible = [way for way in possible if way.precision in CPU_PRECISIONS]
            if emulates_bf16():  # never the fastest, and slow to measure
                possible = [way for way in possible if way.precision != BF16 or way == self.current]
        return sorted(possible, key=lambda way: way != self.current)


def choice(space: SearchSpace, assignments: Iterable[str], store: Store, device: str) -> Choice:
    """Return the choices that have been made for a space.

    Args:
        space: the space, with `assignments` already applied.
        assignments: the assignments of ``--set``; settings given there stay fixed.
        store: where choices are kept.
        device: ``CPU`` or ``GPU``, where the networks will train.

    Raises:
        ValueError: nothing is left to choose, a setting is an axis of the grid, or a kept choice does not fit `space`.
    """
    given = kept(space, assignments)
    for name in SETTINGS:
        if isinstance(values := getattr(space, name), tuple):
            raise ValueError(
                f"--fastest chooses one {name} for each network, but the space asks for {', '.join(map(str, values))}"
            )
    if len(given) == len(SETTINGS):
        raise ValueError(f"--fastest has nothing to choose: {in_words(given)} are given by --set")
    found = chosen(store)
    ways = ways_of(space, found, device, given)
    missing = tuple(network for network in networks(space) if network not in ways)
    for network in missing:
        if settings := found.get(file(device, network, given)):
            selected_by = _way(given, settings).engine.selected_by or ("kernels", "")
            neutral = in_words({selected_by[0]: Way().settings[selected_by[0]]})
            raise ValueError(
                f"{called(network)} cannot be trained in this space with {in_words(settings)}, which --fastest chose "
                f"before: give --set {neutral}, or remove {store.uri}/{file(device, network, given)}"
            )
    return Choice(space=space, kept=given, device=device, ways=ways, missing=missing)


def kept(space: SearchSpace, assignments: Iterable[str]) -> dict[str, Setting]:
    """Return the settings that ``--set`` gives, directly or through a recipe, with their values in `space`."""
    names: set[str] = set()
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        names |= recipe(value, space.model).keys() if name == "recipe" else {name}
    return {name: getattr(space, name) for name in SETTINGS if name in names}


def networks(space: SearchSpace) -> list[Network]:
    """Return the networks of a space: every model at every width."""
    return list(itertools.product(space.model, space.width))


def device_of_trials(gpus_per_trial: float | None, address: str | None, store: Store) -> str:
    """Return the kind of device that a study's trials compute on: ``GPU`` if there are any GPUs, else ``CPU``.

    Args:
        gpus_per_trial: the command line's value; if given, it decides.
        address: address of a cluster. The cluster is not queried: it counts as having GPUs if the store has a choice
            for GPUs.
        store: where choices are kept.
    """
    if gpus_per_trial is not None:
        has_gpus = gpus_per_trial > 0
    elif address is not None:
        has_gpus = any(path.startswith(f"{FASTEST}/{GPU}/") for path in _files(store))
    else:
        has_gpus = bool(gpus())
    return GPU if has_gpus else CPU


# --- what has been chosen ---------------------------------------------------------------------------------------------
def chosen(store: Store) -> dict[str, dict[str, Setting] | None]:
    """Return file -> settings for all choices kept in a store; None for a damaged file, which a warning names."""
    return {path: _read(store, path)[0] for path in _files(store)}


def unreadable(found: Mapping[str, Kept | None]) -> set[Network]:
    """Return the networks with a damaged choice in `found`, the result of :func:`chosen`."""
    named = [_FILE.fullmatch(path) for path, settings in found.items() if settings is None]
    return {(name[1], float(name[2])) for name in named if name}


def ways_of(space: SearchSpace, found: Mapping[str, Kept | None], device: str, given: Kept) -> Ways:
    """Return the choices for a space's networks that were made with the same given settings and fit the space."""
    ways = {network: found.get(file(device, network, given)) for network in networks(space)}
    return {network: way for network, way in ways.items() if way and fits(_way(given, way), space, network)}


def file(device: str, network: Network, given: Kept) -> str:
    """Return the path of a network's choice in the storage."""
    model, width = network
    settings = (f"{name}={written(value)}" for name, value in sorted(given.items()))
    return f"{FASTEST}/{device}/{'-'.join([model, f'x{width:g}', *settings])}.json"


def keep(store: Store, path: str, way: Way, given: Kept, evidence: Mapping[str, Any]) -> dict[str, Setting]:
    """Keep a choice unless another process has kept one; return the settings of the choice that is kept.

    The file (see :func:`file`) also has the measurements behind the choice, `evidence`, for human readers.

    Raises:
        ValueError: a damaged file holds the path and cannot be replaced.
    """
    settings = {name: value for name, value in way.settings.items() if name not in given}
    content = json.dumps({"settings": settings, "given": dict(given), **evidence}, indent=1).encode()
    store.storage.create(path, content)
    held, found = _read(store, path)
    if held is None:  # damaged: the earlier choice is lost
        store.set_aside(path, found, "not a --fastest choice")
        store.storage.create(path, content)
        held, _ = _read(store, path)
    if held is None:
        raise ValueError(f"{store.uri}/{path} is not a --fastest choice and cannot be replaced: remove it")
    return held


def _files(store: Store) -> list[str]:
    return [path for path in store.storage.names(FASTEST) if path.endswith(".json")]


def _read(store: Store, path: str) -> tuple[dict[str, Setting] | None, bytes]:
    """Return the settings in a file (None if it is damaged) and its content."""
    content = store.storage.read(path) or b""
    try:
        document = documents.parse(content, documents.CHOICE)
        settings: dict[str, Setting] = document["settings"]
        if unknown := {*settings, *document["given"]} - {*SETTINGS}:
            raise Malformed(f"unknown settings {sorted(unknown)}")
        _way(document["given"], settings)
    except ValueError as error:
        _log.warning("%s/%s is not a --fastest choice (%s): it counts as not made", store.uri, path, error)
        return None, content
    return settings, content


def _way(given: Kept, settings: Kept) -> Way:
    values: dict[str, Any] = {**given, **settings}
    return Way(**values)


# --- choosing ---------------------------------------------------------------------------------------------------------
def training_jobs(plan: Plan, network: Network) -> list[Job]:
    """Return the jobs of a plan that train a network."""
    trained = [job for job in plan.jobs.values() if isinstance(job.config, TRAINING_CONFIGS)]
    return [job for job in trained if (job.config.task.model, job.config.task.width) == network]


def seconds(plan: Plan, jobs: Iterable[Job], way: Way, rates: Mapping[Way, Rate]) -> float:
    """Return the estimated seconds of training some jobs of one network, one after another.

    Each job trains in the network's way at the sparsity of its mask, at the network's rate in that way.
    """
    total = 0.0
    for job in jobs:
        rate = rates[way.at(masked(job))]
        images = plan.closure.epochs_of(job.key) * plan.facts[job.config.task.dataset].train_images
        total += images / rate.images_per_second + rate.compile_seconds
    return total


def quickest(totals: Mapping[Way, float]) -> Way:
    """Return the first of the ways that tie with the fastest."""
    return next(way for way, total in totals.items() if total < TIE * min(totals.values()))


def advice(plan: Plan, rates: Sequence[Rate], given: Kept) -> list[str]:
    """Return lines on the networks that train slower than a conventional loop, or than another way that is left open.

    Ways are compared by rates of the same width, image size and kind of measurement.

    Args:
        plan: the plan; its networks with a choice, and all if it has several values of a setting, keep their way.
        rates: rates measured on the machine that trains.
        given: settings that the user has given.
    """
    lines, space = [], plan.space
    keep_all = any(isinstance(getattr(space, name), tuple) for name in SETTINGS)
    for network in networks(space):
        what, jobs = called(network), training_jobs(plan, network)
        ways = dict.fromkeys(Way.of(job.config.recipe) for job in jobs if isinstance(job.config, TRAINING_CONFIGS))
        measured: dict[tuple[int, bool], dict[Way, Rate]] = {}
        for rate in rates:
            if (rate.model, rate.width) == network:
                measured.setdefault((rate.image_size, rate.conventional is not None), {})[Way.of(rate)] = rate
        for rate in (found[way] for way in ways for (_, beside), found in measured.items() if beside and way in found):
            if rate.conventional and rate.images_per_second < rate.conventional:
                lines.append(
                    f"{what} with {in_words(rate.settings)} is slower on this CPU than a conventional loop: "
                    f"{rate.images_per_second:,.0f} against {rate.conventional:,.0f} images/s"
                )
        if jobs and not keep_all and network not in plan.ways:
            size = image_size(plan, jobs[0])
            nearest_first = sorted(measured, key=lambda kind: max(kind[0], size) / min(kind[0], size))
            found = next((measured[kind] for kind in nearest_first if Way.of(space).at(0.0) in measured[kind]), {})
            lines += _faster(plan, network, jobs, found, given)
    return lines


def _faster(plan: Plan, network: Network, jobs: Sequence[Job], measured: Mapping[Way, Rate], given: Kept) -> list[str]:
    """Return a line on the way that trains a network faster than its own by more than ``NOTABLE``, if there is one."""
    own = Way.of(plan.space)
    left = [way for way in left_open(plan.space, network, given) if {way, way.at(0.0)} <= measured.keys()]
    totals = {way: seconds(plan, jobs, way, measured) for way in left}
    best = min(totals, key=lambda way: totals[way], default=own)
    if own not in totals or totals[own] <= NOTABLE * totals[best]:
        return []
    changed = {name: value for name, value in best.settings.items() if value != own.settings[name]}
    flags = " ".join(f"--set {each}" for each in in_words(changed).split())
    return [
        f"as measured on this CPU, {called(network)} trains {totals[own] / totals[best]:.1f} times faster with "
        f"{in_words(changed)}: {flags}, or --fastest"
    ]


# --- in words ---------------------------------------------------------------------------------------------------------
def lines(ways: Ways, missing: Sequence[Network] = ()) -> list[str]:
    """Return a line on each network: the way chosen for it, or that none has been measured."""
    text = [f"fastest {called(network)}: {in_words(settings)}" for network, settings in ways.items()]
    return text + [f"fastest {called(network)}: not measured yet, planned as the space has it" for network in missing]


def called(network: Network) -> str:
    """Return a network's name in output: its model and width."""
    return f"{network[0]} x{network[1]:g}"
