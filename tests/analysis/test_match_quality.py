"""Matches and what their permuted nets gain, and the overlap of masks, from frames made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic_effects as synthetic
from scipy import stats as scipy_stats

from analysis import stats
from analysis.drawing import style
from analysis.drawing.signs import RHO
from analysis.figures import mask_overlap, match_quality
from trainables import schema

KEYS = ["a" * 64, "b" * 64, "c" * 64]
QUALITY = [0.5, 0.6, 0.4]
GAIN = [1.0, 3.0, 0.5]
OUTCOME = {"gain": "gain", "share": "share"}


def study(width=1.0, keys=KEYS, gains=GAIN, sparsities=(0.9, 0.97), **match):
    """Return jobs of three pairs whose permuted nets gain so much over naive, and LTH twice as much as the first."""
    lines = []
    for pair, key, quality, gain in zip(synthetic.PAIRS, keys, QUALITY, gains, strict=True):
        lines.append(synthetic.match(pair, key, quality, width=width, **match))
        for sparsity in sparsities:
            naive = 80.0 + pair[0]
            place = {"sparsity": sparsity, "width": width}
            lines.append(synthetic.sparse("naive", naive, pair, **place))
            lines.append(synthetic.sparse("permuted", naive + gain, pair, parents=f"x,y,{key}", **place))
            lines.append(synthetic.sparse("lth", naive + 4.0, pair, **place))
    return lines


@pytest.fixture(scope="module")
def frame():
    return synthetic.runs(study())


def test_each_match_has_its_quality_and_its_gain(frame):
    found = match_quality.table(frame).set_index("match")
    assert set(found.index) == set(KEYS)
    for key, quality, gain in zip(KEYS, QUALITY, GAIN, strict=True):
        one = found.loc[key]
        assert (one["gain"], one["share"], one["cells"]) == pytest.approx((gain, 25 * gain, 2))
        assert one[schema.MEAN_CORRELATION] == quality
        assert one[match_quality.EXCESS] == pytest.approx(quality - 0.1)
        assert one[schema.LOSS_BARRIER_AFTER] == pytest.approx(1 - quality)
    assert found.loc[KEYS[1], "pair"] == "A2→B3"


def test_cells_that_a_pair_lacks_do_not_count_for_any(frame):
    lacking = frame[~((frame["sparsity"] == 0.97) & (frame["method"] == "naive") & (frame["seed_a"] == 0))]
    high = (lacking["sparsity"] == 0.97) & (lacking["method"] == "permuted")
    lacking = lacking.assign(test_accuracy=lacking["test_accuracy"] + 50 * high)
    found = match_quality.table(lacking).set_index("match")
    assert set(found["cells"]) == {1}
    assert found.loc[KEYS, "gain"].tolist() == pytest.approx(GAIN)


def test_the_correlation_is_spearmans_over_matches(frame):
    found = match_quality.correlations(frame).set_index(["outcome", "quality"])
    expected = scipy_stats.spearmanr(QUALITY, GAIN).statistic
    assert found.loc[("gain", schema.MEAN_CORRELATION), "rho"] == pytest.approx(expected)
    assert found.loc[("share", schema.LOSS_BARRIER_AFTER), "rho"] == pytest.approx(-expected)
    assert (found["matches"] == 3).all()
    assert found["within"].isna().all()  # one width: the same question


def test_the_table_that_people_read_has_the_correlations(frame):
    shown = match_quality.formatted(frame)
    assert len(shown) == 6
    rho = scipy_stats.spearmanr(QUALITY, GAIN).statistic
    assert shown[f"{RHO} [95 % CI] (n)"].iloc[0] == f"{rho:+.2f} (3)"  # three points are too few for an interval


def test_within_widths_only_matches_of_one_width_are_compared():
    wide = study(width=4.0, keys=["d" * 64, "e" * 64, "f" * 64], gains=[11.0, 10.0, 13.0])
    frame = synthetic.runs(study() + wide)
    one = match_quality.correlations(frame).set_index(["outcome", "quality"]).loc[("gain", schema.MEAN_CORRELATION)]
    values = (QUALITY * 2, [*GAIN, 11.0, 10.0, 13.0])
    within = stats.rank_correlation(*values, within=[1] * 3 + [4] * 3)
    assert (one["rho"], one["within"]) == pytest.approx((stats.rank_correlation(*values).value, within.value))


def test_a_match_counts_once_whatever_settings_vary_that_it_does_not_depend_on():
    lines = [line for line in study() if line["stage"] == schema.MATCH]
    for rate, more in ((0.02, 0.0), (0.05, 1.0), (0.1, 2.0)):
        gains = [gain + more for gain in GAIN]
        lines += [{**line, "sparse_lr": rate} for line in study(gains=gains) if line["stage"] == schema.SPARSE]
    frame = synthetic.runs(lines).astype({"sparse_lr": "Float64"})
    frame.attrs[schema.VARIED] = ["sparse_lr"]
    assert len(match_quality.table(frame)) == 3 * 3
    found = match_quality.points(frame).set_index("match")
    assert found.loc[KEYS, "gain"].tolist() == pytest.approx([gain + 1 for gain in GAIN])
    assert set(found["cells"]) == {2 * 3}
    one = match_quality.correlations(frame).iloc[0]
    assert (one["matches"], one["pairs"]) == (3, 3)
    assert [axes.get_title(loc="right") for axes in match_quality.figure(frame).axes] == ["n = 3"] * 6


def test_several_matches_of_a_pair_have_no_interval_and_their_pairs_are_counted():
    other = [
        {**line, "matcher": "weight"}
        for line in study(keys=["d" * 64, "e" * 64, "f" * 64], gains=[0.2, 0.1, 0.4], matcher="weight")
        if line["stage"] == schema.MATCH or line.get("method") == "permuted"
    ]
    wide = study(width=4.0, keys=["1" * 64, "2" * 64, "3" * 64], gains=[11.0, 10.0, 13.0])
    several = synthetic.runs([*study(), *other, *wide])
    found = match_quality.correlations(several)
    assert set(zip(found["matches"], found["pairs"], strict=True)) == {(9, 6)}
    assert found["rho"].notna().all()
    assert found["within"].notna().all()
    assert found[["low", "high", "within_low", "within_high"]].isna().all(axis=None)
    assert match_quality.formatted(several)["pairs"].tolist() == ["6"] * 6
    assert {axes.get_title(loc="right") for axes in match_quality.figure(several).axes} == {"n = 9 of 6 pairs"}
    alone = match_quality.correlations(synthetic.runs([*study(), *wide]))
    assert set(zip(alone["matches"], alone["pairs"], strict=True)) == {(6, 6)}
    assert alone[["low", "high"]].notna().all(axis=None)


def test_other_matchers_are_rows_and_the_identity_stands_for_naive():
    lines = study()
    moved = {"naive": ("i", "identity"), "permuted": ("", "activation")}
    again = []
    for line in lines:
        if line["stage"] == schema.SPARSE and line["method"] in moved:
            letter, matcher = moved[line["method"]]
            again.append({**line, "method": "permuted", "matcher": matcher, "match_epoch": -1})
            if letter:
                again[-1]["parents"] = f"x,y,{letter * 63}{line['seed_a']}"
        else:
            again.append(line)
    again += [synthetic.match(pair, f"{'i' * 63}{pair[0]}", 0.1, matcher="identity") for pair in synthetic.PAIRS]
    frame = synthetic.runs(again)
    found = match_quality.table(frame)
    assert set(found["row"]) == {"permuted"}
    assert found.set_index("match").loc[KEYS, "gain"].tolist() == pytest.approx(GAIN)
    assert any("permuted by the identity" in note for note in match_quality.notes(frame))


def test_matches_without_lth_have_a_gain_and_no_share(frame):
    found = match_quality.table(frame[frame["method"] != "lth"])
    assert found["share"].isna().all()
    assert found["gain"].notna().all()
    assert any(
        "No share for 3 matches: LTH is missing" in note
        for note in match_quality.notes(frame[frame["method"] != "lth"])
    )


def test_stores_that_did_not_record_the_barrier_say_so(frame):
    old = frame.assign(**{schema.LOSS_BARRIER_AFTER: math.nan})
    assert "Not recorded by these matches: Loss barrier after matching." in match_quality.notes(old)
    assert len(match_quality.figure(old).axes) == 6


def test_the_scatter_shows_every_match(frame):
    figure = match_quality.figure(frame)
    assert len(figure.axes) == 6
    points = figure.axes[0].lines[0]
    assert sorted(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [
        pytest.approx(point) for point in sorted(zip(QUALITY, GAIN, strict=True))
    ]
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["n = 3"] * 6


@pytest.mark.parametrize("stage", [schema.MATCH, schema.SPARSE, "none"])
def test_parts_of_a_study(frame, stage):
    part = frame[frame["stage"] == stage]
    assert match_quality.table(part).empty
    match_quality.figure(part)
    assert "yet" in match_quality.notes(part)[0]


# --- overlap of masks -------------------------------------------------------------------------------------------------
OVERLAPS = [(0.31, 0.11, 0.10), (0.35, 0.12, 0.10), (0.30, 0.13, 0.10)]


@pytest.fixture(scope="module")
def overlapping():
    lines = [synthetic.overlap(pair, *values) for pair, values in zip(synthetic.PAIRS, OVERLAPS, strict=True)]
    lines += [synthetic.overlap(pair, 0.2, 0.05, 0.04, sparsity=0.97) for pair in synthetic.PAIRS]
    lines += [synthetic.overlap(synthetic.PAIRS[0], 0.5, 0.1, 0.1, width=4.0)]
    return synthetic.runs(lines)


def test_overlaps_are_averaged_over_pairs(overlapping):
    found = mask_overlap.table(overlapping)
    assert len(found) == 3
    one = found[(found["width"] == 1.0) & (found["sparsity"] == 0.9)].iloc[0]
    permuted, identity, _ = (np.asarray(values) for values in zip(*OVERLAPS, strict=True))
    assert one["pairs"] == 3
    assert one["mask_overlap_mean"] == pytest.approx(permuted.mean())
    assert one["mask_overlap_std"] == pytest.approx(permuted.std(ddof=1))
    assert one["mask_overlap_random_mean"] == pytest.approx(0.1)
    theirs = scipy_stats.ttest_rel(permuted, identity).confidence_interval(0.95)
    assert (one["gain_low"], one["gain_high"]) == pytest.approx(tuple(theirs))


def test_the_overlap_figure_has_a_panel_per_width_and_a_line_per_mask(overlapping):
    figure = mask_overlap.figure(overlapping)
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["n = 3", "n = 1"]
    lines = {container.lines[0].get_color(): container.lines[0] for container in figure.axes[0].containers}
    assert np.asarray(lines[style.look("permuted").colour].get_ydata()) == pytest.approx([0.32, 0.2])
    assert np.asarray(lines[style.look("naive").colour].get_xdata(), float) == pytest.approx(
        [-math.log2(0.1), -math.log2(0.03)]
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["90", "97"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"Sparsity (%)"}
    assert len(lines) == 3


def test_the_table_of_overlaps_that_people_read(overlapping):
    shown = mask_overlap.formatted(overlapping).iloc[0]
    assert (shown["width"], shown["sparsity"]) == ("\N{MULTIPLICATION SIGN}1", "90 %")
    assert shown["Permuted"] == "0.320 ± 0.026 (3)"
    assert shown["By chance"] == "0.100 ± 0.000 (3)"


def test_unmeasured_overlaps_say_how_to_measure_them(overlapping, frame):
    assert mask_overlap.table(frame).empty
    assert "mask_overlap=true" in mask_overlap.notes(frame)[0]
    mask_overlap.figure(frame)
    failed = overlapping.assign(status=["FAILED", *["FINISHED"] * (len(overlapping) - 1)])
    assert mask_overlap.table(failed)["pairs"].sum() == len(overlapping) - 1
    assert mask_overlap.notes(failed) == ["1 measurement without a result, left out."]


def test_masks_that_were_rewound_are_told_apart(overlapping):
    rewound = pd.concat(
        [overlapping.assign(rewind_epoch=pd.array([epoch] * len(overlapping), "Int64")) for epoch in (10, 50)],
        ignore_index=True,
    )
    assert len(mask_overlap.table(rewound)) == 6
    assert len(mask_overlap.figure(rewound).axes) == 4
