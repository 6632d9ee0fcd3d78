"""The figures of the study. To add one, write a module beside the others and add its name to ``NAMES``.

A module has ``figure(frame)`` and ``table(frame)``, pure functions of a frame; ``notes(frame)``, what the figure leaves
out and why; ``TITLE`` and ``CAPTION``. The frame is that of :func:`analysis.load.runs`, or of the module's own
``load(space, tracking_uri)``. A module may have ``formatted(frame)``, the table as people read it. If ``CAPTION`` does
not describe that table, the module has ``TABLE_CAPTION``, too, and ``SHARED``, with which both begin and which the page
says once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.load import runs

NAMES = (
    "rewind",
    "top5",
    "sparsity",
    "width",
    "interpolation",
    "imp_path",
    "landscape",
    "function_space",
    "early_matching",
    "effects",
    "controls",
    "mask_overlap",
    "match_quality",
    "match_images",
    "versus_paper",
    "learning",
    "cost",
)
FIGURES: dict[str, Any] = {name: importlib.import_module(f"analysis.figures.{name}") for name in NAMES}
"""Name of the figure and its files -> module, in the order of the report."""


def loader(module: Any) -> Callable[[str, str], pd.DataFrame]:
    """Return the function that reads what a figure or table shows, from the name of a space and a tracking URI."""
    load: Callable[[str, str], pd.DataFrame] = getattr(module, "load", runs)
    return load
