"""What `finetune` takes and refuses: data without labels, models without classes, its own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from slimdeploy.cli import main
from slimdeploy.slim.checkpoint import save_weights
from tests.cli.commands import PIXELS, error_line, left
from tests.conftest import randomise

SHORT = ("--max-steps", 1, "--batch-size", 4, "--workers", 0)
UNLABELLED = ("--task-loss-weight", 0)


def planned(weights: Path, folder: Path) -> Path:
    path = folder / "plan.json"
    words = ["plan", "--model", "test_vit", "--checkpoint", weights, "--output", path]
    main([str(word) for word in words])
    return path


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """A schedule for a backbone without classes."""
    model = randomise(timm.create_model("test_vit", num_classes=0))
    pixels = PIXELS.model_copy(update={"input_size": (3, 160, 160)})
    path = tmp_path / "backbone.safetensors"
    save_weights(model, path, name="test_vit", preprocessing=pixels)
    return planned(path, tmp_path)


@pytest.fixture
def flat(photographs: Path, tmp_path: Path) -> Path:
    """A folder of images without class folders."""
    (tmp_path / "flat").mkdir()
    for path in (photographs / "train" / "dark").iterdir():
        shutil.copy(path, tmp_path / "flat")
    return tmp_path / "flat"


@pytest.mark.parametrize("kind", ["flat", "folders"])
def test_a_backbone_is_trained_without_labels(
    headless: Path, flat: Path, photographs: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = flat if kind == "flat" else photographs, headless.with_name("t.safetensors")
    words = ["finetune", "--keep-schedule", headless, "--data-dir", data, *UNLABELLED, *SHORT]
    capsys.readouterr()
    main([str(word) for word in (*words, "--output", output, "--json")])
    assert json.loads(capsys.readouterr().out)["images"] == (12 if kind == "flat" else 24)
    assert "norm.weight" in load_file(output)


def test_a_classifier_learns_from_a_flat_folder(
    checkpoint: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = planned(checkpoint, tmp_path)
    words = ["finetune", "--keep-schedule", schedule, "--data-dir", flat, *SHORT]
    output = ["--output", tmp_path / "t.safetensors"]
    capsys.readouterr()
    assert "needs two class folders" in error_line(capsys, 2, *words, *output)
    main([str(word) for word in (*words, *UNLABELLED, *output)])
    assert (tmp_path / "t.safetensors").is_file()


def test_a_backbone_has_neither_labels_nor_accuracy(
    headless: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--keep-schedule", headless, "--data-dir", photographs]
    capsys.readouterr()
    before = left(headless.parent)
    line = error_line(capsys, 2, *words)
    assert "test_vit: has no classes to learn labels with; --task-loss-weight 0 lets" in line
    line = error_line(capsys, 2, *words, *UNLABELLED, "--val-split", "test")
    assert "--val-split: test_vit has no classes, so no accuracy" in line
    line = error_line(capsys, 2, *words, *UNLABELLED, *SHORT, "--feature-weight", 0)
    assert "--distill-loss-weight: the model has no classes" in line
    assert left(headless.parent) == before


def test_the_schedule_that_is_read_is_not_written(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = planned(checkpoint, tmp_path)
    before = schedule.read_bytes()
    words = ["finetune", "--keep-schedule", schedule, "--data-dir", photographs]
    capsys.readouterr()
    line = error_line(
        capsys, 2, *words, "--output", tmp_path / "t.safetensors", "--output-schedule", schedule
    )
    assert f"{schedule}: is another file that this command reads or writes" in line
    assert schedule.read_bytes() == before


def test_the_record_tells_the_batch_in_use(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule, output = planned(checkpoint, tmp_path), tmp_path / "t.safetensors"
    words = ["finetune", "--keep-schedule", schedule, "--data-dir", photographs, "--workers", 0]
    size = ["--batch-size", 100, "--max-steps", 1, "--output", output, "--json"]
    capsys.readouterr()
    main([str(word) for word in (*words, *size)])
    shown = capsys.readouterr()
    assert json.loads(shown.out)["batch_size"] == 24
    assert "a batch has 24, not the asked 100" in shown.err


@pytest.mark.parametrize(
    "words",
    [
        "finetune --keep-schedule a --data-dir b --batch-size 1.5",
        "finetune --keep-schedule a --data-dir b --max-steps 2.5",
        "finetune --keep-schedule a --data-dir b --workers 0.5",
        "finetune --keep-schedule a --data-dir b --save-every 1.5",
        "finetune --keep-schedule a --data-dir b --seed 1.5",
        "plan --model test_vit --multiple-of 1.5",
        "slim --model test_vit --data-dir b --mac-reduction 0.4 --multiple-of 1.5",
        "slim --model test_vit --data-dir b --tolerance 0.1 --step 2.5",
    ],
)
def test_numbers_are_not_rounded(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag, value = words.split()[-2:]
    said = f"for {flag}: {value} is no whole number"
    assert said in error_line(capsys, 2, *words.split())


@pytest.mark.parametrize("given", [["1,3"], ["1", "3"]])
def test_layers_are_given_with_commas_or_one_by_one(
    given: list[str], checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "t.safetensors"
    words = ["finetune", "--keep-schedule", planned(checkpoint, tmp_path), *SHORT, *UNLABELLED]
    layers = [word for each in given for word in ("--token-layers", each)]
    more = ["--token-weight", 1, *layers, "--data-dir", photographs, "--output", output]
    main([str(word) for word in (*words, *more)])
    assert output.is_file()


def test_a_layer_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "--keep-schedule", "a", "--data-dir", "b", "--token-layers"]
    assert "1, x: give whole numbers with commas between" in error_line(capsys, 2, *words, "1,x")
    assert "Each must be at least 1" in error_line(capsys, 2, *words, "0,3")
