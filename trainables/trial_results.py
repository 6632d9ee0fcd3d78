"""What a trial of a planned job reports to the driver: how it ended, and which job each part of a result concerns.

Imports nothing heavy, so that a plan can be laid on machines without starting Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATUS_OK = "ok"
STATUS_FAILED = "failed"
"""The job would fail again in the same way."""
STATUS_HOST = "host"
"""The job would fail again on this host, but perhaps not on another."""
STATUS_OUT_OF_MEMORY = "out_of_memory"
"""A GPU's memory is full."""
STATUS_HOST_MEMORY = "host_memory"
"""The host's memory is full."""
STATUS_STORAGE = "storage"
"""The storage could not be read or written, which affects every job."""
STATUS_HELD = "held"
"""Another process is computing the job or an ancestor. The entry ``held`` says which: key of each job of the trial ->
key of the job for which it waits."""
STATUS_DIED = "died"
"""The job failed for another reason, which may not recur."""
HOST = ("hostname", "node")
"""Entries in each result of a planned job: the name of the machine, and Ray's id of the node."""


def by_net(result: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the part of a trial's result that concerns each job: key -> part.

    Args:
        result: a result of a :class:`trainables.tune.PlannedJob`.
        keys: keys of the jobs of interest. A result of the whole trial is attributed to the first one.
    """
    if "nets" not in result:
        return dict.fromkeys(keys[:1], result)
    host = {name: result.get(name, "") for name in HOST}
    return {str(net["key"]): {**host, **net} for net in result["nets"] if net["key"] in keys}
