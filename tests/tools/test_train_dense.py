"""The trainer of dense models: what it is told to learn, and how images are turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slimdeploy.images import ImageFolder
from tools.train_dense import augment, plan_steps, soft_targets


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for kind, name in (("bad", "a"), ("bad", "b"), ("good", "c")):
        (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"train/{kind}/{name}.png")
    return ImageFolder.open(tmp_path, "train")


def test_targets_are_the_labels_where_nobody_said_more(folder: ImageFolder) -> None:
    assert soft_targets(folder, None).tolist() == [[1, 0], [1, 0], [0, 1]]


def test_doubts_of_the_annotators_count_half(folder: ImageFolder, tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text("file,probability\na.png,1.0\nb.png,0.6\nc.png,0.4\n")
    wanted = torch.tensor([[1, 0], [0.8, 0.2], [0.2, 0.8]])
    torch.testing.assert_close(soft_targets(folder, listed), wanted)


@pytest.mark.parametrize(
    ("symmetry", "corners"),
    [("upright", {0, 1}), ("mirror", {0, 1, 2, 3}), ("dihedral", {0, 1, 2, 3})],
)
def test_where_the_bright_corner_may_go(symmetry: str, corners: set[int]) -> None:
    images = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    images[:, :, :8, :8] = 255
    out = augment(images, 16, torch.Generator().manual_seed(0), symmetry)[:, 0]
    quarters = torch.stack([out[:, :4, :4], out[:, :4, -4:], out[:, -4:, :4], out[:, -4:, -4:]], 1)
    assert set(quarters.mean((2, 3)).argmax(1).tolist()) == corners


def test_only_turns_swap_rows_and_columns() -> None:
    images = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    images[:, :, :8] = 255  # upper half bright: rows differ, columns do not
    for symmetry, turned in (("mirror", False), ("dihedral", True)):
        out = augment(images, 16, torch.Generator().manual_seed(0), symmetry)[:, 0]
        sideways = out.mean(1).std(1) > out.mean(2).std(1)
        assert bool(sideways.any()) is turned


def test_stages_are_counted_in_epochs() -> None:
    steps = plan_steps("98:1.5,196/0.75:1", n=40, batch=10, seed=0)
    assert [(s.size, s.drop) for s in steps] == [(98, 0.0)] * 6 + [(196, 0.75)] * 4
    assert sorted(torch.cat([s.rows for s in steps[:4]]).tolist()) == list(range(40))
