"""The checks on a finished graph find what they are for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from slimdeploy.errors import GraphError
from slimdeploy.graph import check_graph, slim_graph
from tests.graph.vit_text import TOKENS, vit


def with_selection(ids: list[int]) -> onnx.ModelProto:
    """The small transformer with one more selection before its head."""
    model = vit("mean")
    index = onnx.numpy_helper.from_array(np.array(ids), "index")
    model.graph.initializer.append(index)
    gather = onnx.helper.make_node("Gather", ["x2", "index"], ["picked"], "picker", axis=1)
    model.graph.node.insert(len(model.graph.node) - 1, gather)
    model.graph.node[-1].input[0] = "picked"
    return model


def test_a_selection_of_everything_is_found() -> None:
    assert check_graph(with_selection([0, 1, 2, 3, 5]))
    with pytest.raises(GraphError, match=r"node 'picker' \(Gather\): selects all of the 6"):
        check_graph(with_selection(list(range(TOKENS))))


def test_other_counts_than_the_schedule_s_are_found() -> None:
    model = slim_graph(vit("class"), [[0, 2], [0]]).model
    assert check_graph(model, [(2, TOKENS), (1, 2)]) == [(2, TOKENS), (1, 2)]
    with pytest.raises(GraphError, match=r"block 2 computes 1 queries for 2 keys, the .* 2 for 2"):
        check_graph(model, [(2, TOKENS), (2, 2)])
    with pytest.raises(GraphError, match=r"block 1 computes 2 queries for 6 keys, the .* 2 for 5"):
        check_graph(model, [(2, TOKENS - 1), (1, 2)])
    for counts in ([(2, TOKENS)], [(2, TOKENS), (1, 2), (1, 1)]):
        with pytest.raises(GraphError, match=f"has 2 blocks, the schedule {len(counts)}"):
            check_graph(model, counts)


def test_an_operator_that_chooses_at_run_time_is_found() -> None:
    model = vit("class")
    index = onnx.helper.make_node("Shape", ["x2"], ["at"], "shape")
    where = onnx.helper.make_node("NonZero", ["at"], ["where"], "chooser")
    model.graph.node.extend([index, where])
    with pytest.raises(GraphError, match="1 NonZero nodes were added"):
        check_graph(model, dense=vit("class"))
    assert check_graph(model, dense=model)


def test_an_invalid_graph_is_refused_in_one_line() -> None:
    model = vit("class")
    model.graph.node[3].input[0] = "nowhere"
    with pytest.raises(GraphError, match=r"^onnx refuses the graph: ") as caught:
        check_graph(model)
    assert "\n" not in str(caught.value)


def test_stale_shapes_do_not_survive_slimming() -> None:
    """An exporter's record of the dense shapes would make every runtime refuse the slim graph."""
    dense = onnx.shape_inference.infer_shapes(vit("class"))
    recorded = {value.name: value for value in dense.graph.value_info}
    slim = slim_graph(dense, [[0, 2], [0]]).model
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in slim.graph.value_info
    }
    assert recorded["s1"].type.tensor_type.shape.dim[2].dim_value == TOKENS
    assert shapes["s1"] == ["B", 1, 2]
    assert shapes["s0"] == ["B", 2, TOKENS]
