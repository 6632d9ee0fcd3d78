"""Removing results that no search space needs any more: ``python -m study.run --clean``.

Needed is every job of every space as it is defined now, and of the space and settings named on the command line; where
``--fastest`` has chosen something, both with and without it. A space whose data are not here cannot be planned; results
on its datasets are kept. So are those of networks for which a choice of ``--fastest`` is damaged, and files that no
study has put where they are.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from search_spaces import SPACES, SearchSpace
from study.fastest import CPU, GPU, Kept, called, ways_of
from study.plan import Network, Plan, make_plan
from study.status import size_in_words
from trainables.host.processes import host_of
from trainables.storage.lease import renewal_seconds
from trainables.storage.store import Store, owner

_Group = tuple[str, str, str, str]
"""Dataset, model, width and kind."""


@dataclass(frozen=True, kw_only=True)
class Surplus:
    """What can go.

    Attributes:
        results: keys of results that no space needs, grouped.
        leftovers: paths of files that belong to no result: set aside as damaged, of attempts that were killed,
            checkpoints and notes of jobs that are published or that no space needs.
        bytes: path -> bytes of all files of the storage that may go.
        kept: dataset, or network and its dataset -> number of results that no planned space needs, kept because a space
            on it cannot be planned, or because it is not known how ``--fastest`` has the network trained.
        strange: paths of files that no study has put there; they stay.
        damaged: what was found damaged and set aside by looking, one line each.
    """

    results: dict[_Group, list[str]]
    leftovers: list[str]
    bytes: dict[str, int]
    kept: dict[str, int]
    strange: list[str]
    damaged: list[str]

    @property
    def keys(self) -> set[str]:
        """Keys of all results that can go."""
        return {key for keys in self.results.values() for key in keys}


def surplus(
    store: Store, plans: Iterable[Plan], unplanned: Collection[str], unchosen: Collection[Network] = ()
) -> Surplus:
    """Return what a store has beyond what some plans need.

    Args:
        store: the store.
        plans: what is needed.
        unplanned: datasets of spaces that could not be planned.
        unchosen: networks of which a choice of ``--fastest`` is damaged.
    """
    needed: set[str] = set()
    for plan in plans:
        needed |= plan.jobs.keys()
        needed |= {root.key for root in plan.closure.roots}
        needed |= {ref.key for job in plan.jobs.values() for _, ref in job.parents}
    files = {path: size for directory in ("store", "work", "failed") for path, size in store.storage.sizes(directory)}
    published = store.keys()
    manifests, damaged = store.manifests(sorted(published - needed))
    results: dict[_Group, list[str]] = defaultdict(list)
    kept: dict[str, int] = defaultdict(int)
    for key, manifest in manifests.items():
        task = manifest.get("config", {}).get("task", {})
        dataset, model, width = task.get("dataset", "?"), task.get("model", "?"), task.get("width", 0.0)
        if dataset in unplanned:
            kept[dataset] += 1
        elif (model, width) in unchosen:
            kept[f"{called((model, width))} on {dataset}"] += 1
        else:
            results[dataset, model, f"{width:g}", manifest.get("kind", "?")].append(key)
    strange = [path for path in files if owner(path) is None]
    ours = [path for path in files if owner(path) is not None]
    leftovers = _leftovers(store, ours, published, needed, bool(unplanned) or bool(unchosen))
    return Surplus(
        results=dict(sorted(results.items())),
        leftovers=leftovers,
        bytes=files,
        kept=dict(kept),
        strange=strange,
        damaged=damaged,
    )


def _leftovers(
    store: Store, files: Iterable[str], published: Collection[str], needed: Collection[str], careful: bool
) -> list[str]:
    """Return files that belong to nothing; `careful` keeps the work on jobs of spaces that are not known."""
    found, attempts = [], defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for path in files:
        key, within = owner(path), path.split("/")[3:]
        assert key is not None, "files of others are left alone"
        if not path.startswith("store/"):
            if key in published or (key not in needed and not careful):
                found.append(path)
        elif key not in published:
            found.append(path)
        elif len(within) > 1:  # in an object store: of one of the attempts at publishing the result
            attempts[key][within[0]].append(path)
    contested = [key for key, each in attempts.items() if len(each) > 1]
    for key, manifest in store.manifests(contested)[0].items():
        for attempt, paths in attempts[key].items():
            if attempt != manifest.get("attempt"):
                found += paths
    return found


def plan_all(
    named: SearchSpace | None,
    data_dir: str | None,
    choices: Mapping[str, Kept],
    given: Kept,
) -> tuple[list[Plan], dict[str, str]]:
    """Return the plans of all spaces, and why those that are missing could not be made: name -> reason.

    Args:
        named: a space with settings of its own, to be kept beside them.
        data_dir: where datasets are looked for.
        choices: of ``--fastest``, by their files.
        given: those settings of `named` that no choice replaces.

    Raises:
        ValueError: `named` itself cannot be planned.
    """
    plans = _plans(named, data_dir, choices, given) if named else []
    missing = {}
    for space in SPACES.values():
        try:
            plans += _plans(space, data_dir, choices, {})
        except ValueError as error:
            missing[space.name] = str(error)
    return plans, missing


def _plans(space: SearchSpace, data_dir: str | None, choices: Mapping[str, Kept], given: Kept) -> list[Plan]:
    """Return the plan of a space, and those with what was chosen for it on each kind of device."""
    ways = filter(None, (ways_of(space, choices, device, given) for device in (CPU, GPU)))
    return [make_plan(space, data_dir), *(make_plan(space, data_dir, each) for each in ways)]


def datasets(names: Iterable[str]) -> set[str]:
    """Return the datasets of some spaces, those that masks come from included."""
    found: set[str] = set()
    for name in names:
        space = SPACES[name]
        masks = space.mask_dataset if isinstance(space.mask_dataset, tuple) else (space.mask_dataset,)
        found |= {*space.dataset, *filter(None, masks)}
    return found


def lines(found: Surplus, missing: Collection[str]) -> list[str]:
    """Return what can go, as text."""
    size = size_in_words(sum(size for path, size in found.bytes.items() if _result(path) in found.keys))
    text = [f"{len(found.keys)} results that no search space needs, {size}"]
    if found.results:
        text.append(f"  {'dataset':<14}{'model':<12}{'width':>6}  {'kind':<10}{'results':>8}")
    for (dataset, model, width, kind), keys in found.results.items():
        text.append(f"  {dataset:<14}{model:<12}{width:>6}  {kind:<10}{len(keys):>8}")
    size = size_in_words(sum(found.bytes[path] for path in found.leftovers))
    text.append(f"{len(found.leftovers)} files left over from damage, killed attempts and finished work, {size}")
    if missing:
        text.append(f"not planned, for want of data: {', '.join(sorted(missing))} (--data-dir)")
    for dataset, count in found.kept.items():
        text.append(f"  kept: {count} results on {dataset}")
    text += [f"left alone, for it is of no study: {ascii(path)[1:-1]}" for path in found.strange]
    text += [f"damaged: {line}" for line in found.damaged]
    text.append("results of a run with --set are needed only if you name that run here: --space NAME --set ...")
    return text


def _result(path: str) -> str:
    """Return the key of the result that a file belongs to; "" for one of no result."""
    return (path.startswith("store/") and owner(path)) or ""


def remove(store: Store, found: Surplus) -> None:
    """Remove it.

    Raises:
        ValueError: a study is running on the store, which may need what it has just computed.
    """
    check_idle(store)
    for key in sorted(found.keys):
        store.remove(key)
    for path in found.leftovers:
        store.storage.remove(path)


def check_idle(store: Store) -> None:
    """Raise ValueError while a study or a job runs on the store."""
    if store.forget_damaged_leases():
        time.sleep(2 * renewal_seconds())  # by then whoever held one of them has put it back
    owners = {host_of(lease["owner"]) for lease in (*store.studies(), *store.leases().values())}
    if owners:
        raise ValueError(f"something runs on {store.uri} ({', '.join(sorted(owners))}): clean when it has ended")
