"""NaN and infinity neither come in with weights nor go out with a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimdeploy.errors import GateError, InputError
from slimdeploy.slim.calibration import Calibration
from slimdeploy.slim.checkpoint import Checkpoint, save_weights
from slimdeploy.slim.impact import make_impact
from slimdeploy.slim.search import SearchOptions, search
from slimdeploy.slim.timm_models import describe
from tests.cli.commands import PIXELS, error_line, left


def broken(checkpoint: Path, path: Path, value: float, suffix: str = ".safetensors") -> Path:
    state = load_file(checkpoint)
    state["blocks.3.mlp.fc1.weight"][5, 7] = value
    path = path.with_suffix(suffix)
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_not_read(
    checkpoint: Path, tmp_path: Path, value: float, suffix: str
) -> None:
    path = broken(checkpoint, tmp_path / "broken", value, suffix)
    with pytest.raises(InputError) as caught:
        Checkpoint.read(path)
    said = f"{path}: blocks.3.mlp.fc1.weight holds NaN or infinity"
    assert str(caught.value).startswith(said)


def test_a_search_with_broken_weights_writes_nothing(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    path = broken(checkpoint, tmp_path / "broken", float("nan"))
    words = ["slim", "--model", "test_vit", "--checkpoint", path, "--data-dir", photographs]
    how = ["--mac-reduction", 0.4, "--images", 4, "--output", tmp_path / "out" / "s.json"]
    assert "holds NaN or infinity" in error_line(capsys, 2, *words, *how)
    assert not left(tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [
        (float("nan"), "float32", "NaN or infinite"),
        (float("nan"), "float16", "NaN or infinite"),
        (1e5, "float16", "too large for float16"),
    ],
)
def test_broken_weights_are_not_written(
    make_vit: Callable[..., Any],
    tmp_path: Path,
    value: float,
    dtype: Literal["float32", "float16"],
    reason: str,
) -> None:
    model, path = make_vit(), tmp_path / "w.safetensors"
    model.blocks[1].mlp.fc2.weight.data[0, 0] = value
    with pytest.raises(GateError, match=rf"w\.safetensors: not written: blocks.1.*{reason}"):
        save_weights(model, path, name="small", preprocessing=PIXELS, dtype=dtype)
    assert not left(tmp_path)


@pytest.mark.parametrize("size", [0.0, 1e30], ids=["zero", "huge"])
@pytest.mark.parametrize("reconstruct", ["none", "refit", "gradient"])
@pytest.mark.parametrize("impact", ["grid", "cover", "path", "joint"])
def test_a_search_ends_at_what_is_no_number(
    make_vit: Callable[..., Any], size: float, reconstruct: Any, impact: Any
) -> None:
    model = make_vit()
    for parameter in model.parameters():
        parameter.data *= size
    state = Calibration(model, describe(model, "small"), torch.randn(4, 3, 64, 64))
    options = SearchOptions(counts=[12, 9, 7, 1], reconstruct=reconstruct)
    with pytest.raises(GateError, match="layer 3: its error is no number"):
        search(state, make_impact(impact), options)
