"""A cluster of a single node, for orders of work without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from study.plan import Plan
from study.scheduling.hosts import Hosts, Node, Resources
from study.scheduling.placement import Group, group


def one_node(room: Callable[[], Resources] = lambda: {"CPU": 1e6, "GPU": 1e6}) -> Hosts:
    """Return the hosts of a cluster whose only node has `room`, by default for everything."""
    return Hosts(lambda: {"node": Node("node", room())})


def ask(plan: Plan, **amounts: float) -> dict[Group, Resources]:
    """Return requests of the same for all jobs of a plan."""
    return {group(job): amounts for job in plan.jobs.values()}


def ask_by_width(plan: Plan, small: Resources, large: Resources) -> Mapping[Group, Resources]:
    """Return requests of `large` for networks of width 0.5, and of `small` for the others."""
    return {group(job): large if job.config.task.width == 0.5 else small for job in plan.jobs.values()}
