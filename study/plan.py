"""From a search space to the jobs that it needs. Imports no torch, ray or mlflow, and starts nothing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces import RECIPES, SearchSpace, recipe
from trainables import schema
from trainables.checks import known
from trainables.config import Cell, check_something_left, workers_of
from trainables.data import check_dataset
from trainables.data.dataset import DatasetFacts, Reading
from trainables.graph import Closure, Job, Ref, lth_cell, measurements, target
from trainables.knobs import MATCHING, MEASURING, SETTINGS, Scalar
from trainables.models import image_options

Network = tuple[str, float]
"""Model and width."""
Ways = Mapping[Network, Mapping[str, bool | str]]
"""Network -> settings of ``trainables.config.Cell``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The deduplicated graph of jobs behind a search space.

    Attributes:
        space: the search space.
        facts: dataset name -> facts about its data.
        closure: the jobs, parents first, and the requested outputs.
        cells: key of a job -> the first cell that needs it, from which another machine derives the same job.
        requests: number of cells in the grid.
        lth_keys: key of a sparse job -> key of the LTH job with the same mask, sparsity and rewind epoch.
        separate_epochs: epochs needed to compute each cell of the grid on its own, without sharing jobs.
        recipes: key of a job -> the combinations of values of the `varied_settings` with which cells need it; None for
            any value of a setting on which the job does not depend.
        ways: network -> settings of its recipe that replace the space's.
        notes: lines on how the plan came about, for the user.
    """

    space: SearchSpace
    facts: dict[str, DatasetFacts]
    closure: Closure
    cells: dict[str, Cell]
    requests: int
    lth_keys: dict[str, str]
    separate_epochs: int
    recipes: Mapping[str, list[dict[str, Scalar | None]]] = dataclasses.field(default_factory=dict)
    ways: Ways = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def jobs(self) -> dict[str, Job]:
        """Key -> job, parents first."""
        return self.closure.jobs

    def workers(self, key: str) -> int:
        """Return how many workers share a job."""
        return workers_of(self.jobs[key].config, self.space.workers)

    @property
    def epochs(self) -> int:
        """Total epochs of all jobs of the plan."""
        return sum(map(self.closure.epochs_of, self.jobs))


def make_plan(
    space: SearchSpace,
    data_dir: str | None = None,
    ways: Ways | None = None,
    facts_of: Callable[[str, str | None, Reading], DatasetFacts] | None = None,
) -> Plan:
    """Return the plan of a search space.

    Args:
        space: the search space.
        data_dir: directory of the datasets.
        ways: network -> settings of its recipe that replace the space's.
        facts_of: takes the arguments of :func:`trainables.data.check_dataset`, which is the default.

    Raises:
        ValueError: a value is out of bounds, a name is unknown, or data are missing; the message says how to get them.
    """
    _refuse_idle_settings(space)
    if isinstance(space.workers, tuple):
        raise ValueError(f"workers takes one value, got {', '.join(map(str, space.workers))}: results are the same")
    reading = reading_of(space)
    facts = {name: (facts_of or check_dataset)(name, data_dir, reading) for name in datasets(space)}
    graph = Closure()
    cells: dict[str, Cell] = {}
    lth_keys: dict[str, str] = {}
    asked: set[str] = set()
    requests = separate = 0
    own_epochs: dict[str, int] = {}
    names = varied_settings(space)
    recipes: defaultdict[str, dict[tuple[Scalar, ...], None]] = defaultdict(dict)  # in the order of the cells

    def ask(root: Job, cell: Cell) -> None:
        recipes[root.key][tuple(getattr(cell, name) for name in names)] = None
        if root.key in asked:
            return
        asked.add(root.key)
        workers_of(root.config, space.workers)  # raises ValueError
        cells.update(dict.fromkeys((added.key for added in graph.add(Ref(root))), cell))

    grid, unasked = list(_cells(space, facts, ways or {})), dict[str, Cell]()
    for cell in grid:
        job = target(cell)
        requests += 1
        if job.key not in own_epochs:
            alone = Closure([Ref(job)])
            own_epochs[job.key] = sum(map(alone.epochs_of, alone.jobs))
        separate += own_epochs[job.key]
        ask(job, cell)
        if job.kind == schema.SPARSE and "lth" in space.method and job.key not in lth_keys:
            lth_keys[job.key] = target(lth_cell(cell)).key
    for cell in grid:  # after all nets, so that an ensemble's members have their own cells, not the ensemble's
        for measurement in measurements(cell):  # cells with the same target may differ in their measurements
            if measurement.kind == schema.PLANE and (lth := measurement.parent("lth").key) not in graph.jobs:
                unasked[lth] = lth_cell(cell)  # a net that the grid does not request
            ask(measurement, cell)
    # A result on which only other jobs depend is also a run and a part of the tables. A state at a rewind epoch is not.
    led = {ref.key: ref for job in graph.jobs.values() for _, ref in job.parents if ref.epoch is None}
    for ref in led.values():
        graph.add(ref)
    for job in reversed(graph.jobs.values()):  # parents are needed by all cells that need their children
        for _, ref in job.parents:
            recipes[ref.job.key] |= recipes[job.key]
    return Plan(
        space=space,
        facts=facts,
        closure=graph,
        cells=cells | unasked,
        requests=requests,
        lth_keys=lth_keys,
        separate_epochs=separate,
        recipes={key: _combined(names, recipes[key], space) for key in graph.jobs},
        ways=ways or {},
    )


def varied_settings(space: SearchSpace) -> list[str]:
    """Return the settings with several values that split the cells of a grid, besides the axes of every grid.

    Settings of matching make rows of a cell instead, and measurements and members of ensembles make neither.
    """
    return [
        name
        for name, knob in SETTINGS.items()
        if not knob.axis and knob.part not in (MATCHING, MEASURING) and knob.name != "member"
        if isinstance(values := getattr(space, name), tuple) and len(values) > 1
    ]


def _combined(
    names: Sequence[str], found: Collection[tuple[Scalar, ...]], space: SearchSpace
) -> list[dict[str, Scalar | None]]:
    """Return combinations of settings, with None for a setting if all its values go with those of the others."""
    free = {
        place
        for place, name in enumerate(names)
        if len(found) == len(set(getattr(space, name))) * len({(*each[:place], *each[place + 1 :]) for each in found})
    }
    distinct = dict.fromkeys(tuple(None if i in free else value for i, value in enumerate(each)) for each in found)
    return [dict(zip(names, each, strict=True)) for each in distinct]


def datasets(space: SearchSpace) -> list[str]:
    """Return the datasets of a space, including those of its masks."""
    masks = space.mask_dataset if isinstance(space.mask_dataset, tuple) else (space.mask_dataset,)
    return list(dict.fromkeys((*space.dataset, *filter(None, masks))))


def reading_of(space: SearchSpace) -> Reading:
    """Return how the space's folders of images are read.

    Raises:
        ValueError: a setting has several values, although all jobs of a study read a folder in the same way.
    """
    reading = Reading.of(space)
    for name, value in dataclasses.asdict(reading).items():
        if isinstance(value, tuple):
            raise ValueError(f"{name} takes one value, got {', '.join(map(str, value))}: run a study with each")
    return reading


def _refuse_idle_settings(space: SearchSpace) -> None:
    """Raise ValueError for ``imp_path``, ``plane_resolution``, ``mask_overlap`` or ``member`` if nothing reads it."""
    for setting, method in (("imp_path", "imp"), ("plane_resolution", "permuted"), ("mask_overlap", "permuted")):
        if getattr(space, setting) and method not in space.method:
            raise ValueError(f"{setting} is measured for method {method!r}, which the space does not have")
    if space.members and space.member:
        raise ValueError(f"member={space.member} has no meaning with members={space.members}: all of them are trained")


def _cells(space: SearchSpace, facts: Mapping[str, DatasetFacts], ways: Ways) -> Iterator[Cell]:
    """Yield the cells of a space with the fingerprints of their data; an ensemble yields each of its members."""
    for values in space.cells():
        dataset, masks = facts[str(values["dataset"])], facts.get(str(values["mask_dataset"]))
        if masks and _shape(values, masks) != _shape(values, dataset):
            raise ValueError(
                f"mask_dataset {values['mask_dataset']!r} ({_described(masks)}) and dataset {values['dataset']!r} "
                f"({_described(dataset)}) make {values['model']} differ in shape: the mask would not fit"
            )
        located = {"data_version": dataset.fingerprint, "mask_data_version": masks.fingerprint if masks else ""}
        way = ways.get((str(values["model"]), float(values["width"])), {})
        cell = Cell.from_mapping({**values, **way, **located})
        for name, each in ((cell.dataset, dataset), (cell.mask_dataset, masks)):
            if each and cell.batch_size > each.train_images:
                raise ValueError(f"batch_size={cell.batch_size} exceeds the {each.train_images:,} images of {name}")
        check_something_left(cell, dataset)
        members = range(cell.members) if cell.members else (cell.member,)
        yield from (dataclasses.replace(cell, member=member) for member in members)


def _shape(values: Mapping[str, Any], facts: DatasetFacts) -> tuple[object, ...]:
    """Return the parts of a network's shape that come from the dataset."""
    follow = image_options(str(values["model"]), facts.image_size) if facts.image_size else {}
    return facts.num_classes, facts.in_channels, follow


def _described(facts: DatasetFacts) -> str:
    return f"{facts.num_classes} classes, {facts.in_channels} channels, {facts.image_size or '?'} pixels a side"


# --- overriding fields of a space -----------------------------------------------------------------------------------
def override(space: SearchSpace, assignments: Iterable[str]) -> SearchSpace:
    """Return the space with ``key=value`` assignments applied in order; commas separate the values of an axis.

    ``recipe=NAME`` sets all fields of a recipe, with its values for the models of the resulting space. A field of which
    `space` has several values stays as it is: the space asks what that field does.

    Raises:
        ValueError: a text is no assignment, a key is unknown, or a value is of the wrong type or out of bounds.
    """
    settings: list[tuple[str, Any]] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {assignment!r}")
        known("key of --set", key, ("recipe", *SETTINGS))
        if key == "recipe":
            known("recipe", text, RECIPES)
            settings.append((key, text))
            continue
        values = tuple(SETTINGS[key].parsed(part.strip()) for part in text.split(","))
        is_axis = len(values) > 1 or isinstance(getattr(space, key), tuple)
        settings.append((key, values if is_axis else values[0]))
    models = dict(settings).get("model", space.model)
    changes: dict[str, Any] = {}
    for key, value in settings:
        if key != "recipe":
            changes[key] = value
            continue
        own = recipe(value, models)
        changes |= {name: setting for name, setting in own.items() if not isinstance(getattr(space, name), tuple)}
    if "rewind_epoch" in changes:  # rewind epochs that are set explicitly hold at every width
        changes["rewind_epochs_of_width"] = ()
    return dataclasses.replace(space, **changes)
