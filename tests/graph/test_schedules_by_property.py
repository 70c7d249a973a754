"""Any nested schedule, on a transformer small enough to read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError
from slimdeploy.graph import check_graph, lossless_graph, slim_graph
from tests.graph.vit_text import HEADS, TOKENS, Floats, compact, vit

X = np.random.default_rng(7).normal(size=(2, TOKENS, 4)).astype(np.float32)
READS = {"class": [0], "slice": [1, 2], "split": [0, 1], "mean": range(TOKENS), "tokens": range(6)}


@st.composite
def schedules(draw: st.DrawFn) -> list[list[int]]:
    """Two nested lists of ids, ascending, each with at least one id."""
    first = draw(st.sets(st.integers(0, TOKENS - 1), min_size=1))
    second = draw(st.sets(st.sampled_from(sorted(first)), min_size=1))
    return [sorted(first), sorted(second)]


def head_of(name: str, stream: Floats, ids: list[int]) -> Floats:
    """What head `name` makes of the stream that holds tokens `ids`."""
    if name == "class":
        return stream[:, ids.index(0)]
    picked = stream[:, [ids.index(i) for i in READS[name]]]
    return np.concatenate([picked, picked], 1) if name == "slice" else picked


@given(schedules(), st.sampled_from(["class", "slice", "split"]), st.booleans())
@example([[0], [0]], "class", True)  # nothing is left for the table of the other tokens
@settings(max_examples=60, deadline=None)
def test_slim_equals_compact_or_says_which_token_is_missing(
    keep: list[list[int]], head: str, rotary: bool
) -> None:
    if not set(READS[head]) <= set(keep[1]):
        # A slice of which a part is dropped is no error in itself: its output is, for it is short.
        with pytest.raises(GraphError, match=r"drops|leaves"):
            slim_graph(vit(head, rotary), keep)
        return
    slim = slim_graph(vit(head, rotary), keep)
    assert slim.blocks == [(len(keep[0]), TOKENS), (len(keep[1]), len(keep[0]))]
    result = ReferenceEvaluator(slim.model).run(None, {"x0": X})[0]
    expected = head_of(head, compact(X, keep, rotary), keep[1])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_lossless_changes_no_result(head: str, rotary: bool) -> None:
    dense = vit(head, rotary)
    slim = lossless_graph(dense)
    expected = ReferenceEvaluator(dense).run(None, {"x0": X})[0]
    result = ReferenceEvaluator(slim.model).run(None, {"x0": X})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert slim.blocks == [(TOKENS, TOKENS), (len(READS[head]), TOKENS)]
    assert any("nothing to save" in note for note in slim.notes) == (head in ("mean", "tokens"))


def test_keeping_every_token_adds_nothing() -> None:
    dense = vit("mean")
    slim = slim_graph(dense, [range(TOKENS)] * 2)
    assert [n.op_type for n in slim.model.graph.node] == [n.op_type for n in dense.graph.node]
    assert check_graph(slim.model) == [(TOKENS, TOKENS)] * 2


@pytest.mark.parametrize("head", ["mean", "tokens"])
def test_a_head_that_reads_every_token_refuses_to_lose_one(head: str) -> None:
    with pytest.raises(GraphError, match="reads all 6 tokens, of which the schedule leaves 5"):
        slim_graph(vit(head), [range(TOKENS), range(5)], source="vit.onnx")
