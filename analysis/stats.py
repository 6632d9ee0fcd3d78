"""The statistics of the study: few seeds, paired, several comparisons at once.

A value is a percentage or a difference in percentage points, but nothing here depends on the unit. What cannot be
estimated (the spread of one value, say) is NaN, and formatted as nothing rather than as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.drawing.signs import MINUS

NAN = float("nan")
NO_SPREAD = 1e-9
"""Values that differ by no more than this share of themselves are the same, but for rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Mean of independent values.

    Attributes:
        n: how many values.
        mean: NaN if n is 0.
        std: sample standard deviation (n - 1 in the denominator), NaN below two values.
        sem: standard error of the mean, NaN below two values.
    """

    n: int
    mean: float
    std: float
    sem: float

    def __str__(self) -> str:
        """Return ``mean ± std (n)``."""
        return format_mean(self.mean, self.std, self.n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        n: how many pairs.
        mean: NaN if n is 0.
        low: lower end of the confidence interval, NaN below two pairs or if all differences are the same: that few
            values happen to agree does not make them certain.
        high: upper end, likewise.
        p: two-sided p value of the paired t test, NaN likewise.
        confidence: level of the interval, in (0, 1).
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return ``+mean [low, high] (n)``, empty if there is no pair."""
        return f"{format_difference(self.mean, self.low, self.high)} ({self.n})" if self.n else ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Difference of the means of two independent samples (Welch): neither their spreads nor their sizes need agree.

    Attributes:
        mean: difference of the means, NaN if either sample is empty.
        sem: its standard error; this and all that follows is NaN if either sample has less than two values.
        low: lower end of the confidence interval, NaN also where neither sample varies.
        high: upper end, likewise.
        p: two-sided p value of Welch's t test, likewise.
        confidence: level of the interval, in (0, 1).
    """

    mean: float
    sem: float
    low: float
    high: float
    p: float
    confidence: float = 0.95

    @property
    def in_standard_errors(self) -> float:
        """The difference in units of its standard error, NaN if there is none."""
        return self.mean / self.sem if self.sem > 0 else NAN


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """Spearman's rank correlation.

    Attributes:
        n: how many points.
        rho: in [-1, 1]; NaN below three points, or where a variable does not vary.
        low: lower end of the confidence interval, NaN where the points are too few for one.
        high: upper end, likewise.
        confidence: level of the interval, in (0, 1).
    """

    n: int
    rho: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return ``+rho [low, high] (n)``, empty if there is none."""
        return f"{format_difference(self.rho, self.low, self.high)} ({self.n})" if self.rho == self.rho else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Share of the way from one value to another that a third one covers, over pairs.

    Attributes:
        n: pairs that have all three values.
        value: ratio of the means, NaN where the way is too short to say.
        low: lower end of Fieller's interval, NaN below two pairs or where it has no ends.
        high: upper end, likewise.
    """

    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return ``41 % [30, 52]``, empty if there is no share."""
        if math.isnan(self.value):
            return ""
        limits = "" if math.isnan(self.low) else f" [{100 * self.low:.0f}, {100 * self.high:.0f}]"
        return f"{100 * self.value:.0f} %{limits}".replace("-", MINUS)


def summarize(values: Iterable[float]) -> Summary:
    """Return n, mean, sample standard deviation and standard error; missing values do not count."""
    array = _present(values)
    n = array.size
    std = float(array.std(ddof=1)) if n > 1 else NAN
    return Summary(n=n, mean=float(array.mean()) if n else NAN, std=std, sem=std / math.sqrt(n) if n else NAN)


def reported(n: int, mean: float, std: float) -> Summary:
    """Return the summary of values of which only this is known, such as a number in a paper; NaN: no std reported."""
    return Summary(n=n, mean=mean, std=std, sem=std / math.sqrt(n) if n > 1 else NAN)


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the mean of ``first - second`` with its t interval; a pair with a missing value does not count.

    Pairs share the mask, the nets and often the order of the data, so their differences vary far less than the values
    themselves; with the three seeds of a usual study this is what makes a small effect visible at all.

    Args:
        first: one value per pair.
        second: its partner, at the same place.
        confidence: level of the interval, in (0, 1).

    Raises:
        ValueError: unequal lengths, or a level out of bounds.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need two values each, got {len(first)} and {len(second)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return interval(np.asarray(first, float) - np.asarray(second, float), confidence)


def interval(differences: Iterable[float], confidence: float = 0.95) -> Difference:
    """Return the mean of differences with its t interval and the p value of mean = 0; missing ones do not count."""
    from scipy import stats  # here, because importing it takes longer than everything else at start-up

    summary = summarize(differences)
    n, mean, sem = summary.n, summary.mean, summary.sem
    if n < 2 or summary.std <= NO_SPREAD * abs(mean):
        return Difference(n=n, mean=mean, low=NAN, high=NAN, p=NAN, confidence=confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sem
    p = float(2 * stats.t.sf(abs(mean) / sem, n - 1))
    return Difference(n=n, mean=mean, low=mean - half, high=mean + half, p=p, confidence=confidence)


def welch(first: Summary, second: Summary, confidence: float = 0.95) -> Comparison:
    """Return ``first - second`` of two independent samples of which the summaries are known.

    Degrees of freedom after Welch and Satterthwaite.
    """
    from scipy import stats

    mean = first.mean - second.mean
    if math.isnan(first.sem + second.sem):
        return Comparison(mean=mean, sem=NAN, low=NAN, high=NAN, p=NAN, confidence=confidence)
    sem = math.hypot(first.sem, second.sem)
    if sem <= NO_SPREAD * max(abs(first.mean), abs(second.mean)):
        return Comparison(mean=mean, sem=sem, low=NAN, high=NAN, p=NAN, confidence=confidence)
    freedom = sem**4 / (first.sem**4 / (first.n - 1) + second.sem**4 / (second.n - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * sem
    p = float(2 * stats.t.sf(abs(mean) / sem, freedom))
    return Comparison(mean=mean, sem=sem, low=mean - half, high=mean + half, p=p, confidence=confidence)


def rank_correlation(
    first: Sequence[float],
    second: Sequence[float],
    within: Sequence[object] | None = None,
    confidence: float = 0.95,
) -> RankCorrelation:
    """Return Spearman's correlation of two variables; a point with a missing value does not count.

    Args:
        first: one value per point.
        second: the other, at the same place.
        within: a group per point; only differences inside groups count: values are ranked in their group and the
            ranks taken relative to its mean, so that two groups which differ in both variables prove nothing.
        confidence: level of the interval, which is Fisher's with the variance of Bonett and Wright (2000); every group
            beyond the first costs a degree of freedom.

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
        return RankCorrelation(n=n, rho=NAN, low=NAN, high=NAN, confidence=confidence)
    rho = float(np.clip(xy / math.sqrt(xx * yy), -1, 1))
    freedom = n - 3 - (len(places) - 1)
    if freedom < 1 or abs(rho) > 1 - 1e-12:  # an interval of no width, which no number of points justifies
        return RankCorrelation(n=n, rho=rho, low=NAN, high=NAN, confidence=confidence)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + rho**2 / 2) / freedom)
    low, high = (math.tanh(math.atanh(rho) + side * half) for side in (-1, 1))
    return RankCorrelation(n=n, rho=rho, low=low, high=high, confidence=confidence)


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
    """Return the share of the way from naive to LTH that permuting covers: (permuted - naive) / (lth - naive).

    NaN where there is no way to cover (naive is as good as LTH, or a value is missing). Above 1 permuted beats LTH,
    below 0 it is worse than naive.
    """
    gap = lth - naive
    return (permuted - naive) / gap if gap > 0 else NAN


def paired_share(
    permuted: Sequence[float], naive: Sequence[float], lth: Sequence[float], confidence: float = 0.95
) -> Share:
    """Return :func:`share_closed` of the means over the pairs that have all three, with Fieller's interval.

    There is a share only where LTH is ahead of naive by more than the standard error of that difference. Fieller's
    interval holds every share that a paired t test does not reject; it keeps its level also with three pairs, where a
    percentile bootstrap of 95 % holds the truth in less than 80 % of all studies. It has no ends, and none are given,
    where a gap of nothing is not rejected either; nor where the pairs do not vary.

    Raises:
        ValueError: unequal lengths.
    """
    if not len(permuted) == len(naive) == len(lth):
        raise ValueError(f"pairs need three values each, got {len(permuted)}, {len(naive)} and {len(lth)}")
    triples = np.column_stack([np.asarray(values, float) for values in (permuted, naive, lth)])
    triples = triples[~np.isnan(triples).any(axis=1)]
    n = len(triples)
    ahead = summarize(triples[:, 2] - triples[:, 1])
    if not (n and ahead.mean > (0.0 if n == 1 else ahead.sem)):
        return Share(n=n, value=NAN, low=NAN, high=NAN)
    value = share_closed(*(float(mean) for mean in triples.mean(axis=0)))
    low, high = _fieller(triples[:, 0] - triples[:, 1], triples[:, 2] - triples[:, 1], confidence)
    return Share(n=n, value=value, low=low, high=high)


def _fieller(part: NDArray[np.float64], whole: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return Fieller's limits of the ratio of two paired means, NaN where it has none (Fieller, 1954)."""
    from scipy import stats

    n = len(whole)
    if n < 2:
        return NAN, NAN
    scale = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2 / n
    (part_part, part_whole), (_, whole_whole) = np.cov(part, whole)
    # The ratios r between the limits have a r ** 2 - 2 b r + c <= 0: the mean of part - r * whole is not rejected.
    a = whole.mean() ** 2 - scale * whole_whole
    b = part.mean() * whole.mean() - scale * part_whole
    c = part.mean() ** 2 - scale * part_part
    if not a > 0:
        return NAN, NAN
    half, middle = math.sqrt(max(0.0, b**2 - a * c)) / a, b / a
    return (NAN, NAN) if half <= NO_SPREAD * abs(middle) else (float(middle - half), float(middle + half))


def decimals_for(spread: float, *, digits: int = 2, most: int = 2) -> int:
    """Return how many decimals show `digits` significant digits of a spread, from 0 to `most`."""
    if math.isnan(spread) or spread <= 0:
        return most
    return min(most, max(0, digits - 1 - math.floor(math.log10(spread))))


def format_mean(mean: float, std: float, n: int, *, decimals: int | None = None, gap: str = " ") -> str:
    """Return ``mean ± std (n)``; without ± if there is no spread to show, empty if there is no value.

    Args:
        mean: the mean.
        std: sample standard deviation, NaN if n is 1.
        n: how many values.
        decimals: digits after the point; None: two significant digits of the std, at most two decimals.
        gap: what stands around the ±.
    """
    if n == 0 or math.isnan(mean):
        return ""
    places = decimals_for(std) if decimals is None else decimals
    spread = "" if math.isnan(std) else f"{gap}±{gap}{std:.{places}f}"
    return f"{mean:.{places}f}{spread} ({n})".replace("-", MINUS)


def format_difference(mean: float, low: float, high: float, *, decimals: int = 2) -> str:
    """Return ``+mean [low, high]``; without the interval if there is none, empty if there is no value."""
    if math.isnan(mean):
        return ""
    text = f"{mean:+.{decimals}f}"
    if not math.isnan(low):
        text += f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return text.replace("-", MINUS)


def format_p(p: float) -> str:
    """Return a p value with two significant digits, empty if there is none."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _present(values: Iterable[float]) -> NDArray[np.float64]:
    array: NDArray[np.float64] = np.asarray(list(values), dtype=np.float64)
    present: NDArray[np.float64] = array[~np.isnan(array)]
    return present
