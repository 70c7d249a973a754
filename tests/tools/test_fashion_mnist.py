"""Fashion-MNIST's files as folders, from tiny files of the same format."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.fashion_mnist import prepare


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for kind, n in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(n).integers(0, 255, (n, 28, 28))
        write_idx(folder / f"{kind}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{kind}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    return folder


def test_splits_are_disjoint_and_pixels_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "VALIDATION", 1)
    output = tmp_path / "out"
    prepare.write(output, source)
    counts = {name: len(list((output / name).rglob("*.png"))) for name in ("train", "val", "test")}
    assert counts == {"train": 30, "val": 10, "test": 20}
    first = np.asarray(Image.open(output / "test" / prepare.CLASSES[3] / "00003.png"))
    images = prepare.read_idx(source / "t10k-images-idx3-ubyte.gz")
    assert np.array_equal(first, images[3])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_missing_source_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "--output", str(tmp_path / "out"), "--source", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert prepare.main() == 3
    assert "dataset-fashion-mnist" in capsys.readouterr().err


def test_another_file_is_no_idx_file(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"hello world"))
    with pytest.raises(ValueError, match="no IDX file"):
        prepare.read_idx(tmp_path / "x.gz")
