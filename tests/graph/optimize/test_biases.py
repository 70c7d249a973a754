"""The biases of keys and values: gone where attention cannot tell, kept where it can."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from slimdeploy.graph.optimize import DropKeyBias, FoldValueBias
from tests.graph.optimize.attention_text import STEPS, block, difference, optimised
from tests.graph.text import lines

MASKED = "s = MatMul(q, k) c = Mul(s, scale) m = Add(c, mask)"
ATTENTION = {
    "key": STEPS["key"].replace("[0, 2, 3, 1]", "[0, 2, 1, 3]"),
    "scores": "",
    "softmax": "",
    "sum": "a = Attention(q, k, v)",
}


def stored(source: onnx.ModelProto, name: str) -> np.ndarray:
    tensor = next(t for t in source.graph.initializer if t.name == name)
    return onnx.numpy_helper.to_array(tensor)


def test_a_key_bias_is_dropped() -> None:
    dense = block()
    work = optimised(dense, DropKeyBias())
    assert "kr = Reshape(kp, [0, 0, 2, 3])" in lines(work)
    assert not any("bk" in line for line in lines(work))
    assert work.notes == []
    assert difference(work, dense) < 1e-6


def test_a_value_bias_moves_into_the_output_projection() -> None:
    dense = block()
    work = optimised(dense, FoldValueBias())
    assert "vr = Reshape(vp, [0, 0, 2, 3])" in lines(work)
    assert "o = Add(op, bo.folded)" in lines(work)
    wanted = stored(dense, "bo") + stored(dense, "bv") @ stored(dense, "wo")
    assert np.allclose(stored(work.export(), "bo.folded"), wanted, atol=1e-6)
    assert difference(work, dense) < 1e-6


@pytest.mark.parametrize(
    "steps",
    [
        {"scores": MASKED},
        {"scores": "ks = Mul(k, root) s = MatMul(q, ks) m = Div(s, root)"},
        {"stream": "z = Mul(o, gamma) y = Add(x, z)"},
        # the features of a head are spread, not neighbours: another order of the output
        {
            "value": "vp = MatMul(x, wv) vb = Add(vp, bv) vr = Reshape(vb, spread) "
            "v = Transpose<perm=[0, 3, 1, 2]>(vr)"
        },
    ],
)
def test_both_go_in_other_forms_too(steps: dict[str, str]) -> None:
    dense = block(**steps)
    if "spread" in str(steps):
        spread = onnx.numpy_helper.from_array(np.asarray([0, 0, 3, 2], np.int64), "spread")
        dense.graph.initializer.append(spread)
    work = optimised(dense, DropKeyBias(), FoldValueBias())
    assert not {"bk", "bv"} & {tensor.name for tensor in work.export().graph.initializer}
    assert work.notes == []
    assert difference(work, dense) < 2e-6


def test_the_attention_operator_is_understood() -> None:
    dense = block(23, **ATTENTION)
    work = optimised(dense, DropKeyBias(), FoldValueBias())
    assert not {"bk", "bv"} & {tensor.name for tensor in work.export().graph.initializer}
    assert difference(work, dense) < 1e-6


# A rotation behind the bias makes it another one for every key.
ROTATED = """
    kn = Transpose<perm=[0, 1, 3, 2]>(k)
    ke = Mul(kn, table)
    kk = Transpose<perm=[0, 1, 3, 2]>(ke)
    s = MatMul(q, kk)
    m = Mul(s, scale)
"""


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (ROTATED, "its keys come from Mul, not from a projection"),
        ("s = MatMul(q, k) t = Tanh(s) m = Mul(t, scale)", "node 't' (Tanh) works on its scores"),
        ("s = MatMul(q, k) m = Mul(s, s)", "its scores are read twice"),
    ],
)
def test_a_key_bias_that_is_seen_stays(scores: str, why: str) -> None:
    dense = block(scores=scores)
    work = optimised(dense, DropKeyBias())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [f"DropKeyBias left alone node 'w' (Softmax): {why}"]


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (
            {
                "softmax": "w = Softmax(m)",
                "sum": "n = IsNaN(w) u = Where(n, m, w) a = MatMul(u, v)",
            },
            "its weights are changed after the softmax",
        ),
        ({"output": "o = MatMul(ar, wo)"}, "no projection with a bias follows it"),
        (
            {"merge": "ax = Tanh(a) at = Transpose<perm=[0, 2, 1, 3]>(ax) ar = Reshape(at, join)"},
            "no projection with a bias follows it",
        ),
    ],
)
def test_a_value_bias_that_is_seen_stays(steps: dict[str, str], why: str) -> None:
    dense = block(**steps)
    work = optimised(dense, FoldValueBias())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [f"FoldValueBias left alone node 'w' (Softmax): {why}"]


def test_a_mask_that_may_hide_every_key_keeps_the_value_bias() -> None:
    steps = {**ATTENTION, "sum": "a = Attention(q, k, v, hidden)"}
    dense = block(23, **steps)
    hidden = np.zeros((1, 2, 5, 5), np.float32)
    hidden[:, :, 0] = -np.inf
    dense.graph.initializer.append(onnx.numpy_helper.from_array(hidden, "hidden"))
    work = optimised(dense, FoldValueBias())
    assert len(work.notes) == 1
    assert work.notes[0].endswith("its mask may hide all keys from a query")


def test_fused_projections_stay_and_are_noted_once() -> None:
    picks = "f = MatMul(x, w3) fb = Add(f, b3) qx, kx, vx = Split<axis=-1, num_outputs=3>(fb)"
    dense = block(
        query=f"{picks} qr = Reshape(qx, split) q = Transpose<perm=[0, 2, 1, 3]>(qr)",
        key="kr = Reshape(kx, split) k = Transpose<perm=[0, 2, 3, 1]>(kr)",
        value="vr = Reshape(vx, split) v = Transpose<perm=[0, 2, 1, 3]>(vr)",
    )
    rng = np.random.default_rng(3)
    for name, shape in (("w3", (6, 18)), ("b3", (18,))):
        values = rng.normal(size=shape).astype(np.float32)
        dense.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    work = optimised(dense, DropKeyBias())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [
        "DropKeyBias left alone node 'w' (Softmax): its keys come from Split, not from a projection"
    ]
