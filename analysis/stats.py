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

from analysis.signs import MINUS

NAN = float("nan")


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
        low: lower end of the confidence interval, NaN below two pairs.
        high: upper end, likewise.
        p: two-sided p value of the paired t test, NaN below two pairs or if all differences are the same.
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


def summarize(values: Iterable[float]) -> Summary:
    """Return n, mean, sample standard deviation and standard error; missing values do not count."""
    array = _present(values)
    n = array.size
    std = float(array.std(ddof=1)) if n > 1 else NAN
    return Summary(n=n, mean=float(array.mean()) if n else NAN, std=std, sem=std / math.sqrt(n) if n else NAN)


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
    if n < 2:
        return Difference(n=n, mean=mean, low=NAN, high=NAN, p=NAN, confidence=confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sem
    p = float(2 * stats.t.sf(abs(mean) / sem, n - 1)) if sem > 0 else NAN
    return Difference(n=n, mean=mean, low=mean - half, high=mean + half, p=p, confidence=confidence)


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
