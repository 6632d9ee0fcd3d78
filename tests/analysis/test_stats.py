import itertools
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
    one = stats.summarize([94.94, 95.11, 94.86])
    assert stats.format_mean(one.mean, one.std, one.n) == "94.97 ± 0.13 (3)"


def test_one_value_has_no_spread_and_none_has_nothing():
    one, none = stats.summarize([5.0]), stats.summarize([])
    assert (one.n, one.mean) == (1, 5.0)
    assert math.isnan(one.std)
    assert math.isnan(one.sem)
    assert none.n == 0
    assert math.isnan(none.mean)
    assert [stats.format_mean(each.mean, each.std, each.n) for each in (one, none)] == ["5.00 (1)", ""]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_difference_is_the_paired_t_test(n):
    first, second = RNG.normal(size=n), RNG.normal(size=n) - 1
    ours = stats.paired_difference(first.tolist(), second.tolist())
    theirs = scipy_stats.ttest_rel(first, second)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.n, ours.value, ours.p) == pytest.approx((n, np.mean(first - second), theirs.pvalue))
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
    assert (one.n, one.value) == (1, 1.0)
    assert math.isnan(one.low)
    assert not one.excludes_zero
    assert str(one) == "+1.00 (1)"


EQUAL = [[75.31, 75.47, 75.12], [80.11, 80.53, 80.77], [77.71, 77.33, 77.93]]
"""Accuracies of three nets by data order."""
FORTH, BACK = ([sum(values[::step]) / 3 for values in EQUAL] for step in (1, -1))


def test_values_that_differ_in_rounding_only_have_no_interval_of_their_difference():
    assert FORTH != BACK, "sums in another order"
    one = stats.paired_difference(FORTH, BACK)
    assert one.n == 3
    assert abs(one.value) < 1e-12
    assert all(math.isnan(value) for value in (one.low, one.high, one.p))
    ends = stats.paired_difference([*FORTH, math.nan], [*BACK, 1.0])
    assert (ends.n, math.isnan(ends.low)) == (3, True)
    small = stats.paired_difference([1e-6, 3e-6, 2e-6], [0.0, 0.0, 0.0])
    assert small.low == pytest.approx(2e-6 - 4.302653 * 1e-6 / math.sqrt(3))


def test_rounding_gives_no_share_of_a_gap_and_no_interval_of_a_share():
    ahead = stats.paired_share([value + 1 for value in FORTH], FORTH, BACK)
    behind = stats.paired_share([value + 1 for value in FORTH], BACK, FORTH)
    assert math.isnan(ahead.value)
    assert math.isnan(behind.value)
    nothing = stats.paired_share(FORTH, BACK, [value + 5 for value in BACK])
    assert nothing.value == pytest.approx(0, abs=1e-12)
    assert math.isnan(nothing.low)


def test_pairs_need_both_values():
    with pytest.raises(ValueError, match="1 and 2"):
        stats.paired_difference([1.0], [1.0, 2.0])


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


def holm_by_closed_testing(p_values):
    """Return Holm's adjusted p values by their definition: a hypothesis falls with all intersections it is part of."""
    tested = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    for place in tested:
        others = [other for other in tested if other != place]
        subsets = itertools.chain.from_iterable(itertools.combinations(others, size) for size in range(len(others) + 1))
        bonferroni = [
            min(1.0, (1 + len(subset)) * min(p_values[other] for other in (place, *subset))) for subset in subsets
        ]
        adjusted[place] = max(bonferroni)
    return adjusted


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_holm_is_the_closed_test_of_bonferroni(n):
    p_values = [*np.random.default_rng(n).beta(0.3, 1.5, size=n), math.nan]
    assert stats.holm(p_values) == pytest.approx(holm_by_closed_testing(p_values), nan_ok=True)


def test_holm_keeps_the_order_and_never_makes_a_p_smaller():
    p_values = RNG.uniform(size=200)
    adjusted = np.asarray(stats.holm(p_values.tolist()))
    assert (adjusted >= p_values).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()


# --- independent samples --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("first", "second"), [((3, 92.1, 0.2), (3, 91.8, 0.4)), ((5, -1.0, 1.0), (2, 4.0, 0.1))])
def test_welch_is_welch(first, second):
    ours = stats.welch(stats.Summary(*first), stats.Summary(*second))
    theirs = scipy_stats.ttest_ind_from_stats(
        mean1=first[1], std1=first[2], nobs1=first[0], mean2=second[1], std2=second[2], nobs2=second[0], equal_var=False
    )
    assert (ours.in_standard_errors, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_a_difference_in_standard_errors_by_hand():
    one = stats.welch(stats.Summary(3, 90.0, 0.3), stats.Summary(3, 89.5, 0.4))
    assert one.mean == pytest.approx(0.5)
    assert one.sem == pytest.approx(0.5 / math.sqrt(3))  # 0.3, 0.4, 0.5 make a right triangle
    assert one.in_standard_errors == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("other", [(1, 89.0, math.nan), (3, 89.0, math.nan), (0, math.nan, math.nan)])
def test_without_a_spread_there_is_a_difference_and_no_more(other):
    one = stats.welch(stats.Summary(3, 90.0, 0.3), stats.Summary(*other))
    assert one.mean == pytest.approx(90.0 - other[1], nan_ok=True)
    assert all(math.isnan(value) for value in (one.sem, one.p, one.in_standard_errors))


def test_what_is_reported_is_what_would_have_been_summarised():
    values = [94.94, 95.11, 94.86]
    assert stats.Summary(3, float(np.mean(values)), float(np.std(values, ddof=1))) == stats.summarize(values)


# --- the share of a gap ---------------------------------------------------------------------------------------------
def test_the_limits_of_a_share_are_what_the_t_test_just_does_not_reject():
    rng = np.random.default_rng(0)
    naive = rng.normal(80, 1, size=4)
    lth, permuted = naive + rng.normal(4, 0.5, size=4), naive + rng.normal(2, 0.5, size=4)
    one = stats.paired_share(permuted.tolist(), naive.tolist(), lth.tolist())
    assert one.low < one.value < one.high
    for limit in (one.low, one.high):
        assert scipy_stats.ttest_rel(permuted - naive, limit * (lth - naive)).pvalue == pytest.approx(0.05)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_the_interval_of_a_share_holds_its_level_however_few_the_pairs_are(n):
    rng, studies, share = np.random.default_rng(n), 1000, 0.4
    held = shown = 0
    for _ in range(studies):
        gap = rng.normal(4, 0.3, size=n)
        one = stats.paired_share((share * gap + rng.normal(0, 0.3, size=n)).tolist(), [0.0] * n, gap.tolist())
        held += one.low <= share <= one.high
        shown += not math.isnan(one.low)
    assert shown >= (0.9 if n > 2 else 0.3) * studies
    assert 0.93 <= held / shown <= 0.97  # three standard errors of a simulation of this size are 0.02


def test_pairs_that_do_not_vary_have_no_interval_and_prove_nothing():
    rounded = [0.1 + 0.2, 0.3]
    for differences in ([1.0, 1.0], [0.7] * 3, rounded, [0.0, 0.0]):
        one = stats.interval(differences)
        assert one.value == pytest.approx(differences[0])
        assert not one.excludes_zero
        assert all(math.isnan(value) for value in (one.low, one.high, one.p))
    two = stats.welch(stats.summarize([2.0, 2.0]), stats.summarize([1.0, 1.0]))
    assert (two.mean, two.sem) == (1.0, 0.0)
    assert all(math.isnan(value) for value in (two.p, two.in_standard_errors))
    share = stats.paired_share([1.0, 2.0], [0.0, 0.0], [2.0, 4.0])
    assert share.value == 0.5
    assert math.isnan(share.low)


@pytest.mark.parametrize(
    ("lth", "value", "interval"),
    [
        ([2.0, 2.1, 2.2], True, True),
        ([9.0, 9.0, -0.5], True, False),  # ahead by more than a standard error, but not with confidence
        ([3.0, -1.0, -1.9], False, False),  # within a standard error of nothing
        ([-1.0, -1.0, -1.0], False, False),
        ([0.0, 0.0, 0.0], False, False),
    ],
)
def test_there_is_no_share_of_a_gap_that_is_not_there(lth, value, interval):
    one = stats.paired_share([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], lth)
    assert one.n == 3
    assert math.isnan(one.value) is not value
    assert math.isnan(one.low) is math.isnan(one.high) is not interval


def test_shares_are_of_complete_pairs():
    one = stats.paired_share([1.0, 7.0, 9.0], [0.0, math.nan, 8.0], [2.0, 8.0, math.nan])
    assert (one.n, one.value) == (1, 0.5)
    assert math.isnan(one.low)
    assert stats.format_share(one.value, one.low, one.high) == "50 %"
    none = stats.paired_share([], [], [])
    assert stats.format_share(none.value, none.low, none.high) == ""
    with pytest.raises(ValueError, match="1, 1 and 2"):
        stats.paired_share([1.0], [1.0], [1.0, 2.0])


# --- signs ------------------------------------------------------------------------------------------------------------
MINUS = "\N{MINUS SIGN}"
FORMATTERS = {
    "number": stats.format_number,
    "difference": stats.format_difference,
    "mean": lambda value: stats.format_mean(value, math.nan, 3),
    "share": lambda value: stats.format_share(value / 100),
    "estimate": lambda value: str(stats.Estimate(3, value, value, value)),
}


@pytest.mark.parametrize("name", FORMATTERS)
def test_a_negative_number_has_a_minus_sign_and_a_rounded_zero_has_none(name):
    written = FORMATTERS[name]
    assert written(-4.0).startswith(f"{MINUS}4")
    for zero in (-0.0001, -0.0, 0.0, 0.0001):
        assert written(zero).startswith("0")
        assert not set(written(zero)) & set(f"-+{MINUS}")


def test_every_part_of_an_interval_has_its_sign():
    assert stats.format_difference(1.0, -0.001, 1234.5) == "+1.00 [0.00, +1,234.50]"
    assert stats.format_share(0.5, -0.2, 1.2) == f"50 % [{MINUS}20, 120]"


# --- rank correlation -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [4, 10, 40])
def test_rank_correlation_is_spearmans(n):
    first = RNG.normal(size=n).round(1)  # with ties
    second = (first + RNG.normal(size=n)).round(1)
    ours = stats.rank_correlation(first.tolist(), second.tolist())
    assert (ours.n, ours.value) == (n, pytest.approx(scipy_stats.spearmanr(first, second).statistic))
    centre, half = math.atanh(ours.value), 1.959964 * math.sqrt((1 + ours.value**2 / 2) / (n - 3))
    assert (ours.low, ours.high) == pytest.approx((math.tanh(centre - half), math.tanh(centre + half)), abs=1e-6)


def test_a_monotone_curve_has_rank_correlation_one_and_no_interval():
    one = stats.rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 8.0, 27.0, 64.0, 125.0])
    assert one.value == pytest.approx(1)
    assert math.isnan(one.low)
    assert str(one) == "+1.00 (5)"


def test_what_only_differs_between_groups_is_no_correlation_inside_them():
    # both are higher in the second group, and inside either they run against each other
    first, second = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [3.0, 2.0, 1.0, 13.0, 12.0, 11.0]
    groups = ["a", "a", "a", "b", "b", "b"]
    assert stats.rank_correlation(first, second).value > 0.5
    inside = stats.rank_correlation(first, second, within=groups)
    assert (inside.n, inside.value) == (6, pytest.approx(-1))


def test_each_group_costs_a_degree_of_freedom():
    first, second = RNG.normal(size=20), RNG.normal(size=20)
    groups = [place % 4 for place in range(20)]
    one = stats.rank_correlation(first.tolist(), second.tolist(), within=groups)
    half = 1.959964 * math.sqrt((1 + one.value**2 / 2) / (20 - 3 - 3))
    assert one.high == pytest.approx(math.tanh(math.atanh(one.value) + half), abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]), ([1.0, 2.0, math.nan], [3.0, 4.0, 5.0])],
)
def test_too_few_or_equal_points_have_no_rank_correlation(first, second):
    one = stats.rank_correlation(first, second)
    assert math.isnan(one.value)
    assert str(one) == ""


def test_points_need_both_values():
    with pytest.raises(ValueError, match="2, 1 and 2"):
        stats.rank_correlation([1.0, 2.0], [1.0])
