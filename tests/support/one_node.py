"""A cluster of a single node, for orders of work without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from study.plan import Plan
from study.scheduling.hosts import Hosts, Node, Resources
from study.scheduling.placement import Group, Need, group


def one_node(room: Callable[[], Resources] = lambda: {"CPU": 1e6, "GPU": 1e6}) -> Hosts:
    """Return the hosts of a cluster whose only node has `room`, by default for everything."""
    return Hosts(lambda: {"node": Node("node", room())})


def ask(plan: Plan, CPU: float = 1.0, GPU: float = 0.0) -> dict[Group, Need]:  # noqa: N803
    """Return needs of the same for all jobs of a plan."""
    return {group(job): Need(cpus=CPU, share=GPU) for job in plan.jobs.values()}


def ask_by_width(plan: Plan, small: Need, large: Need) -> Mapping[Group, Need]:
    """Return needs of `large` for networks of width 0.5, and of `small` for the others."""
    return {group(job): large if job.config.task.width == 0.5 else small for job in plan.jobs.values()}
