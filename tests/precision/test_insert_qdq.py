"""Where Q/DQ pairs stand, what they hold, and that the sums they make are the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.engine import OnnxRuntimeEngine
from slimdeploy.errors import InputError
from slimdeploy.graph.files.storage import save_model
from slimdeploy.graph.passes import run as run_passes
from slimdeploy.graph.slimming import slim_graph
from slimdeploy.graph.work import Work, is_constant, producer
from slimdeploy.precision.calibration import ArrayCalibration
from slimdeploy.precision.insert_qdq import FP8, INT8, InsertQdq, on_grid, step
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.products import find_products
from slimdeploy.precision.quantize import (
    QuantizedGraph,
    RangeRequest,
    collect_ranges,
    opened,
    quantized_graph,
)
from tests.graph.exports import DEPTH, export

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
KEEP = [[0, 1, 2, 3, 5, 8, 9, 12], [0, 2, 5, 9], [0]]


@pytest.fixture(scope="module")
def slim() -> onnx.ModelProto:
    return slim_graph(export("plain", "dynamo20", True), KEEP).model


def run(source: onnx.ModelProto, images: Any) -> Any:
    """The first output, by the engine, whose 8-bit sums are exact on any CPU."""
    engine = OnnxRuntimeEngine(source.SerializeToString(), threads=1)
    return engine.infer(images)[engine.outputs[0].name]


def quantized(
    source: onnx.ModelProto, tmp: Any, options: PrecisionOptions, smooth: float = 0.0
) -> QuantizedGraph:
    path = tmp / "source.onnx"
    save_model(source, path)
    images = ArrayCalibration(IMAGES, "noise")
    ranges = collect_ranges(path, source, options, images, RangeRequest(smooth=smooth))
    return quantized_graph(source, options, ranges)


def options(precision: Any = "int8", rest: Any = "fp16", **more: Any) -> PrecisionOptions:
    return PrecisionOptions(precision, rest, least_rows=2, **more)


def test_placement_in_a_slim_graph(slim: onnx.ModelProto, tmp_path: Any) -> None:
    """Pairs at products with weights and nowhere else: that is what keeps attention fused."""
    made = quantized(slim, tmp_path, options())
    work = Work.of(made.model)
    readers = {
        r.op for n in work.graph.nodes if n.op == "DequantizeLinear" for r in n.outputs[0].outputs
    }
    assert readers == {"MatMul"}
    for product in find_products(work):
        if product.part == "attention" and not _has_pairs(product.node):
            assert not any(_pair(tensor) for tensor in product.node.inputs)
    # Each block has query, key, value, projection and two of the MLP; in the last only keys and
    # values have more than one row.
    assert len(made.quantised) == 6 * (DEPTH - 1) + 2
    for node in work.graph.nodes:
        if node.op == "QuantizeLinear":
            source = producer(node.inputs[0])
            assert source is not None
            assert source.op != "Cast"  # a LayerNormalization's float32 is quantised as it is
        if node.op in ("Add", "Softmax", "LayerNormalization"):
            assert not any(_pair(tensor) for tensor in node.inputs)


def readers(work: Work, op: str) -> set[str]:
    """The operators that read what operators `op` compute."""
    return {r.op for n in work.graph.nodes if n.op == op for r in n.outputs[0].outputs}


def _pair(tensor: Any) -> bool:
    node = producer(tensor)
    return node is not None and node.op == "DequantizeLinear"


def _has_pairs(node: Any) -> bool:
    return all(_pair(tensor) for tensor in node.inputs[:2])


@pytest.mark.parametrize(
    ("precision", "rest", "activations", "zero", "scales"),
    [
        ("int8", "fp16", np.int8, 0, np.float16),
        ("int8", "fp32", np.uint8, 128, np.float32),
        ("fp8", "fp16", FP8.type, 0, np.float16),
    ],
)
def test_what_the_pairs_hold(
    slim: onnx.ModelProto, tmp_path: Any, precision: Any, rest: Any, activations: Any, zero: int,
    scales: Any,
) -> None:  # fmt: skip
    work = Work.of(quantized(slim, tmp_path, options(precision, rest)).model)
    weights = 0
    for node in work.graph.nodes:
        if node.op == "DequantizeLinear":
            stored = is_constant(node.inputs[0])
            assert node.inputs[1].dtype == scales
            assert np.all(node.inputs[2].values.astype(np.float32) == (0 if stored else zero))
            if stored:
                weights += 1
                assert node.attrs["axis"] == 1
                assert node.inputs[1].shape == (node.inputs[0].shape[1],)
                assert np.isfinite(node.inputs[0].values.astype(np.float32)).all()
            else:
                assert node.inputs[2].dtype == activations
                assert node.inputs[1].shape == ()
    assert weights == 6 * (DEPTH - 1) + 2


def test_on_the_cpu_selections_work_on_eight_bits(slim: onnx.ModelProto, tmp_path: Any) -> None:
    work = Work.of(quantized(slim, tmp_path, options(rest="fp32")).model)
    kinds = {
        work.facts.types[node.outputs[0].name] for node in work.graph.nodes if node.op == "Gather"
    }
    assert onnx.TensorProto.UINT8 in kinds
    behind = [
        r.op for n in work.graph.nodes if n.op == "QuantizeLinear" for r in n.outputs[0].outputs
    ]
    assert "Gather" in behind


def test_int8_and_uint8_are_the_same_numbers(slim: onnx.ModelProto, tmp_path: Any) -> None:
    asked = options(rest="fp32")
    made = quantized(slim, tmp_path, asked)
    ranges = collect_ranges(
        tmp_path / "source.onnx", slim, asked, ArrayCalibration(IMAGES, "noise"), RangeRequest()
    )
    insert, work = InsertQdq(asked, ranges.thresholds), opened(slim, asked)
    insert.activations = INT8
    run_passes([insert], work)
    exact, found = run(slim, IMAGES), run(made.model, IMAGES)
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(found - run(work.export(), IMAGES)).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("optimized", [False, True])
def test_the_file_computes_the_sums_of_a_fake_quantised_model(
    slim: onnx.ModelProto, tmp_path: Any, optimized: bool
) -> None:
    """ONNX Runtime's integer kernels against onnx's own reference, which dequantises first."""
    from onnx.reference import ReferenceEvaluator

    from slimdeploy.graph import GraphOptions

    source = export("plain", "dynamo20", True)
    graph = slim_graph(source, KEEP, GraphOptions(optimize=optimized)).model
    made = quantized(graph, tmp_path, options(rest="fp32", also=("embedding",)))
    if optimized:
        assert any(n.op_type == "Gemm" for n in made.model.graph.node)
    expected = ReferenceEvaluator(made.model).run(None, {"image": IMAGES[:2]})[0]
    found = run(made.model, IMAGES[:2])
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_attention_and_the_other_parts_only_where_asked(
    slim: onnx.ModelProto, tmp_path: Any
) -> None:
    plain = quantized(slim, tmp_path, options())
    more = quantized(slim, tmp_path, options(also=("attention", "head", "embedding")))
    assert len(more.quantised) - len(plain.quantised) == 2 * DEPTH + 1 + 1
    left = quantized(slim, tmp_path, options(leave=(plain.quantised[0],)))
    assert left.quantised == plain.quantised[1:]
    with pytest.raises(InputError, match="--leave nobody: neither a node nor an output"):
        quantized(slim, tmp_path, options(leave=("nobody",)))


def test_a_range_that_is_missing_is_named(slim: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no range for tensor 'layer_norm'"):
        quantized_graph(slim, options())


def test_smoothing_changes_no_function(slim: onnx.ModelProto, tmp_path: Any) -> None:
    from slimdeploy.precision.ranges import channel_maxima
    from slimdeploy.precision.smooth import SmoothOutliers, smoothable

    for graph in (slim, export("layerscale", "dynamo23", True), export("map", "script17", True)):
        asked = options(rest="fp32")
        work = opened(graph, asked)
        names = list(smoothable(work, asked))
        assert len(names) >= 2 * DEPTH
        channels = channel_maxima(work, names, ArrayCalibration(IMAGES, "noise"))
        run_passes([SmoothOutliers(asked, channels, 0.7)], work)
        before, after = run(graph, IMAGES), run(work.export(), IMAGES)
        assert np.abs(before - after).max() < 2e-5 * np.abs(before).max()
        assert work.export() != graph


def test_smoothing_makes_int8_more_exact(slim: onnx.ModelProto, tmp_path: Any) -> None:
    exact = run(slim, IMAGES)

    def error(smooth: float) -> float:
        found = run(quantized(slim, tmp_path, options(rest="fp32"), smooth).model, IMAGES)
        return float(np.sqrt(((found - exact) ** 2).mean()))

    assert error(0.7) < 0.9 * error(0.0)


FLOATS = st.floats(1e-6, 1e6)


@given(FLOATS, st.sampled_from(["fp16", "bf16", "fp32"]))
def test_a_step_reaches_the_largest_value(largest: float, low: str) -> None:
    if low == "fp16":
        largest = min(largest, 6e4)
    found = float(step(np.float32(largest), 127.0, low))
    assert found * 127 >= largest * (1 - 1e-6)
    assert found * 127 <= largest * (1.01 if largest > 0.01 else 8)  # float16 is coarse near zero


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_numbers_on_a_grid_are_the_nearest(values: list[float]) -> None:
    array = np.asarray(values, np.float32)
    found = on_grid(array, INT8).astype(np.float32)
    assert np.abs(found).max() <= 127
    inside = np.abs(array) <= 127
    assert np.all(np.abs(found - array)[inside] <= 0.5)
    eighth = on_grid(array, FP8).astype(np.float32)
    assert np.isfinite(eighth).all()
    assert np.all(np.abs(eighth - np.clip(array, -448, 448)) <= np.abs(array) / 16 + 2**-10)
