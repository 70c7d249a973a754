"""Tokens in another order: what is reordered with them, what follows, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from slimdeploy.errors import GraphError, InputError
from slimdeploy.graph import GraphOptions, slim_graph
from slimdeploy.graph.passes import FoldConstants, run
from slimdeploy.graph.passes.permute_tokens import PermuteTokens
from slimdeploy.graph.passes.static_picks import StaticPicks
from slimdeploy.graph.work import Work
from tests.graph.text import lines, model
from tests.graph.vit_text import HEADS, TOKENS, vit, weights

ORDER = (0, 3, 5, 1, 2, 4)
X = np.random.default_rng(2).normal(size=(3, TOKENS, 4)).astype(np.float32)

BLOCK = """
    t = Transpose<perm=[0, 2, 1]>(x)
    s = MatMul(x, t)
    {mask}
    p = Softmax({scores})
    a = MatMul(p, x)
    r = Add(x, a)
"""


def block(
    head: str, output: str, mask: str = "", inputs: str = "", **constants: object
) -> onnx.ModelProto:
    """One block on `x` [B, 6, 4], perhaps with a mask on its scores, and a head."""
    body = BLOCK.format(mask=mask, scores="m" if mask else "s") + head
    signature = f"float[B,6,4] x{inputs} => float[{output}] y"
    return model(signature, body, **constants)  # type: ignore[arg-type]


def permuted(dense: onnx.ModelProto, order: tuple[int, ...] = ORDER) -> Work:
    work = Work.of(dense)
    run([FoldConstants(), PermuteTokens(order)], work)
    return work


def same(work: Work, dense: onnx.ModelProto, name: str, **more: np.ndarray) -> bool:
    feeds = {name: X, **more}
    results = [ReferenceEvaluator(m).run(None, feeds)[0] for m in (work.export(), dense)]
    return bool(np.allclose(*results, rtol=1e-4, atol=1e-5))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("head", ["class", "mean"])
def test_a_reordered_transformer_computes_the_same(head: str, rotary: bool) -> None:
    dense = vit(head, rotary)
    work = permuted(dense)
    assert same(work, dense, "x0")
    assert [line for line in lines(work) if "[0, 3, 5, 1, 2, 4]" in line] == [
        "x0.selected = Gather(x0, [0, 3, 5, 1, 2, 4])"
    ]


def test_tables_are_reordered_in_the_file() -> None:
    work = permuted(vit("class", rotary=True))
    stored = {t.name: t.values for n in work.graph.nodes for t in n.inputs if hasattr(t, "values")}
    bias, table = weights()["bias0"], weights()["table"]
    np.testing.assert_array_equal(stored["bias0.selected.selected"], bias[np.ix_(ORDER, ORDER)])
    rows = [i - 1 for i in ORDER[1:]]  # the table has no row for the first token
    np.testing.assert_array_equal(stored["table.selected"], table[rows])
    assert "bias0" not in stored
    assert "table" not in stored


def test_single_picks_follow_their_tokens() -> None:
    dense = block("y = Gather<axis=1>(r, at)", "B,3,4", at=[5, 4, 4])
    work = permuted(dense)
    assert lines(work)[-1] == "y = Gather(r, [2, 5, 5])"
    assert same(work, dense, "x")


@pytest.mark.parametrize(
    ("head", "output", "constants"),
    [
        ("c = Slice(r, one, end, one) y = Relu(c)", "B,2,4", {"one": [1], "end": [3]}),
        ("y, z = Split<axis=1>(r, parts)", "B,2,4", {"parts": [2, 4]}),
    ],
)
def test_positions_that_would_hold_other_tokens_are_refused(
    head: str, output: str, constants: dict[str, object]
) -> None:
    message = (
        r"^node '[cy]' \((Slice|Split)\): tokens cannot be reordered, it takes 2 positions that "
        r"then hold other tokens: write the selections with --select gather, .* or one-hot$"
    )
    with pytest.raises(InputError, match=message):
        permuted(block(head, output, **constants))


def test_a_slice_of_all_patches_may_stay() -> None:
    head = "c = Slice(r, one, end, one) y = ReduceMean<keepdims=0>(c, one)"
    dense = block(head, "B,4", one=[1], end=[9])
    work = permuted(dense)
    assert "c = Slice(r, [1], [9], [1])" in lines(work)
    assert same(work, dense, "x")


@pytest.mark.parametrize("head", ["tokens", "split"])
def test_an_output_that_lists_tokens_is_refused(head: str) -> None:
    order = (1, 0, 2, 3, 4, 5)  # a Split of the first two may stay, but its output changes
    with pytest.raises(InputError, match="output 'y' lists tokens by position: write the select"):
        permuted(vit(head), order)


@pytest.mark.parametrize(
    ("head", "output", "why"),
    [
        ("y = CumSum(r, one)", "B,6,4", r"'y' \(CumSum\): .* no rule for CumSum"),
        (
            "t1 = Transpose<perm=[0, 2, 1]>(r) y = LayerNormalization(t1, g)",
            "B,4,6",
            r"'y' \(LayerNormalization\): .* normalises over",
        ),
        ("y = Reshape(r, flat)", "B,24", r"'y' \(Reshape\): .* turns 6 x 4 into 24"),
    ],
)
def test_what_depends_on_the_order_is_refused(head: str, output: str, why: str) -> None:
    constants = {"one": 1, "g": np.ones(6, np.float32), "flat": [0, 24]}
    with pytest.raises(InputError, match=why):
        permuted(block(head, output, **constants))


def gathers(work: Work) -> list[str]:
    return [line for line in lines(work) if "Gather" in line]


def test_a_mask_that_is_the_same_for_all_tokens_stays() -> None:
    """A number for each image, stretched to all scores, is the same in any order."""
    mask = "n = Shape<end=1>(x) z = Concat<axis=0>(n, size) k = Expand(w, z) m = Add(s, k)"
    head = "y = Gather<axis=1>(r, c)"
    dense = block(head, "B,4", mask, ", float[B,1,1] w", size=[6, 6], c=3)
    work = permuted(dense)
    assert gathers(work) == ["x.selected = Gather(x, [0, 3, 5, 1, 2, 4])", "y = Gather(r, 1)"]
    assert same(work, dense, "x", w=X[:, :1, :1])


def test_a_mask_that_is_an_input_is_reordered_in_the_graph() -> None:
    head = "y = Gather<axis=1>(r, c)"
    dense = block(head, "B,4", "m = Add(s, k)", ", float[B,6,6] k", c=3)
    work = permuted(dense)
    assert gathers(work) == [
        "x.selected = Gather(x, [0, 3, 5, 1, 2, 4])",
        "k.selected = Gather(k, [0, 3, 5, 1, 2, 4])",
        "k.selected.selected = Gather(k.selected, [0, 3, 5, 1, 2, 4])",
        "y = Gather(r, 1)",
    ]
    assert same(work, dense, "x", k=np.random.default_rng(1).normal(size=(3, 6, 6)).astype("f"))


def test_the_permutation_itself_can_be_a_product() -> None:
    dense = vit("class")
    work = Work.of(dense)
    run([PermuteTokens(ORDER, "one-hot"), StaticPicks("slice")], work)
    assert all(node.op != "Gather" for node in work.graph.nodes)
    assert same(work, dense, "x0")


def test_the_order_of_ids_changes_nothing() -> None:
    for head in HEADS:
        dense = vit(head)
        assert lines(permuted(dense, tuple(range(TOKENS)))) == lines(dense)


def test_a_permutation_survives_where_other_picks_are_sliced() -> None:
    """A Gather that only reorders is no pick: as slices it would be one for every token."""
    dense = vit("class")
    work = Work.of(dense)
    run([PermuteTokens(ORDER), StaticPicks("slice")], work)
    assert [node.op for node in work.graph.nodes].count("Gather") == 1
    assert lines(work)[-1] == "y = Squeeze(x2.selected, [1])"
    assert same(work, dense, "x0")


def test_picks_of_q_k_v_and_of_lists_are_sliced() -> None:
    body = """
        q = Gather<axis=0>(x, zero)
        a = Gather<axis=1>(q, pair)
        b = Gather<axis=1>(a, all)
        e = Slice(b, none, big, ones)
        y = Relu(e)
    """
    constants = {"zero": 0, "pair": [0, 2], "all": [0, 1], "none": [0], "big": [2**62], "ones": [1]}
    work = Work.of(model("float[3,6,4] x => float[6,2] y", body, **constants))
    run([StaticPicks("slice-concat")], work)
    assert lines(work) == [
        "x.selected = Slice(x, [0], [1], [0])",
        "q.squeezed = Squeeze(x.selected, [0])",
        "q.run = Slice(q.squeezed, [0], [1], [1])",
        "q.run.1 = Slice(q.squeezed, [2], [3], [1])",
        "q.selected = Concat(q.run, q.run.1)",
        "y = Relu(q.selected)",
    ]


def test_a_single_pick_is_a_product_where_slices_are_not_wanted() -> None:
    dense = model("float[3,6,4] x => float[3,4] y", "y = Gather<axis=1>(x, at)", at=-1)
    work = Work.of(dense)
    run([StaticPicks("one-hot", slices=False)], work)
    assert lines(work) == [
        "x.selected = MatMul(x.selected.one_hot, x)",
        "y = Squeeze(x.selected, [1])",
    ]
    assert same(work, dense, "x")


def test_a_look_up_stays() -> None:
    table = np.ones((9, 4), np.float32)
    work = Work.of(model("int64[B,3] ids => float[B,3,4] y", "y = Gather(table, ids)", table=table))
    run([StaticPicks("one-hot")], work)
    assert lines(work) == ["y = Gather(table, ids)"]


def test_truth_values_are_sliced_and_never_selected_by_a_product() -> None:
    pick = model("bool[2,6] x => bool[2,2] y", "y = Gather<axis=1>(x, pair)", pair=[0, 2])
    work = Work.of(pick)
    run([StaticPicks("one-hot")], work)
    assert [node.op for node in work.graph.nodes] == ["Slice", "Slice", "Concat"]
    mask, head = "m = Where(k, s, low)", "y = Gather<axis=1>(r, c)"
    dense = block(head, "B,4", mask, ", bool[B,6,6] k", c=0, low=np.float32(-1e9))
    assert slim_graph(dense, [[0, 2, 3]], GraphOptions(select="slice-concat"))
    with pytest.raises(GraphError, match=r"tensor 'k' \(bool\): a product cannot select from it"):
        slim_graph(dense, [[0, 2, 3]], GraphOptions(select="one-hot"))
