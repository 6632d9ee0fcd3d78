"""The answer at the top of the page: every space's own question, and no more than the data say."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses
import functools
import math
import re

import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import cells, load, memo
from analysis.drawing.signs import MINUS, TIMES
from analysis.figures.table import FIGURES
from analysis.gains import block
from analysis.page import headline
from search_spaces import SPACES
from trainables import schema

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
        f"at width {TIMES}1 (3 pairs) and from",
        f"at width {TIMES}16 (3 pairs)",
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


@pytest.fixture(scope="module", autouse=True)
def answered_once():
    """Let the tests share what is found out about a frame, as the parts of a report do."""
    with memo.remembered():
        yield


@pytest.fixture(scope="module")
def frame_of(uri):
    """Return a function that returns the runs of a space; not to be changed."""
    return functools.cache(lambda name: load.runs(name, uri))


@pytest.mark.parametrize("name", SPACES)
def test_the_headline_answers_the_question_of_its_space(name, frame_of):
    said = headline.headline(frame_of(name))
    places = [said.find(part) for part in ANSWERS[name]]
    assert min(places) >= 0, said
    assert places == sorted(places), said
    assert "yet" not in said, "the study is complete"


@pytest.mark.parametrize("name", SPACES)
def test_the_first_figure_shows_what_the_headline_says(name, frame_of):
    frame = frame_of(name)
    first = headline.figure_of(frame)
    assert first == FIRST.get(name, "rewind")
    assert len(FIGURES[first].table(frame)), "it has numbers"


@pytest.mark.parametrize("name", SPACES)
def test_the_details_repeat_nothing_of_the_headline(name, frame_of):
    frame = frame_of(name)
    said = headline.headline(frame)
    assert not [each for each in headline.details(frame) if each in said]


# --- blocks: over which pairs and cells means are -------------------------------------------------------------------
TRIPLE = (cells.PERMUTED, cells.NAIVE, cells.LTH)


@pytest.fixture
def scored(frame_of):
    """The scores of three pairs at widths 1 to 16 and one sparsity."""
    return cells.scores(frame_of("resnet20_width_sweep"))


def first_cells(scored, count):
    """Say which lines are in the first cells of the grid."""
    return scored.groupby([*cells.CELL], dropna=False).ngroup() < count


def test_a_share_is_that_of_the_cells_that_the_pairs_have(scored):
    by = [*cells.CELL]
    whole = block(scored, by, *TRIPLE)
    permuted, lth = (whole.gain(row, cells.NAIVE).value for row in (cells.PERMUTED, cells.LTH))
    assert whole.share().value == pytest.approx(permuted / lth)
    place = first_cells(scored, 1)
    lost = place & (scored["row"] == "naive") & (scored["pair"] == f"A0{cells.ARROW}B1")
    assert block(scored[~lost], by, *TRIPLE).share() == block(scored[~place], by, *TRIPLE).share()


@pytest.mark.parametrize("begun", [1, 3])
def test_a_pair_that_has_only_begun_is_left_out(scored, begun):
    by, seen = [*cells.CELL], scored[scored["pair"] != f"A2{cells.ARROW}B3"]
    whole = block(scored, by, *TRIPLE)
    new = scored[first_cells(scored, begun) & scored["pair"].isin([f"A2{cells.ARROW}B3", "A2"])]
    rest = seen[seen["seed_a"] != 2]
    two = block(pd.concat([rest, new]), by, *TRIPLE)
    assert (two.pairs, two.cells, two.left_out) == (2, whole.cells, 1)
    assert two.gain() == block(rest, by, *TRIPLE).gain()


def test_a_pair_of_another_width_leaves_the_others_as_they_are(scored):
    by, own = [*cells.CELL], scored["seed_a"].isin([4]) | (scored["pair"] == f"A4{cells.ARROW}B5")
    other = scored[own & (scored["width"] == 4.0)]
    together = pd.concat([scored[~own & (scored["width"] == 1.0)], other])
    found = block(together, by, *TRIPLE)
    assert (found.pairs, found.left_out, found.behind) == (2, 0, (4.0,))
    assert found.gain() == block(scored[~own & (scored["width"] == 1.0)], by, *TRIPLE).gain()


@pytest.mark.parametrize("begun", [(1, 0, 0), (9, 3, 0), (9, 4, 0), (9, 9, 1), (9, 9, 2)])
def test_a_width_that_has_only_begun_costs_no_pair(scored, begun):
    by, wide = [*cells.CELL], scored[scored["width"] == 4.0]
    place = wide.groupby([*cells.CELL], dropna=False).ngroup()
    counts = dict(zip(sorted(wide["seed_a"].dropna().unique()), begun, strict=False))
    done = wide[place < wide["seed_a"].map(counts)]
    finished = scored[scored["width"] == 1.0]
    whole, found = block(finished, by, *TRIPLE), block(pd.concat([finished, done]), by, *TRIPLE)
    assert whole.pairs == 3
    assert found.behind == (4.0,)
    assert (found.pairs, found.cells, found.gain(), found.share()) == (3, whole.cells, whole.gain(), whole.share())


def test_the_first_cells_of_more_pairs_at_another_width_displace_no_results(scored):
    by, wide = [*cells.CELL], scored[scored["width"] == 4.0]
    two = scored[(scored["width"] == 1.0) & (scored["seed_a"] != 4) & (scored["pair"] != f"A4{cells.ARROW}B5")]
    first = wide[wide.groupby([*cells.CELL], dropna=False).ngroup() < 1]
    assert block(first, by, *TRIPLE).pairs == 3
    found = block(pd.concat([two, first]), by, *TRIPLE)
    assert (found.behind, found.pairs) == ((), 2)
    assert found.cells == block(two, by, *TRIPLE).cells + 1


def test_what_is_left_out_is_said_and_shown_apart(frame_of):
    frame = frame_of("resnet20_width_sweep")
    begun = (frame["stage"] == "sparse") & (frame["width"] == 16) & (frame["seed_a"] != 0)
    said, more = headline.headline(frame[~begun]), headline.details(frame[~begun])
    assert f"; width {TIMES}16, with fewer pairs, left out)" in said
    assert f"at width {TIMES}16" not in said, "widths are compared over the same pairs"
    assert [text for text in more if text.startswith(f"Permuted {MINUS} naive at width {TIMES}16: ")]
    controls = headline.details(frame_of("cifar10_two_cores"))
    split = [text.partition(" from the untouched")[0] for text in controls if "; from epoch 1 or later: " in text]
    compared = [("Permuted", "naive"), ("Permuted", "shuffled"), ("Permuted", "layerwise random")]
    assert split == [f"{row} {MINUS} {over}" for row, over in [*compared, ("Naive", "layerwise random")]]


def test_nothing_in_common_is_an_empty_block(scored):
    none = block(scored, [*cells.CELL], cells.PERMUTED, "a way that no run has")
    assert (none.pairs, none.cells, none.left_out, none.masks) == (0, 0, 0, 0)
    assert block(scored.iloc[:0], [*cells.CELL], *TRIPLE).gain().n == 0


def test_nets_b_under_one_mask_are_one_observation(scored):
    by, pair = [*cells.CELL], f"A0{cells.ARROW}B1"
    twins = scored[scored["pair"] == pair]
    twins = twins.assign(pair=f"A0{cells.ARROW}B99", seed_b=99, test_accuracy=twins["test_accuracy"] + 1)
    alone, shared = block(scored, by, *TRIPLE), block(pd.concat([scored, twins]), by, *TRIPLE)
    assert (shared.pairs, shared.masks, shared.gain().n) == (alone.pairs + 1, alone.masks, alone.gain().n)
    assert shared.gain().value == pytest.approx(alone.gain().value), "both nets gain alike"
    only = block(pd.concat([scored[scored["seed_a"] == 0], twins]), by, *TRIPLE)
    assert (only.pairs, only.gain().n) == (2, 1)
    assert math.isnan(only.gain().low), "one mask says nothing about others"


def test_the_share_names_its_own_cells_where_lth_lacks_some(frame_of):
    frame = frame_of("digits_quickstart")
    lth = (frame["method"] == "lth") & (frame["stage"] == "sparse")
    first = frame.loc[lth, "rewind_epoch"].min()
    said = headline.headline(frame[~(lth & (frame["rewind_epoch"] > first))])
    assert "This closes" not in said
    assert re.search(r"Where LTH nets have finished, too \(\d+ pairs of nets, \d+ cells of the grid\), it closes", said)


def test_widths_are_compared_at_the_rewind_epochs_that_all_of_them_have(frame_of):
    frame = frame_of("resnet20_width_sweep")
    sparse = frame["stage"] == "sparse"
    late = sparse & (frame["rewind_epoch"] > 10)
    lacking, common = frame[~(late & (frame["width"] == 16))], frame[~late]
    shares = re.compile(r"\d+ % at width")
    said, alone = (headline.headline(each) for each in (lacking, common))
    assert shares.findall(said) == shares.findall(alone)
    assert "over the cells that they have in common" in said
    assert "in common" not in alone


def test_ways_of_matching_are_compared_over_the_same_cells(frame_of):
    frame = frame_of("matcher_ablation")
    by_weight = frame["matching"].map(lambda how: how.get("matcher") == "weight") & (frame["stage"] == "sparse")
    late = frame["rewind_epoch"] > frame["rewind_epoch"].min()
    activation = re.compile(r"activation (\S+)")
    some, common = (
        headline.headline(frame[~(by_weight & late)]),
        headline.headline(frame[~((frame["stage"] == "sparse") & late)]),
    )
    assert activation.search(some)[1] == activation.search(common)[1]


def test_barriers_are_those_of_pairs_that_were_measured_before_and_after(frame_of):
    frame = frame_of("mode_connectivity")
    path = (frame["stage"] == "connect") & (frame["path"] == schema.PATH_PAIR)
    moved = path & (frame["matcher"] != "identity")
    first = frame["seed_a"] == frame.loc[path, "seed_a"].min()
    assert headline.headline(frame[~(moved & ~first)]) == headline.headline(frame[~(path & ~first)])
    early = frame[path].assign(match_epoch=5, error_barrier=99.0, run_id=frame["run_id"] + "e", key=frame["key"] + "e")
    assert headline.headline(pd.concat([frame, early])) == headline.headline(frame), "B after 5 epochs is another net"
    twice = frame[path].assign(correction="none", error_barrier=99.0, run_id=frame["run_id"] + "c")
    assert "A and B with bn_reset from" in headline.headline(pd.concat([frame, twice]))


def test_ensembles_are_compared_at_places_that_all_methods_have(frame_of):
    frame = frame_of("ensemble_diversity_cifar100")
    said = headline.headline(frame)
    sparsities = sorted(set(frame.loc[frame["stage"] == "ensemble", "sparsity"].dropna()))
    assert [said.count(f"{100 * sparsity:g} % sparse, ensembles reach") for sparsity in sparsities] == [1, 1]
    ensemble = (frame["stage"] == "ensemble") & (frame["method"] == "permuted")
    lost = headline.headline(frame[~(ensemble & (frame["sparsity"] == sparsities[0]))])
    assert lost.count("ensembles reach") == 1
    assert all(part in said for part in lost.split(" sparse, ")[1:])


def test_an_offset_start_is_not_called_untouched(frame_of):
    frame = frame_of("cifar10_two_cores")
    start = "from the untouched initialisation"
    assert any(start in each for each in headline.details(frame))
    offset = frame.assign(rewind_offset=frame["stage"].map(lambda stage: "1" if stage == "sparse" else ""))
    assert not any(start in each for each in headline.details(offset))
    assert any("from rewind epoch 0:" in each for each in headline.details(offset))


def test_no_number_is_without_the_pairs_and_cells_that_it_is_from(frame_of):
    for name in SPACES:
        frame = frame_of(name)
        for sentence in (headline.headline(frame), *headline.details(frame)):
            for said in re.findall(r"points \(([^)]*)\)", sentence):
                assert re.search(r"\d+ pairs?\b|n = \d|\d ensembles|nets", said), sentence


def test_the_headline_claims_no_way_that_some_pairs_lack(frame_of):
    frame = frame_of("early_matching")
    some = frame[
        ~(frame["matching"].map(lambda matching: matching.get("match_epoch") == 5) & (frame["stage"] == "sparse"))
    ]
    said = headline.headline(some)
    assert "t=20" in said
    assert "t=5 " not in said


def test_without_a_result_nothing_is_said(frame_of):
    frame = frame_of("early_matching")
    assert headline.headline(frame.assign(status="RUNNING")) == headline.NOTHING
    dense = frame[frame["stage"] == "dense"]
    assert headline.headline(dense) == "With resnet20 on cifar10, nothing can be compared yet."
