"""A Gemm's bias beside 8-bit weights: int32 where the kernel adds it so, exact enough always."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.graph.work import Work
from slimdeploy.precision.calibration import ArrayCalibration
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.quantize import RangeRequest, collect_ranges, quantized_graph
from tests.graph.text import model

ROWS, WIDTH = 20, 16
OPTIONS = PrecisionOptions("int8", "fp32", also=("embedding",))


def numbers(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


IMAGES = numbers(4, 1, ROWS, WIDTH)


def graph(bias: Any, weights: Any) -> onnx.ModelProto:
    body = "h = Reshape(x, two) g = Gemm(h, w, b) y = Reshape(g, three)"
    n = weights.shape[1]
    head = f"float[4,1,{ROWS},{WIDTH}] x => float[4,1,{ROWS},{n}] y"
    shapes = {"two": [-1, WIDTH], "three": [-1, 1, ROWS, n]}
    return model(head, body, 20, **shapes, w=weights, b=bias)


def quantised(tmp_path: Any, source: onnx.ModelProto) -> onnx.ModelProto:
    path = tmp_path / "source.onnx"
    onnx.save(source, path)
    images = ArrayCalibration(IMAGES, "numbers")
    ranges = collect_ranges(path, source, OPTIONS, images, RangeRequest())
    return quantized_graph(source, OPTIONS, ranges).model


def run(source: onnx.ModelProto) -> Any:
    return OnnxRuntimeEngine(source.SerializeToString()).infer(IMAGES)["y"]


def test_a_bias_beside_tiny_or_no_weights_stays_what_it_is(tmp_path: Any) -> None:
    weights, bias = 0.1 * numbers(WIDTH, 8), np.full(8, 0.1, np.float32)
    weights[:, 3], weights[:, 5], weights[:, 6] = 0, 1e-9, 1e-30
    bias[6] = 0
    source = graph(bias, weights)
    exact, found = run(source), run(quantised(tmp_path, source))
    np.testing.assert_allclose(found[..., [3, 5, 6]], exact[..., [3, 5, 6]], atol=1e-6)
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("shape", "integer"),
    [
        ((24,), True),
        ((1, 24), True),
        ((), True),
        ((1,), True),
        ((4 * ROWS, 24), False),
        ((4 * ROWS, 1), False),
    ],
)
def test_only_a_bias_of_channels_becomes_int32(
    shape: tuple[int, ...], integer: bool, tmp_path: Any
) -> None:
    source = graph(numbers(*shape), 0.1 * numbers(WIDTH, 24))
    made = quantised(tmp_path, source)
    exact, found = run(source), run(made)
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    gemm = next(node for node in Work.of(made).graph.nodes if node.op == "Gemm")
    assert (gemm.inputs[2].inputs != []) == integer
