"""Attention as one operator, from every form that the softmax takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from slimdeploy.graph.optimize import AttentionOp
from tests.graph.optimize.attention_text import STEPS, block, difference, optimised
from tests.graph.optimize.test_scales import SCALED
from tests.graph.text import lines

ROWS = STEPS["key"].replace("[0, 2, 3, 1]", "[0, 2, 1, 3]").replace("k = ", "kh = ")
TURNED = f"{ROWS} k = Transpose<perm=[0, 1, 3, 2]>(kh)"


@pytest.mark.parametrize("key", [STEPS["key"], TURNED])
@pytest.mark.parametrize("form", SCALED)
def test_every_form_becomes_one_operator(form: str, key: str) -> None:
    dense = block(23, key=key, scores=SCALED[form])
    work = optimised(dense, AttentionOp())
    ops = [node.op for node in work.graph.nodes]
    assert ops.count("Attention") == 1
    assert not {"Softmax", "Mul", "Div"} & set(ops)
    attention = next(node for node in work.graph.nodes if node.op == "Attention")
    assert len(attention.inputs) == 3 + ("mask" in SCALED[form])
    assert work.notes == []
    assert difference(work, dense) < 1e-6


def test_fewer_queries_than_keys() -> None:
    query = "xs = Slice(x, start, end, axis) qp = MatMul(xs, wq) qb = Add(qp, bq) "
    query += "qr = Reshape(qb, split) q = Transpose<perm=[0, 2, 1, 3]>(qr)"
    dense = block(23, query=query, stream="xx = Slice(x, start, end, axis) y = Add(xx, o)")
    dense.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    for name, value in (("start", 1), ("end", 3), ("axis", 1)):
        dense.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([value]), name))
    work = optimised(dense, AttentionOp())
    attention = next(node for node in work.graph.nodes if node.op == "Attention")
    shapes = [work.facts.shape(tensor.name)[-2] for tensor in attention.inputs]
    assert shapes == [2, 5, 5]
    assert difference(work, dense) < 1e-6


def test_an_older_opset_is_left_and_noted() -> None:
    dense = block(18)
    work = optimised(dense, AttentionOp())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [
        "AttentionOp: opset 18 has no Attention operator; export with 23 or later, "
        "or raise it with onnx.version_converter"
    ]


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (
            {"scores": "s = MatMul(q, k) c = Add(s, mask) m = Mul(c, scale)"},
            "its scores are scaled after something is added to them",
        ),
        (
            {"scores": "s = MatMul(q, k) c = Add(s, mask) m = Add(c, mask)"},
            "more than one thing is added to its scores",
        ),
        (
            {"scores": "s = MatMul(q, k) m = Add(s, scale)"},
            "what is added to its scores is not [queries, keys]",
        ),
        ({"scores": "s = MatMul(q, k) m = Tanh(s)"}, "node 'm' (Tanh) works on its scores"),
        ({"sum": "n = Abs(w) a = MatMul(n, v)"}, "its weights are changed after the softmax"),
    ],
)
def test_what_the_operator_does_not_compute_stays(steps: dict[str, str], why: str) -> None:
    dense = block(23, **steps)
    work = optimised(dense, AttentionOp())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [f"AttentionOp left alone node 'w' (Softmax): {why}"]
