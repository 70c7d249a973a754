"""`optimize` on what exporters write: the same function, and a file that can be read again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.version_converter
import pytest

from slimdeploy.graph import GraphOptions, check_graph, dense_graph, lossless_graph, slim_graph
from tests.graph.exports import DEPTH, EXPORTERS, IMAGE, build, export, run
from tests.graph.reference import Floats, compact, random_keep

CASES = [
    ("plain", "dynamo18-fused", True),
    ("layerscale", "dynamo20", False),
    ("distilled", "dynamo23", True),
    ("layerscale", "script17", True),
]
OPTIMIZED = GraphOptions(optimize=True)
TOLERANCE = 2e-5


def images(batch: int) -> Floats:
    return np.random.default_rng(batch).normal(size=(batch, 3, IMAGE, IMAGE)).astype(np.float32)


def error(result: Floats, expected: Floats) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("kind", "exporter", "dynamic"), CASES)
def test_slim_and_optimised_equals_the_compact_reference(
    kind: str, exporter: str, dynamic: bool
) -> None:
    dense = export(kind, exporter, dynamic)
    model = build(kind, EXPORTERS[exporter][2])
    reads = [0, 1] if kind == "distilled" else [0]
    tokens = int(model.num_prefix_tokens) + (IMAGE // 16) ** 2
    keep = random_keep(7, DEPTH, tokens, reads, reads)
    slim = slim_graph(dense, keep, OPTIMIZED)
    counts = [tokens, *map(len, keep)]
    assert slim.blocks == list(zip(counts[1:], counts, strict=False))
    assert check_graph(slim.model) == slim.blocks
    assert ops(slim.model)["Gemm"] >= 4 * DEPTH
    for batch in (1, 3) if dynamic else (1,):
        expected = compact(model, images(batch), keep)
        assert error(run(slim.model, images(batch)), expected) <= TOLERANCE


@pytest.mark.parametrize(("kind", "exporter", "dynamic"), CASES)
def test_an_optimised_file_is_slimmed_like_the_one_it_was_made_from(
    kind: str, exporter: str, dynamic: bool
) -> None:
    dense = export(kind, exporter, dynamic)
    optimised = dense_graph(dense, OPTIMIZED)
    assert optimised.blocks == dense_graph(dense).blocks
    assert error(run(optimised.model, images(1)), run(dense, images(1))) <= TOLERANCE
    reads = [0, 1] if kind == "distilled" else [0]
    keep = random_keep(8, DEPTH, optimised.blocks[0].keys, reads, reads)
    slim = slim_graph(optimised.model, keep)
    assert slim.blocks == slim_graph(dense, keep).blocks
    expected = compact(build(kind, EXPORTERS[exporter][2]), images(1), keep)
    assert error(run(slim.model, images(1)), expected) <= TOLERANCE


def test_lossless_and_optimised_equals_dense() -> None:
    dense = export("layerscale", "dynamo20", False)
    result = lossless_graph(dense, OPTIMIZED)
    assert [count.queries for count in result.blocks] == [17] * (DEPTH - 1) + [1]
    assert result.notes == [
        "AttentionOp: opset 20 has no Attention operator; export with 23 or later, "
        "or raise it with onnx.version_converter"
    ]
    assert error(run(result.model, images(1)), run(dense, images(1))) <= TOLERANCE


def test_what_is_left_of_the_model() -> None:
    """No LayerScale and no bias but in a Gemm; the scale of the softmax stays."""
    dense = export("layerscale", "dynamo20", False)
    before, after = ops(dense), ops(dense_graph(dense, OPTIMIZED).model)
    assert before["Mul"] == 3 * DEPTH
    assert after["Mul"] == DEPTH
    assert after["Add"] == 2 * DEPTH + 1
    assert after["Gelu"] == DEPTH


@pytest.mark.parametrize("exporter", ["dynamo18-fused", "script17"])
def test_a_raised_opset_brings_the_operators(exporter: str) -> None:
    """What the notes advise: the converter first, then `optimize`."""
    dense = export("plain", exporter, True)
    raised = onnx.version_converter.convert_version(dense, 23)
    result = dense_graph(raised, OPTIMIZED)
    found = ops(result.model)
    assert (found["Gelu"], found["Attention"], found["Erf"]) == (DEPTH, DEPTH, 0)
    assert result.notes == []
    assert error(run(result.model, images(3)), run(dense, images(3))) <= TOLERANCE


def test_nothing_is_optimised_unasked() -> None:
    dense = export("layerscale", "dynamo20", False)
    assert ops(dense_graph(dense).model) == ops(dense)
