"""Machines that get no more jobs of a study, because jobs fail there that would succeed elsewhere.

A broken machine is always idle, so without this module it would receive every next attempt. Machines are identified by
Ray's node id, so a machine that was repaired and has rejoined the cluster receives jobs again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from study.scheduling.cards import Card
from trainables.host.redaction import redact_text

FAILURES: Final = 3
"""A host gets no more jobs once this many different jobs, in as many trials, have died on it with no epoch or job done
in between."""
TOLERANCE: Final = 1e-6
"""Rounding error of sums of resource fractions."""

Resources = Mapping[str, float]
"""Ray's name of a resource (``CPU``, ``GPU``) -> amount, which may be a fraction."""


def in_words(asked: Resources, workers: int = 1) -> str:
    """Return resources as ``1 CPU and 0.5 GPU``, or ``2 workers, each with 1 CPU and 1 GPU``."""
    words = " and ".join(f"{amount:g} {name}" for name, amount in asked.items())
    return words if workers == 1 else f"{workers} workers, each with {words}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster and its resources for trials, whether or not they are in use.

    Attributes:
        name: its hostname.
        resources: what it has for trials.
        card: the kind of its smallest GPU; None if it has none, or has not been asked yet.
    """

    name: str
    resources: Resources
    card: Card | None = None

    def places(self, asked: Resources) -> int:
        """Return how many workers that request this fit on the machine if it is idle."""
        return min(int(self.resources.get(name, 0.0) / amount + TOLERANCE) for name, amount in asked.items() if amount)


class Hosts:
    """The nodes of the cluster and the failures of trials on them."""

    def __init__(self, nodes: Callable[[], Mapping[str, Node]]) -> None:
        """Start without failures; `nodes` returns the current nodes of the cluster, id -> node."""
        self.out: dict[str, str] = {}
        """Id of a node that gets no more jobs -> its hostname and the reason."""
        self._nodes = nodes
        self._streaks: dict[str, list[tuple[str, str]]] = {}
        """Id of a node -> trial and job of each failure in a row."""

    def worked(self, node: str) -> None:
        """Note that an epoch or a job was done on a node."""
        self._streaks.pop(node, None)

    def failed(self, node: str, trial: str, key: str, error: str, *, surely: bool) -> bool:
        """Note that a job failed on a node; return whether the node is to blame rather than the job.

        The last node is excluded only for errors that are surely its fault; jobs that die on it are tried again there.

        Args:
            node: id of the node.
            trial: id of the trial, which may have been that of other jobs, too.
            key: key of the job.
            error: message of the failure.
            surely: whether every job would fail there.
        """
        if node in self.out:
            return True
        nodes = self._nodes()
        if node not in nodes:  # the node was lost, and its trials with it
            return False
        streak = self._streaks.setdefault(node, [])
        streak.append((trial, key))
        events = min(len(set(each)) for each in zip(*streak, strict=True))  # trials, or jobs if these are fewer
        others = any(each not in self.out for each in nodes.keys() - {node} if nodes[each].resources.get("CPU"))
        if not (surely or (events >= FAILURES and others)):
            return False
        self.exclude(node, error)
        return True

    def exclude(self, node: str, reason: str) -> None:
        """Give a node no more jobs, unless it has left the cluster."""
        if (its := self._nodes().get(node)) is not None:
            self.out[node] = f"{its.name}: {redact_text(reason)}"

    def forgiven(self, node: str) -> Counter[str]:
        """Return and forget how often each job has failed on a node in a row; the node is to blame for this."""
        return Counter(key for _, key in self._streaks.pop(node, []))

    def fit(self, asked: Resources, avoided: Collection[str] = (), workers: int = 1) -> bool:
        """Return whether the nodes outside `avoided` could run a trial's workers if the nodes were idle.

        Args:
            asked: what each worker of the trial requests.
            avoided: ids of nodes.
            workers: number of workers.
        """
        return self.places(asked, avoided) >= workers

    def places(self, asked: Resources, avoided: Collection[str] = ()) -> int:
        """Return how many workers the nodes outside `avoided` could run if the nodes were idle."""
        return sum(node.places(asked) for each, node in self._nodes().items() if each not in avoided)

    def fit_together(self, asked: Resources, avoided: Collection[str], workers: int) -> bool:
        """Return whether one of the nodes outside `avoided` could run all workers of a trial."""
        return any(node.places(asked) >= workers for each, node in self._nodes().items() if each not in avoided)

    def present(self) -> frozenset[str]:
        """Return the ids of the nodes that are in the cluster now and get no more jobs."""
        return frozenset(self.out.keys() & self._nodes().keys())

    def available(self) -> dict[str, Node]:
        """Return the nodes that get jobs now, id -> node."""
        return {each: node for each, node in self._nodes().items() if each not in self.out}

    def room(self) -> Resources:
        """Return the total resources of the nodes that get jobs now, whether or not they are in use."""
        total = Counter[str]()
        for node in self.available().values():
            total.update(node.resources)
        return total
