"""The few statistics that comparisons rest on, each with its assumption stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError

RESAMPLES = 2000
"""How many times a bootstrap redraws its rows, unless told otherwise."""

_DRAWN_AT_ONCE = 2**13  # numbers: larger temporaries cost more than they spare
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def points_lost(difference: float) -> float:
    """Percentage points that a difference of two shares loses.

    Rounded, so that a drop of 1 image in 200 is the 0.5 points that were allowed.
    """
    return round(-100 * difference, 9)


def bootstrap_interval(
    rows: NDArray[Any],
    statistic: Callable[[NDArray[Any]], float],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    block: int = 1,
) -> Interval:
    """The percentile bootstrap 95 % interval of `statistic(rows)`.

    Rows are drawn whole, so what was paired in a row stays paired. With `block` above 1, runs of
    that many neighbouring rows are drawn (circular block bootstrap): measurements taken one after
    another are alike, and resampling them singly would make the interval too narrow.

    Args:
        rows: [n] or [n, columns], n at least 2, in the order of measurement if `block` > 1.
        statistic: from resampled rows to a number.
        seed: the same seed gives the same interval.
        resamples: how many times the rows are redrawn.
        block: rows drawn together.

    Raises:
        InputError: for fewer than 2 rows.
    """
    n = len(rows)
    if n < 2:
        raise InputError(f"an interval needs 2 measurements or more, not {n}")
    generator = np.random.default_rng(seed)
    block = max(1, min(block, n))
    blocks = -(-n // block)
    offsets = np.arange(block)
    values = np.empty(resamples)
    for i in range(resamples):
        starts = generator.integers(n, size=blocks)
        chosen = (starts[:, None] + offsets).ravel()[:n] % n
        values[i] = statistic(rows[chosen])
    return _middle(values)


def _middle(values: NDArray[Any]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


def mean_interval(values: NDArray[Any], seed: int) -> Interval:
    """The percentile bootstrap 95 % interval of the mean of [n]; a single value has no spread."""
    if len(values) < 2:
        return Interval(float(values.mean()), float(values.mean()))
    generator = np.random.default_rng(seed)  # as `bootstrap_interval`, many samples at once
    n, means = len(values), np.empty(RESAMPLES)
    many = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, RESAMPLES, many):
        size = (min(many, RESAMPLES - start), n)
        means[start : start + many] = values[generator.integers(n, size=size)].mean(1)
    return _middle(means)


def gain_interval(gains: NDArray[Any], seed: int) -> Interval:
    """The 95 % interval of the mean gain in accuracy, [n]: an image 1, 0 or -1, or a mean of those.

    Of one pair of models it is `paired_interval`, for a bootstrap finds no spread where few images
    or none changed. Of means over seeds it is the bootstrap over images.
    """
    if not np.isin(gains, (-1, 0, 1)).all():
        return mean_interval(gains, seed)
    return paired_interval(int((gains > 0).sum()), int((gains < 0).sum()), len(gains))


def paired_interval(gained: int, lost: int, n: int) -> Interval:
    """Tango's 95 % score interval of the difference of two paired proportions.

    After Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design" (Statistics in Medicine 17, 1998).

    Args:
        gained: images that only the second model gets right.
        lost: images that only the first gets right.
        n: images in all, at least 1.
    """
    high = _highest_difference(gained, lost, n)
    return Interval(-_highest_difference(lost, gained, n), high)


def _highest_difference(gained: int, lost: int, n: int) -> float:
    """The largest difference that the counts do not contradict."""
    low, high = (gained - lost) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(gained, lost, n, middle) > -_Z95:
            low = middle
        else:
            high = middle
    return high


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """How many standard errors the counts are above `difference`, under which these are taken."""
    a = 2 * n
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share_lost + difference * (1 - difference))
    distance = gained - lost - n * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def binomial_standard_error(successes: int, n: int) -> float:
    """The standard error of the proportion `successes / n`; it is 0 at 0 % and at 100 %."""
    p = successes / n
    return math.sqrt(p * (1 - p) / n)


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's 95 % interval of a proportion, of use near 0 % and 100 % too."""
    p, z2 = successes / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the exact bound is the end itself, which rounding may miss.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value that two classifiers err equally often on the same images.

    Args:
        only_first: images that only the first gets right.
        only_second: images that only the second gets right.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # exact integers: n choose 0, n choose 1, ... up to k
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))
