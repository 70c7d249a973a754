"""Files whose names are no UTF-8, or mean something to a library."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.images import ImageFolder
from tests.cli.classifiers import PIXELS, two_classes

ODD = b"caf\xe9.png"


@pytest.fixture
def odd(photographs: Path, tmp_path: Path) -> Path:
    """Photographs, of which one in each folder has a name in Latin-1."""
    root = tmp_path / "photographs"
    shutil.copytree(photographs, root)
    for folder in (
        root / split / label for split in ("train", "test") for label in ("dark", "bright")
    ):
        try:
            os.rename(folder / "00.png", os.path.join(os.fsencode(folder), ODD))
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
    return root


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(two_classes(), path)
    return path


def test_a_name_counts_by_its_bytes(odd: Path, photographs: Path) -> None:
    folder = ImageFolder.open(odd / "train")
    assert len(folder.digest()) == 64
    assert len(folder.sample(5, seed=0)) == 5
    # What is UTF-8 is drawn as it ever was.
    drawn = ImageFolder.open(photographs / "train").sample(3, seed=0)
    assert [file.name for file in drawn.files] == ["00.png", "02.png", "06.png"]


def test_predictions_hold_the_name(
    odd: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = dense.with_name("p.csv")
    main(["evaluate", str(dense), "--data-dir", str(odd), *PIXELS, "--predictions", str(table)])
    assert b"dark/" + ODD + b",dark," in table.read_bytes()


def test_calibration_and_a_picture_take_the_name(
    odd: Path, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["quantize", str(dense), "--precision", "int8", "--calibration", str(odd), *PIXELS,
          "--output", str(dense.with_name("q.onnx"))])  # fmt: skip
    slim = dense.with_name("slim.onnx")
    main(["slim", "--onnx", str(dense), "--data-dir", str(odd), *PIXELS, "--mac-reduction", "0.2",
          "--impact", "grid", "--reconstruct", "none", "--output", str(slim)])  # fmt: skip
    capsys.readouterr()
    main(["draw", str(slim.with_suffix(".json")), "--data-dir", str(odd), "--images", "16",
          "--output", str(dense.with_name("kept.png")), "--json"])  # fmt: skip
    assert len(json.loads(capsys.readouterr().out)["images"]) == 16
