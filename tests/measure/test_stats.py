"""Statistics against closed forms, published values and invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.errors import InputError
from slimdeploy.measure.stats import (
    binomial_standard_error,
    bootstrap_interval,
    gain_interval,
    mcnemar_exact,
    mean_interval,
    paired_interval,
    points_lost,
    wilson_interval,
)


def mean(rows: np.ndarray) -> float:
    return float(rows.mean())


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = bootstrap_interval(values, mean, seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_blocks_widen_the_interval_of_drifting_measurements() -> None:
    steps = np.random.default_rng(1).normal(size=300)
    drifting = np.convolve(steps, np.ones(20) / 20, mode="same")
    single = bootstrap_interval(drifting, mean, seed=0)
    blocks = bootstrap_interval(drifting, mean, seed=0, block=20)
    assert blocks.high - blocks.low > 2 * (single.high - single.low)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(1, 20))
def test_an_interval_lies_within_the_data_and_repeats(values: list[float], block: int) -> None:
    rows = np.array(values)
    first = bootstrap_interval(rows, mean, seed=7, resamples=30, block=block)
    assert first == bootstrap_interval(rows, mean, seed=7, resamples=30, block=block)
    assert rows.min() - 1e-9 <= first.low <= first.high <= rows.max() + 1e-9


def test_rows_stay_paired() -> None:
    rows = np.random.default_rng(0).random((50, 1)) * [1.0, 2.0]
    ratio = bootstrap_interval(rows, lambda r: float(r[:, 1].sum() / r[:, 0].sum()), seed=0)
    assert (ratio.low, ratio.high) == pytest.approx((2, 2))


def test_an_interval_needs_two_measurements() -> None:
    with pytest.raises(InputError, match="an interval needs 2 measurements or more, not 1"):
        bootstrap_interval(np.zeros(1), mean, seed=0)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 22 / 1024)],
)
def test_mcnemar_against_the_binomial_tail(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(p, rel=0.05)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_symmetric_probability(b: int, c: int) -> None:
    assert 0 < mcnemar_exact(b, c) <= 1
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    n, k = b + c, min(b, c)
    assert mcnemar_exact(b, c) == min(1, sum(math.comb(n, i) for i in range(k + 1)) * 2 / 2**n)


def test_mcnemar_of_thousands_does_not_overflow() -> None:
    assert 0.4 < mcnemar_exact(5000, 5070) < 0.6


@pytest.mark.parametrize("n", [1, 20, 525])
def test_images_that_all_stay_right_leave_room_for_one_that_would_not(n: int) -> None:
    # Without a discordant image Tango's equation has the closed solution z^2 / (n + z^2).
    z2 = 1.959963984540054**2
    found = gain_interval(np.zeros(n), seed=0)
    assert (found.low, found.high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert n < 14 or found.high > 3 / n


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 500))
def test_the_paired_interval_mirrors_and_holds_the_difference(b: int, c: int, rest: int) -> None:
    n = b + c + rest
    found, mirrored = paired_interval(b, c, n), paired_interval(c, b, n)
    assert (found.low, found.high) == (-mirrored.high, -mirrored.low)
    assert -1 <= found.low < (b - c) / n < found.high <= 1


def test_models_that_never_agree() -> None:
    assert paired_interval(7, 0, 7).high == 1
    assert paired_interval(0, 7, 7).low == -1


@pytest.mark.parametrize("shares", [(0.005, 0.005), (0.01, 0.03), (0.002, 0.0), (0.1, 0.05)])
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(
    shares: tuple[float, float],
) -> None:
    n, (up, down) = 200, shares
    counts = np.random.default_rng(0).multinomial(n, [up, down, 1 - up - down], size=4000)
    held = {pair: up - down in paired_interval(*pair, n) for pair in {(b, c) for b, c, _ in counts}}
    assert np.mean([held[b, c] for b, c, _ in counts]) > 0.93


def test_means_over_seeds_keep_the_bootstrap() -> None:
    gains = np.random.default_rng(0).integers(-3, 4, 100) / 3
    assert gain_interval(gains, seed=3) == mean_interval(gains, seed=3)


def test_standard_error_and_wilson() -> None:
    assert binomial_standard_error(50, 100) == pytest.approx(0.05)
    assert binomial_standard_error(100, 100) == 0
    interval = wilson_interval(1, 10)  # 0.0179, 0.4042: Brown, Cai and DasGupta's formula
    assert (interval.low, interval.high) == pytest.approx((0.0179, 0.4042), abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_proportion_within_0_and_1(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    interval = wilson_interval(k, n)
    assert 0 <= interval.low <= k / n <= interval.high <= 1


@pytest.mark.parametrize(("lost", "images"), [(1, 200), (7, 100), (14, 100), (35, 500)])
def test_points_lost_are_those_that_were_allowed(lost: int, images: int) -> None:
    # As a difference of two shares, 7 of 100 are 7.000000000000001 points.
    assert points_lost((images - lost) / images - 1) == 100 * lost / images
    assert points_lost(lost / images) == -100 * lost / images
