"""Accuracy by a real engine on real images, and the paired comparison."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from PIL import Image

from slimdeploy.engine import EngineInfo, OnnxRuntimeEngine
from slimdeploy.errors import GateError, InputError
from slimdeploy.images import ImageFolder
from slimdeploy.measure.accuracy import Accuracy, compare_accuracy, count, evaluate
from slimdeploy.preprocessing import Preprocessing

PLAIN = Preprocessing(
    input_size=(3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=1.0
)


def colour_model(batch: str = "B", tail: str = "logits = Identity (means)") -> OnnxRuntimeEngine:
    """Answers with the mean of each channel: the colour of a flat image."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{batch}, 3, 4, 4] images) => (float[M, N] logits) {{
      means = ReduceMean<axes = [2, 3], keepdims = 0> (images)
      {tail}
    }}"""
    return OnnxRuntimeEngine(onnx.parser.parse_model(text).SerializeToString(), threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Classes in the order of the model's channels; one red image lies among the blue."""
    names = {"0_red": ["red"] * 3, "1_green": ["green"] * 2, "2_blue": ["blue", "red", "blue"]}
    for name, colours in names.items():
        (tmp_path / name).mkdir()
        for i, colour in enumerate(colours):
            Image.new("RGB", (9, 7), colour).save(tmp_path / name / f"{i}.png")
    return ImageFolder.open(tmp_path)


@pytest.mark.parametrize("batch", ["B", "3"])
def test_counts_what_the_engine_gets_right(folder: ImageFolder, batch: str) -> None:
    steps: list[tuple[int, int]] = []
    with colour_model(batch) as engine:
        found = evaluate(engine, folder, PLAIN, 3, lambda *step: steps.append(step))
    assert steps == [(3, 8), (6, 8), (8, 8)]
    assert (found.n, found.top1, found.top5) == (8, 7 / 8, None)
    assert found.top1_standard_error == pytest.approx(math.sqrt(7 / 8 / 8 / 8))
    assert found.recall == (1, 1, pytest.approx(2 / 3))
    assert found.confusion.tolist() == [[3, 0, 0], [0, 2, 0], [1, 0, 2]]
    assert found.predictions.tolist() == [0, 0, 0, 1, 1, 2, 0, 2]
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["recall"]["1_green"] == 1
    assert record["preprocessing"]["input_size"] == [3, 4, 4]


def test_a_class_without_images_has_no_recall(folder: ImageFolder) -> None:
    only_red = replace(folder, files=folder.files[:3], labels=folder.labels[:3])
    with colour_model() as engine:
        assert evaluate(engine, only_red, PLAIN).recall == (1, None, None)


def test_refuses_other_classes_other_shapes_and_nan(folder: ImageFolder) -> None:
    two = "two = Constant<value = int64[2] {0, 1}> ()  logits = Gather<axis = 1> (means, two)"
    with (
        colour_model(tail=two) as engine,
        pytest.raises(InputError, match="3 class folders, but model has 2 outputs"),
    ):
        evaluate(engine, folder, PLAIN)
    flat = "one = Constant<value = int64[1] {-1}> ()  logits = Reshape (means, one)"
    with (
        colour_model(tail=flat) as engine,
        pytest.raises(InputError, match=r"model: output 'logits' has shape \[24\]; a classifier's"),
    ):
        evaluate(engine, folder, PLAIN)
    with (
        colour_model(tail="logits = Log (means)") as engine,
        pytest.raises(GateError, match=r"model: NaN or infinity among the outputs for .*0_red"),
    ):
        evaluate(engine, folder, PLAIN)
    not_blue = """third = Constant<value = int64[1] {2}> ()  one = Constant<value = float {1.0}> ()
      blue = Gather<axis = 1> (means, third)  rest = Sub (one, blue)  logits = Div (means, rest)"""
    with (
        colour_model(tail=not_blue) as engine,
        pytest.raises(GateError, match=rf"for {folder.files[5]}$"),
    ):
        evaluate(engine, folder, PLAIN)


def accuracy_of(logits: np.ndarray, labels: list[int]) -> Accuracy:
    classes = logits.shape[1]
    files = tuple(Path(f"{label}/{i}.png") for i, label in enumerate(labels))
    folder = ImageFolder(Path(), tuple(map(str, range(classes))), files, tuple(labels))
    engine = EngineInfo("m.onnx", "onnxruntime", "1", "CPUExecutionProvider", 1)
    return count(engine, folder, PLAIN, logits)


def test_top5_and_cross_entropy() -> None:
    logits = np.tile(np.arange(7, dtype=np.float32), (4, 1))
    found = accuracy_of(logits, [6, 2, 1, 0])
    assert (found.top1, found.top5) == (0.25, 0.5)
    log_sum = math.log(sum(math.exp(i) for i in range(7)))
    assert found.cross_entropy == pytest.approx(log_sum - (6 + 2 + 1 + 0) / 4)


def test_two_engines_are_compared_image_by_image() -> None:
    labels = [0] * 10 + [1] * 10
    right = np.eye(2, dtype=np.float32)[labels]
    worse, better = right.copy(), right.copy()
    worse[:5] = worse[:5, ::-1]
    better[4:6] = better[4:6, ::-1]
    dense, slim = accuracy_of(better, labels), accuracy_of(worse, labels)
    found = compare_accuracy(dense, slim)
    assert (found.only_dense_right, found.only_slim_right) == (4, 1)
    assert found.difference == pytest.approx(-3 / 20)
    assert found.difference in found.difference_interval
    assert found.agreement == pytest.approx(15 / 20)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 5) / 32)
    same = compare_accuracy(dense, dense)
    assert (same.difference, same.mcnemar_p, same.agreement) == (0, 1, 1)


def test_other_images_cannot_be_compared() -> None:
    logits = np.eye(2, dtype=np.float32)
    with pytest.raises(InputError, match=r"m\.onnx and m\.onnx were evaluated on different images"):
        compare_accuracy(accuracy_of(logits, [0, 1]), accuracy_of(logits, [1, 0]))
