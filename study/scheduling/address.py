"""The address of the Ray cluster that a command means. Imports no ray."""

from __future__ import annotations

import os
from collections.abc import Mapping


class ClusterError(ValueError):
    """The cluster cannot be reached, or is too small for a single trial."""


def cluster_address(asked: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the address of the cluster to join; None for a local Ray on this machine.

    Args:
        asked: value of ``--address``: ``auto``, ``host:port``, or None.
        environment: environment variables; ``RAY_ADDRESS``, which Ray sets for its jobs, applies for ``auto`` and None.

    Raises:
        ClusterError: no study can run through the address.
    """
    named = asked if asked not in (None, "auto") else None
    address = named or environment.get("RAY_ADDRESS") or asked
    if address in (None, "local"):
        return None
    source = "--address" if named else "RAY_ADDRESS"
    scheme, separator, _ = address.partition("://")
    if separator:
        raise ClusterError(
            f"{source} {scheme}://... is for clients, but the driver of a study must run on the cluster itself: "
            "ray job submit --address http://HEAD:8265 -- python -m study.run ..."
            + ("" if named else "; or unset RAY_ADDRESS to run on this machine")
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and int(port) < 65536):
        raise ClusterError(f"{source} takes auto or host:port, got {address!r}")
    return address
