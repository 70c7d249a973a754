"""Bad input: one clear line, the right exit code, and no output file left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from slimdeploy.cli import main


@pytest.fixture
def planned(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A legal schedule for the test model, in a folder of its own."""
    path = tmp_path / "plan" / "sched.json"
    main_ok("plan", "--model", "test_vit", "--checkpoint", checkpoint, "--output", path)
    capsys.readouterr()
    return path


def main_ok(*arguments: object) -> None:
    main([str(a) for a in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """The one line that a failing command leaves on stderr; stdout stays empty."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line]
    assert caught.value.code == code, shown.err
    assert shown.out == ""
    assert lines[-1].startswith("slimdeploy: error: ")
    assert len([line for line in lines if "rror" in line]) == 1
    return lines[-1]


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def drop_class_token(data: dict[str, Any]) -> None:
    data["layers"][5]["keep"] = [1]
    for layer in data["layers"]:
        layer["keep"] = [i for i in layer["keep"] if i] or [1]
    data["layers"][5]["keep"] = data["layers"][4]["keep"][:1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["layers"][2]["keep"].append(9999), "layers[2].keep: id 9999 is out of range"),
        (lambda d: d["layers"][1].update(keep=[0, 1]), "layers[2].keep: id "),
        (drop_class_token, "layers[0].keep: the class token (id 0) is missing"),
        (lambda d: d["model"].update(name="vit_tiny_patch16_224"), "vit_tiny_patch16_224"),
        (lambda d: d["model"].update(width=192), "model.width is 192, but test_vit has 64"),
    ],
    ids=["out of range", "not nested", "no class token", "other model", "other width"],
)
def test_bad_schedules(
    planned: Path, change: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = planned.parent / "slim.onnx"
    line = fails(capsys, "export", "--keep-schedule", edited(planned, change), "--output", output)
    assert words in line
    assert {p.name for p in planned.parent.iterdir()} == {"sched.json"}


def test_a_truncated_schedule(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned.write_text(planned.read_text()[:300])
    line = fails(
        capsys, "export", "--keep-schedule", planned, "--output", planned.parent / "a.onnx"
    )
    assert f"{planned}: not valid JSON, truncated or damaged" in line


def test_a_checkpoint_with_other_shapes(
    planned: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = planned.parent / "a.onnx"
    arguments = ("export", "--model", "vit_tiny_patch16_224", "--output", output)
    line = fails(capsys, *arguments, "--checkpoint", checkpoint)
    assert f"{checkpoint}: cls_token has shape (1, 1, 64), vit_tiny_patch16_224 needs" in line
    damaged = planned.parent / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    line = fails(capsys, *arguments, "--checkpoint", damaged)
    assert f"{damaged}: not a readable checkpoint" in line
    assert not output.exists()


def test_weights_that_changed_since_the_schedule(
    planned: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(checkpoint, copy)
    main_ok("plan", "--model", "test_vit", "--checkpoint", copy, "--output", planned)
    capsys.readouterr()
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    line = fails(capsys, "export", "--keep-schedule", planned, "--output", tmp_path / "a.onnx")
    assert "SHA-256 differs" in line
    copy.unlink()
    line = fails(capsys, "export", "--keep-schedule", planned, "--output", tmp_path / "a.onnx")
    assert "names the weights" in line


def test_inputs_are_never_overwritten(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense.safetensors"
    shutil.copy(checkpoint, dense)
    model = ["--model", "test_vit", "--checkpoint", dense]
    slim = ["slim", *model, "--data-dir", photographs, "--mac-reduction", "0.4"]
    for output in ("dense.json", "dense.safetensors", "a.safetensors"):
        line = fails(capsys, *slim, "--output", tmp_path / output)
        assert "is another file that this command reads or writes; choose another name" in line
    line = fails(capsys, "plan", *model, "--output", dense)
    assert "is another file that this command" in line
    assert dense.read_bytes() == checkpoint.read_bytes()


def test_a_damaged_checkpoint_for_a_schedule(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"1234567890")
    arguments = ("export", "--keep-schedule", planned, "--checkpoint", damaged)
    line = fails(capsys, *arguments, "--output", tmp_path / "a.onnx")
    assert f"{damaged}: not a readable checkpoint" in line


def folder_with(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20, 20)).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "no such folder"),
        ({"a": 2, "b": 0}, "no images in this class folder"),
    ],
    ids=["no folder", "an empty class"],
)
@pytest.mark.parametrize("verb", ["slim", "finetune", "verify"])
def test_bad_image_folders(
    planned: Path,
    checkpoint: Path,
    classes: dict[str, int],
    words: str,
    verb: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    data = folder_with(tmp_path / "data", classes)
    arguments = {
        "slim": ["--model", "test_vit", "--checkpoint", checkpoint, "--mac-reduction", "0.4"],
        "finetune": ["--keep-schedule", planned],
        "verify": ["--keep-schedule", planned, "--slim", planned.parent / "absent.onnx"],
    }[verb]
    name = {"slim": "file.json", "finetune": "file.safetensors"}.get(verb)
    output = [] if name is None else ["--output", tmp_path / "out" / name]
    line = fails(capsys, verb, *arguments, "--data-dir", data, *output)
    assert words in line
    assert not list(tmp_path.glob("out/*"))


def test_training_on_one_class(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_with(tmp_path / "data", {"only": 3})
    line = fails(capsys, "finetune", "--keep-schedule", planned, "--data-dir", data)
    assert "needs two class folders or more with images in; found only 'only'" in line


def test_no_image_at_all(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", "test_vit", "--checkpoint", checkpoint, "--mac-reduction", "0.4")
    line = fails(
        capsys, "slim", *arguments, "--data-dir", tmp_path, "--output", tmp_path / "sched.json"
    )
    assert "no images here, nor folders of images" in line


def test_a_corrupt_image(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_with(tmp_path / "data", {"a": 2, "b": 2})
    (data / "a" / "1.png").write_bytes(b"\x89PNG nonsense")
    arguments = ("--model", "test_vit", "--checkpoint", checkpoint, "--mac-reduction", "0.4")
    output = tmp_path / "out" / "sched.json"
    line = fails(capsys, "slim", *arguments, "--data-dir", data, "--output", output)
    assert f"{data / 'a' / '1.png'}: cannot be read as an image" in line
    assert not list(output.parent.iterdir())


def test_an_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "plan", "--model", "vit_tinny", "--output", tmp_path / "sched.json")
    assert "--model vit_tinny: timm has no model of that name; did you mean " in line
    line = fails(capsys, "plan", "--model", "resnet18", "--output", tmp_path / "sched.json")
    assert "is a ResNet, not a plain vision transformer" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["plan", "export", "slim", "finetune"])
def test_an_unwritable_output(
    planned: Path,
    checkpoint: Path,
    photographs: Path,
    verb: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (planned.parent / "file").write_text("")
    output = planned.parent / "file" / "deep" / "out"
    model = ["--model", "test_vit", "--checkpoint", checkpoint]
    arguments = {
        "plan": model,
        "export": model,
        "slim": [*model, "--mac-reduction", "0.4", "--data-dir", photographs],
        "finetune": ["--keep-schedule", planned, "--data-dir", photographs],
    }[verb]
    line = fails(capsys, verb, *arguments, "--output", output)
    assert f"{output}: cannot be written (Not a directory); choose another place for it" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "frobnicate"),
        (["plan"], "--model"),
        (["plan", "--model", "test_vit", "--mac-reduction", "lots"], "lots"),
        (["plan", "--model", "test_vit", "--colour", "red"], "--colour"),
        (["plan", "--model", "test_vit", "--mac-reduction", "1.5"], "--mac-reduction 1.5"),
        (["export"], "give --keep-schedule for the slim model, --onnx FILE"),
        (["profile", "--dense", "a", "--slim", "b", "--batch-size", "x"], "--batch-size x"),
        (["inspect", "model.pt"], "give a keep schedule"),
        (["plan", "--model", "test_vit", "--img-size", "8"], "has no patches at (8, 8) pixels"),
        (["plan", "--model", "vit_base_r50_s16_224"], "has no plain patch embedding"),
        (["plan", "--model", "vit_base_patch16_clip_384"], "crop_mode: 'squash' is not supported"),
        (
            ["plan", "--model", "test_vit", "--positions", "random", "--seed", "-1"],
            "for --seed. Must be >= 0",
        ),
    ],
)
def test_usage_errors(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, there = tmp_path / "absent.onnx", tmp_path / "there.onnx"
    there.touch()  # with no manifest either: what is absent is said first
    for models in ([absent], [there, "--dense", absent]):
        line = fails(capsys, "evaluate", *models, "--data-dir", photographs)
        assert f"{absent}: no such file" in line


def test_pretrained_weights_that_cannot_be_had_are_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = fails(
        capsys, "export", "--model", "vit_tiny_patch16_224", "--output", tmp_path / "a.onnx", code=3
    )
    assert "pretrained weights cannot be downloaded" in line
    assert "--checkpoint" in line


def test_no_error_has_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slimdeploy", "inspect", str(tmp_path / "absent.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
