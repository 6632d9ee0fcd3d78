"""File formats of the artifacts: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.schema import MASK, METRICS, PERMUTATION, WEIGHTS
from trainables.storage import documents
from trainables.storage.store import Store


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors (any device) as the bytes of a safetensors file; equal tensors give equal bytes."""
    import safetensors.torch  # a machine that only trains, as for a benchmark, may lack it

    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, in alphabetical order, on the CPU."""
    import safetensors.torch

    return dict(sorted(safetensors.torch.load(content).items()))  # it returns them in random order


def pack_json(document: Any) -> bytes:
    """Return a document as readable JSON."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def read_weights(store: Store, key: str) -> dict[str, Tensor]:
    """Return the state dict of a published net (a dense net, a snapshot, a pruned or a sparse net)."""
    return unpack(store.read(key, WEIGHTS))


def read_mask(store: Store, key: str) -> dict[str, Tensor]:
    """Return the mask of a published pruning round or sparse net: name -> bool tensor, True where a weight is kept."""
    return unpack_mask(store.read(key, MASK))


def unpack_mask(content: bytes) -> dict[str, Tensor]:
    """Return the mask in the bytes of its file: name -> bool tensor, True where a weight is kept."""
    return {name: tensor.to(torch.bool) for name, tensor in unpack(content).items()}


def read_permutation(store: Store, key: str) -> dict[str, Tensor]:
    """Return the permutation of a published match."""
    return unpack(store.read(key, PERMUTATION))


def read_metrics(store: Store, key: str) -> dict[str, Any]:
    """Return a published job's metrics.

    ``history`` lists the metrics of each epoch with ``step`` and ``timestamp`` (ms since 1970); ``final`` has the
    metrics of the finished job.
    """
    return store.read_json(key, METRICS)


CHECKPOINT_FORMAT = "3"
"""Incremented when the layout of checkpoints changes; checkpoints of other formats are not read."""


def pack_checkpoint(key: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> bytes:
    """Return a job's training state and the JSON document that belongs to it as the bytes of one file.

    The file consists of a checksum, a line of JSON and a safetensors file, which has no checksum of its own.
    """
    about = json.dumps({"format": CHECKPOINT_FORMAT, "job": key, "document": document})
    return documents.seal(about.encode() + b"\n" + pack(tensors))


def unpack_checkpoint(content: bytes, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undo :func:`pack_checkpoint`.

    Raises:
        ValueError: the file is damaged, or the checkpoint of another job or version.
    """
    import safetensors

    try:
        line, _, tensors = documents.unseal(content).partition(b"\n")
        about = documents.parse(line, documents.CHECKPOINT)
        if about["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {about['format']!r}, not {CHECKPOINT_FORMAT!r}")
        if about["job"] != key:
            raise ValueError(f"it is of another job, {about['job'][:12]}")
        return unpack(tensors), about["document"]
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"no checkpoint of this job: {error}") from error
