"""Projections on rows, and back to tokens."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from slimdeploy.graph.optimize import Gemm2D
from slimdeploy.graph.passes import UnflattenTokens
from slimdeploy.graph.tokens.blocks import find_blocks
from slimdeploy.graph.work import Work
from tests.graph.optimize.attention_text import block, difference, infer, optimised, used
from tests.graph.text import lines, model

MLP = "u = MatMul(x, w1) a = Add(u, c1) g = Gelu(a) n = MatMul(g, w2) b = Add(c2, n) y = Relu(b)"


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 8), "c1": (8,), "w2": (8, 6), "c2": (6,), "w2t": (6, 8), "row": (1, 8)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"rows": np.asarray([-1, 6]), "back": np.asarray([-1, 5, 6])}


def mlp(body: str, opset: int = 20, batch: str = "B") -> onnx.ModelProto:
    signature = f"float[{batch},5,6] x => float[{batch},5,6] y"
    return model(signature, body, opset, **used(body, weights()))


def error(work: Work, dense: onnx.ModelProto, batch: int = 3) -> float:
    x = np.random.default_rng(2).normal(size=(batch, 5, 6)).astype(np.float32)
    return float(np.abs(infer(work, x=x) - infer(dense, x=x)).max())


def test_an_mlp_stays_on_rows() -> None:
    dense = mlp(MLP)
    work = optimised(dense, Gemm2D())
    assert lines(work) == [
        "x.rows = Reshape(x, [-1, 6])",
        "u.rows = Gemm(x.rows, w1, c1)",
        "g.rows = Gelu(u.rows)",
        "n.rows = Gemm(g.rows, w2, c2)",
        "b.tokens = Reshape(n.rows, [-1, 5, 6])",
        "y = Relu(b.tokens)",
    ]
    assert error(work, dense) < 2e-6


@pytest.mark.parametrize("batch", ["B", "1", "2"])
@pytest.mark.parametrize("stream", [False, True])
def test_back_to_tokens_is_the_graph_before(stream: bool, batch: str) -> None:
    body = MLP.replace("y = Relu(b)", "r = Add(x, b) h = LayerNormalization(r, c2) y = Relu(h)")
    dense = mlp(body, batch=batch)
    there = optimised(dense, Gemm2D(stream))
    assert [node.op for node in there.graph.nodes].count("Gemm") == 2
    assert ("r.rows = Add(x.rows, n.rows)" in lines(there)) == stream
    back = optimised(there.export(), UnflattenTokens())
    assert [node.op for node in back.graph.nodes] == [node.op_type for node in dense.graph.node]
    size = 3 if batch == "B" else int(batch)
    assert error(there, dense, size) < 5e-6
    assert error(back, dense, size) < 5e-6


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_block_goes_there_and_back(stream: bool) -> None:
    dense = block()
    there = optimised(dense, Gemm2D(stream))
    assert [node.op for node in there.graph.nodes].count("Gemm") == 4
    assert "qr = Reshape(qp.rows, [-1, 5, 2, 3])" in lines(there)
    assert "ar.rows = Reshape(at, [-1, 6])" in lines(there)
    assert difference(there, dense) < 1e-6
    back = optimised(there.export(), UnflattenTokens())
    blocks, misses = find_blocks(back)
    assert [(b.queries, b.keys, b.axis) for b in blocks] == [(5, 5, 1)]
    assert misses == []
    assert len(back.graph.nodes) == len(dense.graph.node)
    assert difference(back, dense) < 1e-6


def test_rows_hide_the_block_until_they_are_tokens_again() -> None:
    there = optimised(block(), Gemm2D(True))
    with pytest.raises(Exception, match="no transformer block found"):
        find_blocks(there)


def test_a_product_without_bias_is_no_reason_for_rows() -> None:
    dense = mlp("u = MatMul(x, w1) g = Gelu(u) y = MatMul(g, w2)")
    assert lines(optimised(dense, Gemm2D())) == lines(dense)


def test_a_bias_for_each_token_is_not_the_bias_of_a_gemm() -> None:
    dense = mlp("u = MatMul(x, w1) a = Add(u, table) y = MatMul(a, w2)")
    table = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    dense.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    assert lines(optimised(dense, Gemm2D())) == lines(dense)


def test_who_reads_tokens_is_given_tokens() -> None:
    dense = mlp("u = MatMul(x, w1) a = Add(u, row) s = Softmax<axis=1>(a) y = MatMul(s, w2)")
    work = optimised(dense, Gemm2D())
    assert "s = Softmax(a.tokens)" in lines(work)
    assert error(work, dense) < 2e-6


EXPORTED = "r = Reshape(x, rows) u = Gemm<transB={t}, alpha={a}, beta={b}>(r, {w}, c1) g = Gelu(u) "
EXPORTED += "n = Gemm(g, w2, c2) y = Reshape(n, back)"


@pytest.mark.parametrize(
    ("t", "a", "b"), [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.5, 2.0), (0, 2.0, 0.0)]
)
def test_gemm_between_reshapes_becomes_products_of_tokens(t: int, a: float, b: float) -> None:
    weight = np.random.default_rng(4).normal(size=(8, 6) if t else (6, 8)).astype(np.float32)
    dense = mlp(EXPORTED.format(t=t, a=a, b=b, w="weight"))
    dense.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    work = optimised(dense, UnflattenTokens())
    ops = [node.op for node in work.graph.nodes]
    assert ops == ["MatMul", "Add", "Gelu", "MatMul", "Add"]
    assert work.facts.shape("g") == (-1, 5, 8)
    assert error(work, dense) < 5e-6


def test_rows_that_are_read_as_rows_are_made_again() -> None:
    body = "r = Reshape(x, rows) u = Gemm(r, w1, c1) m = ReduceMax<axes=[0]>(u) d = Sub(u, m) "
    body += "n = Gemm(d, w2, c2) y = Reshape(n, back)"
    dense = mlp(body, opset=13)
    work = optimised(dense, UnflattenTokens())
    assert "m = ReduceMax(u.rows)" in lines(work)
    assert "d = Sub(u.rows, m)" in lines(work)
    assert error(work, dense) < 5e-6


def test_an_output_of_rows_stays_one() -> None:
    body = "r = Reshape(x, rows) y = Gemm(r, w1, c1)"
    signature = "float[B,5,6] x => float[R,8] y"
    dense = model(signature, body, 18, **used(body, weights()))
    work = optimised(dense, UnflattenTokens())
    assert lines(work) == lines(dense)


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_last_axis_of_tokens_is_that_of_rows(axis: int) -> None:
    body = (
        "u = MatMul(x, w1) a = Add(u, c1) g = Relu(a) "
        f"h = LayerNormalization<axis={axis}>(g, c1) n = MatMul(h, w2) b = Add(c2, n) y = Relu(b)"
    )
    dense = mlp(body)
    work = optimised(dense, Gemm2D())
    assert error(work, dense) < 1e-5
    assert sum("Gemm" in line for line in lines(work)) == 2
