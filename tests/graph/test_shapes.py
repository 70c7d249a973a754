"""Concrete shapes and constant values, for a batch that is dynamic or not."""

from __future__ import annotations

import numpy as np
import pytest

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph.shapes import infer
from tests.graph.text import model


def test_a_multiple_of_the_batch_is_negative() -> None:
    facts = infer(model("float[B,3,4] x => float[C,4] y", "y = Reshape(x, s)", s=[-1, 4]))
    assert facts.shapes["x"] == (-1, 3, 4)
    assert facts.shapes["y"] == (-3, 4)


def test_a_size_computed_from_a_shape_is_known_if_the_batch_does_not_matter() -> None:
    body = """
        s = Shape(x)
        d = Gather(s, last)
        f = Cast<to=1>(d)
        r = Sqrt(f)
        y = Div(x, r)
    """
    facts = infer(model("float[B,3,16] x => float[B,3,16] y", body, last=2))
    assert facts.values["r"] == np.float32(4)
    assert "s" not in facts.values  # it holds the batch


def test_a_target_computed_from_shapes_gives_a_shape() -> None:
    body = """
        s = Shape<start=0, end=2>(x)
        t = Concat<axis=0>(s, heads)
        y = Reshape(x, t)
    """
    facts = infer(model("float[B,5,6] x => float[B,5,2,3] y", body, heads=[2, 3]))
    assert facts.shapes["y"] == (-1, 5, 2, 3)


def test_a_fixed_batch_is_a_number() -> None:
    facts = infer(model("float[4,3] x => float[4,3] y", "s = Shape(x) y = Reshape(x, s)"))
    assert facts.shapes["y"] == (4, 3)
    assert facts.values["s"].tolist() == [4, 3]


def test_a_quantised_weight_is_not_folded() -> None:
    body = "w = DequantizeLinear(q, scale) y = MatMul(x, w)"
    constants = {"q": np.ones((3, 2), np.int8), "scale": np.float32(0.5)}
    facts = infer(model("float[B,3] x => float[B,2] y", body, **constants))
    assert "w" not in facts.values
    assert facts.shapes["w"] == (3, 2)


def test_a_dynamic_image_size_is_refused() -> None:
    with pytest.raises(InputError, match="input 'x' has a dynamic axis 1 \\(height\\)"):
        infer(model("float[B,height] x => float[B,height] y", "y = Relu(x)"))


def test_contradictory_shapes_name_the_node() -> None:
    body = "y = MatMul(x, w)"
    with pytest.raises(GraphError, match="node 'y' \\(MatMul\\)"):
        infer(model("float[2,3] x => float[2,2] y", body, w=np.ones((4, 2), np.float32)))


def test_an_operator_without_a_schema_leaves_a_reason() -> None:
    facts = infer(model("float[2,3] x => float[2,3] y", "y = some.domain.Odd(x)"))
    with pytest.raises(GraphError, match="shape of tensor 'y' is unknown: No schema"):
        facts.shape("y")


def test_an_operator_of_which_onnx_infers_nothing_keeps_its_shape() -> None:
    body = "y = GroupNormalization<num_groups=2>(x, scale, bias)"
    ones = np.ones(4, np.float32)
    facts = infer(model("float[B,4,3] x => float[B,4,3] y", body, 21, scale=ones, bias=ones))
    assert facts.shapes["y"] == (-1, 4, 3)
