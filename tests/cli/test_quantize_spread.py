"""`quantize` looks at few of many images, and at every class of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slimdeploy.cli import main
from slimdeploy.graph.files.storage import save_model
from tests.graph.text import model

IMAGES = 100
"""Of each class, and all of the first come before all of the second."""


def files(folder: Path, body: str, images: Any, **constants: Any) -> tuple[Path, Path]:
    """A model of one product, and its calibration images."""
    path, array = folder / "small.onnx", folder / "images.npz"
    constants = {"w": np.eye(4, dtype=np.float32), **constants}
    save_model(model("float[B,3,4,4] x => float[B,3,4,4] y", body, 20, **constants), path)
    np.savez(array, images=np.asarray(images, np.float32))
    return path, array


def two_classes(first: Any, second: Any) -> Any:
    """Images of two classes, each of one number or of one row."""
    both = [np.broadcast_to(np.float32(value), (IMAGES, 3, 4, 4)) for value in (first, second)]
    return np.concatenate(both)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (1, ""), shown.err
    return shown.err


OVERFLOW = "h = MatMul(x, w) k = Mul(h, large) l = Mul(k, small) y = Tanh(l)"
NUMBERS = {"large": np.float32(6e4), "small": np.float32(1e-4)}


def test_an_overflow_in_the_second_class_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, images = files(tmp_path, OVERFLOW, two_classes(0.5, 2), **NUMBERS)
    words = ["quantize", path, "--precision", "fp16", "--calibration", images]
    line = refused(capsys, *words, "--output", tmp_path / "q.onnx")
    assert "tensor 'k' of node 'k' (Mul) reaches 1.2e+05, beyond float16's 65504" in line


def test_an_overflow_in_the_second_class_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = files(tmp_path, OVERFLOW, [0], **NUMBERS)
    for name, grey in (("a-dark", 10), ("b-bright", 255)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(40):
            Image.new("L", (4, 4), grey).save(tmp_path / "data" / name / f"{index:02}.png")
    words = ["quantize", path, "--precision", "fp16", "--calibration", tmp_path / "data"]
    pixels = ["--mean", 0, 0, 0, "--std", 0.5, 0.5, 0.5]
    line = refused(capsys, *words, *pixels, "--output", tmp_path / "q.onnx")
    assert "reaches 1.2e+05, beyond float16's 65504" in line


def test_a_difference_in_the_second_class_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images alone meet the weight 1 + 2^-12, which is no number of float16."""
    weights = np.diag(np.float32([1, 1 + 2**-12, 1, 1]))
    rows = two_classes([1, 0, 0, 0], [0, 1, 0, 0])
    path, images = files(tmp_path, "y = MatMul(x, w)", rows, w=weights)
    words = ["quantize", path, "--precision", "fp16", "--calibration", images]
    line = refused(capsys, *words, "--max-logit-error", "1e-4", "--output", tmp_path / "q.onnx")
    assert "outputs differ by 0.02% of their scale" in line
    assert "on 64 calibration images" in line
    main([*map(str, words), "--max-logit-error", "1e-3", "--output", str(tmp_path / "q.onnx"),
          "--json"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["parity"]["rows"] == 64
