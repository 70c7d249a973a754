"""Where to clip a tensor before it is quantised: from a histogram of its absolute values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.graph.files.external import Array

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")

_BINS = 2048
_LEAST = 1e-30


@dataclass
class Histogram:
    """Absolute values in bins of equal width from 0 to `limit`, which doubles when it must."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    limit: float = 0.0
    lowest: float = np.inf
    highest: float = -np.inf

    def add(self, values: Array) -> None:
        """Count a batch of values."""
        if not values.size:
            return
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        self._reach(max(self.highest, -self.lowest))
        if not self.limit:  # nothing but zeros so far
            self.counts[0] += values.size
            return
        bins = (np.abs(values).ravel() * (_BINS / self.limit)).astype(np.int32)
        np.minimum(bins, _BINS - 1, out=bins)  # the limit itself
        self.counts += np.bincount(bins, minlength=_BINS)

    def _reach(self, largest: float) -> None:
        """Widen the bins, two into one, until the last reaches `largest`."""
        if largest:
            self.limit = self.limit or max(largest, _LEAST)
        while self.limit < largest:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(_BINS // 2, np.int64)])
            self.limit *= 2

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(self.highest, -self.lowest, 0.0)

    def share_beyond(self, threshold: float) -> float:
        """The share of values in the bins above `threshold`."""
        total = int(self.counts.sum())
        if not total or threshold >= self.largest:
            return 0.0
        edges = np.arange(_BINS) * self.limit / _BINS
        return float(self.counts[edges >= threshold].sum() / total)


def threshold(histogram: Histogram, method: Method, percentile: float, levels: int = 128) -> float:
    """The absolute value at which to clip.

    Args:
        method: minmax: the largest seen. percentile: that share of values, in percent, is below.
            entropy: where the quantised distribution loses the least information (Kullback-Leibler
            divergence, as in Migacz, "8-bit inference with TensorRT", GTC 2017).
        levels: of the grid on one side of zero.

    Raises:
        InputError: for a percentile that is none.
    """
    if not 0 < percentile <= 100:
        raise InputError(f"--percentile {percentile}: must be above 0 and at most 100")
    largest, counts = histogram.largest, histogram.counts
    if method == "minmax" or not counts.any():
        return largest
    width = histogram.limit / len(counts)
    if method == "percentile":
        below = np.cumsum(counts) / counts.sum()
        last = int(np.searchsorted(below, percentile / 100))
    else:
        last = _least_divergence(counts, levels) - 1
    return min(largest, width * (last + 1))


def _least_divergence(counts: NDArray[np.int64], levels: int) -> int:
    """How many bins to keep so that `levels` steps over them tell the most."""
    bins = np.arange(levels, len(counts) + 1)
    bins = bins[bins <= int(np.flatnonzero(counts)[-1]) + 1]
    if not len(bins):
        return levels
    losses = [_divergence(counts, int(kept), levels) for kept in bins]
    return int(bins[int(np.argmin(losses))])


def _divergence(counts: NDArray[np.int64], kept: int, levels: int) -> float:
    """Of the clipped distribution over `kept` bins from itself on `levels` steps, in nats."""
    reference = counts[:kept].astype(np.float64)
    filled = reference > 0
    step = np.arange(kept) * levels // kept
    mass = np.bincount(step, reference, levels)
    members = np.bincount(step, filled, levels)
    coarse = np.where(filled, (mass / np.maximum(members, 1))[step], 0.0)
    reference[-1] += counts[kept:].sum()
    p, q = reference / reference.sum(), _without_zeros(coarse, reference)
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())


def _without_zeros(coarse: NDArray[np.float64], reference: NDArray[np.float64]) -> Array:
    """`coarse` normalised; what it lacks of the reference counts as one in a hundred thousand."""
    total = max(float(coarse.sum()), 1.0)
    floor = 1e-5 * total / max(1, int((reference > 0).sum()))
    lifted = np.where((reference > 0) & (coarse <= 0), floor, coarse)
    return np.asarray(lifted / lifted.sum())
