"""Graphs that merge alike patches: against torch's model, in every exporter's form."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from slimdeploy.dynamic import Dynamic
from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import GraphOptions, check_graph, slim_graph
from slimdeploy.graph.dynamic import ChoicePlan, merge_names
from slimdeploy.graph.slimming import SlimGraph
from slimdeploy.slim.dynamic import MergeVit
from tests.graph.exports import EXPORTERS, build, export, run
from tests.graph.test_dynamic_graph import PREFIX, READS, images

LEFT = (12, 7)
"""Patches that the first two blocks compute; the third one's queries are the tokens read."""


def plan_of(kind: str, left: tuple[int, ...] = LEFT) -> ChoicePlan:
    prefix, read = PREFIX.get(kind, 1), tuple(READS.get(kind, [0]))
    counts = (*(prefix + count for count in left), len(read))
    return ChoicePlan(Dynamic(scorer="merge"), counts, 16 + prefix, prefix, read)


def merged(
    kind: str, exporter: str, options: GraphOptions | None = None, plan: ChoicePlan | None = None
) -> SlimGraph:
    plan = plan or plan_of(kind)
    return slim_graph(export(kind, exporter, True), plan.places, options, plan=plan)


def torch_model(kind: str, plan: ChoicePlan) -> Any:
    model = build(kind, False)
    model.pretrained_cfg = {}
    return MergeVit(model, plan.counts, plan.read).eval()


def assert_as_torch(slim: onnx.ModelProto, kind: str, plan: ChoicePlan | None = None) -> None:
    batch = images(5)
    with torch.no_grad():
        wanted = torch_model(kind, plan or plan_of(kind))(torch.from_numpy(batch)).numpy()
    assert np.abs(run(slim, batch) - wanted).max() <= 3e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_exporter_merges_as_torch(exporter: str) -> None:
    made = merged("plain", exporter)
    assert [tuple(block) for block in made.blocks] == [(13, 13), (8, 8), (1, 8)]
    assert_as_torch(made.model, "plain")


@pytest.mark.parametrize(
    "kind", ["distilled", "registers", "layerscale", "pre_norm", "no_embed_class"]
)
def test_every_kind_merges_as_torch(kind: str) -> None:
    assert_as_torch(merged(kind, "dynamo18").model, kind)


@pytest.mark.parametrize("left", [(8, 4), (16, 8), (9, 9), (15, 14)], ids=str)
def test_all_pairs_may_merge_or_few_and_blocks_may_merge_none(left: tuple[int, ...]) -> None:
    plan = plan_of("plain", left)
    assert_as_torch(merged("plain", "dynamo18", plan=plan).model, "plain", plan)


@pytest.mark.parametrize("exporter", ["dynamo18", "dynamo23"])
def test_optimised_graphs_merge_the_same(exporter: str) -> None:
    assert_as_torch(merged("plain", exporter, GraphOptions(optimize=True)).model, "plain")


def test_the_graph_holds_a_topk_for_each_merging_and_static_shapes() -> None:
    made = merged("plain", "dynamo18").model
    ops = Counter(node.op_type for node in made.graph.node)
    added = plan_of("plain").operators
    assert {op: ops[op] for op in added} == added == {"TopK": 2, "GatherND": 8}
    dense = export("plain", "dynamo18", True)
    with pytest.raises(GraphError, match="8 GatherND nodes were added"):
        check_graph(made, None, dense)
    assert len(check_graph(made, None, dense, added)) == 3
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.value_info}
    sizes = [[shapes[names.size].dim[1].dim_value] for names in merge_names(made) or [] if names]
    assert sizes == [[12], [7]]


def test_the_file_names_what_it_merges() -> None:
    made = merged("plain", "dynamo18").model
    names = merge_names(made)
    assert names is not None
    assert [name is None for name in names] == [False, False, True]
    computed = {name for node in made.graph.node for name in node.output}
    assert {name for three in names if three for name in three} <= computed


def test_a_probe_of_the_first_block_merges_too() -> None:
    made = merged("plain", "dynamo18", GraphOptions(prefix_blocks=1))
    assert [tuple(block) for block in made.blocks] == [(13, 13)]
    assert len(merge_names(made.model) or []) == 1


def test_forms_of_known_positions_are_refused() -> None:
    with pytest.raises(InputError, match="--select slice"):
        merged("plain", "dynamo18", GraphOptions(select="slice"))


def test_heads_that_are_rows_of_the_batch_are_refused() -> None:
    with pytest.raises(GraphError, match=r"not \[batch, heads, queries, keys\]"):
        merged("merged_heads", "dynamo18")


def test_tables_along_the_tokens_are_refused() -> None:
    """Relative positions: which entry a merged token would read, no one can say."""
    dense = onnx.ModelProto()
    dense.CopyFrom(export("plain", "dynamo18", True))
    table = np.random.default_rng(0).standard_normal((1, 3, 17, 17)).astype(np.float32)
    dense.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    places = [i for i, node in enumerate(dense.graph.node) if node.op_type == "Softmax"]
    node = dense.graph.node[places[1]]
    moved = onnx.helper.make_node("Add", [node.input[0], "table"], ["scores.moved"], "relative")
    node.input[0] = "scores.moved"
    dense.graph.node.insert(places[1], moved)
    assert slim_graph(dense, [list(range(13)), list(range(8)), [0]]).blocks
    with pytest.raises(GraphError, match="'table' runs along the tokens"):
        slim_graph(dense, plan_of("plain").places, plan=plan_of("plain"))
