"""The settings that a study prefers: used wherever the device, the user's settings and earlier results allow it.

A setting such as ``kernels="sparse"`` speeds up training on most CPUs, but not every machine, model or batch size
allows it, and it enters the keys of jobs. A space that lists it in ``SearchSpace.preferred`` runs without it, too. What
every space prefers on a GPU is in ``ON_GPUS``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from search_spaces import SearchSpace
from study.fastest import Kept, fits, networks
from study.plan import Plan, make_plan
from trainables.host.nvidia import NATIVE
from trainables.host.toolchain import COMPILERS, find_compiler
from trainables.knobs import KNOBS, TF32, Scalar
from trainables.storage.starts import starts
from trainables.storage.store import Store
from trainables.training.engines import CPU, GPU
from trainables.training.way import SETTINGS, Way, in_words

ON_GPUS: Final[Mapping[str, Scalar]] = {"precision": TF32, "graphs": True}
"""What every space prefers on GPUs. TensorFloat-32 is PyTorch's own default for convolutions there."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Settings that a study prefers.

    Attributes:
        space: the study's space with the preferred settings.
        settings: the preferred settings.
        on: the kind of device on which they are used, ``CPU`` or ``GPU``.
        why: the reason, as a clause after the settings.
    """

    space: SearchSpace
    settings: Mapping[str, Any]
    on: str
    why: str

    def usable(self, device: str | None, capability: tuple[int, int] | None) -> bool:
        """Return whether the settings are meant for a kind of device and a compute capability, if that is known."""
        older = TF32 in self.settings.values() and (capability or NATIVE[TF32]) < NATIVE[TF32]
        return device == self.on and not older


def preferences(space: SearchSpace, given: Mapping[str, Scalar]) -> list[Preference]:
    """Return what a study prefers, as far as the user's settings, the space's own and its networks allow it.

    Of several for one kind of device, the first that is usable counts.

    Args:
        space: the space, with the user's settings applied.
        given: the settings of a ``Way`` that the user has given.
    """
    on_gpus = {name: value for name, value in ON_GPUS.items() if _with(space, {name: value}, given)}
    without_tensor_float = {name: value for name, value in on_gpus.items() if value != TF32}
    found = []
    for settings, why in (
        (dict(space.preferred), "which is faster on most CPUs"),
        (on_gpus, "the default on GPUs"),
        (without_tensor_float if without_tensor_float != on_gpus else {}, "the default on GPUs without TF32"),
    ):
        if changed := _with(space, settings, given):
            on = GPU if GPU in Way.of(changed).engine.devices else CPU
            found.append(Preference(space=changed, settings=settings, on=on, why=why))
    return found


def preferring(
    plan: Plan, given: Kept, store: Store, device: str | None, capability: tuple[int, int] | None = None
) -> Plan:
    """Return the plan of the same space with its preferred settings if they can be used, and a note that says so.

    A study goes on as it began: the plan is the one of which the most jobs have been published or started. If none has
    more, the settings for the device are used unless this machine lacks what their engine needs. The user's own
    settings come first.

    Args:
        plan: the plan of the space, with the user's settings applied.
        given: the settings of a ``Way`` that the user has given.
        store: has the earlier results and starts.
        device: ``CPU`` or ``GPU``, where the networks will train; None for the nodes of a cluster, which may lack what
            the engine needs.
        capability: least compute capability of the GPUs on which the networks will train; None if it is unknown.
    """
    known = store.keys() | {key for start in starts(store, plan.space.name).values() for key in start["jobs"]}
    own, plans = len(plan.jobs.keys() & known), list[tuple[int, Preference, Plan]]()
    for each in preferences(plan.space, given):
        if device in (each.on, None) or not known <= plan.jobs.keys():
            preferred = make_plan(each.space, facts_of=lambda name, *_: plan.facts[name])
            plans.append((len(preferred.jobs.keys() & known) - own, each, preferred))
    for lead, each, preferred in sorted(plans, key=lambda one: -one[0]):
        words, without = _in_words(plan, each)
        if lead > 0:
            return _noted(preferred, f"with {words}, because this study began with it ({without} trains without it)")
        if lead < 0 and device in (each.on, None):
            return _noted(plan, f"without {words}, {each.why}, because this study began without it")
        if not each.usable(device, capability):
            continue
        if device == CPU and Way.of(each.space).engine.needs_compiler and find_compiler() is None:
            names = ", ".join(COMPILERS)
            return _noted(plan, f"without {words}, {each.why}: it needs a C++ compiler, one of {names}")
        return _noted(preferred, f"with {words}, {each.why} ({without} trains without it)")
    return plan


def _in_words(plan: Plan, preference: Preference) -> tuple[str, str]:
    """Return the preferred settings in words, and the options that train without them."""
    return in_words(preference.settings), as_options(plan.space, preference.settings)


def as_options(space: SearchSpace, names: Iterable[str]) -> str:
    """Return options of ``study.run`` that give some settings of a ``Way`` the values that they have in a space."""
    own = in_words({name: getattr(space, name) for name in names})
    return " ".join(f"--set {each}" for each in own.split())


def _noted(plan: Plan, note: str) -> Plan:
    return dataclasses.replace(plan, notes=(*plan.notes, note))


def _with(space: SearchSpace, settings: Mapping[str, Any], given: Mapping[str, Scalar]) -> SearchSpace | None:
    """Return the space with preferred settings; None if there are none or the user's or the space's rule them out."""
    own = {name: getattr(space, name) for name in settings}
    if not settings or given.keys() & settings.keys() or any(own[name] != KNOBS[name].neutral for name in own):
        return None
    changed = dataclasses.replace(space, **settings)
    if any(isinstance(getattr(space, name), tuple) for name in SETTINGS):
        return None  # the study compares ways of training
    try:
        way = Way.of(changed)
    except ValueError:  # given settings exclude the preferred ones
        return None
    return changed if all(fits(way, changed, network) for network in networks(changed)) else None
