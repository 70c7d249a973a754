"""The masked dense graph against references that drop tokens, in numpy and in PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import slim_graph
from slimdeploy.graph.masked import masked_graph, masked_streams
from slimdeploy.graph.probes import with_streams
from tests.graph.exports import DEPTH, EXPORTERS, IMAGE, build, export, run
from tests.graph.reference import Floats, compact, random_keep
from tests.graph.text import lines, model
from tests.graph.vit_text import TOKENS, vit
from tests.graph.vit_text import compact as compact_text

X = np.random.default_rng(7).normal(size=(2, TOKENS, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 3, IMAGE, IMAGE)).astype(np.float32)


@st.composite
def schedules(draw: st.DrawFn) -> list[list[int]]:
    """Two nested lists of ids that keep token 0, which the head reads."""
    first = {0} | draw(st.sets(st.integers(0, TOKENS - 1)))
    second = {0} | draw(st.sets(st.sampled_from(sorted(first))))
    return [sorted(first), sorted(second)]


def error(result: Floats, expected: Floats) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def streams(graph: onnx.ModelProto) -> list[Floats]:
    """The streams that a graph gives after its own output, by onnx's reference runtime."""
    return ReferenceEvaluator(graph).run(None, {"x0": X})[1:]


@given(schedules(), st.booleans(), st.integers(0, 5))
@example([[0], [0]], True, 0)
@settings(max_examples=25, deadline=None)
def test_masked_dense_equals_compact_numpy_and_slim_after_every_block(
    keep: list[list[int]], rotary: bool, seed: int
) -> None:
    dense = vit("class", rotary, seed)
    masked = streams(masked_graph(dense, keep, outputs="blocks"))
    slim = streams(with_streams(slim_graph(dense, keep).model)[0])
    assert len(masked) == len(slim) == 4
    for index, ids in enumerate(keep):
        for at in (2 * index, 2 * index + 1):
            np.testing.assert_allclose(masked[at][:, ids], slim[at], rtol=1e-4, atol=2e-5)
    expected = compact_text(X, keep, rotary, seed)
    np.testing.assert_allclose(masked[3][:, keep[1]], expected, rtol=1e-4, atol=2e-5)


def test_the_mask_is_added_right_before_the_softmax_and_nothing_else_changes() -> None:
    dense = vit()
    masked = masked_graph(dense, [[0, 2, 4], [0]])
    added = [line for line in lines(masked) if line not in lines(dense)]
    assert added == [
        "masked.p1.Add = Add(m1, masked.p1.hidden_keys)",
        "p1 = Softmax(masked.p1.Add)",
    ]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in masked.graph.initializer}
    low = np.float32(-1e30)
    assert stored["masked.p1.hidden_keys"].tolist() == [0, low, 0, low, 0, low]
    onnx.checker.check_model(masked, full_check=True)


def test_a_schedule_that_keeps_all_changes_nothing() -> None:
    dense = vit()
    assert lines(masked_graph(dense, [range(TOKENS)] * 2)) == lines(dense)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_masked_export_equals_compact_pytorch(exporter: str) -> None:
    """Opset 23 has Attention operators, which get a mask of their own."""
    dense, keep = export("plain", exporter, True), random_keep(1, DEPTH, 17, [0], [0])
    before = dense.SerializeToString()
    masked = masked_graph(dense, keep)
    assert dense.SerializeToString() == before
    onnx.checker.check_model(masked, full_check=True)
    expected = compact(build("plain", EXPORTERS[exporter][2]), IMAGES, keep)
    assert error(run(masked, IMAGES), expected) < 2e-5
    assert error(run(dense, IMAGES), expected) > 1e-3, "the schedule must make a difference"


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [("average", "dynamo18-fused"), ("map", "dynamo23"), ("map", "script17-fused")],
)
def test_a_head_that_pools_over_the_kept_tokens(kind: str, exporter: str) -> None:
    dense, keep = export(kind, exporter, False), random_keep(3, DEPTH, 16, [])
    masked = masked_graph(dense, keep, pool_kept=True)
    expected = compact(build(kind, EXPORTERS[exporter][2]), IMAGES[:1], keep)
    assert error(run(masked, IMAGES[:1]), expected) < 2e-5
    assert error(run(masked_graph(dense, keep), IMAGES[:1]), expected) > 1e-3


def test_a_mean_behind_the_prefix_weighs_the_kept_patches() -> None:
    """A class token that is cut off before the mean: its weight must not reach a patch."""
    head = "c = Slice(x2, ones, tokens, ones) y = ReduceMean<keepdims=0>(c, ones)"
    dense = vit()
    tail = model(f"float[B,{TOKENS},4] x2 => float[B,4] y", head, ones=[1], tokens=[TOKENS])
    del dense.graph.node[-1]
    dense.graph.node.extend(tail.graph.node)
    keep = [[0, 1, 2, 5], [0, 2, 5]]
    masked = masked_graph(dense, keep, pool_kept=True)
    result = ReferenceEvaluator(masked).run(None, {"x0": X})[0]
    expected = compact_text(X, keep)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(GraphError, match=r"ReduceMean\): pools over none of the tokens"):
        masked_graph(dense, [[0], [0]], pool_kept=True)


def test_a_head_that_does_not_pool_has_nothing_to_mask() -> None:
    with pytest.raises(GraphError, match="pools over tokens in no way known here"):
        masked_graph(vit(), [[0, 1], [0]], pool_kept=True)


def test_half_precision_stays_finite_and_near() -> None:
    dense, keep = export("plain", "dynamo18", False), random_keep(5, DEPTH, 17, [0], [0])
    half = onnx.ModelProto()
    half.CopyFrom(dense)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del half.graph.value_info[:]
    masked = masked_graph(half, keep)
    added = [t for t in masked.graph.initializer if t.name.startswith("masked.")]
    assert {t.data_type for t in added} == {onnx.TensorProto.FLOAT16}
    result = run(masked, IMAGES[:1].astype(np.float16))
    assert np.isfinite(result).all()
    assert error(result, run(masked_graph(dense, keep), IMAGES[:1])) < 0.02


_ATTENTION = """
    h = LayerNormalization(x, g, g)
    q = MatMul(h, w) k = MatMul(h, w) v = MatMul(h, w)
    a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, mask)
    r = Add(x, a) m = MatMul(r, w) t = Tanh(m) y1 = Add(r, t)
    h1 = LayerNormalization(y1, g, g)
    q1 = MatMul(h1, w) k1 = MatMul(h1, w) v1 = MatMul(h1, w)
    a1 = Attention<q_num_heads=2, kv_num_heads=2{more}>(q1, k1, v1, mask)
    r1 = Add(y1, a1) m1 = MatMul(r1, w) t1 = Tanh(m1) x2 = Add(r1, t1)
    y = Gather<axis=1>(x2, zero)
"""


def attention_model(mask: np.ndarray, more: str = "") -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    constants = {"g": rng.normal(size=4), "w": rng.normal(size=(4, 4))}
    floats = {name: value.astype(np.float32) for name, value in constants.items()}
    body = _ATTENTION.replace("{more}", more)
    signature = "float[B,6,4] x => float[B,4] y"
    return model(signature, body, opset=23, mask=mask, zero=0, **floats)


@pytest.mark.parametrize("kind", ["bool", "float32"])
def test_the_masks_of_attention_operators_are_kept(kind: str) -> None:
    """Token 2 sees token 1 by the graph's own mask only: both masks must act."""
    allowed = np.ones((6, 6), bool)
    allowed[0, 3] = allowed[2, 4] = False
    own = allowed if kind == "bool" else np.where(allowed, 0.5, -1e9).astype(np.float32)
    keep = [[0, 2, 3, 4], [0]]
    masked = masked_graph(attention_model(own), keep)
    both = allowed.copy()
    both[:, [1, 5]] = False
    by_hand = attention_model(own)
    other = np.where(both, 0.0, -1e9).astype(np.float32)
    by_hand.graph.initializer.append(onnx.numpy_helper.from_array(other, "both"))
    second = [node for node in by_hand.graph.node if node.op_type == "Attention"][1]
    second.input[3] = "both"
    results = [ReferenceEvaluator(g).run(None, {"x": X})[0] for g in (masked, by_hand)]
    assert error(results[0], results[1]) < 1e-5
    plain = ReferenceEvaluator(attention_model(own)).run(None, {"x": X})[0]
    assert error(results[0], plain) > 1e-3


def test_scores_that_are_limited_after_masking_are_refused() -> None:
    limited = attention_model(np.zeros((6, 6), np.float32), ", softcap=5.0")
    with pytest.raises(GraphError, match=r"\(Attention\): softcap limits what a mask can hide"):
        masked_graph(limited, [[0, 2], [0]])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="keep lists 1 blocks, the graph has 2"):
        masked_graph(vit(), [[0]])
    slim = slim_graph(vit(), [[0, 2], [0]]).model
    with pytest.raises(GraphError, match="block 1 has 2 queries for 6 keys, not 6 for each"):
        masked_graph(slim, [[0], [0]])


def test_probes_name_the_streams_of_the_file() -> None:
    _, probes = masked_streams(vit(), [[0, 1], [0]])
    assert [(p.anchor, p.attention, p.output, p.axis) for p in probes] == [
        ("p0", "r0", "x1", 1),
        ("p1", "r1", "x2", 1),
    ]
