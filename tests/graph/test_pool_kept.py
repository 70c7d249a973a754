"""Heads that pool, and sums over tokens that no schedule may shorten unasked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from tests.graph.text import model
from tests.graph.vit_text import TOKENS, WIDTH, Floats, compact, vit, weights

X = np.random.default_rng(7).normal(size=(2, TOKENS, WIDTH)).astype(np.float32)
KEEP = [[0, 1, 2, 4, 5], [0, 2, 5]]
POOL = GraphOptions(pool_kept=True)
LATENT = np.random.default_rng(8).normal(size=(1, 1, WIDTH)).astype(np.float32)

MEAN = "y = ReduceMean<keepdims=0>(x2, ones)"
PATCHES = "c = Slice(x2, ones, tokens, ones) y = ReduceMean<keepdims=0>(c, ones)"
MAP = """
    ct = Transpose<perm=[0, 2, 1]>(x2)
    cs = MatMul(latent, ct)
    cp = Softmax(cs)
    y = MatMul(cp, x2)
"""
MAP_OPERATOR = """
    start = Shape<start=0, end=1>(x2)
    size = Concat<axis=0>(start, ones, width)
    query = Expand(latent, size)
    y = Attention<q_num_heads=1, kv_num_heads=1, scale=1.0>(query, x2, x2)
"""
SQUARE = "ct = Transpose<perm=[0, 2, 1]>(x2) y = MatMul(ct, x2)"
SUM = "y = ReduceSum<keepdims=0>(x2, ones)"
MAXIMUM = "y = ReduceMax<keepdims=0>(x2, ones)"
HALF_WEIGHTS = "cs = Transpose<perm=[0, 2, 1]>(x2) cp = Softmax(cs) cq = Exp(cp) y = MatMul(cq, x2)"


def with_head(head: str, output: str, opset: int = 18) -> onnx.ModelProto:
    """The two blocks of `vit_text` with another head."""
    body = str(onnx.printer.to_text(vit("tokens").graph)).partition("\n{")[2].rpartition("}")[0]
    nodes = body.rpartition("\n   y = Relu")[0]
    extra = {"ones": [1], "tokens": [TOKENS], "width": [WIDTH], "latent": LATENT}
    signature = f"float[B,{TOKENS},{WIDTH}] x0 => float[{output}] y"
    return model(signature, nodes + head, opset, **weights(), **extra)


def run(graph: onnx.ModelProto) -> Floats:
    result: Floats = ReferenceEvaluator(graph).run(None, {"x0": X})[0]
    return result


def attend(stream: Floats) -> Floats:
    """The MAP head in numpy."""
    exp = np.exp(LATENT @ stream.swapaxes(1, 2))
    result: Floats = exp / exp.sum(-1, keepdims=True) @ stream
    return result


@pytest.mark.parametrize(
    ("head", "output", "opset", "expected"),
    [
        (MEAN, f"B,{WIDTH}", 18, lambda stream: stream.mean(1)),
        (PATCHES, f"B,{WIDTH}", 18, lambda stream: stream[:, 1:].mean(1)),
        (MAP, f"B,1,{WIDTH}", 18, attend),
        (MAP_OPERATOR, f"B,1,{WIDTH}", 23, attend),
    ],
)
def test_a_head_pools_over_what_is_kept_if_asked(
    head: str, output: str, opset: int, expected: object
) -> None:
    dense = with_head(head, output, opset)
    with pytest.raises(GraphError, match=r"node .*: reads all \d tokens, .* leaves \d: it .*kept"):
        slim_graph(dense, KEEP)
    slim = slim_graph(dense, KEEP, POOL)
    assert slim.blocks == [(5, 6), (3, 5)]
    wanted = expected(compact(X, KEEP))  # type: ignore[operator]
    np.testing.assert_allclose(run(slim.model), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(lossless_graph(dense).model), run(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "output", "reason"),
    [
        (SUM, f"B,{WIDTH}", r"\(ReduceSum\): reads all 6 tokens, .* leaves 3: it reduces over"),
        (MAXIMUM, f"B,{WIDTH}", r"\(ReduceMax\): reads all 6 tokens, .* leaves 3: it reduces over"),
        (SQUARE, f"B,{WIDTH},{WIDTH}", r"\(MatMul\): .* leaves 3: its sum has no weights from a"),
        (HALF_WEIGHTS, f"B,{WIDTH},{WIDTH}", r"\(MatMul\): .* leaves 3: its sum has no weights"),
    ],
)
def test_other_sums_are_never_shortened(head: str, output: str, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        slim_graph(with_head(head, output), KEEP, POOL)


def test_no_token_is_left_to_pool() -> None:
    dense = with_head(PATCHES, f"B,{WIDTH}")
    with pytest.raises(GraphError, match=r"\(ReduceMean\): reads only tokens that the schedule"):
        slim_graph(dense, [[0, 1], [0]], POOL)


def test_a_mean_between_blocks_is_no_head() -> None:
    """What is pooled feeds the next block: that is no pooling head, whatever the user says."""
    dense = vit("class")
    first = next(node for node in dense.graph.node if node.output[0] == "x1")
    first.output[0] = "late"
    place = list(dense.graph.node).index(first) + 1
    mean = onnx.helper.make_node("ReduceMean", ["late", "ones"], ["all"], keepdims=1)
    add = onnx.helper.make_node("Add", ["late", "all"], ["x1"])
    dense.graph.node.insert(place, mean)
    dense.graph.node.insert(place + 1, add)
    with pytest.raises(GraphError, match=r"\(ReduceMean\): reads all 6 tokens, .* over that axis$"):
        slim_graph(dense, KEEP, POOL)


def test_parallel_attentions_have_no_schedule() -> None:
    body = """
        t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) p = Softmax(s) a = MatMul(p, x)
        u = MatMul(s, s) v = Softmax(u) b = MatMul(v, x)
        c = Sum(a, b) y = Add(c, x)
    """
    dense = model("float[B,6,4] x => float[B,6,4] y", body)
    with pytest.raises(GraphError, match=r"node 'y' \(Add\): adds the results of several"):
        slim_graph(dense, [range(6), range(6)])
    assert lossless_graph(dense).notes == [
        "nothing to save: the head reads all 6 tokens of the last block"
    ]
