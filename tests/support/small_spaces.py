"""A search space of few jobs, to plan and not to run."""

from __future__ import annotations

from typing import Any

from search_spaces import SearchSpace


def small(**settings: Any) -> SearchSpace:
    """Return a space of one seed pair on the digits."""
    defaults: dict[str, Any] = {
        "dataset": "digits",
        "model": "mlp",
        "seeds": (0,),
        "epochs": 20,
        "imp_epochs": 2,
        "imp_momentum": 0.0,
        "pruner": "imp_finetune",
        "prune_fraction": 0.2,
        "match_images": 10_000,
        "lr": 0.08,
        "sparsity": (0.5,),
        "rewind_epoch": (5,),
    }
    return SearchSpace(name="small", question="?", **{**defaults, **settings})
