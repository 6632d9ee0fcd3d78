"""What permuting gains and what the controls say, from frames whose answers can be worked out by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic_effects as synthetic
from scipy import stats as scipy_stats

from analysis import cells, stats
from analysis.drawing import intervals, style
from analysis.figures import accuracy_table, controls, effects

MINUS = "\N{MINUS SIGN}"
NAIVE = [80.0, 81.0, 82.0]
PERMUTED = [81.0, 82.5, 83.2]
LTH = [84.0, 84.0, 86.0]


def only(found, **where):
    for name, value in where.items():
        found = found[found[name] == value]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def frame():
    """Two rewind epochs from 1 on and one at 0, where there is hardly a gap; another width with a single pair."""
    at_ten = synthetic.cell({"naive": NAIVE, "permuted": PERMUTED, "lth": LTH}, rewind=10)
    lower = [value - 1 for value in NAIVE]
    at_twenty = synthetic.cell({"naive": lower, "permuted": PERMUTED, "lth": LTH}, rewind=20)
    start = synthetic.cell({"naive": NAIVE, "permuted": NAIVE, "lth": [79.9, 81.3, 81.9]}, rewind=0)
    alone = synthetic.cell({"naive": [90.0], "permuted": [91.0], "lth": [92.0]}, rewind=10, width=4.0)
    return synthetic.runs(at_ten + at_twenty + start + alone)


# --- effects --------------------------------------------------------------------------------------------------------
def test_a_cell_by_hand(frame):
    one = only(effects.table(frame), width=1.0, rewind_epoch=10)
    theirs = scipy_stats.ttest_rel(PERMUTED, NAIVE)
    assert (one["pairs"], one["cells"]) == (3, 1)
    assert one["permuted_minus_naive"] == pytest.approx(np.mean(PERMUTED) - np.mean(NAIVE))
    assert (one["ci_low"], one["ci_high"]) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert one["p"] == pytest.approx(theirs.pvalue)
    assert one["lth_minus_naive"] == pytest.approx(np.mean(LTH) - np.mean(NAIVE))
    assert one["lth_minus_permuted"] == pytest.approx(np.mean(LTH) - np.mean(PERMUTED))
    share = stats.paired_share(PERMUTED, NAIVE, LTH)
    assert (one["share_closed"], one["share_low"], one["share_high"]) == pytest.approx(
        (share.value, share.low, share.high)
    )


def test_single_cells_are_corrected_for_their_number(frame):
    found = effects.table(frame)
    single = found[found["cells"] == 1]
    assert len(single) == 4
    expected = stats.holm(single["p"].tolist())
    assert single["p_holm"].tolist() == pytest.approx(expected, nan_ok=True)
    assert found.loc[found["cells"] > 1, "p_holm"].isna().all()


def test_the_mean_over_rewind_epochs_leaves_the_initialisation_out(frame):
    found = effects.table(frame)
    one = only(found[found["cells"] > 1])
    assert (one["width"], one["cells"], one["pairs"]) == (1.0, 2, 3)
    assert pd.isna(one["rewind_epoch"])
    by_pair = [(high - low) / 2 + (high - low + 1) / 2 for high, low in zip(PERMUTED, NAIVE, strict=True)]
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(by_pair), scipy_stats.sem(by_pair))
    assert (one["permuted_minus_naive"], one["ci_low"], one["ci_high"]) == pytest.approx((np.mean(by_pair), low, high))


def test_a_pair_that_lacks_an_epoch_does_not_tilt_the_mean(frame):
    lacking = frame[~((frame["rewind_epoch"] == 20) & (frame["method"] == "naive") & (frame["seed_a"] == 0))]
    found, without = (effects.table(each) for each in (lacking, frame[frame["seed_a"] != 0]))
    pooled = found[found["cells"] > 1].reset_index(drop=True)
    assert pooled["pairs"].tolist() == [2]
    pd.testing.assert_frame_equal(pooled, without[without["cells"] > 1].reset_index(drop=True))
    assert only(found, rewind_epoch=20)["pairs"] == 2


def test_one_pair_has_no_interval_and_no_p(frame):
    one = only(effects.table(frame), width=4.0)
    assert (one["permuted_minus_naive"], one["pairs"], one["share_closed"]) == (1.0, 1, 0.5)
    assert one[["ci_low", "ci_high", "p", "p_holm", "share_low"]].isna().all()


def test_a_gap_that_is_too_small_has_no_share_and_is_said(frame):
    one = only(effects.table(frame), rewind_epoch=0)
    assert one["lth_minus_naive"] == pytest.approx(0.1 / 3)
    assert math.isnan(one["share_closed"])
    said = " ".join(effects.notes(frame))
    assert "In 1 cell LTH is not ahead of naive by more than a standard error, so there is no share" in said
    assert "1 cell with a single pair, without an interval." in said


def test_lth_that_is_clearly_behind_naive_is_not_said_to_be_close():
    behind = synthetic.cell({"naive": NAIVE, "permuted": PERMUTED, "lth": [76.9, 77.9, 78.9]})
    said = " ".join(effects.notes(synthetic.runs(behind)))
    assert "In 1 cell LTH is not ahead of naive" in said
    assert "within one standard error" not in said
    assert "too small" not in said


def test_places_without_a_mean_over_rewind_epochs_show_their_cells():
    accuracies = {"naive": NAIVE, "permuted": PERMUTED, "lth": LTH}
    grid = [(1.0, 0), (1.0, 5), (1.0, 10), (4.0, 0), (4.0, 10)]
    lines = [line for width, epoch in grid for line in synthetic.cell(accuracies, width=width, rewind=epoch)]
    shown = effects.formatted(synthetic.runs(lines))
    assert shown[["width", "rewind epochs"]].to_numpy().tolist() == [
        ["\N{MULTIPLICATION SIGN}1", "2 (all ≥ 1)"],
        ["\N{MULTIPLICATION SIGN}4", "0"],
        ["\N{MULTIPLICATION SIGN}4", "10"],
    ]


def test_the_table_that_people_read_has_the_means_over_rewind_epochs(frame):
    line, alone = effects.formatted(frame).to_dict("records")
    assert (alone["width"], alone["rewind epochs"]) == ("\N{MULTIPLICATION SIGN}4", "10")
    assert (line["width"], line["sparsity"], line["rewind epochs"]) == (
        "\N{MULTIPLICATION SIGN}1",
        "90 %",
        "2 (all ≥ 1)",
    )
    assert line[f"LTH {MINUS} naive"] == "+4.17"
    assert line["Gap closed [95 % CI]"].startswith("42 % [")
    alone = effects.formatted(frame[frame["rewind_epoch"] != 20])  # then cell by cell
    assert alone["rewind epochs"].tolist() == ["0", "10", "10"]
    assert alone["Gap closed [95 % CI]"].iloc[0] == "\N{EN DASH}"


def test_a_loss_has_a_minus_sign_in_both_tables():
    worse = synthetic.cell({"naive": PERMUTED, "permuted": NAIVE, "lth": LTH}, rewind=10)
    frame = synthetic.runs(worse)
    share = stats.format_share(effects.table(frame)["share_closed"].iloc[0])
    assert share.startswith(MINUS)
    assert accuracy_table.formatted(frame)["Gap closed"].tolist() == [share]
    assert effects.formatted(frame)["Gap closed [95 % CI]"].iloc[0].startswith(share)


def test_unfinished_runs_do_not_count(frame):
    broken = frame.assign(status=frame["status"].mask(frame["method"] == "permuted", "FAILED"))
    assert effects.table(broken).empty
    assert effects.notes(broken) == ["No pair of nets has both a permuted and a naive result yet."]


def test_the_figure_marks_what_is_significant():
    steady = {"naive": [80.0, 81.0, 82.0], "permuted": [82.0, 83.001, 84.002]}
    loose = {"naive": [80.0, 81.0, 82.0], "permuted": [80.1, 84.0, 82.0]}
    frame = synthetic.runs(synthetic.cell(steady, rewind=10) + synthetic.cell(loose, rewind=20))
    panel = effects.figure(frame).axes[0]
    marks = {line.get_ydata()[0]: line for line in panel.lines if line.get_marker() == style.look("permuted").marker}
    assert [marks[place].get_markerfacecolor() for place in (0, 1)] == [style.look("permuted").colour, "none"]
    assert [marks[place].get_xdata()[0] for place in (0, 1)] == pytest.approx([2.001, 1.0333], abs=1e-3)
    assert [text.get_text() for text in panel.get_yticklabels()] == ["10", "20", "mean"]
    assert panel.get_title(loc="right") == "n = 3"


def test_the_share_stands_beside_its_cell(frame):
    beside = effects.figure(frame).axes[2]
    texts = [text.get_text() for text in beside.get_yticklabels()]
    found = effects.table(frame)
    wide = found[found["width"] == 1.0]["share_closed"]
    assert texts == ["\N{EN DASH}", *(f"{100 * share:.0f} %" for share in wide.iloc[1:])]


def test_an_axis_is_not_stretched_by_the_interval_of_two_pairs():
    wide = pd.DataFrame({"lead": [1.0, 2.0], "ci_low": [0.5, -60.0], "ci_high": [1.5, 64.0]})
    bottom, top = intervals.limits(wide, "lead")
    assert -intervals.REACH * 2 * 1.2 < bottom < 0 < 2 < top < intervals.REACH * 2 * 1.2
    narrow = wide.assign(ci_low=wide["lead"], ci_high=wide["lead"])
    assert intervals.limits(narrow, "lead") == pytest.approx((-0.12, 2.12))
    nothing = pd.DataFrame({"lead": [0.0], "ci_low": [math.nan], "ci_high": [math.nan]})
    assert intervals.limits(nothing, "lead") == (-1.0, 1.0)


# --- controls -------------------------------------------------------------------------------------------------------
CONTROLS = {
    "shuffled": [79.9, 81.0, 82.2],
    "layerwise_random": [79.0, 80.5, 81.0],
    "own_mask": [83.0, 84.0, 85.1],
}


@pytest.fixture(scope="module")
def controlled():
    both = [
        line
        for rewind in (10, 50)
        for line in synthetic.cell({"naive": NAIVE, "permuted": PERMUTED, "lth": LTH, **CONTROLS}, rewind=rewind)
    ]
    return synthetic.runs(both + synthetic.cell({"reinit": [78.0, 79.5, 79.0]}, rewind=None))


@pytest.mark.parametrize("row", ["lth", "permuted", *CONTROLS])
@pytest.mark.parametrize("rewind", [10, 50])
def test_each_control_is_compared_with_naive(controlled, row, rewind):
    one = only(controls.table(controlled), row=row, rewind_epoch=rewind)
    values = {"lth": LTH, "permuted": PERMUTED, **CONTROLS}[row]
    theirs = scipy_stats.ttest_rel(values, NAIVE)
    assert (one["pairs"], one["minus_naive"]) == (3, pytest.approx(np.mean(values) - np.mean(NAIVE)))
    assert (one["ci_low"], one["ci_high"]) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert one["p"] == pytest.approx(theirs.pvalue)


def test_reinit_stands_beside_every_rewind_epoch(controlled):
    found = controls.table(controlled)
    fresh = found[found["row"] == "reinit"]
    assert fresh["rewind_epoch"].tolist() == [10, 50]
    assert fresh["minus_naive"].tolist() == pytest.approx([np.mean([-2.0, -1.5, -3.0])] * 2)
    for _, lines in found.groupby("row"):
        assert lines["p_holm"].tolist() == pytest.approx(stats.holm(lines["p"].tolist()), nan_ok=True)


def test_the_answers_are_over_cells_and_between_pairs(controlled):
    found = controls.answers(controlled).set_index(["row", "over"])
    assert len(found) == len(controls.QUESTIONS)
    for row, over in itertools.product(["permuted"], CONTROLS):
        if (row, over) in found.index:
            theirs = scipy_stats.ttest_rel(PERMUTED, CONTROLS[over]).confidence_interval(0.95)
            line = found.loc[(row, over)]
            assert (line["cells"], line["pairs"]) == (2, 3)
            assert (line["ci_low"], line["ci_high"]) == pytest.approx(tuple(theirs))
    shown = controls.formatted(controlled).iloc[0]
    assert shown["question"] == "Is it the alignment, or any permutation?"
    assert shown["compared"] == f"Permuted {MINUS} shuffled"
    assert shown["points [95 % CI] (n)"].startswith("+1.20 [")


def test_without_controls_there_is_nothing_to_show_and_it_says_why(frame):
    assert controls.table(frame).empty
    assert "method=shuffled,layerwise_random,own_mask,reinit" in controls.notes(frame)[0]


def test_a_control_that_was_not_measured_is_named(controlled):
    some = controlled[controlled["method"] != "reinit"]
    assert any("Not measured: Reinit." in note for note in controls.notes(some))
    assert "reinit" not in set(controls.answers(some)["over"])


def test_the_controls_figure_has_a_mark_for_each(controlled):
    panel = controls.figure(controlled).axes[0]
    for row in ("lth", "permuted", *CONTROLS, "reinit"):
        drawn = [line for line in panel.lines if line.get_marker() == style.look(row).marker]
        assert len(drawn) == 2
        assert {line.get_color() for line in drawn} == {style.look(row).colour}


# --- whatever is there ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", [effects, controls])
@pytest.mark.parametrize("part", ["nothing", "one run", "naive alone", "running", "two pairs"])
def test_parts_of_a_study_are_drawn_too(module, part, controlled):
    parts = {
        "nothing": controlled.iloc[:0],
        "one run": controlled.iloc[:1],
        "naive alone": controlled[controlled["method"] == "naive"],
        "running": controlled.assign(status="RUNNING"),
        "two pairs": controlled[controlled["seed_a"] < 4],
    }
    module.figure(parts[part])
    assert module.table(parts[part]).empty is (part != "two pairs")
    assert all(isinstance(note, str) for note in module.notes(parts[part]))


def test_recipes_are_panels_of_their_own(frame):
    other = frame.assign(lr="0.01", key=frame["key"] + "x", run_id=frame["run_id"] + "x")
    both = pd.concat([frame.assign(lr="0.1"), other], ignore_index=True)
    both.attrs["varied"] = ["lr"]
    assert cells.axes(both)[-1] == "lr"
    assert len(effects.table(both)) == 2 * len(effects.table(frame))
    assert len(effects.figure(both).axes) == 2 * len(effects.figure(frame).axes)
