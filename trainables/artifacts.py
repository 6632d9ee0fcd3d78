"""File formats of the artifacts: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainables.schema import MASK, METRICS, PERMUTATION, WEIGHTS
from trainables.store import Store


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors (any device) as the bytes of a safetensors file; equal tensors give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, dict(metadata) if metadata else None)


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, in alphabetical order, on the CPU."""
    return dict(sorted(safetensors.torch.load(content).items()))  # which comes in another order each time


def pack_json(document: Any) -> bytes:
    """Return a document as readable JSON."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def read_weights(store: Store, key: str) -> dict[str, Tensor]:
    """Return the state dict of a published net (a dense net, a snapshot, a pruned or a sparse net)."""
    return unpack(store.read(key, WEIGHTS))


def read_mask(store: Store, key: str) -> dict[str, Tensor]:
    """Return the mask of a published pruning round or sparse net: name -> bool tensor, True where a weight is kept."""
    return {name: tensor.to(torch.bool) for name, tensor in unpack(store.read(key, MASK)).items()}


def read_permutation(store: Store, key: str) -> dict[str, Tensor]:
    """Return the permutation that a published match found."""
    return unpack(store.read(key, PERMUTATION))


def read_metrics(store: Store, key: str) -> dict[str, Any]:
    """Return a published job's metrics.

    ``history`` lists, per epoch, its metrics with ``epoch`` and ``timestamp`` (ms since 1970); ``final`` holds the
    numbers of the finished job.
    """
    document: dict[str, Any] = store.read_json(key, METRICS)
    return document


def pack_checkpoint(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> bytes:
    """Return a training state and the plain data that belongs to it as one file."""
    text = json.dumps(document)
    return pack(tensors, {"document": text, "checksum": _checksum(tensors, text)})


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the sha256 of a checkpoint's content: a flipped bit in a weight would go unnoticed, unlike a torn file."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unpack_checkpoint(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undo :func:`pack_checkpoint`.

    Raises:
        ValueError: the file is not such a checkpoint.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        tensors, metadata = unpack(content), header["__metadata__"]
        if _checksum(tensors, metadata["document"]) != metadata["checksum"]:
            raise ValueError("not a checkpoint: its checksum is wrong")
        return tensors, json.loads(metadata["document"])
    except (safetensors.SafetensorError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint: {error}") from error
