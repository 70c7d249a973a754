"""Every operator's relation between axes, and the reason where there is none."""

from __future__ import annotations

import onnx
import pytest

from slimdeploy.graph.axes import RULES
from slimdeploy.graph.axes.layout import factor_groups
from slimdeploy.graph.work import Work
from tests.graph.text import links, model, reason


@pytest.mark.parametrize(
    ("signature", "body", "expected"),
    [
        (
            "float[2,5,8] a, float[8] b => float[2,5,8] y",
            "y = Add(a, b)",
            "y0=a0 y1=a1 y2=a2 y2=b0",
        ),
        ("float[2,5] a, float[1,5] b => float[2,5] y", "y = Mul(a, b)", "y0=a0 y1=a1 y1=b1"),
        ("float[2,5,5] a => float[2,5,5] y", "y = Softmax(a)", "y0=a0 y1=a1 y2=a2!"),
        ("float[2,5,5] a => float[2,5,5] y", "y = Softmax<axis=1>(a)", "y0=a0 y1=a1! y2=a2"),
        (
            "float[2,5,8] a, float[8] s => float[2,5,8] y",
            "y = LayerNormalization(a, s)",
            "y0=a0 y1=a1 y2=a2!",
        ),
        (
            "float[2,5,8] a, float[8,6] b => float[2,5,6] y",
            "y = MatMul(a, b)",
            "y1=a1 y2=b1 y0=a0 | sums a2,b0",
        ),
        (
            "float[2,3,5,4] a, float[2,3,4,7] b => float[2,3,5,7] y",
            "y = MatMul(a, b)",
            "y2=a2 y3=b3 y0=a0 y1=a1 y0=b0 y1=b1 | sums a3,b2",
        ),
        (
            "float[5,8] a, float[6,8] b, float[6] c => float[5,6] y",
            "y = Gemm<transB=1>(a, b, c)",
            "y0=a0 y1=b0 y1=c0 | sums a1,b1",
        ),
        (
            "float[8,5] a, float[8,6] b => float[5,6] y",
            "y = Gemm<transA=1>(a, b)",
            "y0=a1 y1=b1 | sums a0,b0",
        ),
        ("float[2,5,8] a => float[8,2,5] y", "y = Transpose<perm=[2,0,1]>(a)", "y0=a2 y1=a0 y2=a1"),
        ("float[2,5,8] a => float[8,5,2] y", "y = Transpose(a)", "y0=a2 y1=a1 y2=a0"),
        (
            "float[2,5,8] a => float[2,8] y",
            "y = ReduceMean<keepdims=0, axes=[1]>(a)",
            "y0=a0 y1=a2",
        ),
        (
            "float[2,5,8] a => float[2,1,8] y",
            "axes = Constant<value_ints=[1]>() y = ReduceSum(a, axes)",
            "y0=a0 y2=a2",
        ),
        ("float[2,8,5] a => float[2,8,1] y", "y = GlobalAveragePool(a)", "y0=a0 y1=a1"),
    ],
)
def test_products_norms_and_reductions(signature: str, body: str, expected: str) -> None:
    opset = 13 if "axes=[1]" in body and "Mean" in body else 18
    assert links(signature, body, opset) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("2,5,24", "2,5,3,2,4", "y0=a0 y1=a1"),
        ("2,5,2,4", "2,5,8", "y0=a0 y1=a1"),
        ("2,3,5,4", "6,5,4", "y1=a2 y2=a3"),
        ("2,8,3,5", "2,8,15", "y0=a0 y1=a1"),
        ("1,2,1,4", "1,1,8", "y0=a0"),
        ("1,1,2,4", "1,1,8", "y0=a0 y1=a1"),
    ],
)
def test_reshape_passes_what_is_neither_merged_nor_split(old: str, new: str, expected: str) -> None:
    target = [int(size) for size in new.split(",")]
    signature = f"float[{old}] a => float[{new}] y"
    assert links(signature, "y = Reshape(a, s)", s=target) == expected


def test_reshape_knows_the_batch_from_a_number() -> None:
    """Merged with the heads the batch is 3 B: no multiple of it is taken for the tokens."""
    signature = "float[B,3,6,4] a => float[C,6,4] y"
    assert links(signature, "y = Reshape(a, s)", s=[-1, 6, 4]) == "y1=a2 y2=a3"


def test_factor_groups_finds_the_smallest() -> None:
    assert factor_groups((2, 3, 4), (6, 2, 2)) == [([0, 1], [0]), ([2], [1, 2])]
    assert factor_groups((-1, 5, 6), (-5, 6)) == [([0, 1], [0]), ([2], [1])]


@pytest.mark.parametrize(
    ("signature", "body", "constants", "expected"),
    [
        (
            "float[2,5,8] a => float[2,3,8] y",
            "y = Slice(a, s, e, x)",
            {"s": [1], "e": [4], "x": [1]},
            "y0=a0 y1=a1[1,2,3] y2=a2",
        ),
        (
            "float[2,5] a => float[2,5] y",
            "y = Slice(a, s, e, x, t)",
            {"s": [-1], "e": [-99], "x": [-1], "t": [-1]},
            "y0=a0 y1=a1[4,3,2,1,0]",
        ),
        (
            "float[2,5,8] a => float[2,2,8] y, float[2,3,8] z",
            "y, z = Split<axis=1>(a, s)",
            {"s": [2, 3]},
            "y0=a0 y1=a1[0,1] y2=a2 z0=a0 z1=a1[2,3,4] z2=a2",
        ),
        (
            "float[2,5,8] a => float[2,8] y",
            "y = Gather<axis=1>(a, i)",
            {"i": -1},
            "y0=a0 y1=a2 | reads a1[4]",
        ),
        (
            "float[2,5,8] a => float[2,2,8] y",
            "y = Gather<axis=1>(a, i)",
            {"i": [3, 0]},
            "y0=a0 y1=a1[3,0] y2=a2",
        ),
        (
            "float[2,1,8] a, float[2,3,8] b => float[2,4,8] y",
            "y = Concat<axis=1>(a, b)",
            {},
            "y0=a0 y1=a1[0,-1,-1,-1] y2=a2 y0=b0 y1=b1[-1,0,1,2] y2=b2",
        ),
        (
            "float[1,5] a => float[4,5] y",
            "y = Expand(a, s)",
            {"s": [4, 5]},
            "y1=a1",
        ),
    ],
)
def test_positions_are_followed(
    signature: str, body: str, constants: dict[str, object], expected: str
) -> None:
    assert links(signature, body, **constants) == expected


def test_attention_operator_passes_queries_and_sums_over_keys() -> None:
    shapes = "float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,8] v, float[4,5] m"
    body = "y = Attention(q, k, v, m)"
    expected = "y2=q2 y0=q0 y2=m0 | sums k2,v2,m1"
    assert links(f"{shapes} => float[2,3,4,8] y", body, 23) == expected


@pytest.mark.parametrize(
    ("signature", "body", "opset", "expected"),
    [
        (
            "float[2,5,8] q => float[2,5,8] y",
            "y = Attention<is_causal=1, q_num_heads=2, kv_num_heads=2>(q, q, q)",
            23,
            "causal",
        ),
        ("float[2,4,4,8] a => float[2,16,8] y", "y = Reshape(a, s)", 18, "turns 4 x 4 into 16"),
        ("float[2,5] a => float[2,5] y", "y = CumSum(a, i)", 18, "no rule for CumSum"),
        (
            "float[2,5,8] a, int64[1] i => float[2,1,8] y",
            "y = Gather<axis=1>(a, i)",
            18,
            "computed",
        ),
        ("float[2,5] a => float[2,1] y", "y = ReduceMax<axes=[1]>(a)", 13, "reduces"),
    ],
)
def test_what_stops_an_axis_says_why(signature: str, body: str, opset: int, expected: str) -> None:
    constants = {"s": [2, 16, 8]} if "Reshape" in body else {"i": 1} if "CumSum" in body else {}
    assert expected in reason(signature, body, opset, **constants)


def test_every_rule_is_an_operator_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(RULES) <= known


@pytest.mark.parametrize(
    ("op", "axes"), [("Softmax(a)", [2]), ("ReduceMean(a, x)", [1]), ("ReduceSum(a, x)", [])]
)
def test_what_takes_a_mean_is_told_from_other_sums(op: str, axes: list[int]) -> None:
    size = "2,5,8" if "Softmax" in op else "2,1,8"
    work = Work.of(model(f"float[2,5,8] a => float[{size}] y", f"y = {op}", x=[1]))
    pools = work.relation(work.graph.nodes[-1]).pools
    assert [port.axis for port in pools] == axes
