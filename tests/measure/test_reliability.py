"""Calibration error against hand-computed cases and invariants; divergences against definitions."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.measure.divergence import (
    confidences,
    cosines,
    cross_entropies,
    kl_divergences,
    log_softmax,
)
from slimdeploy.measure.reliability import (
    Binning,
    bin_numbers,
    calibration_difference,
    calibration_error,
)

BINNINGS: tuple[Binning, ...] = get_args(Binning)
sure = st.floats(0.01, 1.0)
images = st.lists(st.tuples(sure, st.booleans()), min_size=2, max_size=40)


def split(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c for c, _ in rows]), np.array([right for _, right in rows])


def test_a_case_computed_by_hand() -> None:
    confidence = np.array([0.95, 0.85, 0.85, 0.55, 0.65, 0.75])
    right = np.array([True, True, False, False, True, True])
    # Width 1/5: (0.4, 0.6] holds 0.55; (0.6, 0.8] holds 0.65 and 0.75; (0.8, 1] the rest.
    width = (abs(0.55 - 0) + abs(1.4 - 2) + abs(2.65 - 2)) / 6
    found = calibration_error(confidence, right, "equal-width", bins=5)
    assert found.value == pytest.approx(width)
    # Equal mass, 3 bins: (0.55, 0.65), (0.75, and 0.85 twice), (0.95): equals stay together.
    assert bin_numbers(confidence, "equal-mass", 3).tolist() == [2, 1, 1, 0, 0, 1]
    mass = (abs(1.2 - 1) + abs(2.45 - 2) + abs(0.95 - 1)) / 6
    assert calibration_error(confidence, right, "equal-mass", bins=3).value == pytest.approx(mass)


def test_edges_belong_to_the_bin_below() -> None:
    confidence = np.array([0.2, 0.2000001, 1.0])
    assert bin_numbers(confidence, "equal-width", 5).tolist() == [0, 1, 4]


@pytest.mark.parametrize("binning", BINNINGS)
@settings(max_examples=30)
@given(groups=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_perfect_calibration_is_zero(binning: Binning, groups: list[tuple[int, int]]) -> None:
    rows = [
        (min(hits, n) / n, i < min(hits, n)) for n, hits in groups for i in range(n) if n and hits
    ]
    if rows:
        assert calibration_error(*split(rows), binning).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("binning", BINNINGS)
@settings(max_examples=30)
@given(rows=images, seed=st.integers(0, 99))
def test_order_does_not_matter_and_bounds_hold(
    binning: Binning, rows: list[tuple[float, bool]], seed: int
) -> None:
    confidence, right = split(rows)
    found = calibration_error(confidence, right, binning)
    order = np.random.default_rng(seed).permutation(len(rows))
    again = calibration_error(confidence[order], right[order], binning)
    assert again.value == pytest.approx(found.value, abs=1e-12)
    assert 0 <= found.value <= 1
    assert 0 <= found.interval.low <= found.interval.high <= 1
    assert 0 <= found.chance <= 1
    # No binning finds more than the mean gap of single images, or less than the overall one.
    gaps = confidence - right
    assert abs(gaps.mean()) - 1e-12 <= found.value <= np.abs(gaps).mean() + 1e-12


@pytest.mark.parametrize("binning", BINNINGS)
def test_the_interval_and_chance_tell_calibrated_from_overconfident(binning: Binning) -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.5, 1, 2000)
    calibrated = generator.random(2000) < confidence
    boastful = generator.random(2000) < confidence - 0.2
    fine = calibration_error(confidence, calibrated, binning)
    bad = calibration_error(confidence, boastful, binning)
    assert fine.value < 2 * fine.chance
    assert fine.interval.low < 0.01
    assert bad.value > 5 * bad.chance
    assert 0.2 in bad.interval
    value, spread = calibration_difference(
        (confidence, calibrated), (confidence, boastful), binning
    )
    assert value == pytest.approx(bad.value - fine.value)
    assert 0 not in spread
    same, nothing = calibration_difference((confidence, boastful), (confidence, boastful), binning)
    assert (same, nothing.low, nothing.high) == (0, 0, 0)


@pytest.mark.slow
def test_how_often_the_interval_holds_the_truth() -> None:
    """What the module says of its interval: by simulation, with models whose error is known."""
    held: dict[tuple[float, str, str], list[bool]] = {}
    generator = np.random.default_rng(0)

    def sample(n: int, boast: float) -> tuple[np.ndarray, np.ndarray]:
        confidence = 0.5 + 0.5 * generator.beta(4, 1.2, n)
        return confidence, generator.random(n) < confidence - boast

    for boast in (0.0, 0.03, 0.08):
        for binning in BINNINGS:
            confidence, right = sample(500_000, boast)  # as good as the truth
            gaps = np.bincount(bin_numbers(confidence, binning), confidence - right)
            truth = float(np.abs(gaps).sum() / len(right))
            for _ in range(120):
                found = calibration_error(*sample(525, boast), binning)
                turned = (
                    2 * found.value - found.interval.high,
                    2 * found.value - found.interval.low,
                )
                held.setdefault((boast, binning, "basic"), []).append(truth in found.interval)
                percentile = turned[0] <= truth <= turned[1]
                held.setdefault((boast, binning, "percentile"), []).append(percentile)
    share = {key: float(np.mean(values)) for key, values in held.items()}
    for (boast, _, kind), found_share in share.items():
        if kind == "basic":
            assert found_share > (0.8 if boast else 0.35), share
    assert all(share[0.0, binning, "percentile"] == 0 for binning in BINNINGS), share


def test_a_single_image_has_no_spread() -> None:
    found = calibration_error(np.array([0.75]), np.array([True]), "equal-mass")
    assert (found.value, found.interval.low, found.interval.high) == (0.25, 0.25, 0.25)


def test_divergences_of_two_rows() -> None:
    p = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    q = np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32)) + 3
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_divergences(p, q) == pytest.approx([0, wanted], abs=1e-6)
    assert confidences(p) == pytest.approx([0.5, 0.75], abs=1e-6)
    assert cross_entropies(p, np.array([1, 0])) == pytest.approx(
        [math.log(2), math.log(4)], abs=1e-6
    )
    a, b = np.array([[1, 0], [0, 0], [0, 0]]), np.array([[1, 1], [0, 0], [0, 1]])
    assert cosines(a.astype(np.float32), b.astype(np.float32)) == pytest.approx([0.5**0.5, 1, 0])


def test_large_logits_and_many_rows() -> None:
    logits = np.zeros((5000, 3), np.float32)
    logits[:, 0] = 1e4
    assert np.exp(log_softmax(logits)).sum(axis=1) == pytest.approx(np.ones(5000))
    assert kl_divergences(logits, logits).max() == 0
    assert confidences(logits).shape == (5000,)


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.integers(0, 9))
def test_kl_is_not_negative_and_ignores_a_shift(row: list[float], seed: int) -> None:
    p = np.array([row], np.float32)
    q = np.random.default_rng(seed).normal(0, 5, (1, 3)).astype(np.float32)
    assert kl_divergences(p, q)[0] >= 0
    assert kl_divergences(p, p + 1)[0] == pytest.approx(0, abs=1e-5)
