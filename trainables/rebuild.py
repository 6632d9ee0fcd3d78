"""Networks rebuilt from published results: from a key to a module that classifies images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.config import Task
from trainables.data import get_entry
from trainables.models import SMALL_IMAGE, model_entry
from trainables.models.network import CLASSIFIER, Network
from trainables.schema import MASK, WEIGHTS
from trainables.storage.artifacts import unpack, unpack_mask
from trainables.storage.store import Store


def load_network(store_or_uri: Store | str | os.PathLike[str], key: str) -> Network:
    """Rebuild the network of a published result, on the CPU and in eval mode.

    This needs neither Ray nor the dataset, and leaves torch's random generators unchanged.

    Args:
        store_or_uri: a store, a directory, or a URI such as ``s3://bucket/prefix`` (as for ``--storage``).
        key: 64 hex digits; the key of a dense net, of its state after some epochs, of a pruning round or of a sparse
            net.

    Returns:
        A module that maps images (N, channels, H, W), normalised as in training, to logits (N, classes). Its ``mask``
        maps the name of each prunable weight to a bool tensor of the weight's shape, True where the weight is kept; it
        is empty for a net that was not pruned. Its ``manifest`` is the store's record of the result: ``kind``,
        ``config``, ``parents``, ``files``, ``environment``.

    Raises:
        ValueError: the storage does not exist, the key is malformed, or the result is not a network of this version.
        NotPublished: nothing is published under `key`.
        DamagedArtifact: a file of the result fails its checksum; it has been set aside.
        StorageError: the storage cannot be read.
    """
    store = store_or_uri if isinstance(store_or_uri, Store) else Store(store_or_uri)
    store.check_exists()
    result = store.result(key, (WEIGHTS, MASK))
    kind = result.manifest.get("kind", "?")
    if WEIGHTS not in result.files:
        raise ValueError(f"{key[:12]} is the result of a {kind} job, which is not a network; {store.uri} has others")
    weights = unpack(result.files[WEIGHTS])
    try:
        network = _empty(Task(**result.manifest["config"]["task"]), weights)
        network.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{key[:12]}, a {kind}, was published by another version of the study: {error}") from error
    network.mask = unpack_mask(result.files[MASK]) if MASK in result.files else {}
    network.manifest = result.manifest
    return network.eval()


def _empty(task: Task, weights: Mapping[str, Tensor]) -> Network:
    """Return a task's network on the meta device; the weights' shapes give the image size and the number of classes."""
    entry, channels = model_entry(task.model), get_entry(task.dataset).in_channels
    classes, size = len(weights[f"{CLASSIFIER}.weight"]), entry.reference_image_size
    with torch.device("meta"):
        first = next(iter(task.network(image_size=size, num_classes=classes, in_channels=channels).state_dict()))
        side = math.isqrt(weights[first][0].numel() // channels)  # of the kernel; of the image without convolutions
        if not entry.convolutional:
            size = side
        elif side < entry.first_kernel:
            size = SMALL_IMAGE
        return task.network(image_size=size, num_classes=classes, in_channels=channels)
