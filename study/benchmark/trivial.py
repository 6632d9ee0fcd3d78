"""Jobs that take no time: they publish constants without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from ray.tune import Trainable

from trainables import schema
from trainables.graph import snapshot_key
from trainables.host.clock import now
from trainables.jobs.publishing import environment
from trainables.storage.artifacts import pack_json
from trainables.storage.store import Store
from trainables.trial_results import STATUS_OK


class TrivialJob(Trainable):  # type: ignore[misc] # ray is untyped
    """Publishes all its requested outputs in a single step, which counts as one epoch."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        return True

    def step(self) -> dict[str, Any]:
        """Publish the outputs as a job does after training an epoch."""
        key, store = self.config["key"], Store(self.config["storage"])
        row = {"step": 1, "timestamp": now(), **dict.fromkeys(schema.EPOCH_METRICS, 1.0)}
        document = {"history": [row], "final": {schema.TEST_ACCURACY: 1.0, schema.SECONDS: 0.0}}
        manifest = {"kind": "trivial", "finished": now(), "environment": environment(torch.device("cpu"))}
        for epoch in self.config["outputs"]:
            output = key if epoch is None else snapshot_key(key, epoch)
            store.publish(output, {schema.METRICS: pack_json(document)}, manifest)
        return {"job_key": key, "status": STATUS_OK, **row, "done": True}
