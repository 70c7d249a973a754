"""Is a classifier right as often as it says? Expected calibration error (Guo et al., ICML 2017).

Images are binned by confidence, the largest softmax probability. In each bin the mean confidence
is compared with the share of images that are right; the error is the mean of the absolute gaps,
weighted by the bins' images. `equal-width` bins cut 0 to 1 into equal parts; `equal-mass` bins
hold equal numbers of images (those of one confidence stay together), so that no bin rests on a
handful.

The estimate is too high on few images: noise has a sign in every bin, and absolute values do not
cancel. Two things stand beside it for that reason. `chance` is what a perfectly calibrated model of
the same confidences would get on as many images. The interval is the basic bootstrap's, which turns
the resamples' excess round; the percentile interval never held the truth in a simulation of
calibrated models (525 images, 120 repetitions), this one in 42 to 72 %, and in 83 to 95 % where the
true error was 0.03 or more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimdeploy.measure.stats import Interval, bootstrap_interval

Binning = Literal["equal-width", "equal-mass"]
Values = NDArray[np.float64]

BINS = 15
_SIMULATIONS = 200


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error, 0 to 1.

    Attributes:
        binning: how images are put into bins.
        bins: how many.
        value: the estimate.
        interval: 95 %, basic bootstrap over images, the bins' edges fixed.
        chance: mean estimate for a perfectly calibrated model with the same confidences.
    """

    binning: Binning
    bins: int
    value: float
    interval: Interval
    chance: float

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def calibration_error(
    confidence: Values, right: NDArray[np.bool_], binning: Binning, seed: int = 0, bins: int = BINS
) -> CalibrationError:
    """The calibration error of one classifier.

    Args:
        confidence: largest probability of each image, [n], 0 to 1.
        right: whether that class is the label, [n].
    """
    rows = _rows(confidence, right, binning, bins)
    value = _error(rows)
    spread = _basic(rows, _error, value, seed)
    return CalibrationError(
        binning=binning,
        bins=bins,
        value=value,
        interval=Interval(max(spread.low, 0.0), min(max(spread.high, 0.0), 1.0)),
        chance=_chance(confidence, rows[:, 0], seed),
    )


def calibration_difference(
    dense: tuple[Values, NDArray[np.bool_]],
    slim: tuple[Values, NDArray[np.bool_]],
    binning: Binning,
    seed: int = 0,
    bins: int = BINS,
) -> tuple[float, Interval]:
    """Slim calibration error minus dense, paired by image, with a basic bootstrap interval.

    Args:
        dense, slim: confidences and which images are right, on the same images.
    """
    rows = np.hstack([_rows(*side, binning, bins) for side in (dense, slim)])

    def difference(drawn: NDArray[Any]) -> float:
        return _error(drawn[:, 2:]) - _error(drawn[:, :2])

    value = difference(rows)
    return value, _basic(rows, difference, value, seed)


def bin_numbers(confidence: Values, binning: Binning, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each image, [n]; a bin holds its upper edge, not its lower one."""
    shares = np.arange(1, bins) / bins
    edges = shares if binning == "equal-width" else np.quantile(confidence, shares)
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def _rows(confidence: Values, right: NDArray[np.bool_], binning: Binning, bins: int) -> Values:
    """[n, 2]: each image's bin, and its confidence less 1 if it is right."""
    return np.stack([bin_numbers(confidence, binning, bins), confidence - right], axis=1)


def _error(rows: NDArray[Any]) -> float:
    return float(np.abs(np.bincount(rows[:, 0].astype(np.int64), rows[:, 1])).sum() / len(rows))


def _basic(
    rows: Values, statistic: Callable[[NDArray[Any]], float], value: float, seed: int
) -> Interval:
    """The percentile interval reflected at the estimate."""
    if len(rows) < 2:
        return Interval(value, value)
    found = bootstrap_interval(rows, statistic, seed=seed)
    return Interval(2 * value - found.high, 2 * value - found.low)


def _chance(confidence: Values, numbers: Values, seed: int) -> float:
    """Mean error over labels drawn with the stated confidences."""
    generator, total = np.random.default_rng(seed), 0.0
    for _ in range(_SIMULATIONS):
        right = generator.random(len(confidence)) < confidence
        total += _error(np.stack([numbers, confidence - right], axis=1))
    return total / _SIMULATIONS
