"""The statistics of the study: few seeds, paired, several comparisons at once.

Values are percentages or differences in percentage points, but nothing here depends on the unit. What cannot be
estimated, such as the standard deviation of one value, is NaN, and is formatted as an empty text rather than as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.drawing.signs import MINUS

NAN = float("nan")
CONFIDENCE = 0.95
"""Level of all confidence intervals."""
LEVEL = 0.05
"""A difference is called significant if its p value is below this level."""
NO_SPREAD = 1e-9
"""Values whose relative difference is no larger than this are equal up to rounding."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean of independent values.

    Attributes:
        n: number of values.
        mean: NaN if n is 0.
        std: sample standard deviation (n - 1 in the denominator), NaN below two values or if it is not known.
    """

    n: int
    mean: float
    std: float

    @property
    def sem(self) -> float:
        """Standard error of the mean, NaN if there is no standard deviation."""
        return self.std / math.sqrt(self.n) if self.n else NAN


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean difference, share or correlation with its confidence interval.

    Attributes:
        n: number of pairs or points that it is estimated from.
        value: NaN if it cannot be estimated.
        low: lower end of the interval, NaN if there is none: agreement of a few values is no evidence of certainty.
        high: upper end, likewise.
        p: two-sided p value of the test that belongs to the interval, NaN if there is none.
    """

    n: int
    value: float
    low: float = NAN
    high: float = NAN
    p: float = NAN

    def __str__(self) -> str:
        """Return ``+value [low, high] (n)``, empty if there is no value."""
        return f"{format_difference(self.value, self.low, self.high)} ({self.n})" if self.value == self.value else ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of the means of two independent samples, whose variances and sizes may differ (Welch).

    Attributes:
        mean: difference of the means, NaN if either sample is empty.
        sem: its standard error, NaN if either sample has fewer than two values.
        p: two-sided p value of Welch's t test, NaN likewise and if neither sample varies.
    """

    mean: float
    sem: float
    p: float

    @property
    def in_standard_errors(self) -> float:
        """The difference in units of its standard error, NaN if there is none."""
        return self.mean / self.sem if self.sem > 0 else NAN


def summarize(values: Iterable[float]) -> Summary:
    """Return n, mean and sample standard deviation, without missing values."""
    array: NDArray[np.float64] = np.asarray(list(values), dtype=np.float64)
    array = array[~np.isnan(array)]
    return Summary(
        n=array.size,
        mean=float(array.mean()) if array.size else NAN,
        std=float(array.std(ddof=1)) if array.size > 1 else NAN,
    )


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return the mean of ``first - second`` with its t interval, without pairs that lack a value.

    Pairs share the mask, the nets and often the order of the data, so their differences vary far less than the values
    themselves. With three seeds, nothing else makes a small effect visible.

    Args:
        first: one value per pair.
        second: the other value of each pair, in the same order.

    Raises:
        ValueError: unequal lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need two values each, got {len(first)} and {len(second)}")
    values = np.asarray([first, second], float)
    return interval(values[0] - values[1], scale=_size(values))


def interval(differences: Iterable[float], *, scale: float = 0.0) -> Estimate:
    """Return the mean of differences with its t interval and the p value of mean = 0, without missing values.

    There is no interval below two values, or if all are equal up to rounding.

    Args:
        differences: one per pair.
        scale: size of the values that were subtracted, in their unit: their rounding shows in the differences, even
            where these are all zero.
    """
    from scipy import special  # not scipy.stats, which takes ten times as long to import and to call

    summary = summarize(differences)
    n, mean, sem = summary.n, summary.mean, summary.sem
    if n < 2 or summary.std <= NO_SPREAD * max(abs(mean), scale):
        return Estimate(n, mean)
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sem
    p = float(2 * special.stdtr(n - 1, -abs(mean) / sem))
    return Estimate(n, mean, mean - half, mean + half, p)


def _size(values: NDArray[np.float64]) -> float:
    """Return the largest magnitude among values, some of which may be missing; 0 if all are."""
    return float(np.nanmax(np.abs(values), initial=0.0)) if values.size else 0.0


def welch(first: Summary, second: Summary) -> Comparison:
    """Return ``first - second`` of two independent samples, with Welch and Satterthwaite's degrees of freedom."""
    from scipy import stats

    mean, sem = first.mean - second.mean, math.hypot(first.sem, second.sem)
    if not sem > NO_SPREAD * max(abs(first.mean), abs(second.mean)):
        return Comparison(mean, sem, NAN)
    samples = (first.mean, first.std, first.n, second.mean, second.std, second.n)
    return Comparison(mean, sem, float(stats.ttest_ind_from_stats(*samples, equal_var=False).pvalue))


def rank_correlation(
    first: Sequence[float], second: Sequence[float], within: Sequence[object] | None = None
) -> Estimate:
    """Return Spearman's correlation of two variables, in [-1, 1], without points that lack a value.

    There is none below three points, or if a variable does not vary. The interval is Fisher's with the variance of
    Bonett and Wright (2000); every group beyond the first costs a degree of freedom.

    Args:
        first: one value per point.
        second: the other value of each point, in the same order.
        within: a group per point. Values are then ranked within their group, relative to its mean rank, so that a
            difference between two groups contributes nothing.

    Raises:
        ValueError: unequal lengths.
    """
    from scipy import stats

    groups = list(within) if within is not None else [None] * len(first)
    if not len(first) == len(second) == len(groups):
        raise ValueError(f"points need a value of each, got {len(first)}, {len(second)} and {len(groups)}")
    points = np.column_stack([np.asarray(first, float), np.asarray(second, float)])
    present = ~np.isnan(points).any(axis=1)
    places: dict[object, list[int]] = {}
    for place in np.flatnonzero(present):
        places.setdefault(groups[place], []).append(int(place))
    n, ranks = int(present.sum()), np.zeros_like(points)
    for members in places.values():
        inside = stats.rankdata(points[members], axis=0)
        ranks[members] = inside - inside.mean(axis=0)
    (xx, xy), (_, yy) = ranks.T @ ranks
    if n < 3 or not (xx > 0 and yy > 0):
        return Estimate(n, NAN)
    rho = float(np.clip(xy / math.sqrt(xx * yy), -1, 1))
    freedom = n - 3 - (len(places) - 1)
    if freedom < 1 or abs(rho) > 1 - 1e-12:  # the interval of a perfect correlation would have no width
        return Estimate(n, rho)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / freedom)
    low, high = (math.tanh(math.atanh(rho) + side * half) for side in (-1, 1))
    return Estimate(n, rho, low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of comparisons (Holm, 1979), in the order given; NaN stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    present = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [NAN] * len(p_values)
    running = 0.0
    for rank, (p, place) in enumerate(present):
        running = max(running, min(1.0, p * (len(present) - rank)))
        adjusted[place] = running
    return adjusted


def share_closed(permuted: float, naive: float, lth: float) -> float:
    """Return the share of the gap from naive to LTH that permuting closes: (permuted - naive) / (lth - naive).

    NaN if there is no gap: naive is as good as LTH, or a value is missing. Above 1 permuted is better than LTH, below 0
    it is worse than naive.
    """
    gap = lth - naive
    return (permuted - naive) / gap if gap > 0 else NAN


def paired_share(permuted: Sequence[float], naive: Sequence[float], lth: Sequence[float]) -> Estimate:
    """Return :func:`share_closed` of the means over the pairs that have all three, with Fieller's interval.

    There is a share only if LTH is ahead of naive by more than the standard error of that difference. Fieller's
    interval contains every share that a paired t test does not reject. It keeps its level even with three pairs, with
    which a 95 % percentile bootstrap contains the true share in less than 80 % of all studies. It is unbounded, and its
    ends are NaN, if the test does not reject a gap of zero; they are NaN, too, if the pairs do not vary.

    Raises:
        ValueError: unequal lengths.
    """
    if not len(permuted) == len(naive) == len(lth):
        raise ValueError(f"pairs need three values each, got {len(permuted)}, {len(naive)} and {len(lth)}")
    triples = np.column_stack([np.asarray(values, float) for values in (permuted, naive, lth)])
    triples = triples[~np.isnan(triples).any(axis=1)]
    n = len(triples)
    ahead, rounding = summarize(triples[:, 2] - triples[:, 1]), NO_SPREAD * _size(triples)
    if not (n and ahead.mean > max(rounding, 0.0 if n == 1 else ahead.sem)):
        return Estimate(n, NAN)
    value = share_closed(*(float(mean) for mean in triples.mean(axis=0)))
    low, high = _fieller(triples[:, 0] - triples[:, 1], triples[:, 2] - triples[:, 1], rounding)
    return Estimate(n, value, low, high)


def _fieller(part: NDArray[np.float64], whole: NDArray[np.float64], rounding: float) -> tuple[float, float]:
    """Return Fieller's limits of the ratio of two paired means, NaN if there are none (Fieller, 1954).

    Args:
        part: numerator of each pair.
        whole: denominator of each pair.
        rounding: spread of either, in their unit, up to which its values are equal.
    """
    from scipy import special

    n = len(whole)
    if n < 2:
        return NAN, NAN
    scale = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) ** 2 / n
    (part_part, part_whole), (_, whole_whole) = np.cov(part, whole)
    # A ratio r is between the limits if a r ** 2 - 2 b r + c <= 0: the mean of part - r * whole is not rejected.
    a = whole.mean() ** 2 - scale * whole_whole
    b = part.mean() * whole.mean() - scale * part_whole
    c = part.mean() ** 2 - scale * part_part
    if not a > 0:
        return NAN, NAN
    half, middle = math.sqrt(max(0.0, b**2 - a * c)) / a, b / a
    equal = half <= max(NO_SPREAD * abs(middle), rounding / abs(whole.mean()))
    return (NAN, NAN) if equal else (float(middle - half), float(middle + half))


def decimals_for(spread: float, *, digits: int = 2, most: int = 2) -> int:
    """Return the number of decimals, from 0 to `most`, that shows `digits` significant digits of a spread."""
    if math.isnan(spread) or spread <= 0:
        return most
    return min(most, max(0, digits - 1 - math.floor(math.log10(spread))))


def format_number(value: float, decimals: int = 2, *, signed: bool = False) -> str:
    """Return a number as people read it: with a minus sign, commas between thousands, and no sign if it rounds to zero.

    Args:
        value: the number.
        decimals: digits after the decimal point.
        signed: whether a positive number has a plus, as differences do.
    """
    sign = MINUS if value < 0 else "+" if signed else ""
    return ("" if round(value, decimals) == 0 else sign) + f"{abs(value):,.{decimals}f}"


def format_mean(mean: float, std: float, n: int, *, decimals: int | None = None, gap: str = " ") -> str:
    """Return ``mean ± std (n)``; without ± if there is no spread to show, empty if there is no value.

    Args:
        mean: the mean.
        std: sample standard deviation, NaN if n is 1.
        n: number of values.
        decimals: digits after the decimal point; None: two significant digits of the std, at most two decimals.
        gap: text on both sides of the ±.
    """
    if n == 0 or math.isnan(mean):
        return ""
    places = decimals_for(std) if decimals is None else decimals
    spread = "" if math.isnan(std) else f"{gap}±{gap}{format_number(std, places)}"
    return f"{format_number(mean, places)}{spread} ({n})"


def format_share(value: float, low: float = NAN, high: float = NAN) -> str:
    """Return ``41 % [30, 52]``; without the interval if there is none, empty if there is no share."""
    if math.isnan(value):
        return ""
    share, *limits = (format_number(100 * part, 0) for part in (value, low, high))
    return f"{share} %" + ("" if math.isnan(low) else f" [{', '.join(limits)}]")


def format_difference(mean: float, low: float = NAN, high: float = NAN, *, decimals: int = 2) -> str:
    """Return ``+mean [low, high]``; without the interval if there is none, empty if there is no value."""
    if math.isnan(mean):
        return ""
    difference, *limits = (format_number(value, decimals, signed=True) for value in (mean, low, high))
    return difference + ("" if math.isnan(low) else f" [{', '.join(limits)}]")


def format_p(p: float) -> str:
    """Return a p value with two significant digits, empty if there is none."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
