"""No network's key changes unnoticed: whoever has trained it would have to train it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pinned_keys


def test_no_dense_pruned_or_sparse_net_has_another_key_than_before() -> None:
    changed = pinned_keys.changes(pinned_keys.read(), pinned_keys.keys())
    hint = f"Published networks would be trained again. If that is meant, or a space is new: {pinned_keys.REGENERATE}"
    assert not changed, "\n".join(["Keys differ from tests/pinned_keys.json:", *changed, hint])


def test_a_changed_key_is_named_with_its_space_and_kind() -> None:
    before = {"a": {"dense": "1 x", "prune": "2 y", "sparse": "3 z"}, "gone": {"dense": "1 x"}}
    now = {"a": {"dense": "1 x", "prune": "2 other", "sparse": "3 z"}, "added": {"sparse": "1 x"}}
    assert pinned_keys.changes(before, before) == []
    assert pinned_keys.changes(before, now) == [
        "a: prune: pinned 2 y, now 2 other",
        "gone: dense: pinned 1 x, now none",
        "added: sparse: pinned none, now 1 x",
    ]


def test_keys_are_found_without_torch() -> None:
    code = "import sys, pinned_keys; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
