"""The keys of all networks that the search spaces train, pinned in pinned_keys.json.

A key that changes makes everybody train those networks again. Where that is meant: ``python tests/pinned_keys.py``
writes the file anew and says what has changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Final
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the project is not installed

from search_spaces import RECIPES, SPACES, SearchSpace, get_space
from study import plan
from trainables import schema
from trainables.data import DatasetFacts, get_entry
from trainables.graph import Ref
from trainables.models import MODELS

FILE: Final = Path(__file__).with_suffix(".json")
REGENERATE: Final = "python tests/pinned_keys.py"
TRAINED: Final = (schema.DENSE, schema.PRUNE, schema.SPARSE)

Pinned = dict[str, dict[str, str]]
"""Space, as on the command line -> kind -> number of outputs and digest of their keys."""

ONE_PAIR: Final = ("digits_quickstart", "seeds=0", "width=0.5")
VARIANTS: Final = (
    *((name,) for name in SPACES),
    *((*ONE_PAIR, "model=resnet20", f"recipe={name}", "batch_size=128") for name in RECIPES),
    ("resnet20_width_sweep", "recipe=short", "rewind_epoch=0,5,10", "width=1"),
    *((*ONE_PAIR, f"model={name}") for name in MODELS),
    (*ONE_PAIR, "method=imp,lth,naive,permuted,shuffled,layerwise_random,own_mask,reinit", "members=2"),
    *(
        (*ONE_PAIR, setting)
        for setting in (
            *("kernels=sparse", "stacked=true", "compiled=true", "precision=bf16", "precision=tf32"),
            *("augment=false", "shortcut=conv1x1", "prune_shortcuts=true", "prune_classifier=false"),
            *("sparse_schedule=resume", "rewind_offset=1", "match_images=30", "matcher=weight,identity"),
        )
    ),
)
"""Every space, every recipe, and the settings that enter a key."""


def keys() -> Pinned:
    """Return what the spaces have now."""
    return {" ".join(variant): _of(plan.override(get_space(variant[0]), variant[1:])) for variant in VARIANTS}


def changes(before: Pinned, now: Pinned) -> list[str]:
    """Return a line for every space and kind that differs."""
    return [
        f"{space}: {kind}: pinned {before.get(space, {}).get(kind, 'none')}, now {now.get(space, {}).get(kind, 'none')}"
        for space in {**before, **now}
        for kind in TRAINED
        if before.get(space, {}).get(kind) != now.get(space, {}).get(kind)
    ]


def read() -> Pinned:
    """Return what is pinned."""
    pinned: Pinned = json.loads(FILE.read_text(encoding="utf-8"))
    return pinned


def planned(space: SearchSpace) -> plan.Plan:
    """Return the plan of a space on datasets as they were published, whether or not this machine has them."""
    with patch.object(plan, "check_dataset", _without_files):
        return plan.make_plan(space)


def _of(space: SearchSpace) -> dict[str, str]:
    graph = planned(space).closure
    outputs: dict[str, list[str]] = {kind: [] for kind in TRAINED}
    for key, epochs in graph.todo(set()).items():  # a dense net is published at its rewind epochs, too
        job = graph.jobs[key]
        if job.kind in outputs:
            outputs[job.kind] += (Ref(job, epoch).key for epoch in epochs)
    return {
        kind: f"{len(found)} {hashlib.sha256(' '.join(sorted(found)).encode()).hexdigest()[:16]}"
        for kind, found in outputs.items()
    }


def _without_files(name: str, *_: object) -> DatasetFacts:
    """Return the facts of a dataset as its entry has them: a data set by name has no fingerprint in its keys."""
    entry = get_entry(name)
    return DatasetFacts(
        num_classes=entry.num_classes or 1000,
        in_channels=entry.in_channels,
        image_size=entry.image_size,
        train_images=entry.train_images or 1_281_167,
        test_images=entry.test_images or 50_000,
        fingerprint="",
    )


if __name__ == "__main__":
    before, now = read() if FILE.exists() else {}, keys()
    FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    print(*(changes(before, now) or ["nothing has changed"]), sep="\n")
