"""The answer at the top of the page: every space's own question, and no more than the data say."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses

import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import cells, load
from analysis.drawing.signs import MINUS, TIMES
from analysis.figures.table import FIGURES
from analysis.gains import gains, pooled, share
from analysis.page import headline
from search_spaces import SPACES

SMALL = {"seeds": (0, 1, 2), "sparsity": (0.9,), "rewind_epochs_of_width": ()}
GAIN = ["permuting the mask gains", "of the gap from naive to LTH"]
ANSWERS = {
    "digits_quickstart": GAIN,
    "cifar10_two_cores": [
        *GAIN,
        f"at width {TIMES}0.5",
        f"Permuted {MINUS} shuffled",
        f"Permuted {MINUS} layerwise random",
    ],
    "image_folder_study": GAIN,
    "resnet20_width_sweep": [*GAIN, f"% at width {TIMES}1,", f"% at width {TIMES}16"],
    "resnet20_cifar100_width_sweep": [*GAIN, f"% at width {TIMES}1,", f"% at width {TIMES}16"],
    "vgg11_rewind_sweep": GAIN,
    "resnet50_imagenet_sweep": ["ahead of the naive one in the only pair so far"],
    "early_matching": ["t=5 +", "t=100 +", "at the end +"],
    "matcher_ablation": ["activation +", "random ", "weight +"],
    "match_images": ["match_images=100 +", "match_images=10000 +"],
    "mask_controls": [*GAIN, f"Permuted {MINUS} shuffled", f"Permuted {MINUS} layerwise random"],
    "mask_transfer": ["With resnet20 on svhn, permuting the mask gains"],
    "mode_connectivity": [
        "matching changes the error barrier between A and B",
        f"at width {TIMES}1 and from",
        f"at width {TIMES}16",
    ],
    "ensemble_diversity": ["ensembles reach", "LTH 9", "Permuted 9"],
    "ensemble_diversity_cifar100": ["ensembles reach", "LTH 7", "Permuted 7"],
}
"""Space -> parts of its headline, in order."""

FIRST = {
    "resnet20_width_sweep": "width",
    "resnet20_cifar100_width_sweep": "width",
    "early_matching": "early_matching",
    "matcher_ablation": "match_quality",
    "match_images": "match_images",
    "mode_connectivity": "interpolation",
    "ensemble_diversity": "function_space",
    "ensemble_diversity_cifar100": "function_space",
}
"""Space -> its first figure, if that is not accuracy by rewind epoch."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headlines")
    for space in SPACES.values():
        changes = {} if space.members or space.name == "digits_quickstart" else SMALL
        if len(space.seeds) == 1:
            changes = {**changes, "seeds": (0,)}
        synthetic_spaces.write_space(folder, dataclasses.replace(space, **changes))
    return synthetic.tracking_uri(folder)


@pytest.mark.parametrize("name", SPACES)
def test_the_headline_answers_the_question_of_its_space(name, uri):
    said = headline.headline(load.runs(name, uri))
    places = [said.find(part) for part in ANSWERS[name]]
    assert min(places) >= 0, said
    assert places == sorted(places), said
    assert "yet" not in said, "the study is complete"


@pytest.mark.parametrize("name", SPACES)
def test_the_first_figure_shows_what_the_headline_says(name, uri):
    frame = load.runs(name, uri)
    first = headline.figure_of(frame)
    assert first == FIRST.get(name, "rewind")
    assert len(FIGURES[first].table(frame)), "it has numbers"


@pytest.mark.parametrize("name", SPACES)
def test_the_details_repeat_nothing_of_the_headline(name, uri):
    frame = load.runs(name, uri)
    said = headline.headline(frame)
    assert not [each for each in headline.details(frame) if each in said]


def test_a_share_is_that_of_the_cells_that_all_pairs_have(uri):
    scored = cells.scores(load.runs("resnet20_width_sweep", uri))
    by = [name for name in cells.CELL if name in scored]
    whole = share(scored, by)
    lth, permuted = (pooled(gains(scored, by, row)).value for row in (cells.LTH, cells.PERMUTED))
    assert whole.value == pytest.approx(permuted / lth)
    place = scored[by].drop_duplicates().iloc[0]
    lost = (
        (scored[by] == place).all(axis="columns")
        & (scored["row"] == "naive")
        & (scored["pair"] == "A0\N{RIGHTWARDS ARROW}B1")
    )
    rest = ~(scored[by] == place).all(axis="columns")
    assert share(scored[~lost], by) == share(scored[rest], by), "one pair lacks a cell, so no pair counts it"


def test_the_headline_claims_no_way_that_some_pairs_lack(uri):
    frame = load.runs("early_matching", uri)
    some = frame[
        ~(frame["matching"].map(lambda matching: matching.get("match_epoch") == 5) & (frame["stage"] == "sparse"))
    ]
    said = headline.headline(some)
    assert "t=20" in said
    assert "t=5 " not in said


def test_without_a_result_nothing_is_said(uri):
    frame = load.runs("early_matching", uri)
    assert headline.headline(frame.assign(status="RUNNING")) == headline.NOTHING
    dense = frame[frame["stage"] == "dense"]
    assert headline.headline(dense) == "With resnet20 on cifar10, nothing can be compared yet."
