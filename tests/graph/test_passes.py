"""Each pass on a graph small enough to read: before and after."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.passes import (
    CanonicalReshape,
    FoldConstants,
    Pass,
    SelectTokens,
    SplitProjections,
    Tidy,
    run,
)
from slimdeploy.graph.reshapes import reshape_target, set_target
from slimdeploy.graph.work import Work
from tests.graph.text import lines, model


def after(dense: onnx.ModelProto, *passes: Pass) -> Work:
    work = Work.of(dense)
    run(passes, work)
    return work


def same_result(work: Work, dense: onnx.ModelProto, **feeds: np.ndarray) -> bool:
    results = [ReferenceEvaluator(m).run(None, feeds) for m in (work.export(), dense)]
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def test_fold_constants_computes_what_never_changes() -> None:
    body = """
        shape = Shape(x)
        last = Slice(shape, two, three)
        size = Cast<to=1>(last)
        root = Sqrt(size)
        same = Identity(x)
        y = Mul(same, root)
    """
    dense = model("float[B,5,16] x => float[B,5,16] y", body, two=[2], three=[3])
    work = after(dense, FoldConstants())
    assert lines(work) == ["y = Mul(x, root)"]
    assert work.graph.nodes[0].inputs[1].values.tolist() == [4.0]


def test_fold_constants_keeps_what_depends_on_the_batch() -> None:
    body = "s = Shape<end=1>(x) t = Concat<axis=0>(s, d) y = Expand(c, t)"
    constants = {"d": [2, 3], "c": np.ones((1, 2, 3), np.float32)}
    dense = model("float[B,4] x => float[B,2,3] y", body, **constants)
    assert lines(after(dense, FoldConstants())) == [
        "s = Shape(x)",
        "t = Concat(s, [2, 3])",
        "y = Expand(c, t)",
    ]


def test_fold_constants_refuses_a_subgraph() -> None:
    body = """
        y = If(cond) <then_branch = a () => (float[2] p) { p = Identity(x) },
                      else_branch = b () => (float[2] q) { q = Neg(x) }>
    """
    dense = model("float[2] x, bool cond => float[2] y", body)
    with pytest.raises(GraphError, match=r"node 'y' \(If\): holds a subgraph"):
        after(dense, FoldConstants())


def test_canonical_reshape_gives_each_use_its_own_target() -> None:
    body = "a = Reshape<allowzero=1>(x, s) b = Relu(a) y = Reshape<allowzero=1>(b, s)"
    dense = model("float[B,5,6] x => float[B,5,2,3] y", body, s=[-1, 5, 2, 3])
    work = after(dense, CanonicalReshape())
    assert lines(work) == [
        "a = Reshape(x, [0, 0, 2, 3])",
        "b = Relu(a)",
        "y = Reshape(b, [0, 0, 0, 0])",
    ]
    targets = [node.inputs[1].name for node in work.graph.nodes if node.op == "Reshape"]
    assert len(set(targets)) == 2
    assert all("allowzero" not in node.attrs for node in work.graph.nodes)
    assert same_result(work, dense, x=np.random.rand(3, 5, 6).astype(np.float32))


def test_canonical_reshape_replaces_a_target_computed_from_another_tensor() -> None:
    body = "s = Shape<end=2>(x) t = Concat<axis=0>(s, d) r = Relu(x) y = Reshape(r, t)"
    dense = model("float[B,5,6] x => float[B,5,2,3] y", body, d=[2, 3])
    work = after(dense, CanonicalReshape())
    assert lines(work) == ["r = Relu(x)", "y = Reshape(r, [0, 0, 2, 3])"]


def test_reshape_target_merges_the_batch_once() -> None:
    assert reshape_target((-1, 3, 5, 4), (-3, 5, 4)) == [-1, 5, 4]
    assert reshape_target((-3, 5, 4), (-1, 3, 5, 4)) == [-1, 3, 5, 4]
    assert reshape_target((2, 6), (2, 3, 2)) == [0, 3, 2]


def test_canonical_reshape_refuses_to_spread_the_batch() -> None:
    work = Work.of(model("float[B,6] x => float[B,6] y", "y = Reshape(x, s)", s=[-1, 6]))
    with pytest.raises(GraphError, match="spreads the batch over two axes"):
        set_target(work, work.graph.nodes[0], (6, -1), (-2, -3))


QKV = """
    n = LayerNormalization(x, g)
    w = MatMul(n, weight)
    f = Add(bias, w)
    r = Reshape(f, target)
    t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
    qq, kk, vv = Split<axis=0>(t, ones)
    q = Squeeze(qq, zero)
    k = Squeeze(kk, zero)
    v = Squeeze(vv, zero)
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    p = Softmax(s)
    a = MatMul(p, v)
    at = Transpose<perm=[0, 2, 1, 3]>(a)
    o = Reshape(at, back)
    z = Add(x, o)
    h = Relu(z)
"""


def attention(head: str, output: str) -> onnx.ModelProto:
    """One block of 5 tokens, 2 heads and width 4, with a fused QKV projection."""
    rng = np.random.default_rng(0)
    constants = {
        "g": rng.normal(size=4).astype(np.float32),
        "weight": rng.normal(size=(4, 12)).astype(np.float32),
        "bias": rng.normal(size=12).astype(np.float32),
        "target": [-1, 5, 3, 2, 2],
        "ones": [1, 1, 1],
        "zero": [0],
        "back": [-1, 5, 4],
    }
    return model(f"float[B,5,4] x => float[{output}] y", QKV + head, **constants)


def test_split_projections_then_select_tokens() -> None:
    dense = attention("y = Gather<axis=1>(h, zero)", "B,1,4")
    x = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    work = after(dense, FoldConstants(), CanonicalReshape(), SplitProjections(None))
    assert [line for line in lines(work) if line.startswith("w.part0")] == [
        "w.part0 = MatMul(n, weight.part)",
        "w.part0.bias = Add(w.part0, bias.part)",
        "w.part0.heads = Reshape(w.part0.bias, [0, 0, 2, 2])",
        "w.part0.by_head = Transpose(w.part0.heads)",
    ]
    assert "s = MatMul(w.part0.by_head, kt)" in lines(work)
    assert "a = MatMul(p, w.part2.by_head)" in lines(work)
    assert not {"f = Add(bias, w)", "w = MatMul(n, weight)"} & set(lines(work))
    assert same_result(work, dense, x=x)

    run([SelectTokens(None), Tidy()], work)
    assert [line for line in lines(work) if "selected" in line] == [
        "n.selected = Gather(n, [0])",
        "w.part0 = MatMul(n.selected, weight.part)",
        "x.selected = Gather(x, [0])",
        "z = Add(x.selected, o)",
    ]
    assert lines(work)[-1] == "y = Relu(z)"  # the head's own Gather became the identity
    assert same_result(work, dense, x=x)


def test_a_projection_is_split_only_where_queries_and_keys_differ() -> None:
    dense = attention("y = Relu(h)", "B,5,4")
    work = after(dense, FoldConstants(), CanonicalReshape(), SplitProjections(None))
    assert "w = MatMul(n, weight)" in lines(work)
    assert not any("part" in line for line in lines(work))


def test_a_product_that_cannot_be_split_stays_and_says_why() -> None:
    """Something else works on all of Q, K and V at once: still right, only less is saved."""
    dense = attention("y = Gather<axis=1>(h, zero)", "B,1,4")
    add = next(node for node in dense.graph.node if node.output[0] == "f")
    dense.graph.node.insert(2, onnx.helper.make_node("Tanh", ["w"], ["squashed"]))
    add.input[1] = "squashed"
    work = after(dense, FoldConstants(), CanonicalReshape(), SplitProjections(None))
    assert work.notes == [
        "block 1: node 'w' (MatMul) stays fused: node 'squashed' (Tanh) works on all of it"
    ]
    run([SelectTokens(None)], work)
    x = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    assert same_result(work, dense, x=x)


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    class Broken(Pass):
        def call(self, work: Work) -> None:
            raise GraphError("node 'y' (Relu): is odd")

    dense = model("float[2] x => float[2] y", "y = Relu(x)")
    expected = r"node 'y' \(Relu\): is odd \[Broken after FoldConstants, Tidy\]"
    with pytest.raises(GraphError, match=expected):
        after(dense, FoldConstants(), Tidy(), Broken())


def test_what_the_user_gave_is_not_blamed_on_a_pass() -> None:
    class Strict(Pass):
        def requires(self, work: Work) -> None:
            raise InputError("no")

        def call(self, work: Work) -> None:
            raise AssertionError

    with pytest.raises(InputError, match=r"^no$"):
        after(model("float[2] x => float[2] y", "y = Relu(x)"), Strict())


def test_tidy_forgets_stale_shapes() -> None:
    dense = model("float[B,3] x => float[B,3] y", "h = Relu(x) y = Relu(h)")
    stale = onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["B", 99])
    dense.graph.value_info.append(stale)
    assert list(after(dense, Tidy()).export().graph.value_info) == []
