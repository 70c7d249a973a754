"""Every form of a selection: what is written, that it selects the same, and that none is idle."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import get_args

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import GraphOptions, check_graph, dense_graph, lossless_graph, slim_graph
from slimdeploy.graph.options import Select
from slimdeploy.graph.selection.emit import Pick, runs, select
from slimdeploy.graph.tokens.keep import ORDER_KEY, lifetime_order, token_order
from slimdeploy.graph.work import Work
from tests.graph.exports import DEPTH, EXPORTERS, build, export, run
from tests.graph.reference import compact as compact_torch
from tests.graph.reference import random_keep
from tests.graph.test_schedules_by_property import X, head_of, schedules
from tests.graph.test_slim_exports import TOLERANCE, error, head_reads, images, tokens_of
from tests.graph.text import lines, model
from tests.graph.vit_text import TOKENS, compact, vit

FORMS: tuple[Select, ...] = get_args(Select)
OTHERS = FORMS[1:]
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def picked(form: Select, axis: int, local: list[int], kind: str = "float") -> Work:
    """`y` is what a form selects from `x` [2, 3, 4, 5]."""
    work = Work.of(model(f"{kind}[2,3,4,5] x => {kind}[2,3,4,5] y", "y = Identity(x)"))
    x = work.graph.inputs[0]
    pick = Pick(axis, tuple(local), x.shape[axis], 4, work.facts.types["x"])
    work.graph.outputs[0].inputs.clear()
    work.graph.outputs = [select(work, x, pick, form)]
    work.refresh()
    return work


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_selects_the_same_along_every_axis(form: Select, axis: int) -> None:
    work = picked(form, axis, [1])
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    work.graph.outputs[0].dtype = np.dtype(np.float32)
    result = ReferenceEvaluator(work.export()).run(None, {"x": values})[0]
    np.testing.assert_array_equal(result, values.take([1], axis))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("gather", ["x.selected = Gather(x, [0, 1, 3])"]),
        (
            "slice-concat",
            [
                "x.run = Slice(x, [0], [2], [2])",
                "x.run.1 = Slice(x, [3], [4], [2])",
                "x.selected = Concat(x.run, x.run.1)",
            ],
        ),
        ("one-hot", ["x.selected = MatMul(x.selected.one_hot, x)"]),
    ],
)
def test_what_each_form_writes(form: Select, expected: list[str]) -> None:
    assert lines(picked(form, 2, [0, 1, 3])) == expected


def test_a_prefix_is_one_slice() -> None:
    assert lines(picked("slice", 2, [0, 1])) == ["x.selected = Slice(x, [0], [2], [2])"]


@pytest.mark.parametrize("form", FORMS)
def test_a_selection_of_everything_is_never_written(form: Select) -> None:
    work = Work.of(model("float[2,3] x => float[2,3] y", "y = Relu(x)"))
    x = work.graph.inputs[0]
    assert select(work, x, Pick(1, (0, 1, 2), 3, 2, FLOAT), form) is x
    dense = vit("mean", rotary=True)
    slim = slim_graph(dense, [range(TOKENS)] * 2, GraphOptions(select=form)).model
    assert [n.op_type for n in slim.graph.node] == [n.op_type for n in dense.graph.node]


@given(st.sets(st.integers(0, 20)))
def test_runs_put_together_are_what_was_taken_apart(ids: set[int]) -> None:
    local = tuple(sorted(ids))
    stretches = runs(local)
    assert tuple(i for start, end in stretches for i in range(start, end)) == local
    assert all(before[1] < after[0] for before, after in pairwise(stretches))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("double", np.float64)],
)
def test_a_one_hot_matrix_has_the_tensor_s_type(kind: str, dtype: type) -> None:
    work = picked("one-hot", 2, [3, 0], kind)
    assert work.graph.nodes[0].inputs[0].values.dtype == np.dtype(dtype)
    assert work.facts.shapes["x.selected"] == (2, 3, 2, 5)


def test_a_product_cannot_select_from_a_mask() -> None:
    with pytest.raises(GraphError, match=r"tensor 'x' \(bool\): a product cannot select from it"):
        picked("one-hot", 2, [3, 0], "bool")


def ops(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def refused(keep: list[list[int]], head: str, rotary: bool) -> bool:
    """Whether an order by lifetime would change what the graph's own slices take."""
    order = lifetime_order(keep, TOKENS)
    return (
        (rotary and order[0] != 0)
        or (head == "slice" and set(order[1:3]) != {1, 2})
        or (head == "split" and set(order[:2]) != {0, 1})
    )


@given(
    schedules(), st.sampled_from(["class", "slice", "split"]), st.booleans(), st.sampled_from(FORMS)
)
@example([[0, 2, 3, 5], [0, 3]], "class", True, "slice")
@example([[0, 2, 3, 5], [0]], "class", True, "slice")
@example([[0, 1, 2, 5], [1, 2]], "slice", False, "slice")
@settings(max_examples=40, deadline=None)
def test_all_forms_equal_the_reference(
    keep: list[list[int]], head: str, rotary: bool, form: Select
) -> None:
    reads = {"class": {0}, "slice": {1, 2}, "split": {0, 1}}[head]
    keep = [sorted({*ids, *reads}) for ids in keep]
    dense, options = vit(head, rotary), GraphOptions(select=form)
    if form == "slice" and refused(keep, head, rotary):
        message = r"\((Slice|Split)\): tokens cannot be reordered, .*: .*--select gather"
        with pytest.raises(InputError, match=message):
            slim_graph(dense, keep, options)
        return
    slim = slim_graph(dense, keep, options)
    assert slim.blocks == [(len(keep[0]), TOKENS), (len(keep[1]), len(keep[0]))]
    result = ReferenceEvaluator(slim.model).run(None, {"x0": X})[0]
    expected = head_of(head, compact(X, keep, rotary), keep[1])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    if form == "slice":  # every selection is of neighbours: none is put together
        assert ops(slim.model)["Concat"] <= ops(dense)["Concat"]
        assert ops(slim.model)["Gather"] <= 1


CASES = [
    ("plain", "dynamo18"),
    ("plain", "dynamo23"),
    ("plain", "script17-fused"),
    ("distilled", "script17-fused"),
    ("registers", "script17"),
    ("layerscale", "script17-fused"),
    ("pre_norm", "script17"),
]


@pytest.mark.parametrize(("kind", "exporter"), CASES)
def test_forms_of_an_export_without_gather(kind: str, exporter: str) -> None:
    """Each form equals the compact reference, and but for `gather` holds no Gather at all."""
    dense = export(kind, exporter, True)
    keep = random_keep(1, DEPTH, tokens_of(kind), head_reads(kind), head_reads(kind))
    expected = compact_torch(build(kind, EXPORTERS[exporter][2]), images(3), keep)
    for form in FORMS:
        forbidden = () if form == "gather" else ("Gather",)
        slim = slim_graph(dense, keep, GraphOptions(select=form, forbid_ops=forbidden))
        assert [count.queries for count in slim.blocks] == [len(ids) for ids in keep]
        assert error(run(slim.model, images(3)), expected) <= TOLERANCE


@pytest.mark.parametrize("form", OTHERS)
def test_forms_of_lossless_and_dense(form: Select) -> None:
    dense = export("distilled", "script17-fused", True)
    expected = run(dense, images(2))
    for make, last in ((lossless_graph, 2), (dense_graph, 18)):
        result = make(dense, GraphOptions(select=form, forbid_ops=("Gather",)))
        assert result.blocks[-1] == (last, 18)
        assert error(run(result.model, images(2)), expected) <= TOLERANCE


def test_slice_costs_one_permutation_and_a_prefix_for_each_gather() -> None:
    dense = export("plain", "dynamo18", True)
    keep = random_keep(1, DEPTH, 17, [0], [0])
    have = {
        form: ops(slim_graph(dense, keep, GraphOptions(select=form)).model)
        for form in ("gather", "slice")
    }
    # Of the seven Gathers one is the head's; it becomes a Squeeze, for one token is left by then.
    assert (have["gather"]["Gather"], have["gather"]["Slice"]) == (7, 0)
    assert (have["slice"]["Gather"], have["slice"]["Slice"], have["slice"]["Squeeze"]) == (1, 6, 1)
    assert have["slice"]["Concat"] == have["gather"]["Concat"]


def test_half_precision_is_selected_by_a_half_precision_matrix() -> None:
    slim = slim_graph(_half(vit("class")), [[0, 2, 3], [0]], GraphOptions(select="one-hot")).model
    matrices = [t for t in slim.graph.initializer if t.name.endswith("one_hot")]
    assert matrices
    assert {t.data_type for t in matrices} == {HALF}
    result = ReferenceEvaluator(slim).run(None, {"x0": X.astype(np.float16)})[0]
    expected = compact(X, [[0, 2, 3], [0]])[:, 0]
    assert np.abs(result - expected).max() / np.abs(expected).max() < 0.02


def test_the_order_of_tokens_is_recorded() -> None:
    keep = [[0, 2, 5], [0, 5]]
    orders = {}
    for form in FORMS:
        slim = slim_graph(vit(), keep, GraphOptions(select=form)).model
        orders[form] = {entry.key: entry.value for entry in slim.metadata_props}[ORDER_KEY]
    assert orders == {**dict.fromkeys(FORMS, "position"), "slice": "lifetime"}
    assert token_order(slim, keep, TOKENS) == tuple(range(TOKENS))
    slim = slim_graph(vit(), keep, GraphOptions(select="slice")).model
    assert token_order(slim, keep, TOKENS) == (0, 5, 2, 1, 3, 4)
    again = slim_graph(vit(), [[0, 1], [0]], GraphOptions(select="slice")).model
    assert token_order(again, [[0, 1], [0]], TOKENS) == tuple(range(TOKENS))


@given(schedules())
def test_in_the_order_of_lifetimes_every_block_keeps_a_prefix(keep: list[list[int]]) -> None:
    order = lifetime_order(keep, TOKENS)
    assert sorted(order) == list(range(TOKENS))
    assert all(set(order[: len(ids)]) == set(ids) for ids in keep)


@pytest.mark.parametrize(
    ("body", "constants", "message"),
    [
        ("s = Slice(x2, a, b, c)", {"a": [0], "b": [6], "c": [1]}, r"'s' \(Slice\)"),
        (
            "p = Slice(x2, a, b, c) q = Slice(x2, b, d, c) s = Concat<axis=1>(p, q)",
            {"a": [0], "b": [2], "c": [1], "d": [9]},
            r"'s' \(Concat\)",
        ),
        ("s = MatMul(eye, x2)", {"eye": np.eye(6, dtype=np.float32)}, r"'s' \(MatMul\)"),
    ],
)
def test_a_selection_of_everything_is_found_in_any_form(
    body: str, constants: dict[str, object], message: str
) -> None:
    idle = vit("mean")
    parsed = model("float[B,6,4] x2 => float[B,6,4] s", body, **constants)  # type: ignore[arg-type]
    idle.graph.initializer.extend(parsed.graph.initializer)
    head = idle.graph.node.pop()
    idle.graph.node.extend(parsed.graph.node)
    head.input[0] = "s"
    idle.graph.node.append(head)
    with pytest.raises(GraphError, match=rf"{message}: selects all of the 6 positions"):
        check_graph(idle)


def test_a_weight_that_is_an_identity_matrix_is_no_selection() -> None:
    dense = vit("class")
    for tensor in dense.graph.initializer:
        if tensor.name == "wo0":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "wo0"))
    assert slim_graph(dense, [[0, 2], [0]], GraphOptions(select="one-hot")).blocks[1] == (1, 2)


def _half(dense: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in dense.graph.initializer:
        if tensor.data_type == FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*dense.graph.input, *dense.graph.output):
        value.type.tensor_type.elem_type = HALF
    return dense


@pytest.mark.parametrize("form", FORMS)
def test_rotated_queries_of_dropped_tokens_are_not_computed(form: Select) -> None:
    """Only the part of the queries that is not rotated is left; nothing is asked of the other."""
    slim = slim_graph(vit("class", rotary=True), [[0, 2, 3], [0]], GraphOptions(select=form)).model
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        for value in slim.graph.value_info
    }
    assert shapes["q1"] == [1, 4]
    assert shapes["k1"] == [3, 4]
