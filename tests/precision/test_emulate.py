"""bfloat16 on a runtime that has none: every tensor holds what it would hold."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.errors import InputError
from slimdeploy.graph.files.storage import save_model
from slimdeploy.precision.emulate import emulated_file
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.quantize import quantized_graph
from tests.graph.text import model

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 8)).astype(np.float32)
B = RNG.standard_normal(8).astype(np.float32)
X = RNG.standard_normal((5, 16)).astype(np.float32)


def low(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_each_result_is_rounded_and_each_sum_is_not(tmp_path: Path) -> None:
    source = model("float[B,16] x => float[B,8] y", "h = MatMul(x, w) k = Add(h, b) y = Tanh(k)",
                   20, w=W, b=B)  # fmt: skip
    path = tmp_path / "low.onnx"
    save_model(quantized_graph(source, PrecisionOptions("bf16")).model, path)
    with OnnxRuntimeEngine(path, threads=1) as engine:
        assert engine.describe().provider == "CPUExecutionProvider, bfloat16 emulated"
        found = engine.infer(X)["y"]
    expected = low(np.tanh(low(low(low(X) @ low(W)) + low(B))))
    # A product summed in another order may fall on the other side of a rounding border.
    steps = np.abs(found - expected) / np.maximum(np.abs(expected), 2**-7) * 2**8
    assert np.mean(steps == 0) > 0.9
    assert steps.max() <= 4


def test_what_is_refused_for_another_reason_stays_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    text = model("float[B,16] x => float[B,16] y", "y = Tanh(x)", 20)
    text.graph.node[0].op_type = "Nonsense"
    path.write_bytes(text.SerializeToString())
    with pytest.raises(InputError, match="cannot load"):
        OnnxRuntimeEngine(path)
    with emulated_file(model("float[B] x => float[B] y", "y = Tanh(x)").SerializeToString()) as f:
        assert f is None
