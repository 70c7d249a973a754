"""Attention that splits the heads itself."""

from __future__ import annotations

import pytest

from slimdeploy.graph.optimize import AttentionOp, DropKeyBias, FoldValueBias, MergedHeads
from slimdeploy.graph.tokens.blocks import find_blocks
from tests.graph.optimize.attention_text import STEPS, block, difference, optimised
from tests.graph.text import lines


def test_the_operator_takes_the_projections_as_they_are() -> None:
    dense = block(23)
    work = optimised(dense, AttentionOp(), MergedHeads())
    ops = [node.op for node in work.graph.nodes]
    assert not {"Reshape", "Transpose"} & set(ops)
    attention = next(node for node in work.graph.nodes if node.op == "Attention")
    assert [tensor.name for tensor in attention.inputs] == ["qb", "kb", "vb"]
    assert (attention.attrs["q_num_heads"], attention.attrs["kv_num_heads"]) == (2, 2)
    assert difference(work, dense) < 1e-6


def test_its_block_and_its_biases_are_still_found() -> None:
    dense = block(23)
    work = optimised(dense, AttentionOp(), MergedHeads(), DropKeyBias(), FoldValueBias())
    assert [(b.queries, b.keys, b.axis) for b in find_blocks(work)[0]] == [(5, 5, 1)]
    assert not {"bk", "bv"} & {tensor.name for tensor in work.export().graph.initializer}
    assert work.notes == []
    assert difference(work, dense) < 1e-6


@pytest.mark.parametrize(
    "steps",
    [
        {"merge": "ax = Relu(a) at = Transpose<perm=[0, 2, 1, 3]>(ax) ar = Reshape(at, join)"},
        {"merge": "at = Transpose<perm=[0, 2, 3, 1]>(a) ar = Reshape(at, join)"},
        {"value": STEPS["value"].replace("v = ", "vv = ") + " v = Relu(vv)"},
    ],
)
def test_heads_in_another_order_or_worked_on_stay_split(steps: dict[str, str]) -> None:
    dense = block(23, **steps)
    before = optimised(dense, AttentionOp())
    work = optimised(dense, AttentionOp(), MergedHeads())
    assert lines(work) == lines(before)
    assert difference(work, dense) < 1e-6
