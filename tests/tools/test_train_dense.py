"""The trainer of dense models: what it is told to learn, and how images are turned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from slimdeploy.images import ImageFolder
from tools.train_dense import Trainer, build_parser, train
from tools.training_data import augment, plan_steps, soft_targets


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


def arguments(data: Path, output: Path, *more: str) -> argparse.Namespace:
    words = ["--model", "vit_tiny_patch16_224", "--data-dir", str(data), "--output", str(output)]
    words += ["--stages", "32:2,64/0.5:2,64:2", "--batch-size", "4", "--drop-path", "0.2", *more]
    return build_parser().parse_args(words)


def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    generator = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 2)):
        for kind in ("bad", "good"):
            (data / split / kind).mkdir(parents=True)
            for index in range(n // 2):
                pixels = generator.integers(0, 255, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(data / split / kind / f"{index}.png")
    start = tmp_path / "start.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    save_file(model.state_dict(), start)
    common = ("--check-every", "5", "--initial-checkpoint", str(start))

    train(arguments(data, tmp_path / "whole.safetensors", *common))

    killed = arguments(data, tmp_path / "killed.safetensors", *common)
    step = Trainer.step

    def dies(self: Trainer, *given: Any) -> float:
        if self.done == 7:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert not killed.output.exists()
    train(killed)
    assert killed.output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
