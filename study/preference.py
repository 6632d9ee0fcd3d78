"""The settings that a space prefers: used wherever this machine, the user's settings and earlier results allow it.

A setting such as ``kernels="sparse"`` speeds up training on most CPUs, but not every machine, model or batch size
allows it, and it enters the keys of jobs. A space that lists it in ``SearchSpace.preferred`` runs without it, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from search_spaces import SearchSpace
from study.fastest import Kept, fits, networks
from study.plan import Plan, make_plan
from trainables.host.toolchain import COMPILERS, find_compiler
from trainables.knobs import Scalar
from trainables.storage.starts import starts
from trainables.storage.store import Store
from trainables.training.engines import CPU
from trainables.training.way import SETTINGS, Way, in_words


def preferring(plan: Plan, given: Kept, store: Store, device: str | None) -> Plan:
    """Return the plan of the same space with its preferred settings if they can be used, and a note that says so.

    A study goes on as it began: the plan is the one of which more jobs have been published or started. If neither has
    more, the settings are used unless this machine lacks what their engine needs. The user's own settings come first.

    Args:
        plan: the plan of the space, with the user's settings applied.
        given: the settings of a ``Way`` that the user has given.
        store: has the earlier results and starts.
        device: ``CPU`` or ``GPU``, where the networks will train; None for the nodes of a cluster, which may lack what
            the engine needs.
    """
    wanted: dict[str, Any] = dict(plan.space.preferred)
    space = with_preferred(plan.space, given)
    if space is None:
        return plan
    words, own = in_words(wanted), in_words({name: getattr(plan.space, name) for name in wanted})
    without = " ".join(f"--set {each}" for each in own.split())
    preferred = make_plan(space, facts_of=lambda name, _: plan.facts[name])
    known = store.keys() | {key for start in starts(store, space.name).values() for key in start["jobs"]}
    lead = len(preferred.jobs.keys() & known) - len(plan.jobs.keys() & known)
    if lead > 0:
        return _noted(preferred, f"with {words}, because this study began with it ({without} trains without it)")
    if lead < 0:
        return _noted(plan, f"without {words}, which is faster on most CPUs, because this study began without it")
    engine = Way.of(space).engine
    if device not in engine.devices:
        return plan
    if engine.needs_compiler and device == CPU and find_compiler() is None:
        return _noted(plan, f"without {words}, which is faster: it needs a C++ compiler, one of {', '.join(COMPILERS)}")
    return _noted(preferred, f"with {words}, which is faster on most CPUs ({without} trains without it)")


def _noted(plan: Plan, note: str) -> Plan:
    return dataclasses.replace(plan, notes=(*plan.notes, note))


def with_preferred(space: SearchSpace, given: Mapping[str, Scalar]) -> SearchSpace | None:
    """Return the space with its preferred settings; None if there are none or the user's settings rule them out."""
    wanted: dict[str, Any] = dict(space.preferred)
    if not wanted or given.keys() & wanted.keys():
        return None
    changed = dataclasses.replace(space, **wanted)
    if any(isinstance(getattr(space, name), tuple) for name in SETTINGS):
        return None  # the study compares ways of training
    try:
        way = Way.of(changed)
    except ValueError:  # given settings exclude the preferred ones
        return None
    return changed if all(fits(way, changed, network) for network in networks(changed)) else None
