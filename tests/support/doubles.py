"""Networks that train in double precision, in this process and in the other workers of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_study import numbers, tensors
from torch import Tensor

from trainables import schema
from trainables.config import Task
from trainables.data import batches
from trainables.storage.artifacts import unpack
from trainables.storage.store import Store
from trainables.training.crew import Assignment, Crew
from trainables.training.loop import Training

AGREEMENT = 1e-9
"""Bound on the difference of weights and statistics: rounding of 1e-16, amplified by some ten steps."""
AGREEMENT_OF_SINGLE = 1e-6
"""Bound on the relative difference of losses, which are summed in single precision."""


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


def assert_agree(left: Store, right: Store, key: str, within: float = AGREEMENT) -> None:
    """Assert that two results differ by rounding only: less than `within`, absolutely or relatively."""
    mine, other = ({name: unpack(content) for name, content in tensors(each, key).items()} for each in (left, right))
    torch.testing.assert_close(mine, other, rtol=within, atol=within)
    if schema.METRICS in left.manifest(key)["files"]:
        left_numbers, right_numbers = (numbers(each, key) for each in (left, right))
        for row, its in zip(
            (left_numbers["final"], *left_numbers["history"]),
            (right_numbers["final"], *right_numbers["history"]),
            strict=True,
        ):
            assert row == pytest.approx(its, rel=AGREEMENT_OF_SINGLE)
