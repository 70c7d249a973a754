"""What `refusals` says of a graph must be what happens when `slim --dynamic` is asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from slimdeploy.graph.anatomy import read_anatomy
from slimdeploy.graph.anatomy.geometry import geometry_of
from slimdeploy.graph.by_image import refusals
from slimdeploy.graph.slimming import prepared
from slimdeploy.schedule import ModelGeometry
from tests.graph.exports import export


def geometry(model: onnx.ModelProto) -> ModelGeometry:
    return geometry_of(read_anatomy(prepared(model)), "m.onnx")


@pytest.mark.parametrize("exporter", ["dynamo18", "dynamo23", "script17"])
@pytest.mark.parametrize("kind", ["plain", "registers", "distilled"])
def test_heads_of_prefix_tokens_allow_both(kind: str, exporter: str) -> None:
    model = export(kind, exporter, True)
    before = model.SerializeToString()
    assert refusals(model, geometry(model), "m.onnx") == {"merge": None, "predictor": None}
    assert model.SerializeToString() == before


def test_a_pooling_head_allows_neither() -> None:
    model = export("average", "dynamo18", True)
    found = refusals(model, geometry(model), "m.onnx")
    assert found == dict.fromkeys(("merge", "predictor"), "its head pools over 16 tokens")


def test_a_table_along_the_tokens_is_named() -> None:
    """A bias on the attention logits, as relative positions have it, in the second block."""
    model = onnx.ModelProto()
    model.CopyFrom(export("plain", "dynamo18", True))
    logits = [node for node in model.graph.node if node.op_type == "Softmax"][1]
    table = np.random.default_rng(0).normal(size=(1, 3, 17, 17)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "relative"))
    place = list(model.graph.node).index(logits)
    add = onnx.helper.make_node("Add", [logits.input[0], "relative"], ["biased"], name="bias")
    model.graph.node.insert(place, add)
    logits.input[0] = "biased"
    found = refusals(model, geometry(model), "m.onnx")
    for way in ("merge", "predictor"):
        assert str(found[way]).startswith("constant 'relative' runs along the tokens")


def test_what_merging_alone_refuses_is_told_apart() -> None:
    """Capped attention logits cannot be weighed, but tokens can be chosen."""
    model = onnx.ModelProto()
    model.CopyFrom(export("plain", "dynamo23", True))
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.attribute.append(onnx.helper.make_attribute("softcap", 30.0))
    found = refusals(model, geometry(model), "m.onnx")
    assert found["predictor"] is None
    assert "softcap limits what is added to its logits" in str(found["merge"])
