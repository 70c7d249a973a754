"""Q/DQ pairs whose numbers float16 cannot hold, or whose products keep float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.graph.work import Work
from slimdeploy.precision import observe as observing
from slimdeploy.precision.calibration import ArrayCalibration
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.overflow import nodes_to_keep, scan
from slimdeploy.precision.quantize import RangeRequest, collect_ranges, opened, quantized_graph
from tests.graph.text import model

GENERATOR = np.random.default_rng(0)
IMAGES = np.clip(GENERATOR.standard_normal((8, 1, 20, 16)), -2.4, 2.4).astype(np.float32)
WEIGHTS = (0.1 * GENERATOR.standard_normal((16, 16))).astype(np.float32)


def graph(factor: float) -> onnx.ModelProto:
    """A product of numbers up to 2.4 times `factor`, made small again behind it."""
    body = "k = MatMul(x, one) l = Mul(k, large) m = MatMul(l, w) s = Mul(m, small) y = Tanh(s)"
    return model(
        "float[B,1,20,16] x => float[B,1,20,16] y", body, 20, w=WEIGHTS,
        one=np.eye(16, dtype=np.float32), large=np.float32(factor), small=np.float32(0.4 / factor),
    )  # fmt: skip


@pytest.mark.parametrize("factor", [4e4, 1e7])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_what_overflows_float16_is_dequantised_in_float32(
    factor: float, precision: Any, tmp_path: Any
) -> None:
    source, images = graph(factor), ArrayCalibration(IMAGES, "numbers")
    onnx.save(source, tmp_path / "source.onnx")
    plain = PrecisionOptions(precision)
    found = scan(opened(source, plain), images)
    assert found.overflows
    kept = nodes_to_keep(opened(source, plain), found.overflows)
    asked = PrecisionOptions(precision, keep_float32=kept)
    ranges = collect_ranges(tmp_path / "source.onnx", source, asked, images, RangeRequest())
    made = quantized_graph(source, asked, ranges).model
    exact = OnnxRuntimeEngine(source.SerializeToString()).infer(IMAGES)["y"]
    output = OnnxRuntimeEngine(made.SerializeToString()).infer(IMAGES)["y"]
    assert np.isfinite(output).all()
    assert np.abs(output - exact).max() < 0.1 * np.abs(exact).max()


def test_a_product_that_is_named_takes_its_pairs_along(tmp_path: Any) -> None:
    source, images = graph(1.0), ArrayCalibration(IMAGES, "numbers")
    onnx.save(source, tmp_path / "source.onnx")
    asked = PrecisionOptions("int8", keep_float32=("m",))
    ranges = collect_ranges(tmp_path / "source.onnx", source, asked, images, RangeRequest())
    work = Work.of(quantized_graph(source, asked, ranges).model)
    pairs = [node for node in work.graph.nodes if node.op == "DequantizeLinear"]
    kinds = {work.facts.types[node.outputs[0].name] for node in pairs}
    assert kinds == {onnx.TensorProto.FLOAT}


def test_the_runtime_takes_the_threads_that_were_asked_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Engine(OnnxRuntimeEngine):
        def __init__(self, path: Any, threads: int | None = None) -> None:
            seen.append(threads)
            super().__init__(path, threads=threads)

    monkeypatch.setattr(observing, "OnnxRuntimeEngine", Engine)
    source, images = graph(1.0), ArrayCalibration(IMAGES, "numbers")
    onnx.save(source, tmp_path / "source.onnx")
    asked = PrecisionOptions("int8")
    scan(opened(source, asked), images, threads=1)
    request = RangeRequest(smooth=0.5)
    collect_ranges(tmp_path / "source.onnx", source, asked, images, request, threads=1)
    assert len(seen) >= 2
    assert set(seen) == {1}
