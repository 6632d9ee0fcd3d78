"""``--fastest``: for each network, the way of training that measured fastest among those that ``--set`` leaves open.

A way affects the bits of a result and therefore its key, so a choice is made once and kept with the results, in one
file per kind of device, network and settings given. Later studies with these, for any space and on any machine, get the
same choice and share the same jobs. To choose again, remove the file. ``study.benchmark.ways`` measures.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from search_spaces import RECIPES, SearchSpace
from study.benchmark.results import Rate, nearest
from study.estimate import image_size, masked
from study.plan import Network, Plan, Ways
from trainables.config import TRAINING_CONFIGS
from trainables.graph import Job
from trainables.host.cpu import emulates_bf16
from trainables.knobs import CPU_PRECISIONS, written
from trainables.storage import documents
from trainables.storage.documents import Malformed
from trainables.storage.store import Store
from trainables.training.engines import CPU, GPU
from trainables.training.way import SETTINGS, WAYS, Setting, Way, in_words

FOLDER: Final = "fastest"
TIE: Final = 1.05
"""Ways within this factor of the fastest count as ties: a second measurement might reverse them."""

NOTABLE: Final = 1.1
"""A plan mentions a way if it is faster than the space's own by more than this factor."""

_FILE = re.compile(rf"{FOLDER}/[a-z]+/(.+?)-x([0-9]+(?:\.[0-9]+)?)(-.*)?\.json")

_log = logging.getLogger(__name__)

Kept = Mapping[str, Setting]
"""Setting -> the value that the user has given."""


def fits(way: Way, space: SearchSpace, network: Network) -> bool:
    """Return whether a network can be trained this way in every batch size of a space."""
    model, _ = network
    batches = space.batch_size if isinstance(space.batch_size, tuple) else (space.batch_size,)
    return all(way.fits(model, batch_size) for batch_size in batches)


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
        left = [way for way in WAYS if self.kept.items() <= way.settings.items() and fits(way, self.space, network)]
        possible = [
            way
            for way in left
            if self.device in way.engine.devices
            and sparsity >= way.engine.gains_from
            and (compiler or not way.engine.needs_compiler)
        ]
        if self.device == CPU and "precision" not in self.kept:
            possible = [way for way in possible if way.precision in CPU_PRECISIONS]
            if emulates_bf16():  # never the fastest, and slow to measure
                possible = [way for way in possible if way.precision != "bf16" or way == self.current]
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
                f"{called(network)} cannot be trained with {in_words(settings)} in this space, as was chosen before: "
                f"give --set {neutral}, or remove {store.uri}/{file(device, network, given)}"
            )
    return Choice(space=space, kept=given, device=device, ways=ways, missing=missing)


def kept(space: SearchSpace, assignments: Iterable[str]) -> dict[str, Setting]:
    """Return the settings that ``--set`` gives, directly or through a recipe, with their values in `space`."""
    names: set[str] = set()
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        names |= RECIPES[value].keys() if name == "recipe" else {name}
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
        has_gpus = any(path.startswith(f"{FOLDER}/{GPU}/") for path in _files(store))
    else:
        has_gpus = _gpus_here() > 0
    return GPU if has_gpus else CPU


def _gpus_here() -> int:
    """Return the number of NVIDIA GPUs that this process may use, from the driver: importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


# --- what has been chosen ---------------------------------------------------------------------------------------------
def chosen(store: Store) -> dict[str, dict[str, Setting]]:
    """Return file -> settings for all choices kept in a store; a warning names each damaged file, which is left out."""
    found = {path: _read(store, path)[0] for path in _files(store)}
    return {path: settings for path, settings in found.items() if settings is not None}


def unreadable(store: Store, found: Mapping[str, object]) -> set[Network]:
    """Return the networks with a kept choice that is not in `found`, the result of :func:`chosen`."""
    named = [_FILE.fullmatch(path) for path in _files(store) if path not in found]
    return {(name[1], float(name[2])) for name in named if name}


def ways_of(space: SearchSpace, found: Mapping[str, Kept], device: str, given: Kept) -> Ways:
    """Return the choices for a space's networks that were made with the same given settings and fit the space."""
    files = {network: file(device, network, given) for network in networks(space)}
    ways = {network: found[path] for network, path in files.items() if path in found}
    return {network: way for network, way in ways.items() if fits(_way(given, way), space, network)}


def file(device: str, network: Network, given: Kept) -> str:
    """Return the path of a network's choice in the storage."""
    model, width = network
    settings = (f"{name}={written(value)}" for name, value in sorted(given.items()))
    return f"{FOLDER}/{device}/{'-'.join([model, f'x{width:g}', *settings])}.json"


def keep(store: Store, path: str, way: Way, given: Kept, evidence: Mapping[str, Any]) -> dict[str, Setting]:
    """Keep a choice unless another process has kept one; return the settings of the choice that is kept.

    Args:
        store: where choices are kept.
        path: path of the choice, see :func:`file`.
        way: the choice.
        given: settings that the user has given.
        evidence: the measurements behind the choice, for human readers.

    Raises:
        ValueError: a damaged file holds the path and cannot be replaced.
    """
    settings = {name: value for name, value in way.settings.items() if name not in given}
    content = json.dumps({"settings": settings, "given": dict(given), **evidence}, indent=1).encode()
    store.storage.create(path, content)
    held, found = _read(store, path)
    if held is None:  # damaged: the earlier choice is lost
        store.set_aside(path, found, "no choice of --fastest")
        store.storage.create(path, content)
        held, _ = _read(store, path)
    if held is None:
        raise ValueError(f"{store.uri}/{path} is no choice of --fastest, and cannot be replaced; remove it")
    return held


def _files(store: Store) -> list[str]:
    return [path for path in store.storage.names(FOLDER) if path.endswith(".json")]


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
        _log.warning("%s/%s is no choice of --fastest (%s): it counts as not made", store.uri, path, error)
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

    Args:
        plan: the plan.
        jobs: training jobs of the network.
        way: the network's way; each job trains this way at the sparsity of its mask.
        rates: way -> the network's rate.
    """
    total = 0.0
    for job in jobs:
        rate = rates[way.at(masked(job))]
        images = job.epochs * plan.facts[job.config.task.dataset].train_images
        total += images / rate.images_per_second + rate.compile_seconds
    return total


def quickest(totals: Mapping[Way, float]) -> Way:
    """Return the first of the ways that tie with the fastest."""
    return next(way for way, total in totals.items() if total < TIE * min(totals.values()))


def faster_ways(plan: Plan, rates: Sequence[Rate], given: Kept) -> list[str]:
    """Return a line on each network that another way, left open by the user, trains faster than the space's own.

    Only rates of the same width, image size and kind of measurement are compared.

    Args:
        plan: the plan; networks with a choice are skipped.
        rates: rates measured on the machine that trains.
        given: settings that the user has given.
    """
    space, found = plan.space, []
    if any(isinstance(getattr(space, name), tuple) for name in SETTINGS):
        return []
    own = Way.of(space)
    for network in networks(space):
        jobs = training_jobs(plan, network)
        base = _rate(own.at(0.0), network, rates, image_size(plan, jobs[0])) if jobs else None
        if base is None or network in plan.ways:
            continue
        alike = [
            each
            for each in rates
            if each.image_size == base.image_size and (each.conventional is None) == (base.conventional is None)
        ]
        measured = {way: each for way in WAYS if (each := _rate(way, network, alike, base.image_size))}
        left = [way for way in measured if way.at(0.0) in measured and given.items() <= way.settings.items()]
        totals = {way: seconds(plan, jobs, way, measured) for way in left if fits(way, space, network)}
        best = min(totals, key=lambda way: totals[way], default=own)
        if own in totals and totals[own] > NOTABLE * totals[best]:
            changed = {name: value for name, value in best.settings.items() if value != own.settings[name]}
            flags = " ".join(f"--set {each}" for each in in_words(changed).split())
            found.append(
                f"as measured on this CPU, {called(network)} trains {totals[own] / totals[best]:.1f} times faster with "
                f"{in_words(changed)}: {flags}, or --fastest"
            )
    return found


def _rate(way: Way, network: Network, rates: Sequence[Rate], size: int) -> Rate | None:
    """Return the measured rate of a network in a way, at exactly its width; None if there is none."""
    model, width = network
    own = [rate for rate in rates if rate.width == width]
    return nearest(own, model, width, way, image_size=size, sparsity=way.engine.gains_from)


# --- in words ---------------------------------------------------------------------------------------------------------
def lines(ways: Ways, missing: Sequence[Network] = ()) -> list[str]:
    """Return a line on each network: the way chosen for it, or that none has been measured."""
    text = [f"fastest {called(network)}: {in_words(settings)}" for network, settings in ways.items()]
    return text + [f"fastest {called(network)}: not measured yet, planned as the space has it" for network in missing]


def called(network: Network) -> str:
    """Return a network's name in output: its model and width."""
    return f"{network[0]} x{network[1]:g}"
