"""Trials of planned jobs that compute nothing and raise what PyTorch raises on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_errors import BROKEN, GPU_FULL, HOST_FULL

from trainables.graph import Job
from trainables.tune import STATUS_OK, PlannedJob


class Fails(PlannedJob):
    """Notes each attempt with its share of a GPU in ``config["notes"]/KEY``, and with its process in ``KEY.pid``."""

    def _device(self, job: Job) -> torch.device:
        return torch.device("cpu")

    def _prepare(self, config: dict[str, Any]) -> None:
        super()._prepare(config)
        self._results = self._attempt(Path(config["notes"]) / config["key"])

    def _attempt(self, notes: Path) -> Iterator[dict[str, Any]]:
        assert self.trial_resources is not None
        share = self.trial_resources.required_resources.get("GPU", 0)
        for path, noted in ((notes, share), (notes.with_suffix(".pid"), os.getpid())):
            with path.open("a") as file:
                print(noted, file=file)
        self.fail(len(notes.read_text().splitlines()), share)
        yield {"status": STATUS_OK, "done": True}

    def fail(self, attempt: int, share: float) -> None:
        """Raise the error of an attempt, the first of which has number 1, unless it is to succeed."""
        raise NotImplementedError


FORMS = (*GPU_FULL, *HOST_FULL)
WIDTHS = tuple(0.25 * (1 + number) for number in range(len(FORMS)))
"""Width of the network whose jobs raise the error of the same position in ``FORMS``."""


class RunsOut(Fails):
    def fail(self, attempt: int, share: float) -> None:
        raise FORMS[WIDTHS.index(self._target.config.task.width)]


class Breaks(Fails):
    def fail(self, attempt: int, share: float) -> None:
        if attempt <= 2:
            raise BROKEN[attempt]
