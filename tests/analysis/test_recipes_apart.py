"""Every figure and table keeps the recipes of a study apart."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses

import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import cells
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
VARIED = {
    "lr": ("0.05,0.1", [*STUDIES]),
    "kernels": ("dense,sparse", ["mode_connectivity", "mask_controls", "match_images"]),
}
"""A setting that all jobs depend on, and one that has an effect only where most weights are masked: values, studies."""
ONE_FOR_ALL = {"cost": "adds the whole study up", "learning": "shows one cell"}
"""Figures whose tables do not grow with the number of recipes, and why."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for setting, (values, studies) in VARIED.items():
        for study in studies:
            space = dataclasses.replace(SPACES[study], **STUDIES[study])
            for number, value in enumerate((*values.split(","), values)):
                varied = override(space, [f"{setting}={value}"])
                synthetic_spaces.write_space(folder, dataclasses.replace(varied, name=f"{study}_{setting}_{number}"))
    return synthetic.tracking_uri(folder)


@pytest.mark.parametrize("setting", VARIED)
@pytest.mark.parametrize("figure", [name for name in FIGURES if name not in ONE_FOR_ALL])
def test_a_table_of_two_recipes_has_the_lines_of_both(figure, setting, uri):
    module = FIGURES[figure]
    filled = 0
    for study in VARIED[setting][1]:
        frames = [loader(module)(f"{study}_{setting}_{number}", uri) for number in range(3)]
        first, second, both = (len(module.table(frame)) for frame in frames)
        depends = setting in frames[-1] and cells.repeated(frames[-1])[setting].nunique() > 1
        assert both == (first + second if depends else first), (study, first, both)
        if both:
            assert module.figure(frames[-1]).axes
        filled += both
    assert filled or setting != "lr"
