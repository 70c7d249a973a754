"""Graphs cut between named tensors, and linear layers found in them."""

from __future__ import annotations

import numpy as np
import pytest

from slimdeploy.errors import GraphError
from slimdeploy.forward.anatomy import block_names
from slimdeploy.forward.cut import Cutter
from slimdeploy.forward.linear import Linear, find_linear
from slimdeploy.forward.refit import refit_graph
from slimdeploy.forward.ridge import RidgeOptions
from slimdeploy.forward.running import feed_of, open_part
from slimdeploy.graph import dense_graph, slim_graph
from slimdeploy.graph.files.structure import add_shapes
from slimdeploy.store import open_store
from tests.graph.text import lines, model
from tests.graph.vit_text import TOKENS, WIDTH, vit

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def cutter(body: str, **constants: object) -> Cutter:
    graph = model("float[B,5,3] x => float[B,5,3] y", body, **constants)  # type: ignore[arg-type]
    add_shapes(graph)
    return Cutter(graph)


def test_a_part_holds_what_lies_between_its_ends() -> None:
    cut = cutter(
        "r = Relu(x) e = MatMul(r, v) h = Tanh(e) f = MatMul(h, w) y = Add(r, f)",
        w=WEIGHT,
        v=WEIGHT.T.copy(),
    )
    part = cut.cut(["e"], ["f"])
    assert lines(part) == ["h = Tanh(e)", "f = MatMul(h, w)"]
    assert [value.name for value in part.graph.input] == ["e"]
    assert [tensor.name for tensor in part.graph.initializer] == ["w"]
    whole = cut.cut(["h"], ["y"])  # the residual comes from before the cut
    assert [value.name for value in whole.graph.input] == ["h", "x"]
    with pytest.raises(GraphError, match="tensor 'x' is computed by no node"):
        cut.cut([], ["x"])


BRANCHES = {
    "bias": ("p = MatMul(h, w) b = Add(p, c) y = Add(x, b)", ("h", "p", False, "b", None)),
    "layer scale": (
        "p = MatMul(h, w) b = Add(c, p) s = Mul(b, g) y = Add(s, x)",
        ("h", "p", False, "b", "s"),
    ),
    "gemm": (
        "m = Reshape(h, rows) p = Gemm<transB=1>(m, t, c) b = Reshape(p, back) y = Add(x, b)",
        ("m", "p", True, "p", None),
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_layer_of_a_branch_and_its_replacement(name: str) -> None:
    body, (source, product, transposed, bias, gamma) = BRANCHES[name]
    vectors = {"c": np.array([1, 2, 3], np.float32), "g": np.array([2, 0, 4], np.float32)}
    shapes = {"rows": [-1, 4], "back": [-1, 5, 3]}
    weights = {"w": WEIGHT, "t": WEIGHT.T.copy(), "v": np.ones((3, 4), np.float32)}
    cut = cutter(f"e = MatMul(x, v) h = Tanh(e) {body}", **vectors, **shapes, **weights)
    layer = find_linear(cut, "y", "x")
    assert layer == Linear(source, product, transposed, bias, gamma)
    factor = vectors["g"] if gamma else np.ones(3)
    assert np.allclose(layer.values(cut)[0], WEIGHT * factor)
    assert np.allclose(layer.values(cut)[1], vectors["c"] * factor)  # type: ignore[arg-type]
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    new, shift = np.full((4, 3), 0.5), np.array([0.0, -1.0, 7.0])
    layer.replace(cut, new, shift)
    with open_part(cut.cut(["x"], ["y"])) as part:
        found = part({"x": x})["y"]
    wanted = x + np.tanh(x @ np.ones((3, 4))) @ new + shift
    assert np.abs(found - wanted).max() < 1e-5
    assert "g" not in {tensor.name for tensor in cut.model.graph.initializer}


ODD = {
    "not linear": "p = MatMul(h, w) b = Tanh(p) y = Add(x, b)",
    "read twice": "p = MatMul(h, w) n = Neg(p) b = Add(p, n) y = Add(x, b)",
    "two branches": "p = MatMul(h, w) q = MatMul(h, w) s = Add(p, q) y = Add(x, s)",
    "no stream": "y = MatMul(h, w)",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_single_layer_is_said(name: str) -> None:
    cut = cutter(
        f"e = MatMul(x, v) h = Tanh(e) {ODD[name]}", w=WEIGHT, v=np.ones((3, 4), np.float32)
    )
    assert isinstance(find_linear(cut, "y", "x"), str)


def test_a_block_without_a_second_layer_keeps_its_mlp_and_says_so() -> None:
    """The text model's MLP ends in a Tanh; its projections have neither bias nor MLP to help."""
    graph = vit()
    graph.graph.node.insert(0, _embedding(graph))
    dense, keep = dense_graph(graph).model, [[0, 2, 3, 5], [0]]
    slim = slim_graph(graph, keep).model
    x = np.random.default_rng(1).normal(size=(40, TOKENS, WIDTH)).astype(np.float32)
    feed, blocks = feed_of(dense, x, 16), block_names(dense)
    before = _error(dense, slim, feed.images)
    with open_store() as store:
        done = refit_graph(dense, slim, blocks, keep, [0], feed, store, RidgeOptions(1e-3))
    assert done.changed == [("x1", "r1")]
    assert len(done.notes) == 1
    assert done.notes[0].startswith("block 2 keeps weights as they are: no linear layer")
    assert _error(dense, slim, feed.images) < 0.95 * before


def _embedding(graph: object) -> object:
    """A first node, so that a computed tensor enters block 1."""
    import onnx

    assert isinstance(graph, onnx.ModelProto)
    graph.graph.input[0].name = "image"
    return onnx.helper.make_node("Tanh", ["image"], ["x0"])


def _error(dense: object, slim: object, x: np.ndarray) -> float:  # type: ignore[type-arg]
    outputs = []
    for graph in (dense, slim):
        with open_part(graph) as part:  # type: ignore[arg-type]
            outputs.append(part({"image": x})["y"])
    return float(np.square(outputs[0] - outputs[1]).mean())
