"""Half precision: what is cast, what keeps float32, and that the result is the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.errors import InputError
from slimdeploy.graph.passes import run as run_passes
from slimdeploy.graph.work import Work
from slimdeploy.precision.cast_low import CastLow
from slimdeploy.precision.options import PrecisionOptions
from slimdeploy.precision.quantize import quantized_graph
from slimdeploy.precision.state import type_name
from tests.graph.exports import DEPTH, export, run
from tests.graph.text import model

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def cast(text: str, body: str, **constants: Any) -> tuple[Work, CastLow]:
    work = Work.of(model(text, body, opset=20, **constants))
    low = CastLow("fp16")
    run_passes([low], work)
    return work, low


def kinds(work: Work) -> dict[str, str]:
    """The type of what each node computes, by its name without what a cast adds."""
    return {t.name: type_name(work, t) for node in work.graph.nodes for t in node.outputs}


VECTOR = np.ones(4, np.float32)
SQUARE = np.eye(4, dtype=np.float32)


def test_a_block_in_half_precision() -> None:
    work, _ = cast(
        "float[B,6,4] x => float[B,6,4] y",
        """p = Add(x, table) h = LayerNormalization(p, g, b) m = MatMul(h, w) l = Add(m, b)
        r = Add(p, l) y = Identity(r)""",
        table=np.ones((6, 4), np.float32), g=VECTOR, b=VECTOR, w=SQUARE,
    )  # fmt: skip
    found = kinds(work)
    assert {name: found[name] for name in ("p", "h", "m", "l", "r", "y")} == {
        "p": "float32",  # position embeddings belong to the stream
        "h": "float32",
        "m": "float16",
        "l": "float16",
        "r": "float32",
        "y": "float32",
    }
    assert [node.op for node in work.graph.nodes].count("Cast") == 2  # of h, and of l


def test_a_tensor_is_cast_once_for_all_readers_and_moves_follow() -> None:
    work, _ = cast(
        "float[B,6,4] x => float[B,3,4] y",
        """h = Softmax(x) s = Gather<axis=1>(h, i) q = MatMul(s, w) k = MatMul(h, w)
        t = Gather<axis=1>(k, i) y = Mul(q, t)""",
        w=SQUARE, i=[0, 1, 2],
    )  # fmt: skip
    found = kinds(work)
    assert (found["s"], found["t"], found["y"]) == ("float32", "float16", "float32")
    casts = [node.inputs[0].name for node in work.graph.nodes if node.op == "Cast"]
    assert sorted(casts) == ["h", "s", "y.low"]


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [("plain", "dynamo20"), ("layerscale", "dynamo23"), ("map", "script17")],
)
def test_exports_keep_what_is_sensitive_and_their_function(kind: str, exporter: str) -> None:
    source = export(kind, exporter, True)
    made = quantized_graph(source, PrecisionOptions("fp16"))
    state = made.state
    assert set(state.others["LayerNormalization"]) == {"float32"}
    attention = [node for node in made.model.graph.node if node.op_type == "Attention"]
    assert len(attention) == (DEPTH if exporter == "dynamo23" else 0)
    assert attention or set(state.others["Softmax"]) == {"float32"}
    # Two a block, the positions; of a pooling head its sum, and what begins the stream there.
    sums = 2 * DEPTH + 1 + 2 * (kind == "map")
    assert state.others["Add"]["float32"] == sums
    assert "float32" not in state.products
    ends = [*made.model.graph.input, *made.model.graph.output]
    assert [end.type.tensor_type.elem_type for end in ends] == [onnx.TensorProto.FLOAT] * 2
    onnx.checker.check_model(made.model, full_check=True)
    before, after = run(source, IMAGES), run(made.model, IMAGES)
    assert 0 < np.abs(before - after).max() < 0.01 * np.abs(before).max()


def test_bfloat16_leaves_out_what_its_opset_lacks() -> None:
    made = quantized_graph(export("plain", "dynamo20", True), PrecisionOptions("bf16"))
    assert made.state.products["float32"] == 1
    assert made.notes == ["node 'node_conv2d' (Conv) keeps float32: its opset has no bf16 for it"]


def test_numbers_beyond_float16_keep_their_node_in_float32() -> None:
    body = "s = MatMul(x, w) m = Add(s, mask) y = Softmax(m)"
    mask = np.array([0, 0, 0, -3e38], np.float32)
    work, _ = cast("float[B,6,4] x => float[B,6,4] y", body, w=SQUARE, mask=mask)
    assert kinds(work)["m"] == "float32"
    made = quantized_graph(
        model("float[B,6,4] x => float[B,6,4] y", body, 20, w=SQUARE, mask=mask),
        PrecisionOptions("fp16"),
    )
    assert "'mask' is beyond fp16" in made.notes[0]


def test_named_nodes_keep_float32_and_unknown_names_are_refused() -> None:
    source = model("float[B,4] x => float[B,4] y", "h = MatMul(x, w) y = Tanh(h)", 20, w=SQUARE)
    made = quantized_graph(source, PrecisionOptions("fp16", keep_float32=("h",)))
    assert made.state.products == {"float32": 1}
    with pytest.raises(InputError, match="--keep-float32 nothing: neither a node nor an output"):
        quantized_graph(source, PrecisionOptions("fp16", keep_float32=("nothing",)))


def test_a_normalisation_written_out_is_refused_with_the_remedy() -> None:
    source = model(
        "float[B,6,4] x => float[B,6,4] y",
        """m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes=[-1]>(q)
        d = Sqrt(v) y = Div(c, d)""",
        opset=13,
    )
    with pytest.raises(InputError, match="export with opset 17 or later"):
        quantized_graph(source, PrecisionOptions("fp16"))
