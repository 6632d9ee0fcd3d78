"""The figures of the study. To add one, write a module beside the others and add a row to ``FIGURES``.

A module has ``load(space, tracking_uri)``, which reads the frame that it needs; ``figure(frame)`` and ``table(frame)``,
pure functions of that frame; ``notes(frame)``, what the figure leaves out and why; ``TITLE`` and ``CAPTION``. It may
have ``formatted(frame)``, the table as people read it.
"""

from __future__ import annotations

from typing import Protocol

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import (
    controls,
    cost,
    early_matching,
    effects,
    function_space,
    imp_path,
    interpolation,
    landscape,
    learning,
    mask_overlap,
    match_images,
    match_quality,
    rewind,
    sparsity,
    top5,
    versus_paper,
    width,
)


class FigureModule(Protocol):
    """The interface of a figure's module."""

    TITLE: str
    CAPTION: str

    def load(self, space: str, tracking_uri: str) -> pd.DataFrame:
        """Read what the figure shows."""

    def figure(self, frame: pd.DataFrame) -> Figure:
        """Draw it."""

    def table(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return its numbers."""

    def notes(self, frame: pd.DataFrame) -> list[str]:
        """Say what it leaves out."""


FIGURES: dict[str, FigureModule] = {
    "rewind": rewind,
    "top5": top5,
    "sparsity": sparsity,
    "width": width,
    "interpolation": interpolation,
    "imp_path": imp_path,
    "landscape": landscape,
    "function_space": function_space,
    "early_matching": early_matching,
    "effects": effects,
    "controls": controls,
    "mask_overlap": mask_overlap,
    "match_quality": match_quality,
    "match_images": match_images,
    "versus_paper": versus_paper,
    "learning": learning,
    "cost": cost,
}
"""Name of the figure and its files -> module, in the order of the report."""
