"""Which machines get no more of a study's jobs: those where jobs fail that would not fail elsewhere.

A machine that is broken is always free, so that without this it would take every next attempt. It is known by Ray's
id of its node: one that was repaired and joins the cluster again is given work again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from study.scheduling.placement import Resources
from trainables.host.redaction import redact_text

FAILURES: Final = 3
"""A host where so many different jobs have died, with no epoch and no job done there in between, gets no more."""
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with all that it has for trials, whether or not it is in use."""

    name: str
    resources: Resources


class Hosts:
    """What trials have found out about the nodes that they ran on."""

    def __init__(self, nodes: Callable[[], Mapping[str, Node]]) -> None:
        """Begin without a prejudice.

        Args:
            nodes: returns the nodes that the cluster has now, by their id.
        """
        self.out: dict[str, str] = {}
        """Id of a node that gets no more jobs -> its host and why."""
        self._nodes = nodes
        self._streaks: dict[str, Counter[str]] = {}

    def worked(self, node: str) -> None:
        """Note that an epoch or a job was done on a node."""
        self._streaks.pop(node, None)

    def failed(self, node: str, key: str, error: str, *, surely: bool) -> bool:
        """Note that a job failed on a node; return whether that is the node's fault rather than the job's.

        The last node is put out only for what is surely its fault: if jobs die on it, they are tried again there.

        Args:
            node: its id.
            key: of the job.
            error: what it said.
            surely: whether every job would fail there.
        """
        if node in self.out:
            return True
        nodes = self._nodes()
        if node not in nodes:  # it was lost, and its trials with it
            return False
        streak = self._streaks.setdefault(node, Counter())
        streak[key] += 1
        others = any(each not in self.out for each in nodes.keys() - {node} if nodes[each].resources.get("CPU"))
        if not (surely or (len(streak) >= FAILURES and others)):
            return False
        name, error = nodes[node].name, redact_text(error)
        self.out[node] = f"{name}: {error.removeprefix(f'host {name}: ')}"
        return True

    def forgiven(self, node: str) -> Counter[str]:
        """Return how often each job has failed on a node in a row, once: what the node is to blame for."""
        return self._streaks.pop(node, Counter())

    def fit(self, asked: Resources, avoided: Collection[str] = ()) -> bool:
        """Return whether one of the nodes, apart from some, could run a trial if it did nothing else."""
        return any(
            all(amount <= node.resources.get(name, 0.0) + _TOLERANCE for name, amount in asked.items())
            for each, node in self._nodes().items()
            if each not in avoided
        )

    def present(self) -> frozenset[str]:
        """Return the nodes of the cluster that get no more jobs."""
        return frozenset(self.out.keys() & self._nodes().keys())

    def taken_out(self) -> Counter[str]:
        """Return the resources of the cluster that are of no use any more."""
        nodes, lost = self._nodes(), Counter[str]()
        for each in self.out.keys() & nodes.keys():
            lost.update(nodes[each].resources)
        return lost


def names(text: str, host: str) -> bool:
    """Return whether a text names a host."""
    return re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", text) is not None
