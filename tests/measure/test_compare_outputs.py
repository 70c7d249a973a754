"""Parity: what passes, what does not, and what a failure says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.errors import GateError, InputError
from slimdeploy.measure.parity import compare_outputs

LOGITS = np.array([[4.0, -1.0, 0.0], [0.5, 2.0, 1.0]], np.float32)


def test_equal_outputs_pass() -> None:
    parity = compare_outputs(LOGITS, LOGITS.copy())
    assert parity.passed
    assert (parity.max_abs, parity.scale, parity.cosine_min) == (0, 4, pytest.approx(1))
    parity.require("a vs b")


# At exactly 1 the rounding of the test's own sums decides.
@given(st.floats(1e-6, 1e6), st.floats(0.1, 0.999) | st.floats(1.001, 1.9))
def test_the_tolerance_scales_with_the_reference(scale: float, share: float) -> None:
    reference = LOGITS.astype(np.float64) * scale
    other = reference.copy()
    other[1, 0] += share * 1e-3 * reference.max()
    assert compare_outputs(reference, other, tolerance=1e-3).passed == (share <= 1)


def test_a_failure_gives_the_numbers_in_one_line() -> None:
    other = LOGITS.copy()
    other[1] = [2.5, 2.0, 1.0]
    parity = compare_outputs(LOGITS, other)
    assert parity.top1_agreement == 0.5
    with pytest.raises(GateError) as caught:
        parity.require("slim.onnx vs torch")
    assert str(caught.value) == (
        "slim.onnx vs torch: outputs differ: max abs 2.00e+00 is 5.00e-01 of the scale 4 "
        "(allowed 1e-04), cosine 0.8132501, top-1 agreement 50.00% of 2 rows"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_infinity_never_pass(bad: float, side: int) -> None:
    pair = [LOGITS.copy(), LOGITS.copy()]
    pair[side][0, 1] = bad
    parity = compare_outputs(*pair)
    assert not parity.passed
    assert json.loads(json.dumps(parity.to_json(), allow_nan=False))["max_abs"] is None
    with pytest.raises(GateError, match="a vs b: outputs differ: NaN or infinity in the outputs"):
        parity.require("a vs b")


def test_a_reference_of_zeros_is_matched_by_zeros_alone() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert compare_outputs(zeros, zeros).passed
    different = compare_outputs(zeros, LOGITS)
    assert not different.passed
    assert different.cosine_min == 0
    json.dumps(different.to_json(), allow_nan=False)


@pytest.mark.parametrize("other", [LOGITS[:1], LOGITS[0]])
def test_shapes_must_agree(other: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"outputs of shape \[2, 3\] and .* cannot be compared"):
        compare_outputs(LOGITS, other)
