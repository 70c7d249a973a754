"""Every damage to a slim graph is found, in the block in which it was done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.errors import GateError, InputError
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from slimdeploy.graph.options import Select
from slimdeploy.measure.block_parity import BlockParity, Spot, StreamParity, first_bad, worst
from slimdeploy.measure.feeding import noise
from slimdeploy.measure.parity import compare_outputs
from slimdeploy.measure.proof import Proof, merged, pair, prove
from tests.graph.vit_text import vit

KEEP = [[0, 2, 3, 5], [0, 3]]
Damage = Callable[[onnx.ModelProto], None]


def proof(slim: onnx.ModelProto, path: Path, rotary: bool = True) -> Proof:
    dense = vit("class", rotary)
    onnx.save(slim, path)
    both = pair(dense, slim, path, KEEP)
    return prove(both, noise(dense, 5, 0, 2), 2e-5, threads=1)


def values(model: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, np.ndarray]:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor, onnx.numpy_helper.to_array(tensor).copy()


def store(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Replace a constant by another of its shape."""

    def damage(model: onnx.ModelProto) -> None:
        tensor, old = values(model, name)
        new = change(old).astype(old.dtype)
        assert new.shape == old.shape
        assert not np.array_equal(new, old)
        tensor.CopyFrom(onnx.numpy_helper.from_array(new, name))

    return damage


def rewire(output: str, index: int, name: str) -> Damage:
    """Let operand `index` of the node that computes `output` be another tensor."""

    def damage(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if output in node.output)
        assert node.input[index] != name
        node.input[index] = name

    return damage


def both(*damages: Damage) -> Damage:
    def all_of(model: onnx.ModelProto) -> None:
        for damage in damages:
            damage(model)

    return all_of


def swap(ids: np.ndarray) -> np.ndarray:
    """The same ids, two of them exchanged."""
    return np.concatenate([ids[:-2], ids[-1:], ids[-2:-1]])


# What is damaged, in which form of the slim graph, and the first stream that must be found bad.
FAULTS: dict[str, tuple[Select, Damage, tuple[int, str]]] = {
    "two ids of the stream's selection swapped": (
        "gather", store("x0.kept", swap), (1, "attention")
    ),
    "two ids of the queries' selection swapped": (
        "gather", store("h1.kept", swap), (2, "attention")
    ),
    "two ids swapped before the table of the keys": (
        "gather", store("k1.kept.1", swap), (2, "attention")
    ),
    "a Gather that reads another block's stream": (
        "gather", rewire("x1.selected", 0, "x0.selected"), (2, "attention")
    ),
    "a Gather in the wrong block": (
        "gather", rewire("h1.selected", 0, "h0.selected"), (2, "attention")
    ),
    "global ids where local ones belong": (
        "gather", store("x1.kept", lambda ids: np.asarray([0, 3])), (2, "attention")
    ),
    "a Slice that starts and ends one too late": (
        "slice",
        both(
            store("x1.selected.start", lambda x: x + 1), store("x1.selected.end", lambda x: x + 1)
        ),
        (2, "attention"),
    ),
    "rows of a rotary table swapped": (
        "gather", store("table.selected", lambda x: x[[1, 0, 2]]), (1, "attention")
    ),
    "rows of a bias on the scores swapped": (
        "gather", store("bias0.selected", lambda x: x[[0, 2, 1, 3]]), (1, "attention")
    ),
    "a weight of the MLP": ("gather", store("wm0", lambda x: x * 1.001), (1, "output")),
    "a weight of the values": ("gather", store("wv1", lambda x: x * 1.001), (2, "attention")),
    "a product left out": ("gather", rewire("f0", 0, "r0"), (1, "output")),
    "a NaN among the weights": ("gather", store("wo1", lambda x: x * np.nan), (2, "attention")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_graph_is_found_in_its_first_bad_block(fault: str, tmp_path: Path) -> None:
    select, damage, where = FAULTS[fault]
    slim = slim_graph(vit("class", True), KEEP, GraphOptions(select=select)).model
    assert proof(slim, tmp_path / "slim.onnx").passed
    damage(slim)
    found = proof(slim, tmp_path / "slim.onnx")
    assert not found.passed
    first = first_bad(found.blocks)
    assert first is not None
    assert (first.block, first.point) == where


def test_the_token_that_is_wrong_is_named_by_its_global_id(tmp_path: Path) -> None:
    slim = slim_graph(vit("class"), KEEP).model
    _, bias = values(slim, "bias1.selected.selected")
    bias[1] += [0, 1, 2, 3]  # the second row of block 2 belongs to token 3
    store("bias1.selected.selected", lambda _: bias)(slim)
    first = first_bad(proof(slim, tmp_path / "slim.onnx", rotary=False).blocks)
    assert first is not None
    assert (first.block, first.worst_token, first.slim, first.dense) == (2, 3, "r1", "r1")
    assert "block 2 after attention, tensor 'r1' (dense 'r1'), token 3: max abs" in str(first)


def test_a_head_that_picks_another_token_differs_in_the_output_alone(tmp_path: Path) -> None:
    slim = slim_graph(vit("class"), KEEP).model
    store("y.index", lambda index: index + 1)(slim)
    found = proof(slim, tmp_path / "slim.onnx", rotary=False)
    assert not found.outputs["y"].passed
    assert first_bad(found.blocks) is None
    assert not found.passed


@pytest.mark.parametrize("select", ["gather", "slice", "slice-concat", "one-hot"])
def test_every_form_of_selection_is_aligned(select: Select, tmp_path: Path) -> None:
    slim = slim_graph(vit("class", True), KEEP, GraphOptions(select=select)).model
    found = proof(slim, tmp_path / "slim.onnx")
    assert found.passed
    assert [(x.block, x.point, x.tokens) for x in found.blocks] == [
        (1, "attention", 4), (1, "output", 4), (2, "attention", 2), (2, "output", 2)
    ]  # fmt: skip
    assert found.images == found.outputs["y"].rows == 5


def test_without_a_schedule_the_blocks_that_hold_every_token_are_compared(tmp_path: Path) -> None:
    dense, path = vit("class"), tmp_path / "lossless.onnx"
    slim = lossless_graph(dense).model
    onnx.save(slim, path)
    made = pair(dense, slim, path, None)
    assert made.remarks == ["block 2 was not compared: it holds 1 tokens, not 6"]
    found = prove(made, noise(dense, 2, 0, 2), 2e-5, threads=1)
    assert found.passed
    assert [result.block for result in found.blocks] == [1, 1]
    store("wm0", lambda x: x * 1.001)(slim)
    onnx.save(slim, path)
    damaged = prove(pair(dense, slim, path, None), noise(dense, 2, 0, 2), 2e-5, threads=1)
    first = first_bad(damaged.blocks)
    assert first is not None
    assert (first.block, first.point) == (1, "output")


def test_files_with_nothing_in_common_are_not_called_equal(tmp_path: Path) -> None:
    slim = lossless_graph(vit("class")).model
    slim.graph.output[0].name = slim.graph.node[-1].output[0] = "other"
    rotated = slim_graph(vit("class"), [[0], [0]]).model
    rotated.graph.output[0].name = rotated.graph.node[-1].output[0] = "other"
    with pytest.raises(GateError, match=r"none of the outputs \['y'\] and no comparable block"):
        pair(vit("class"), rotated, tmp_path / "x.onnx", None)


def test_a_file_without_blocks_is_a_failure_not_a_crash(tmp_path: Path) -> None:
    slim = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x0"], ["y"])], "g",
        list(vit().graph.input), list(vit().graph.output),
    )  # fmt: skip
    with pytest.raises(GateError, match="no transformer block found"):
        pair(vit(), onnx.helper.make_model(slim), tmp_path / "x.onnx", KEEP)


SPOT = Spot(1, "attention", "d", "s", 1, (0, 2))


def judged(dense: np.ndarray, slim: np.ndarray, tolerance: float = 1e-3) -> StreamParity:
    parity = BlockParity([SPOT])
    for at in range(len(dense)):
        parity.add(1, {"d": dense[at : at + 1]}, {"s": slim[at : at + 1]})
    return parity.results(tolerance)[0]


@given(st.integers(0, 1000), st.sampled_from([1e-6, 1e-2]))
@settings(max_examples=40, deadline=None)
def test_batches_add_up_to_one_comparison(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(4, 3, 5))
    slim = dense[:, [0, 2]] + size * rng.normal(size=(4, 2, 5))
    result = judged(dense, slim)
    difference = np.abs(slim - dense[:, [0, 2]])
    assert result.max_abs == difference.max()
    assert result.scale == np.abs(dense[:, [0, 2]]).max()
    assert result.worst_token == [0, 2][int(difference.max(axis=(0, 2)).argmax())]
    assert result.passed == (difference.max() <= 1e-3 * result.scale)
    whole = compare_outputs(dense[:, [0, 2]], slim, 1e-3)
    parts = [compare_outputs(dense[i : i + 2, [0, 2]], slim[i : i + 2], 1e-3) for i in (0, 2)]
    together = merged(*parts)
    assert (together.rows, together.max_abs, together.scale) == (4, whole.max_abs, whole.scale)
    assert (together.relative, together.passed) == (whole.relative, whole.passed)
    assert together.cosine_min == pytest.approx(whole.cosine_min)
    assert together.top1_agreement == whole.top1_agreement


def test_a_small_token_beside_a_huge_one_may_not_turn() -> None:
    """Token 0 sets the scale a thousand times higher: its tolerance would swallow token 2."""
    dense = np.ones((1, 3, 4))
    dense[0, 0] *= 1000
    slim = dense[:, [0, 2]].copy()
    slim[0, 1, 0] += 0.5
    result = judged(dense, slim)
    assert result.relative < 1e-3
    assert not result.passed
    assert result.cosine_min < 0.99
    assert judged(dense, dense[:, [0, 2]]).passed


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_nan_and_infinity_never_pass_and_stay_json(strange: float) -> None:
    dense = np.ones((3, 3, 4))
    slim = dense[:, [0, 2]].copy()
    slim[1, 1, 2] = strange
    result = judged(dense, slim)
    assert (result.passed, result.finite, result.worst_token) == (False, False, 2)
    assert result.to_json()["relative"] is None
    assert "NaN or infinity" in str(result)
    fine = judged(dense, dense[:, [0, 2]])
    assert worst([fine, result]) is result
    assert first_bad([fine, fine]) is None


def test_a_reference_of_zeros_is_matched_by_zeros_only() -> None:
    zeros = np.zeros((1, 3, 4))
    assert judged(zeros, zeros[:, :2]).passed
    other = judged(zeros, zeros[:, :2] + 1e-9)
    assert (other.passed, other.relative) == (False, np.inf)


def test_a_matrix_holds_the_tokens_of_all_images() -> None:
    dense = np.random.default_rng(0).normal(size=(2, 3, 5))
    parity = BlockParity([SPOT])
    parity.add(2, {"d": dense}, {"s": dense[:, [0, 2]].reshape(4, 5)})
    assert parity.results(1e-9)[0].passed
    parity.add(2, {"d": dense.reshape(6, 5)}, {"s": dense[:, [2, 0]].reshape(4, 5)})
    assert not parity.results(1e-9)[0].passed


def test_streams_of_other_shapes_are_named() -> None:
    with pytest.raises(GateError, match=r"block 1 after attention: tensor 's' holds \[3, 4\], .*2"):
        judged(np.ones((1, 3, 4)), np.ones((1, 3, 4)))


def test_noise_depends_on_seed_and_number_alone() -> None:
    one = np.concatenate(list(noise(vit(), 5, 3, 2)))
    two = np.concatenate(list(noise(vit(), 5, 3, 4)))
    assert one.shape == (5, 6, 4)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, np.concatenate(list(noise(vit(), 5, 4, 5))))
    two_inputs = vit()
    two_inputs.graph.input.append(two_inputs.graph.input[0])
    with pytest.raises(InputError, match="only models of one input are compared"):
        next(noise(two_inputs, 1, 0, 1))
