"""What can be trained, how one job is computed, and the public names for scripts and notebooks.

Each public name is imported when it is first used, so planning needs neither torch nor ray. The functions take and
return plain modules and dicts of tensors: state dicts, masks, permutations.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainables.masks import magnitude_mask as magnitude_mask
    from trainables.masks import mask_sparsity as mask_sparsity
    from trainables.methods import MATCHERS as MATCHERS
    from trainables.models import MODELS as MODELS
    from trainables.models import build_model as build_model
    from trainables.rebuild import load_network as load_network
    from trainables.symmetry.connectivity import interpolation_curve as interpolation_curve
    from trainables.symmetry.connectivity import loss_barrier as loss_barrier
    from trainables.symmetry.matching import match_models as match_models
    from trainables.symmetry.permutations import apply_permutation as apply_permutation
    from trainables.symmetry.permutations import compose_permutations as compose_permutations
    from trainables.symmetry.permutations import invert_permutation as invert_permutation
    from trainables.symmetry.permutations import permutation_spec as permutation_spec
    from trainables.symmetry.permutations import random_permutation as random_permutation
    from trainables.symmetry.repair import repair as repair
    from trainables.symmetry.repair import reset_batchnorm as reset_batchnorm
    from trainables.tune import LTH as LTH
    from trainables.tune import Dense as Dense
    from trainables.tune import Naive as Naive
    from trainables.tune import Permuted as Permuted

PUBLIC: Final[dict[str, str]] = {
    **dict.fromkeys(("Dense", "LTH", "Naive", "Permuted"), "tune"),
    **dict.fromkeys(("MODELS", "build_model"), "models"),
    **dict.fromkeys(
        (
            "permutation_spec",
            "apply_permutation",
            "invert_permutation",
            "compose_permutations",
            "random_permutation",
        ),
        "symmetry.permutations",
    ),
    "MATCHERS": "methods",
    "match_models": "symmetry.matching",
    **dict.fromkeys(("magnitude_mask", "mask_sparsity"), "masks"),
    **dict.fromkeys(("interpolation_curve", "loss_barrier"), "symmetry.connectivity"),
    **dict.fromkeys(("reset_batchnorm", "repair"), "symmetry.repair"),
    "load_network": "rebuild",
}
"""Public name -> the module of this package that has it."""
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(PUBLIC)}")
    value = getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
