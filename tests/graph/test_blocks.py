"""What is a block, what is not, and why."""

from __future__ import annotations

import numpy as np
import pytest

from slimdeploy.errors import GraphError
from slimdeploy.graph.tokens.blocks import find_blocks, token_axes
from slimdeploy.graph.work import Work
from tests.graph.text import model
from tests.graph.vit_text import vit

SCORES = "t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) p = Softmax(s)"
X = "float[B,6,4] x"


def misses(body: str, output: str = "B,6,4", **constants: object) -> str:
    """The message for a graph without a block."""
    with pytest.raises(GraphError) as caught:
        find_blocks(Work.of(model(f"{X} => float[{output}] y", body, **constants)))
    return str(caught.value)


def test_blocks_of_a_plain_transformer() -> None:
    work = Work.of(vit())
    blocks, missed = find_blocks(work)
    assert missed == []
    assert [block.stream.name for block in blocks] == ["r0", "r1"]
    assert [(b.query.name, b.key.name, b.value.name) for b in blocks] == [
        ("q0", "t0", "v0"),
        ("q1", "t1", "v1"),
    ]
    assert [(block.axis, block.queries, block.keys) for block in blocks] == [(1, 6, 6)] * 2


def test_token_axes_follow_the_data() -> None:
    work = Work.of(vit())
    axes = token_axes(work, find_blocks(work)[0])
    assert axes["t1"] == {2}  # the keys, transposed
    assert axes["s1"] == {1, 2}  # the scores run over queries and keys
    assert axes["bias1"] == {0, 1}  # and so does what is added to them
    assert axes["x0"] == {1}
    assert "wq1" not in axes
    assert "y" not in axes  # the head reads one token


def test_an_attention_operator_is_an_anchor() -> None:
    body = "a = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x) y = Add(a, x)"
    blocks, _ = find_blocks(Work.of(model(f"{X} => {X[:-1]}y", body, 23)))
    assert [(b.stream.name, b.queries, b.keys) for b in blocks] == [("y", 6, 6)]


def test_a_bias_is_no_residual_stream() -> None:
    body = f"{SCORES} a = MatMul(p, x) b = Add(a, w) y = Add(b, x)"
    weight = np.ones((6, 4), np.float32)
    blocks, _ = find_blocks(Work.of(model(f"{X} => {X[:-1]}y", body, w=weight)))
    assert blocks[0].stream.name == "y"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = Relu(x)", "it has no Softmax and no Attention node"),
        ("y = Softmax<axis=1>(x)", "it does not normalise the last axis"),
        ("y = Softmax(x)", "no product of queries and keys leads to it"),
        (f"{SCORES} z = Relu(p) y = Add(x, x)", "no product sums its weights over the keys"),
        (f"{SCORES} a = MatMul(p, x) y = Relu(a)", "its result never returns to a residual Add"),
        (
            f"{SCORES} a = MatMul(p, x) m = Relu(a) y = Add(a, m)",
            "its result never returns to a residual Add",
        ),
    ],
)
def test_what_an_anchor_lacks(body: str, why: str) -> None:
    assert misses(body).endswith(why)


def test_the_node_that_stops_the_tokens_is_named() -> None:
    body = f"{SCORES} a = MatMul(p, x) r = Reshape(a, flat) w = Reshape(r, deep) y = Add(w, x)"
    message = misses(body, flat=[-1, 24], deep=[-1, 6, 4])
    assert message.endswith("residual Add; node 'r' (Reshape): it turns 6 x 4 into 24")
