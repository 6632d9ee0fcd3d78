"""Trials that compute nothing and go wrong as a test wants it; without torch, so that their processes start quickly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from ray.tune import Trainable


class Stub(Trainable):  # type: ignore[misc] # ray is untyped
    """A job of one step, which notes each attempt with its share of a GPU in the file ``config["notes"]/KEY``."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        assert self.trial_resources is not None
        share = self.trial_resources.required_resources.get("GPU", 0)
        notes = Path(self.config["notes"]) / self.config["key"]
        with notes.open("a") as file:
            print(share, file=file)
        return {"done": True, **self.outcome(len(notes.read_text().splitlines()), share)}

    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        """Return the result of an attempt, the first of which has number 1, or go wrong."""
        return {"status": "ok"}


class Dies(Stub):
    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        if attempt <= 2:
            os._exit(1)
        return {"status": "ok"}


class Freezes(Stub):
    """Its process stands still in the first attempt, as in a call of the kernel that does not return."""

    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return {"status": "ok"}


class Raises(Stub):
    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        raise ValueError("no such luck\nand much more about it")


class NeedsHalfAGpu(Stub):
    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        return {"status": "ok"} if share >= 0.5 else {"status": "out_of_memory", "error": "CUDA out of memory"}


class FindsNoStorage(Stub):
    def outcome(self, attempt: int, share: float) -> dict[str, Any]:
        return {"status": "storage", "error": "storage /data: No space left on device"}


class Together(Stub):
    """Several jobs, one of which ends with each step; each is noted with the number of them all."""

    def step(self) -> dict[str, Any]:
        mates = json.loads(self.config.get("mates", "[]"))
        keys = [self.config["key"], *(each["key"] for each in mates)]
        key = keys[self.iteration]
        with (Path(self.config["notes"]) / key).open("a") as file:
            print(len(keys), file=file)
        net = {"key": key, "job_key": key, "status": "ok", "done": True}
        return {"nets": [net], "done": self.iteration == len(keys) - 1}
