import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import stats

RNG = np.random.default_rng(7)
MINUS = "\N{MINUS SIGN}"


def test_summary_by_hand():
    one = stats.summarize([1.0, 2.0, 3.0, math.nan])
    assert (one.n, one.mean, one.std) == (3, 2.0, 1.0)
    assert one.sem == pytest.approx(1 / math.sqrt(3))


def test_the_papers_rows_use_the_sample_standard_deviation():
    assert str(stats.summarize([94.94, 95.11, 94.86])) == "94.97 ± 0.13 (3)"


def test_one_value_has_no_spread_and_none_has_nothing():
    one, none = stats.summarize([5.0]), stats.summarize([])
    assert (one.n, one.mean) == (1, 5.0)
    assert math.isnan(one.std)
    assert math.isnan(one.sem)
    assert none.n == 0
    assert math.isnan(none.mean)
    assert (str(one), str(none)) == ("5.00 (1)", "")


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_difference_is_the_paired_t_test(n, confidence):
    first, second = RNG.normal(size=n), RNG.normal(size=n) - 1
    ours = stats.paired_difference(first.tolist(), second.tolist(), confidence)
    theirs = scipy_stats.ttest_rel(first, second)
    low, high = theirs.confidence_interval(confidence)
    assert (ours.n, ours.mean, ours.p) == pytest.approx((n, np.mean(first - second), theirs.pvalue))
    assert (ours.low, ours.high) == pytest.approx((low, high))


def test_interval_by_hand():
    # differences 0.6, 0.9, 1.2: mean 0.9, std 0.3, t(0.975, 2) = 4.302653
    one = stats.interval([0.6, 0.9, 1.2])
    half = 4.302653 * 0.3 / math.sqrt(3)
    assert (one.low, one.high) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)
    assert (one.low, one.high) == pytest.approx(scipy_stats.t.interval(0.95, 2, 0.9, 0.3 / math.sqrt(3)))
    assert one.excludes_zero
    assert str(one) == "+0.90 [+0.15, +1.65] (3)"


def test_a_pair_with_a_missing_value_does_not_count():
    one = stats.paired_difference([1.0, 2.0, math.nan], [0.0, math.nan, 5.0])
    assert (one.n, one.mean) == (1, 1.0)
    assert math.isnan(one.low)
    assert not one.excludes_zero
    assert str(one) == "+1.00 (1)"


def test_equal_differences_have_an_interval_of_no_width_and_no_p():
    one = stats.interval([1.0, 1.0, 1.0])
    assert (one.low, one.high) == (1.0, 1.0)
    assert math.isnan(one.p)


@pytest.mark.parametrize(("first", "confidence", "message"), [([1.0], 0.95, "1 and 2"), ([1.0, 2.0], 1.0, r"\(0, 1\)")])
def test_wrong_requests_are_named(first, confidence, message):
    with pytest.raises(ValueError, match=message):
        stats.paired_difference(first, [1.0, 2.0], confidence)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; then never below the one before
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_and_skips_what_was_not_tested():
    adjusted = stats.holm([0.9, math.nan, 0.6])
    assert (adjusted[0], adjusted[2]) == (1.0, 1.0)
    assert math.isnan(adjusted[1])
    assert stats.holm([]) == []


def test_share_closed():
    assert stats.share_closed(permuted=90.0, naive=88.0, lth=92.0) == pytest.approx(0.5)
    assert stats.share_closed(permuted=87.0, naive=88.0, lth=92.0) == pytest.approx(-0.25)
    assert math.isnan(stats.share_closed(permuted=90.0, naive=92.0, lth=92.0))
    assert math.isnan(stats.share_closed(permuted=math.nan, naive=88.0, lth=92.0))


@pytest.mark.parametrize(
    ("mean", "std", "n", "text"),
    [
        (92.876, 0.123, 3, "92.88 ± 0.12 (3)"),
        (81.26, 2.34, 3, "81.3 ± 2.3 (3)"),
        (64.2, 12.3, 4, "64 ± 12 (4)"),
        (92.876, 0.0, 2, "92.88 ± 0.00 (2)"),
        (92.876, math.nan, 1, "92.88 (1)"),
        (-0.5, 0.11, 3, f"{MINUS}0.50 ± 0.11 (3)"),
        (math.nan, math.nan, 0, ""),
    ],
)
def test_a_mean_shows_two_digits_of_its_spread(mean, std, n, text):
    assert stats.format_mean(mean, std, n) == text


def test_p_values():
    assert [stats.format_p(p) for p in (0.034, 0.00001, math.nan)] == ["0.034", "< 0.001", ""]
