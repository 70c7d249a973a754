"""`profile`: a gate judges no emulated speed, and a batch beyond the memory is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.cli import main
from slimdeploy.graph.files.storage import save_model
from tests.cli.test_bad_input import fails
from tests.graph.text import model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    body = "h = MatMul(x, w) y = Tanh(h)"
    path = tmp_path / "small.onnx"
    square = np.eye(4, dtype=np.float32)
    save_model(model("float[B,3,4,4] x => float[B,3,4,4] y", body, 20, w=square), path)
    return path


def test_emulated_speed_is_remarked_and_never_judged(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = small.with_name("low.onnx")
    main(["quantize", str(small), "--precision", "bf16", "--output", str(low)])
    capsys.readouterr()
    words = ["profile", "--dense", small, "--slim", low, "--batch-size", "1", "--rounds", "2"]
    line = fails(capsys, *words, "--min-speedup", "0.001")
    assert "--min-speedup: " in line
    assert "low.onnx: runs as CPUExecutionProvider, bfloat16 emulated: its speed here" in line
    main([*map(str, words), "--json"])
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["rows"]) == 1
    assert "low.onnx: runs as CPUExecutionProvider, bfloat16 emulated" in shown.err


def test_a_batch_beyond_the_memory_is_one_line(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (10**12, 10**18):
        line = fails(capsys, "profile", "--dense", small, "--slim", small, "--batch-size", size)
        assert f"--batch-size {size}: its images alone take" in line
