"""Scales folded into weights: softmax scale, LayerScale."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.graph.optimize import FoldLayerScale, FoldScale
from tests.graph.optimize.attention_text import STEPS, block, difference, infer, optimised
from tests.graph.text import lines, model

SCALED = {
    "queries only": "qs = Mul(q, scale) m = MatMul(qs, k)",
    "queries and keys": "qs = Mul(root, q) ks = Mul(k, root) m = MatMul(qs, ks)",
    "keys only": "ks = Mul(k, scale) m = MatMul(q, ks)",
    "scores divided": "s = MatMul(q, k) m = Div(s, scale)",
    "scores multiplied": "s = MatMul(q, k) m = Mul(scale, s)",
    "before a mask": "s = MatMul(q, k) c = Mul(s, scale) m = Add(mask, c)",
}


@pytest.mark.parametrize("form", SCALED)
def test_the_scale_goes_into_the_weights_of_the_queries(form: str) -> None:
    dense = block(scores=SCALED[form])
    work = optimised(dense, FoldScale())
    ops = [node.op for node in work.graph.nodes]
    assert not {"Mul", "Div"} & set(ops)
    assert {"qp = MatMul(x, wq.scaled)", "qb = Add(qp, bq.scaled)"} <= set(lines(work))
    assert work.notes == []
    assert difference(work, dense) < 1e-6


def test_a_scale_behind_a_mask_stays() -> None:
    """s(QK + M) is not (sQ)K + M."""
    dense = block(scores="s = MatMul(q, k) c = Add(s, mask) m = Mul(c, scale)")
    assert lines(optimised(dense, FoldScale())) == lines(optimised(dense))


def test_queries_behind_a_norm_keep_their_scale() -> None:
    query = "qp = MatMul(x, wq) qn = LayerNormalization(qp, bq) qr = Reshape(qn, split) "
    query += "q = Transpose<perm=[0, 2, 1, 3]>(qr)"
    dense = block(query=query, scores=SCALED["queries only"])
    work = optimised(dense, FoldScale())
    assert lines(work) == lines(optimised(dense))
    assert work.notes == [
        "FoldScale left alone node 'w' (Softmax): its queries do not come straight from their own "
        "projection"
    ]


def test_a_shared_weight_is_copied_not_edited() -> None:
    """Queries and keys use one matrix: only the queries' copy may be scaled."""
    dense = block(key=STEPS["key"].replace("wk", "wq"))
    before = dense.SerializeToString()
    work = optimised(dense, FoldScale())
    assert {"qp = MatMul(x, wq.scaled)", "kp = MatMul(x, wq)"} <= set(lines(work))
    assert difference(work, dense) < 1e-6
    assert dense.SerializeToString() == before


@pytest.mark.parametrize(
    "stream", ["z = Mul(o, gamma) y = Add(x, z)", "z = Mul(gamma, o) y = Add(x, z)"]
)
@pytest.mark.parametrize("output", [STEPS["output"], "o = MatMul(ar, wo)"])
def test_layer_scale_goes_into_the_projection(stream: str, output: str) -> None:
    dense = block(stream=stream, output=output)
    work = optimised(dense, FoldLayerScale())
    assert lines(work)[-1] == "y = Add(x, o)"
    assert "op = MatMul(ar, wo.scaled)" in lines(work) or "o = MatMul(ar, wo.scaled)" in lines(work)
    assert difference(work, dense) < 1e-6


@pytest.mark.parametrize(
    "stream",
    [
        "z = Mul(o, gamma) r = Add(x, z) y = Add(r, o)",  # what is scaled is read unscaled too
        "n = Relu(o) z = Mul(n, gamma) y = Add(x, z)",
        "z = Mul(o, x) y = Add(x, z)",
    ],
)
def test_another_product_stays(stream: str) -> None:
    dense = block(stream=stream)
    assert lines(optimised(dense, FoldLayerScale())) == lines(optimised(dense))


def test_half_precision_is_folded_in_float32() -> None:
    """0.1·w rounds once, from the product in float32, and stays float16."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 6)).astype(np.float16)
    gamma = np.full(6, 0.1, np.float16)
    text = "float16[B,5,6] x => float16[B,5,6] y", "p = MatMul(x, weight) y = Mul(p, gamma)"
    dense = model(*text, 18, weight=weight, gamma=gamma)
    exported = optimised(dense, FoldLayerScale()).export()
    stored = onnx.numpy_helper.to_array(exported.graph.initializer[0])
    assert stored.dtype == np.float16
    wanted = (weight.astype(np.float32) * gamma.astype(np.float32)).astype(np.float16)
    assert np.array_equal(stored, wanted)
    x = rng.normal(size=(2, 5, 6)).astype(np.float16)
    assert np.abs(infer(exported, x=x).astype(np.float32) - infer(dense, x=x)).max() < 5e-3


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.sampled_from([0.25, 0.6, 1.0, 3.0]), min_size=3, max_size=3),
    divide=st.booleans(),
)
def test_any_factors_at_any_place_fold_to_their_product(factors: list[float], divide: bool) -> None:
    op = "Div" if divide else "Mul"
    scores = f"qs = Mul(q, f0) ks = Mul(f1, k) s = MatMul(qs, ks) m = {op}(s, f2)"
    dense = block(scores=scores)
    for index, value in enumerate(factors):
        array = np.asarray(value, np.float32)
        dense.graph.initializer.append(onnx.numpy_helper.from_array(array, f"f{index}"))
    work = optimised(dense, FoldScale())
    assert not {"Mul", "Div"} & {node.op for node in work.graph.nodes}
    assert difference(work, dense) < 5e-6
