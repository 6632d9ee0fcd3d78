"""How many images a match needs, from a synthetic study and from frames made by hand."""

import dataclasses

import pytest
import synthetic_effects
import synthetic_runs
import synthetic_spaces

from analysis import load
from analysis.figures import match_images
from search_spaces import SPACES
from trainables import schema

COUNTS = (100, 1_000, 0)
STUDY = dataclasses.replace(
    SPACES["match_images"], name="few", width=(1.0, 2.0), sparsity=(0.9,), seeds=(0, 1, 2), match_images=COUNTS
)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    synthetic_spaces.write_space(folder, STUDY)
    return load.runs(STUDY.name, synthetic_runs.tracking_uri(folder))


def test_means_over_the_pairs_by_number_of_images(frame):
    table = match_images.table(frame)
    assert set(table["match_images"]) == set(COUNTS)
    assert set(table["n"]) == {3}
    matches = frame[(frame["stage"] == schema.MATCH) & (frame["width"] == 2) & (frame["match_images"] == "100")]
    chosen = table[(table["width"] == 2) & (table["match_images"] == 100)].set_index("measure")
    barriers = matches[schema.LOSS_BARRIER_AFTER]
    assert chosen.loc[schema.LOSS_BARRIER_AFTER, "mean"] == pytest.approx(barriers.mean())
    assert chosen.loc[schema.LOSS_BARRIER_AFTER, "std"] == pytest.approx(barriers.std(ddof=1))
    agreement = 100 * matches[schema.AGREEMENT_WITH_WEIGHT]
    assert chosen.loc[schema.AGREEMENT_WITH_WEIGHT, "mean"] == pytest.approx(agreement.mean())


def test_the_gain_is_that_of_the_nets_permuted_by_the_match(frame):
    table = match_images.table(frame)
    found = table[(table["measure"] == "gain") & (table["width"] == 1) & (table["match_images"] == 1_000)]
    runs = frame[(frame["stage"] == schema.SPARSE) & (frame["width"] == 1)].set_index(["method", "rewind_epoch"])
    permuted = runs.loc["permuted"].query("match_images == '1000'")["test_accuracy"]
    assert found["mean"].item() == pytest.approx(permuted.mean() - runs.loc["naive"]["test_accuracy"].mean())


def test_matches_by_one_number_of_images_are_no_subject():
    runs = synthetic_effects.runs(
        [synthetic_effects.match(pair, key * 64, 0.5) for pair, key in zip(synthetic_effects.PAIRS, "abc", strict=True)]
    )
    runs = runs.assign(match_images="1000")
    assert match_images.table(runs).empty
    assert match_images.formatted(runs).empty
    assert "--set match_images" in match_images.notes(runs)[0]
    match_images.figure(runs)


def test_all_images_stand_last_and_are_called_so(frame):
    figure = match_images.figure(frame)
    assert len(figure.axes) == 2 * len(match_images.PANELS)
    for axes in figure.axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "1,000", "all"]
    shown = match_images.formatted(frame)
    assert shown["images"].tolist() == ["100", "1,000", "all"] * 2
    assert not match_images.notes(frame)


def test_matchers_that_look_at_no_image_are_no_subject(frame):
    is_match = frame["stage"] == schema.MATCH
    renamed = frame.assign(matcher=frame["matcher"].where(~is_match, "weight"))
    assert match_images.table(renamed).empty


def test_failed_matches_and_open_ones_do_not_count(frame):
    is_match = frame["stage"] == schema.MATCH
    broken = frame.assign(status=frame["status"].where(~(is_match & (frame["seed_a"] == 0)), "FAILED"))
    table = match_images.table(broken)
    assert set(table["n"]) == {2}
