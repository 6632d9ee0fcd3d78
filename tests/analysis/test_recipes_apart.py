"""Every figure and table keeps the recipes of a study apart."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses

import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis.figures.table import FIGURES, loader
from search_spaces import SPACES
from study.plan import override

SMALL = {"seeds": (0, 1), "width": (1.0,), "sparsity": (0.9,)}
STUDIES = {
    "digits_quickstart": {**SMALL, "rewind_epoch": (0, 2), "interpolation_points": 3},
    "mode_connectivity": SMALL,
    "ensemble_diversity": {"members": 3},
    "mask_controls": SMALL,
    "match_images": {**SMALL, "match_images": (100, 400)},
    "early_matching": SMALL,
    "resnet50_imagenet_sweep": {"sparsity": (0.9,)},
}
"""Small studies that together fill every figure."""
RATES = "0.05,0.1"
ONE_FOR_ALL = {"cost": "adds the whole study up", "learning": "shows one cell"}
"""Figures whose tables do not grow with the number of recipes, and why."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, settings in STUDIES.items():
        space = dataclasses.replace(SPACES[name], **settings)
        for number, rates in enumerate((*RATES.split(","), RATES)):
            varied = dataclasses.replace(override(space, [f"lr={rates}"]), name=f"{name}_{number}")
            synthetic_spaces.write_space(folder, varied)
    return synthetic.tracking_uri(folder)


@pytest.mark.parametrize("figure", [name for name in FIGURES if name not in ONE_FOR_ALL])
def test_a_table_of_two_recipes_has_the_lines_of_both(figure, uri):
    module = FIGURES[figure]
    filled = 0
    for study in STUDIES:
        frames = [loader(module)(f"{study}_{number}", uri) for number in range(3)]
        first, second, both = (len(module.table(frame)) for frame in frames)
        assert both == first + second, study
        if both:
            assert module.figure(frames[-1]).axes
        filled += both
    assert filled
