"""Damaged and odd models: the right graph or one clear line, and nothing else.

What comes out of a damaged model is compared with that model itself where a runtime runs it: the
lossless graph with the model, the slim graph with the model whose dropped tokens are masked.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.cli import main
from slimdeploy.errors import InputError, SlimdeployError
from slimdeploy.graph import lossless_graph, slim_graph
from slimdeploy.graph.files.storage import load_model
from slimdeploy.graph.masked import masked_graph
from tests.graph.damage import DAMAGE, LEGAL
from tests.graph.exports import IMAGE, export
from tests.graph.vit_text import TOKENS, compact, vit

KEEP = [[0, 2, 3, 5], [0, 3]]
SMALL_KEEP = [[0, 1, 2, 5, 7, 9, 11, 14], [0, 2, 5, 7, 9], [0, 5]]
X = np.random.default_rng(7).normal(size=(2, TOKENS, 4)).astype(np.float32)
IMAGES = np.random.default_rng(7).normal(size=(2, 3, IMAGE, IMAGE)).astype(np.float32)

NOT_MASKED = {"strange_numbers", "flipped_bytes", "overwritten_bytes", "lying_dtype"}
"""These make weights so large, or infinite, that adding a mask does not hide a token."""


@contextmanager
def limit(seconds: int = 10) -> Iterator[None]:
    """Interrupt what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def changed(seed: onnx.ModelProto, changes: Sequence[str], number: int) -> onnx.ModelProto | None:
    """A copy of `seed` after these changes; None if the last of its bytes are no message."""
    model = onnx.ModelProto()
    model.CopyFrom(seed)
    random = Random(number)
    for name in changes:
        try:
            model = {**DAMAGE, **LEGAL}[name](model, random)
        except DecodeError:
            return None
        except (IndexError, ValueError, AttributeError):
            continue  # an earlier change left nothing for this one
    return model


def run(model: onnx.ModelProto, feed: Any = X) -> list[Any]:
    """The outputs by ONNX Runtime, without its own rewrites."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    feeds = {i.name: feed.astype(kinds.get(i.type, np.float32)) for i in session.get_inputs()}
    results: list[Any] = session.run(None, feeds)
    return results


def slimmed(
    model: onnx.ModelProto, keep: list[list[int]] | None
) -> tuple[str, onnx.ModelProto | None]:
    """The message of a refusal, or the graph that was made."""
    try:
        with limit():
            return "", (lossless_graph(model) if keep is None else slim_graph(model, keep)).model
    except SlimdeployError as error:
        return str(error), None


def outcome(model: onnx.ModelProto, keep: list[list[int]] | None, feed: Any = X) -> str:
    """What becomes of `model`: refused, equal, or not comparable because nothing runs it."""
    message, made = slimmed(model, keep)
    if made is None:
        assert "\n" not in message
        assert 15 < len(message) < 500, message
        return "refused"
    try:
        expected = run(model if keep is None else masked_graph(model, keep), feed)
    except Exception:  # whatever a runtime says of a damaged model
        return "not comparable"
    for result, wanted in zip(run(made, feed), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-4)
    return "equal"


def outcomes(seed: onnx.ModelProto, changes: Sequence[str], number: int) -> list[str]:
    model = changed(seed, changes, number)
    if model is None:
        return ["no message"]
    kinds = [outcome(model, None)]
    return kinds if NOT_MASKED & set(changes) else [*kinds, outcome(model, KEEP)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damage(damage: str) -> None:
    """Four files for each of 51 kinds of damage, of two models by turns."""
    seen = Counter(
        kind
        for number in range(4)
        for kind in outcomes(vit("class", rotary=bool(number % 2)), [damage], number)
    )
    assert seen["not comparable"] < 4 or damage in {"huge_constant", "odd_ir_version"}


def test_damage_is_mostly_noticed_and_what_is_left_is_right() -> None:
    """Without this, a slimmer that refuses all, or a runtime that runs nothing, would pass."""
    seen = Counter(kind for name in DAMAGE for kind in outcomes(vit(), [name], 1))
    assert seen["refused"] > 50
    assert seen["equal"] > 6
    assert seen["not comparable"] < 10


@given(st.lists(st.sampled_from([*DAMAGE, *LEGAL]), min_size=2, max_size=4), st.integers(0, 999))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_several_changes(changes: list[str], number: int) -> None:
    outcomes(vit(), changes, number)


@given(
    st.lists(st.sampled_from(list(LEGAL)), min_size=1, max_size=5, unique=True), st.integers(0, 999)
)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_legal_variants_are_slimmed_alike(changes: list[str], number: int) -> None:
    rotary = bool(number % 2)
    model = changed(vit("class", rotary), changes, number)
    assert model is not None
    slim = slim_graph(model, KEEP)
    assert slim.blocks == [(4, TOKENS), (2, 4)]
    expected = compact(X, KEEP, rotary)[:, 0]
    np.testing.assert_allclose(run(slim.model)[0], expected, rtol=1e-4, atol=1e-5)


def test_legal_variants_of_an_export_are_slimmed_alike() -> None:
    seed = export("plain", "dynamo18-fused", True)
    expected = run(masked_graph(seed, SMALL_KEEP), IMAGES)[0]
    for number, name in enumerate(LEGAL):
        model = changed(seed, [name], number)
        assert model is not None
        result = run(slim_graph(model, SMALL_KEEP).model, IMAGES)[0]
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["script17", "script17-fused", "dynamo23"])
def test_more_legal_variants_of_exports_are_slimmed_alike(exporter: str) -> None:
    seed = export("plain", exporter, True)
    expected = run(masked_graph(seed, SMALL_KEEP), IMAGES)[0]
    # Before opset 18 the Relu that `unused_parts` adds does not take every type.
    for number, name in enumerate([*LEGAL] * 3):
        model = changed(seed, [] if name == "unused_parts" else [name], number)
        assert model is not None
        result = run(slim_graph(model, SMALL_KEEP).model, IMAGES)[0]
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damage_of_an_export(damage: str) -> None:
    model = changed(export("plain", "dynamo18-fused", True), [damage], 1)
    if model is not None:
        outcome(model, None, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "registers"])
@pytest.mark.parametrize("exporter", ["dynamo18-fused", "script17", "dynamo23"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_many_damages_of_exports(damage: str, exporter: str, kind: str) -> None:
    for number in range(4):
        model = changed(export(kind, exporter, True), [damage], number)
        if model is not None:
            outcome(model, None, IMAGES)
            if damage not in NOT_MASKED and kind == "plain":
                outcome(model, SMALL_KEEP, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damage_many_times(damage: str) -> None:
    for number in range(4, 100):
        outcomes(vit("class", rotary=bool(number % 2)), [damage], number)


def test_bytes_of_files(tmp_path: Path) -> None:
    """Truncated, overwritten and foreign files: an error that names the file, or a whole model."""
    data, path = vit().SerializeToString(), tmp_path / "bad.onnx"
    random = Random(0)
    messages = []
    for number in range(60):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(bytes(damaged[: random.randrange(len(data))] if number % 2 else damaged))
        try:
            model = load_model(path)
        except InputError as error:
            messages.append(str(error))
        else:
            outcome(model, KEEP)
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)


@pytest.mark.parametrize("damage", ["truncated", "cycle", "other_dtype", "no_numbers", "subgraph"])
@pytest.mark.parametrize("verb", ["inspect", "export", "plan"])
def test_the_program_ends_in_one_line(
    verb: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, made = tmp_path / "bad.onnx", tmp_path / "made"
    model = changed(export("plain", "dynamo18-fused", True), [damage], 2)
    bad.write_bytes(b"\x08\x07garbage" if model is None else model.SerializeToString())
    words = {
        "inspect": ["inspect", str(bad)],
        "export": ["export", "--onnx", str(bad), "--lossless", "--output", f"{made}.onnx"],
        "plan": ["plan", "--onnx", str(bad), "--mac-reduction", "0.3", "--output", f"{made}.json"],
    }[verb]
    code = 0
    try:
        main(words)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    if code == 0:
        assert verb == "inspect"  # which describes what it can, and says what stands in the way
        assert "tokens cannot be dropped" in said.out
    else:
        assert code == 2
        assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]
