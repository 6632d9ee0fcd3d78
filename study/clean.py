"""Remove results that no search space needs any more: ``python -m study.run --clean``.

Needed are all jobs of all spaces as they are defined now, and all jobs of the space and settings on the command line.
Where ``--fastest`` has made a choice, the jobs with and without it are needed. A space whose data are missing cannot be
planned, so results on its datasets stay. Results on a folder of images stay unless the plans are for the same images.
Results of a network whose ``--fastest`` choice is damaged stay, too, as do files that no study has written.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from search_spaces import SPACES, SearchSpace, get_space
from study.fastest import Kept, called, chosen, kept, unreadable, ways_of
from study.known_data import recorded_versions
from study.options import Options
from study.plan import Network, Plan, datasets, make_plan, override
from study.preference import preferences
from study.status import size_in_words
from trainables.host.processes import host_of
from trainables.schema import MANIFEST
from trainables.storage.lease import renewal_seconds
from trainables.storage.store import Store, owner, published
from trainables.training.engines import CPU, GPU

_Group = tuple[str, str, str, str]
"""Dataset, model, width and kind."""


def offer_cleaning(store: Store, options: Options) -> None:
    """List what can be removed, and remove it after a confirmation.

    Raises:
        ValueError: a study is running on the store, or the space named in the options cannot be planned.
    """
    named = override(get_space(options.space), options.set) if options.space else None
    check_idle(store)
    choices = chosen(store)
    plans, missing = plan_all(named, options.data_dir, choices, kept(named, options.set) if named else {})
    unplanned = {dataset for name in missing for dataset in datasets(SPACES[name])}
    found = surplus(store, plans, unplanned, unreadable(choices))
    print(*lines(found, missing), sep="\n")
    if not found.keys and not found.leftovers:
        return
    if options.yes or (sys.stdin.isatty() and input("remove them? [y/N] ").strip().lower() in ("y", "yes")):
        remove(store, found)
        print("removed")
    else:
        print("nothing was removed; confirm with --yes")


@dataclass(frozen=True, kw_only=True)
class Surplus:
    """What can be removed.

    Attributes:
        results: keys of results that no space needs, grouped.
        leftovers: paths of files that belong to no result: damaged files that were set aside, files of killed
            attempts, and checkpoints and failure notes of jobs that are finished or that no space needs.
        bytes: path -> bytes, for every file under ``store``, ``work`` and ``failed``.
        kept: dataset, other images of a dataset, or network and its dataset -> number of results that no planned space
            needs but that stay, because no plan is made for the data or the network's ``--fastest`` choice is unknown.
        strange: paths of files that stay because no study has written them.
        damaged: a line on each result that turned out to be damaged and was set aside.
    """

    results: dict[_Group, list[str]]
    leftovers: list[str]
    bytes: dict[str, int]
    kept: dict[str, int]
    strange: list[str]
    damaged: list[str]

    @property
    def keys(self) -> set[str]:
        """Keys of all results that can be removed."""
        return {key for keys in self.results.values() for key in keys}


def surplus(
    store: Store, plans: Collection[Plan], unplanned: Collection[str], unchosen: Collection[Network] = ()
) -> Surplus:
    """Return what a store holds beyond the needs of the given plans.

    Args:
        store: the store.
        plans: plans that together contain everything needed.
        unplanned: datasets of spaces that could not be planned.
        unchosen: networks whose ``--fastest`` choice is damaged.
    """
    needed: set[str] = set()
    versions: set[tuple[str, str]] = set()
    for plan in plans:
        versions |= {(dataset, facts.fingerprint) for dataset, facts in plan.facts.items()}
        needed |= plan.jobs.keys()
        needed |= {root.key for root in plan.closure.roots}
        needed |= {ref.key for job in plan.jobs.values() for _, ref in job.parents}
    files = {**store.storage.sizes("store"), **store.storage.sizes("work"), **store.storage.sizes("failed")}
    present = published(files)
    found, damaged = store.results(sorted(present - needed))
    results: dict[_Group, list[str]] = defaultdict(list)
    kept: dict[str, int] = defaultdict(int)
    for key, result in found.items():
        task = result.manifest.get("config", {}).get("task", {})
        dataset, model, width = task.get("dataset", "?"), task.get("model", "?"), task.get("width", 0.0)
        version = task.get("data_version", "")
        if dataset in unplanned:
            kept[dataset] += 1
        elif version and (dataset, version) not in versions:
            kept[f"other images of {dataset} than those in --data-dir"] += 1
        elif (model, width) in unchosen:
            kept[f"{called((model, width))} on {dataset}"] += 1
        else:
            results[dataset, model, f"{width:g}", result.manifest.get("kind", "?")].append(key)
    strange = [path for path in files if owner(path) is None]
    ours = [path for path in files if owner(path) is not None]
    others = recorded_versions(store) - {version for _, version in versions}
    # A published dense net may be on its way to a further state that a space needs.
    finished = (present & needed).difference(*(plan.closure.todo(present) for plan in plans))
    leftovers = _leftovers(store, ours, present, finished, needed, bool(unplanned) or bool(unchosen) or bool(others))
    return Surplus(
        results=dict(sorted(results.items())),
        leftovers=leftovers,
        bytes=files,
        kept=dict(kept),
        strange=strange,
        damaged=damaged,
    )


def _leftovers(
    store: Store,
    files: Iterable[str],
    present: Collection[str],
    finished: Collection[str],
    needed: Collection[str],
    careful: bool,
) -> list[str]:
    """Return the files that belong to no result; `careful` keeps checkpoints and notes of jobs in no known plan.

    `present` are the keys of the results, `finished` those of jobs of which no output is missing.
    """
    found, folders = [], defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for path in files:
        key, within = owner(path), path.split("/")[3:]
        assert key is not None, "files of others are left alone"
        if not path.startswith("store/"):
            if key in finished or (key not in needed and not careful):
                found.append(path)
        elif key not in present:
            found.append(path)
        elif within != [MANIFEST]:
            folders[key][within[0] if len(within) > 1 else ""].append(path)
    contested = [key for key, each in folders.items() if len(each) > 1]
    for key, result in store.results(contested)[0].items():
        for attempt, paths in folders[key].items():
            if attempt != result.manifest.get("attempt", ""):
                found += paths
    return found


def plan_all(
    named: SearchSpace | None,
    data_dir: str | None,
    choices: Mapping[str, Kept | None],
    given: Kept,
) -> tuple[list[Plan], dict[str, str]]:
    """Return the plans of all spaces, and a mapping from each space that cannot be planned to the reason.

    Args:
        named: a space with overridden settings, whose results are needed, too.
        data_dir: directory of the datasets.
        choices: file of a ``--fastest`` choice -> the chosen settings; None if it is damaged.
        given: settings of `named` that no choice replaces.

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


def _plans(space: SearchSpace, data_dir: str | None, choices: Mapping[str, Kept | None], given: Kept) -> list[Plan]:
    """Return the plans of a space as defined, with its preferred settings, and with the choices of ``--fastest``."""
    ways = filter(None, (ways_of(space, choices, device, given) for device in (CPU, GPU)))
    spaces = [space, *(each.space for each in preferences(space, given))]
    return [
        *(make_plan(each, data_dir) for each in spaces),
        *(make_plan(space, data_dir, each) for each in ways),
    ]


def lines(found: Surplus, missing: Mapping[str, str]) -> list[str]:
    """Return what can be removed, as lines of text; `missing` as :func:`plan_all` returns it."""
    removed = found.keys
    size = size_in_words(sum(size for path, size in found.bytes.items() if _result(path) in removed))
    text = [f"{len(removed)} results that no search space needs, {size}"]
    if found.results:
        text.append(f"  {'dataset':<14}{'model':<12}{'width':>6}  {'kind':<10}{'results':>8}")
    for (dataset, model, width, kind), keys in found.results.items():
        text.append(f"  {dataset:<14}{model:<12}{width:>6}  {kind:<10}{len(keys):>8}")
    size = size_in_words(sum(found.bytes[path] for path in found.leftovers))
    text.append(f"{len(found.leftovers)} files left over from damage, killed attempts and finished work, {size}")
    for reason in dict.fromkeys(missing.values()):
        text.append(f"not planned: {', '.join(name for name in missing if missing[name] == reason)}: {reason}")
    for dataset, count in found.kept.items():
        text.append(f"  kept: {count} results on {dataset}")
    text += [f"left alone, because no study wrote it: {ascii(path)[1:-1]}" for path in found.strange]
    text += [f"damaged: {line}" for line in found.damaged]
    text.append("results of a run with --set count as needed only if you name it here: --space NAME --set ...")
    return text


def _result(path: str) -> str:
    """Return the key of the result to which a file belongs; "" if it belongs to none."""
    return (path.startswith("store/") and owner(path)) or ""


def remove(store: Store, found: Surplus) -> None:
    """Remove the surplus.

    Raises:
        ValueError: a study is running on the store and may need results that it has just computed.
    """
    check_idle(store)
    for key in sorted(found.keys):
        store.remove(key)
    for path in found.leftovers:
        store.storage.remove(path)


def check_idle(store: Store) -> None:
    """Raise ValueError while a study or a job runs on the store."""
    if store.forget_damaged_leases():
        time.sleep(2 * renewal_seconds())  # by then a live holder has renewed its lease
    owners = {host_of(lease["owner"]) for lease in (*store.studies(), *store.leases().values())}
    if owners:
        hosts = ", ".join(sorted(owners))
        raise ValueError(f"a study or a job is running on {store.uri} ({hosts}): clean up once it has ended")
