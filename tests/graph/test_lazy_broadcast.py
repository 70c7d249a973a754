"""Masks that exporters expand along the batch although they are the same for every image."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from slimdeploy.graph import slim_graph
from slimdeploy.graph.passes import DropIdleMasks, FoldConstants, LazyBroadcast, run
from slimdeploy.graph.work import Work
from tests.graph.text import lines, model

MASK = np.array([[True, True, False], [True, True, True], [False, True, True]])[None]
EXPANDED = """
    size = Shape<start=0, end=1>(x)
    shape = Concat<axis=0>(size, three, three)
    e = Expand(mask, shape)
    w = Where(e, zero, low)
"""
NUMBERS = {"mask": MASK, "three": [3], "zero": np.float32(0), "low": np.float32(-1e30)}


def after(body: str, output: str) -> Work:
    work = Work.of(model(f"float[B,3,3] x => float[{output}] y", body, **NUMBERS))
    run([FoldConstants(), LazyBroadcast()], work)
    return work


def test_a_mask_becomes_a_constant() -> None:
    work = after(f"{EXPANDED} y = Add(x, w)", "B,3,3")
    assert lines(work) == ["y = Add(x, w)"]
    stored = work.graph.nodes[0].inputs[1].values
    np.testing.assert_array_equal(stored, np.where(MASK, 0, np.float32(-1e30)))


def test_two_expanded_masks_are_joined() -> None:
    body = f"{EXPANDED} f = Expand(mask, shape) both = And(e, f) c = Where(both, x, low)"
    assert lines(after(f"{body} y = Relu(c)", "B,3,3")) == [
        "c = Where(both, x, low)",
        "y = Relu(c)",
    ]


def test_what_the_result_gets_its_batch_from_stays() -> None:
    for tail in ("y = Identity(w)", "y = Concat<axis=1>(w, x)", "r = Relu(w) y = Add(r, zero)"):
        output = "B,6,3" if "Concat" in tail else "B,3,3"
        kept = lines(after(f"{EXPANDED} {tail}", output))
        assert any("Expand" in line for line in kept), tail


def test_rows_and_columns_of_such_a_mask_are_selected() -> None:
    """Hugging Face's attention: an expanded mask before Softmax, and a guard against NaN after."""
    body = f"""
        {EXPANDED}
        t = Transpose<perm=[0, 2, 1]>(x)
        s = MatMul(x, t)
        m = Add(s, w)
        p = Softmax(m)
        n = IsNaN(p)
        q = Where(n, zero, p)
        a = MatMul(q, x)
        r = Add(a, x)
        y = Gather<axis=1>(r, first)
    """
    dense = model("float[B,3,3] x => float[B,3] y", body, first=0, **NUMBERS)
    slim = slim_graph(dense, [[0, 2]])
    assert slim.blocks == [(2, 3)]
    x = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    results = [ReferenceEvaluator(graph).run(None, {"x": x})[0] for graph in (slim.model, dense)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


ATTENTION = """
    size = Shape<start=0, end=1>(x)
    shape = Concat<axis=0>(size, ones, three, three)
    e = Expand(mask, shape)
    u = Unsqueeze(x, ones)
    a = Attention(u, u, u, e)
    s = Squeeze(a, ones)
    r = Add(s, x)
    y = Gather<axis=1>(r, first)
"""


@pytest.mark.parametrize("rows", [MASK[:, :1], MASK])
def test_the_mask_of_an_attention_operator_keeps_its_rows(rows: np.ndarray) -> None:
    """The operator broadcasts its mask over images and heads, but wants a row for each query."""
    constants = {"mask": rows[None], "three": [3], "ones": [1], "first": 0}
    dense = model("float[B,3,4] x => float[B,4] y", ATTENTION, 23, **constants)
    slim = slim_graph(dense, [[0, 2]])
    assert slim.blocks == [(2, 3)]
    masks = [t for t in slim.model.graph.initializer if t.data_type == onnx.TensorProto.BOOL]
    assert [list(mask.dims) for mask in masks] == [[1, 1, 2, 3]]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    results = [_onnxruntime(graph, x) for graph in (slim.model, dense)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def _onnxruntime(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_masks_that_hide_nothing_go() -> None:
    constants = {"mask": np.ones((1, 1, 1, 1), bool), "three": [3], "ones": [1], "first": 0}
    work = Work.of(model("float[B,3,4] x => float[B,4] y", ATTENTION, 23, **constants))
    run([FoldConstants(), LazyBroadcast(), DropIdleMasks()], work)
    assert "a = Attention(u, u, u)" in lines(work)

    body = "m = Add(zeros, x) p = Softmax(m) n = Add(x, some) q = Softmax(n) y = Add(p, q)"
    some = np.array([0, 0, 1], np.float32)
    numbers = {"zeros": np.zeros((3, 3), np.float32), "some": some}
    work = Work.of(model("float[B,3,3] x => float[B,3,3] y", body, **numbers))
    run([DropIdleMasks()], work)
    assert lines(work) == [
        "p = Softmax(x)",
        "n = Add(x, some)",
        "q = Softmax(n)",
        "y = Add(p, q)",
    ]


def test_zeros_that_stretch_the_scores_stay() -> None:
    zeros = np.zeros((4, 3, 3), np.float32)
    signature = "float[1,3,3] x => float[4,3,3] y"
    work = Work.of(model(signature, "m = Add(x, zeros) y = Softmax(m)", zeros=zeros))
    run([DropIdleMasks()], work)
    assert lines(work) == ["m = Add(x, zeros)", "y = Softmax(m)"]
