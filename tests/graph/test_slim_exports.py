"""Real exports: each model kind, exporter and batch against the compact semantics in PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import check_graph, lossless_graph, slim_graph
from tests.graph.exports import DEPTH, EXPORTERS, IMAGE, build, export, run
from tests.graph.reference import Floats, compact, random_keep

# One kind through every exporter; the others through exporters that are different and quick.
CASES = [
    *[("plain", exporter, dynamic) for exporter in EXPORTERS for dynamic in (True, False)],
    *[
        (kind, exporter, True)
        for kind in ("distilled", "registers", "layerscale", "no_embed_class", "pre_norm")
        for exporter in ("script17-fused", "script17")
    ],
    ("distilled", "dynamo18-fused", False),
    ("layerscale", "dynamo18-fused", False),
    ("no_embed_class", "dynamo23", True),
]
TOLERANCE = 2e-5


def images(batch: int) -> Floats:
    return np.random.default_rng(batch).normal(size=(batch, 3, IMAGE, IMAGE)).astype(np.float32)


def head_reads(kind: str) -> list[int]:
    return [0, 1] if kind == "distilled" else [0]


def tokens_of(kind: str) -> int:
    return int(build(kind, False).num_prefix_tokens) + (IMAGE // 16) ** 2


def error(result: Floats, expected: Floats) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("kind", "exporter", "dynamic"), CASES)
def test_slim_equals_the_compact_reference(kind: str, exporter: str, dynamic: bool) -> None:
    dense = export(kind, exporter, dynamic)
    model = build(kind, EXPORTERS[exporter][2])
    reads = head_reads(kind)
    keep = random_keep(1, DEPTH, tokens_of(kind), reads, reads)
    slim = slim_graph(dense, keep)
    counts = [tokens_of(kind), *map(len, keep)]
    assert slim.blocks == list(zip(counts[1:], counts, strict=False))
    assert slim.notes == []
    for batch in (1, 3) if dynamic else (1,):
        expected = compact(model, images(batch), keep)
        assert error(run(slim.model, images(batch)), expected) <= TOLERANCE


@pytest.mark.parametrize(("kind", "exporter", "dynamic"), CASES)
def test_lossless_equals_dense(kind: str, exporter: str, dynamic: bool) -> None:
    dense = export(kind, exporter, dynamic)
    result = lossless_graph(dense)
    tokens = tokens_of(kind)
    last = (len(head_reads(kind)), tokens)
    assert result.blocks == [*[(tokens, tokens)] * (DEPTH - 1), last]
    for batch in (1, 3) if dynamic else (1,):
        expected = run(dense, images(batch))
        assert error(run(result.model, images(batch)), expected) <= TOLERANCE


@pytest.mark.parametrize("exporter", ["dynamo18-fused", "script17-fused"])
def test_keeping_all_is_dense(exporter: str) -> None:
    dense = export("plain", exporter, True)
    slim = slim_graph(dense, [range(17)] * DEPTH)
    assert error(run(slim.model, images(1)), run(dense, images(1))) <= TOLERANCE
    gathers = Counter(node.op_type for node in slim.model.graph.node)["Gather"]
    assert gathers <= Counter(node.op_type for node in dense.graph.node)["Gather"]


def test_a_schedule_may_drop_all_but_the_class_token_at_once() -> None:
    dense = export("plain", "dynamo18", True)
    keep = [[0]] * DEPTH
    slim = slim_graph(dense, keep)
    assert slim.blocks == [(1, 17), (1, 1), (1, 1)]
    assert error(run(slim.model, images(3)), compact(build("plain", False), images(3), keep)) < 1e-5


def test_names_types_opset_and_batch_stay() -> None:
    dense = export("plain", "script17", True)
    before = dense.SerializeToString()
    slim = slim_graph(dense, random_keep(3, DEPTH, 17, [0])).model
    assert dense.SerializeToString() == before
    assert list(slim.graph.input) == list(dense.graph.input)
    assert list(slim.graph.output) == list(dense.graph.output)
    assert slim.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert list(slim.opset_import) == list(dense.opset_import)
    assert slim.ir_version == dense.ir_version


def test_queries_are_projected_for_the_kept_tokens_only() -> None:
    """Two selections per block that drops (LayerNorm output, stream), none elsewhere."""
    keep = [list(range(12)), list(range(8)), list(range(8))]
    slim = slim_graph(export("plain", "dynamo20", False), keep).model
    assert Counter(node.op_type for node in slim.graph.node)["Gather"] == 2 * 2 + 1
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in slim.graph.value_info
    }
    projections = [
        shapes[node.output[0]][1:]
        for node in slim.graph.node
        if ".part" in node.name and node.op_type == "MatMul"
    ]
    wanted = [[12, 48], [17, 48], [17, 48], [8, 48], [12, 48], [12, 48]]
    assert sorted(projections) == sorted(wanted)


@pytest.mark.parametrize(
    ("kind", "exporter", "reason"),
    [
        (
            "average",
            "dynamo18-fused",
            r"ReduceMean\): reads all 16 tokens, .* leaves 9: it reduces",
        ),
        ("average", "script17", r"ReduceMean\): reads all 16 tokens, .* leaves 9: it reduces"),
        ("map", "script17-fused", r"Softmax\): reads all 16 tokens, .* leaves 9: it normalises"),
    ],
)
def test_a_head_that_reads_all_refuses_to_lose_one(exporter: str, kind: str, reason: str) -> None:
    dense = export(kind, exporter, exporter == "script17")
    with pytest.raises(GraphError, match=r"^vit\.onnx: node .*" + reason) as caught:
        slim_graph(dense, [range(16), range(9), range(9)], source="vit.onnx")
    assert "\n" not in str(caught.value)
    result = lossless_graph(dense)
    assert any(note.startswith("nothing to save") for note in result.notes)
    assert error(run(result.model, images(1)), run(dense, images(1))) <= TOLERANCE


def test_a_dropped_token_that_the_head_reads_is_named() -> None:
    dense = export("distilled", "dynamo18-fused", False)
    with pytest.raises(
        GraphError, match=r"node '.*' \(Gather\): reads token 1, which the schedule"
    ):
        slim_graph(dense, [range(18), range(18), [0, 5, 9]])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([range(17)], "keep lists 1 blocks, the graph has 3"),
        ([range(17), [], [0]], r"keep\[1\]: block 2 keeps no token"),
        ([range(17), [0, 17], [0]], r"keep\[1\]: id 17 is not in 0\.\.16"),
        ([[0, 1], [0, 2], [0]], r"keep\[1\]: id 2 is not among the tokens that block 1 keeps"),
        ([[0, 0], [0], [0]], r"keep\[0\]: an id is listed twice"),
    ],
)
def test_a_schedule_that_does_not_fit_names_the_field(
    keep: Sequence[Sequence[int]], message: str
) -> None:
    with pytest.raises(InputError, match="^a.onnx: " + message):
        slim_graph(export("plain", "script17", True), keep, source="a.onnx")


def test_a_slim_graph_is_not_slimmed_again() -> None:
    slim = slim_graph(export("plain", "script17", True), [range(9), range(9), [0]])
    with pytest.raises(GraphError, match="block 1 has 9 queries for 17 keys"):
        slim_graph(slim.model, [range(9), range(9), [0]])


def test_lossless_of_lossless_is_the_same() -> None:
    once = lossless_graph(export("plain", "dynamo18", True))
    twice = lossless_graph(once.model)
    assert twice.blocks == once.blocks
    assert len(twice.model.graph.node) == len(once.model.graph.node)


def test_check_graph_reads_the_counts_back() -> None:
    slim = slim_graph(export("plain", "dynamo23", False), [range(9), range(5), [0]]).model
    assert check_graph(slim) == [(9, 17), (5, 9), (1, 5)]
    with pytest.raises(GraphError, match=r"block 2 computes 5 queries for 9 keys, .* 6 for 9"):
        check_graph(slim, [(9, 17), (6, 9), (1, 5)])
    with pytest.raises(GraphError, match="has 3 blocks, the schedule 1"):
        check_graph(slim, [(9, 17)])


def test_half_precision_weights_stay_half() -> None:
    model = build("plain", False)
    dense = export("plain", "dynamo18", False)
    half = onnx.ModelProto()
    half.CopyFrom(dense)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del half.graph.value_info[:]
    keep = random_keep(5, DEPTH, 17, [0], [0])
    slim = slim_graph(half, keep).model
    stored = {t.data_type for t in slim.graph.initializer if len(t.dims) > 0}
    assert stored == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    result = run(slim, images(1).astype(np.float16))
    assert error(result, compact(model, images(1), keep)) < 0.02


def test_heads_that_are_rows_of_the_batch_leave_the_projection_whole() -> None:
    """Its columns cannot be told apart behind an axis of images and heads."""
    dense, model = export("merged_heads", "dynamo18", True), build("merged_heads", False)
    keep = random_keep(1, DEPTH, tokens_of("merged_heads"), [0], [0])
    slim = slim_graph(dense, keep)
    assert any("stays fused" in note for note in slim.notes)
    assert error(run(slim.model, images(3)), compact(model, images(3), keep)) <= TOLERANCE
