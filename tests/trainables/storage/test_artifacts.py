"""File formats: what is written is what is read, equal tensors give equal bytes, torn files are recognised."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import file_of
from torch import Tensor

from trainables.schema import MASK, METRICS, PERMUTATION, WEIGHTS
from trainables.storage import artifacts
from trainables.storage.artifacts import (
    pack,
    pack_checkpoint,
    pack_json,
    read_mask,
    read_metrics,
    read_permutation,
    read_weights,
    unpack,
    unpack_checkpoint,
)
from trainables.storage.documents import seal
from trainables.storage.store import DamagedArtifact, Store

KEY = hashlib.sha256(b"a result").hexdigest()
DOCUMENT: dict[str, Any] = {
    "epoch": 3,
    "train_seconds": 1.5,
    "seconds": 2.5,
    "history": [{"step": 1, "timestamp": 5, "train_loss": 0.1 + 0.2}],
    "log": ["a line"],
    "note": "größe",
    "none": None,
}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "mask": torch.rand(4, 3, 3, 3, generator=generator) > 0.5,
        "permutation": torch.randperm(7, generator=generator),
        "count": torch.tensor(3),
        "special": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45]),
        "empty": torch.zeros(0, 3),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Say whether two dicts hold the same bits under the same names."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name]
        .contiguous()
        .flatten()
        .view(torch.uint8)
        .equal(right[name].contiguous().flatten().view(torch.uint8))
        for name in left
    )


def test_tensors_of_any_type_come_back_bit_by_bit() -> None:
    assert same(unpack(pack(tensors())), tensors())


def test_equal_tensors_give_equal_bytes() -> None:
    assert pack(tensors()) == pack(tensors())
    assert pack(dict(reversed(tensors().items()))) == pack(tensors())


@pytest.mark.parametrize("name", ["conv.weight", "mask"])
def test_memory_layout_is_not_part_of_the_file(name: str) -> None:
    plain = {name: tensors()[name]}
    channels_last = {name: plain[name].to(memory_format=torch.channels_last)}
    assert channels_last[name].stride() != plain[name].stride()
    assert pack(channels_last) == pack(plain)
    assert torch.equal(unpack(pack(channels_last))[name], plain[name])


def test_views_and_gradients_are_packed_as_their_values() -> None:
    base = torch.arange(12.0, requires_grad=True)
    views = {"rows": base.view(3, 4)[1:], "columns": base.view(3, 4).t()}
    assert same(unpack(pack(views)), {"rows": base.detach().view(3, 4)[1:], "columns": base.detach().view(3, 4).t()})


def test_one_changed_bit_changes_the_bytes() -> None:
    changed = tensors()
    changed["special"][1] = 0.0  # was minus zero
    assert pack(changed) != pack(tensors())


# --- results ----------------------------------------------------------------------------------------------------------
def test_a_published_result_is_read_by_kind_of_file(tmp_path: Path) -> None:
    store, content = Store(tmp_path), tensors()
    mask, permutation = {"conv.weight": content["mask"]}, {"group": content["permutation"]}
    metrics = {"history": [{"step": 1, "timestamp": 5, "test_loss": 0.1}], "final": {"test_accuracy": 91.5}}
    files = {
        WEIGHTS: pack({"conv.weight": content["conv.weight"]}),
        MASK: pack({name: keep.to(torch.uint8) for name, keep in mask.items()}),
        PERMUTATION: pack(permutation),
        METRICS: pack_json(metrics),
    }
    store.publish(KEY, files, {})
    assert same(read_weights(store, KEY), {"conv.weight": content["conv.weight"]})
    assert same(read_mask(store, KEY), mask)
    assert same(read_permutation(store, KEY), permutation)
    assert read_metrics(store, KEY) == metrics


@pytest.mark.parametrize(("read", "name"), [(read_weights, WEIGHTS), (read_mask, MASK), (read_metrics, METRICS)])
def test_a_damaged_file_is_never_decoded(tmp_path: Path, read: Any, name: str) -> None:
    store = Store(tmp_path)
    store.publish(KEY, {name: pack_json({}) if name == METRICS else pack(tensors())}, {})
    path = file_of(store, KEY, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtifact):
        read(store, KEY)


# --- checkpoints ------------------------------------------------------------------------------------------------------
def test_a_checkpoint_comes_back_with_its_plain_data() -> None:
    state, document = unpack_checkpoint(pack_checkpoint(KEY, tensors(), DOCUMENT), KEY)
    assert same(state, tensors())
    assert document == DOCUMENT


def test_a_checkpoint_cut_off_anywhere_is_recognised() -> None:
    content = pack_checkpoint(KEY, tensors(), DOCUMENT)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"."):
            unpack_checkpoint(content[:length], KEY)


def test_a_checkpoint_full_of_holes_is_recognised() -> None:
    # After a power failure, a file may have its length but zeros instead of its beginning.
    content = pack_checkpoint(KEY, tensors(), DOCUMENT)
    for hole in (8, 64, len(content)):
        with pytest.raises(ValueError, match=r"."):
            unpack_checkpoint(bytes(hole) + content[hole:], KEY)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"\xff" * 8, b"\xff" * 500, b"no checkpoint at all", (2).to_bytes(8, "little") + b"[]", pack_json({})],
    ids=lambda content: content[:8].hex() or "empty",
)
def test_garbage_is_no_checkpoint(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_checkpoint(content, KEY)


def test_tensors_without_their_document_are_no_checkpoint() -> None:
    for content in (pack(tensors()), seal(pack(tensors())), seal(b"{torn\n" + pack(tensors())), seal(b"{}\n")):
        with pytest.raises(ValueError, match="no checkpoint of this job"):
            unpack_checkpoint(content, KEY)


def test_a_checkpoint_of_another_job_or_version_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack_checkpoint(KEY, tensors(), DOCUMENT)
    with pytest.raises(ValueError, match=f"of another job, {KEY[:12]}"):
        unpack_checkpoint(content, hashlib.sha256(b"another").hexdigest())
    monkeypatch.setattr(artifacts, "CHECKPOINT_FORMAT", "1")
    with pytest.raises(ValueError, match="its format is '3', not '1'"):
        unpack_checkpoint(content, KEY)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed() -> None:
    content = pack_checkpoint(KEY, tensors(), DOCUMENT)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with contextlib.suppress(ValueError):
            state, document = unpack_checkpoint(bytes(flipped), KEY)
            assert same(state, tensors()), position
            assert document == DOCUMENT, position
