"""Points of a sweep: what each budget costs and saves, which are worth having, which one to take.

Several seeds of one impact and budget are one group: a seed that happened to do well on the test
images is no reason to expect more of it, so groups are compared, and groups are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from slimdeploy.measure.reliability import CalibrationError
from slimdeploy.measure.stats import Interval, gain_interval, points_lost

DropBy = Literal["mean", "interval"]
Share = Annotated[float, Field(ge=0, le=1)]
Right = NDArray[np.bool_]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SweepLatency(_Record):
    """Paired timing at one batch size; see `slimdeploy.measure.timing.LatencyRow`.

    `load` is the system's mean load over the minute before: above the number of cores, others
    took part of them, and the milliseconds say little; the ratio is taken pair by pair.
    """

    batch_size: PositiveInt
    rounds: PositiveInt
    load: float | None = None
    speedup: float
    speedup_interval: Interval
    dense_median_ms: float
    slim_median_ms: float


class SweepPoint(_Record):
    """One slim model of a sweep.

    Attributes:
        name: its folder below `points/`.
        impact: what ranked the tokens.
        seed: of the calibration images and of every random choice.
        wanted: the budget: the share of MACs to save.
        mac_reduction: the share that is saved.
        macs: multiply-accumulates for one image.
        counts: tokens that each layer keeps.
        top1: share of test images that it gets right.
        difference: top-1 minus dense top-1; its interval is paired, by image.
        agreement: share of images for which it predicts what the dense model does.
        mcnemar_p: exact p-value that dense and slim err equally often.
        kl_divergence: mean KL(dense || slim), in nats.
        cross_entropy: mean, in nats.
        calibration_errors: by binning.
        parity: largest difference found by the proof, as a share of the tensor's scale.
        files: by role, relative to the sweep's folder.
        seconds: from the search to the evaluation.
        latency: a row a batch size; none if it was not timed.
    """

    name: str
    impact: str
    seed: NonNegativeInt
    wanted: Share
    mac_reduction: Share
    macs: PositiveInt
    counts: tuple[PositiveInt, ...]
    top1: Share
    top1_interval: Interval
    difference: float
    difference_interval: Interval
    agreement: Share
    mcnemar_p: Share
    kl_divergence: float
    cross_entropy: float
    calibration_errors: dict[str, CalibrationError]
    parity: float
    files: dict[str, str]
    seconds: float
    latency: tuple[SweepLatency, ...] = ()


@dataclass(frozen=True)
class SweepSpeed:
    """Speed-up of a group at one batch size.

    Attributes:
        value: median over the seeds.
        interval: from the lowest end of the seeds' intervals to the highest.
    """

    batch_size: int
    value: float
    interval: Interval


@dataclass(frozen=True)
class SweepGroup:
    """All seeds of one impact and budget.

    Attributes:
        points: a seed each.
        top1: mean over the seeds.
        difference: mean over the seeds of top-1 minus dense top-1.
        interval: its 95 % interval: Tango's of paired proportions; of several seeds, bootstrap over
            images, each with its mean over the seeds.
    """

    points: tuple[SweepPoint, ...]
    top1: float
    difference: float
    interval: Interval

    @property
    def impact(self) -> str:
        return self.points[0].impact

    @property
    def wanted(self) -> float:
        return self.points[0].wanted

    @property
    def macs(self) -> float:
        """Mean over the seeds; a budget alone fixes the counts, so they hardly differ."""
        return fmean(point.macs for point in self.points)

    @property
    def speeds(self) -> tuple[SweepSpeed, ...]:
        """A row a batch size; none unless every seed was timed."""
        rows = zip(*(point.latency for point in self.points), strict=True)
        return tuple(
            SweepSpeed(
                seeds[0].batch_size,
                median(row.speedup for row in seeds),
                Interval(
                    min(row.speedup_interval.low for row in seeds),
                    max(row.speedup_interval.high for row in seeds),
                ),
            )
            for seeds in rows
        )

    @property
    def title(self) -> str:
        """For a line of text."""
        seeds = ", ".join(str(point.seed) for point in self.points)
        return f"{self.impact}, {self.wanted:.4g} of the MACs saved, seed {seeds}"


def group_points(
    points: Sequence[SweepPoint], right: Mapping[str, Right], dense_right: Right, seed: int = 0
) -> list[SweepGroup]:
    """Points of one impact and budget together, in the order in which they first appear.

    Args:
        right: for each point's name which test images it gets right, [n].
        dense_right: the same of the dense model.
    """
    groups: dict[tuple[str, float], list[SweepPoint]] = {}
    for point in points:
        groups.setdefault((point.impact, point.wanted), []).append(point)
    return [_group(members, right, dense_right, seed) for members in groups.values()]


def _group(
    points: Sequence[SweepPoint], right: Mapping[str, Right], dense_right: Right, seed: int
) -> SweepGroup:
    shares = np.mean([right[point.name] for point in points], axis=0)
    gain = shares - dense_right
    return SweepGroup(
        tuple(points), float(shares.mean()), float(gain.mean()), gain_interval(gain, seed)
    )


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other beats: as cheap and as good, and better in one of the two."""
    pairs = list(zip(costs, values, strict=True))
    return [
        not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in pairs)
        for cost, value in pairs
    ]


def smallest_within(groups: Sequence[SweepGroup], max_drop: float, by: DropBy) -> SweepGroup | None:
    """The group of fewest MACs whose top-1 is at most `max_drop` points below the dense model's.

    Args:
        max_drop: percentage points.
        by: judge the mean difference, or the lower end of its interval.
    """
    fit = [group for group in groups if drop_of(group, by) <= max_drop]
    return min(fit, key=lambda group: (group.macs, -group.top1), default=None)


def drop_of(group: SweepGroup, by: DropBy) -> float:
    """Points lost: of the mean, or at the lower end of the interval."""
    return points_lost(group.difference if by == "mean" else group.interval.low)
