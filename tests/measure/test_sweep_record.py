"""Fronts, groups and the choice of a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.measure.reliability import CalibrationError
from slimdeploy.measure.stats import Interval, paired_interval
from slimdeploy.measure.sweep import (
    SweepGroup,
    SweepLatency,
    SweepPoint,
    drop_of,
    group_points,
    pareto,
    smallest_within,
)

NOTHING = Interval(0, 0)


def point(impact: str, wanted: float, seed: int = 0, **fields: Any) -> SweepPoint:
    """A point of a model of 1000 MACs."""
    error = CalibrationError("equal-mass", 15, 0.1, Interval(0, 0.2), 0.05)
    common: dict[str, Any] = {
        "name": f"{impact}-{wanted:g}-seed{seed}",
        "impact": impact,
        "seed": seed,
        "wanted": wanted,
        "mac_reduction": wanted,
        "macs": round(1e9 * (1 - wanted)),
        "counts": (17, 9, 1),
        "top1": 0.5,
        "top1_interval": NOTHING,
        "difference": 0.0,
        "difference_interval": NOTHING,
        "agreement": 1.0,
        "mcnemar_p": 1.0,
        "kl_divergence": 0.0,
        "cross_entropy": 0.5,
        "calibration_errors": {"equal-width": error, "equal-mass": error},
        "parity": 1e-6,
        "files": {"onnx": "slim.onnx"},
        "seconds": 1.0,
    }
    return SweepPoint(**{**common, **fields})


def latency(speedup: float, batch_size: int = 1) -> SweepLatency:
    return SweepLatency(
        batch_size=batch_size,
        rounds=5,
        speedup=speedup,
        speedup_interval=Interval(speedup - 0.1, speedup + 0.1),
        dense_median_ms=2.0,
        slim_median_ms=1.0,
    )


def groups_of(shares: dict[float, float], images: int = 200) -> list[SweepGroup]:
    """A group a budget, which loses that share of the images; the dense model is always right."""
    points = [point("cover", wanted) for wanted in shares]
    losses = dict(zip((p.name for p in points), shares.values(), strict=True))
    right = {name: np.arange(images) >= lost * images for name, lost in losses.items()}
    return group_points(points, right, np.ones(images, bool))


def test_seeds_are_one_group_with_their_mean() -> None:
    dense = np.array([True, True, False, True])
    points = [point("cover", 0.3, 0), point("grid", 0.3, 0), point("cover", 0.3, 1)]
    right = {
        "cover-0.3-seed0": np.array([True, False, False, True]),
        "cover-0.3-seed1": np.array([True, True, True, False]),
        "grid-0.3-seed0": dense,
    }
    cover, grid = group_points(points, right, dense)
    assert [p.seed for p in cover.points] == [0, 1]
    assert cover.top1 == pytest.approx(5 / 8)
    assert cover.difference == pytest.approx(-1 / 8)
    # Image by image the seeds' mean gains are 0, -1/2, 1/2, -1/2.
    assert -0.5 <= cover.interval.low < -0.125 < cover.interval.high <= 0.5
    assert (grid.difference, grid.interval) == (0, paired_interval(0, 0, 4))
    assert "cover, 0.3 of the MACs saved, seed 0, 1" in cover.title


def test_speeds_of_seeds() -> None:
    points = [
        point("cover", 0.3, seed, latency=(latency(s), latency(3, 8)))
        for seed, s in enumerate((1.5, 1.7, 1.6))
    ]
    (group,) = group_points(points, {p.name: np.ones(3, bool) for p in points}, np.ones(3, bool))
    one, eight = group.speeds
    assert (one.batch_size, one.value, eight.value) == (1, 1.6, 3)
    assert (one.interval.low, one.interval.high) == pytest.approx((1.4, 1.8))


def test_the_smallest_point_within_the_drop() -> None:
    groups = groups_of({0.3: 0.0, 0.46: 0.005, 0.6: 0.03})
    found = smallest_within(groups, 0.5, "mean")
    assert found is groups[1]  # one image in 200 is the half point that is allowed
    assert drop_of(groups[1], "mean") == 0.5
    assert drop_of(groups[1], "interval") > 0.5
    # 200 images that all stay right do not rule a loss of 1.9 points out.
    assert drop_of(groups[0], "interval") > 1.8
    assert smallest_within(groups, 1.8, "interval") is None
    assert smallest_within(groups, 2, "interval") is groups[0]
    assert smallest_within(groups, 0.4, "mean") is groups[0]
    assert smallest_within(groups[2:], 0.5, "mean") is None
    assert smallest_within(groups, 100, "interval") is groups[2]


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(pairs)
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, int]]) -> None:
    costs, values = [c for c, _ in rows], [v for _, v in rows]
    front = pareto(costs, values)
    assert any(front)
    for (cost, value), best in zip(rows, front, strict=True):
        beaten = any(c <= cost and v >= value and (c < cost or v > value) for c, v in rows)
        assert best is not beaten
    on_it = sorted({row for row, best in zip(rows, front, strict=True) if best})
    assert [v for _, v in on_it] == sorted({v for _, v in on_it})
