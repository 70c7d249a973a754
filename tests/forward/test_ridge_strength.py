"""The strength of the refit's ridge, chosen on the images held out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from slimdeploy.errors import InputError
from slimdeploy.forward.ridge import STRENGTHS, Normal, RidgeOptions, ridge_options
from slimdeploy.slim.choices import Strength

Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def regression(images: int, noise: float, seed: int = 0) -> Arrays:
    """Inputs [B, 4, 12], what is missing [B, 4, 3]: linear and noise; weights of tokens [4]."""
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(images, 4, 12))
    y = a @ generator.normal(size=(12, 3)) / 12 + noise * generator.normal(size=(images, 4, 3))
    return a, y, np.array([30.0, 1.0, 1.0, 2.0])


def solved(arrays: Arrays, strength: object, batch: int = 100) -> NDArray[np.float64]:
    a, y, w = arrays
    normal = Normal(bias=False, judged=strength == "auto")
    for start in range(0, len(a), batch):
        normal.add_images(a[start : start + batch], y[start : start + batch], w)
    return normal.solve(strength)[0]  # type: ignore[arg-type]


def held_error(arrays: Arrays, strength: float) -> float:
    """Of the fourth images, for a regression on the others."""
    a, y, w = arrays
    held = np.arange(len(a)) % 4 == 3
    change = solved((a[~held], y[~held], w), strength)
    return float((w[:, None] * np.square(y[held] - a[held] @ change)).sum())


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_the_best_on_images_held_out_is_taken_and_solved_on_all(noise: float) -> None:
    arrays = regression(24, noise)
    best = min(STRENGTHS, key=lambda strength: held_error(arrays, strength))
    np.testing.assert_allclose(solved(arrays, "auto"), solved(arrays, best), rtol=1e-3)


def test_more_noise_asks_for_a_stronger_prior() -> None:
    best = []
    for noise in (0.01, 0.1, 0.3):
        arrays = regression(24, noise)
        errors = [held_error(arrays, strength) for strength in STRENGTHS]
        best.append(STRENGTHS[int(np.argmin(errors))])
    assert best == sorted(best)
    assert best[0] < best[-1], "else the test above shows no choice"


def test_a_layer_that_nothing_helps_stays_as_it_is() -> None:
    a, _, w = regression(8, 0.0)
    y = np.random.default_rng(3).normal(size=(8, 4, 3))
    y[3::4] *= -1
    a[3::4], y[3::4] = a[2::4], -y[2::4]  # held-out images say the opposite
    assert not solved((a, y, w), "auto").any()
    assert solved((a, y, w), 1.0).any()


@pytest.mark.parametrize("strength", ["auto", 1.0])
def test_inputs_that_are_zero_throughout_change_the_bias_alone(strength: Strength) -> None:
    normal = Normal(bias=True, judged=strength == "auto")
    normal.add_images(np.zeros((8, 4, 12)), np.full((8, 4, 3), 0.5), np.ones(4))
    weight, bias = normal.solve(strength)
    assert not weight.any()
    np.testing.assert_allclose(bias, 0.5, rtol=1e-6)


def test_batches_make_no_difference() -> None:
    arrays = regression(22, 0.3)
    for batch in (1, 3, 7):
        np.testing.assert_allclose(solved(arrays, "auto", batch), solved(arrays, "auto"), atol=1e-5)


def test_three_images_are_too_few_to_hold_one_out() -> None:
    arrays = regression(3, 0.3)
    np.testing.assert_allclose(solved(arrays, "auto"), solved(arrays, 1.0), rtol=1e-4)


def test_the_default_depends_on_who_chooses() -> None:
    assert ridge_options(None, by_image=False) == RidgeOptions(1.0)
    assert ridge_options(None, by_image=True) == RidgeOptions("auto")
    assert ridge_options(0.3, by_image=True) == RidgeOptions(0.3)
    with pytest.raises(InputError, match=r"--ridge 0: must be above 0"):
        ridge_options(0, by_image=True)
