"""Networks that train in double precision, in this process and in the other workers of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from trainables.config import Task
from trainables.data import batches
from trainables.training.crew import Assignment, Crew
from trainables.training.loop import Training


def use_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make networks and images of this process double."""
    network, normalize = Task.network, batches.normalize

    def double_network(self: Task, **options: Any) -> Any:
        return network(self, **options).double()

    def double_images(*arguments: Any) -> Tensor:
        return normalize(*arguments).double()

    monkeypatch.setattr(Task, "network", double_network)
    monkeypatch.setattr(batches, "normalize", double_images)


@dataclass(frozen=True)
class Doubled:
    """An assignment to a worker that is to train in double precision."""

    assignment: Assignment

    @property
    def deterministic(self) -> bool:
        return self.assignment.deterministic

    def training(self, rank: int, workers: int) -> Training:
        with pytest.MonkeyPatch.context() as monkeypatch:
            use_doubles(monkeypatch)
            training = self.assignment.training(rank, workers)
        use_doubles(pytest.MonkeyPatch())  # for the images of its epochs
        return training


class DoubleCrew(Crew):
    """A crew whose workers train in double precision."""

    def tell(self, assignment: Assignment | None) -> None:
        super().tell(None if assignment is None else Doubled(assignment))
