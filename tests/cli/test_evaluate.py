"""`slimdeploy evaluate`: what it tells of one file, of two, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from tests.cli.classifiers import PIXELS, two_classes
from tests.cli.test_bad_input import fails


@pytest.fixture
def pair(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Path]:
    """A dense ViT of 17 tokens and 3 blocks with as many outputs as classes, and a slim one."""
    dense, slim = tmp_path / "dense.onnx", tmp_path / "slim.onnx"
    onnx.save(two_classes(), dense)
    plan = ["plan", "--onnx", dense, "--mac-reduction", "0.3", *PIXELS]
    main([str(word) for word in [*plan, "--output", tmp_path / "sched.json"]])
    main(["export", "--keep-schedule", str(tmp_path / "sched.json"), "--output", str(slim)])
    capsys.readouterr()
    return dense, slim


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    main(["evaluate", *(str(a) for a in arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_calibration_and_divergence_beside_accuracy(
    pair: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim = pair
    saved = dense.with_name("logits.npz")
    words = [slim, "--dense", dense, "--data-dir", photographs]
    found = evaluated(capsys, *words, "--predictions", saved)
    for side in ("dense", "slim"):
        errors = found[side]["calibration_errors"]
        assert set(errors) == {"equal-width", "equal-mass"}
        assert all(error["bins"] == 15 and 0 <= error["value"] <= 1 for error in errors.values())
    told = found["comparison"]
    assert told["kl_interval"]["low"] <= told["kl_divergence"] <= told["kl_interval"]["high"]
    assert told["kl_divergence"] > 0
    with np.load(saved) as held:
        right = held["logits"].argmax(1) == held["labels"]
        assert float(right.mean()) == found["slim"]["top1"]
        gain = right.mean() - (held["dense_logits"].argmax(1) == held["labels"]).mean()
        assert float(gain) == pytest.approx(told["difference"])
    alone = evaluated(capsys, slim, "--data-dir", photographs)
    assert alone["calibration_errors"] == found["slim"]["calibration_errors"]


def test_predictions_replace_nothing_that_is_read(
    pair: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim = pair
    words = ["evaluate", slim, "--dense", dense, "--data-dir", photographs, "--predictions"]
    before = {path: path.read_bytes() for path in dense.parent.iterdir()}
    assert "name a file that ends in .npz or .csv" in fails(capsys, *words, slim)
    folder = dense.with_name("folder.csv")
    folder.mkdir()
    assert "is a folder" in fails(capsys, *words, folder)
    assert {p: p.read_bytes() for p in dense.parent.iterdir() if p.is_file()} == before


def test_the_gate_needs_a_dense_model_and_lets_the_allowed_drop_pass(
    pair: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim = pair
    words = [slim, "--data-dir", photographs]
    line = fails(capsys, "evaluate", *words, "--max-top1-drop", "0.5")
    assert "--max-top1-drop: give --dense, the model it is measured against" in line
    told = evaluated(capsys, *words, "--dense", dense)["comparison"]
    lost = 100 * -told["difference"]
    evaluated(capsys, *words, "--dense", dense, "--max-top1-drop", lost)
    with pytest.raises(SystemExit) as caught:
        evaluated(capsys, *words, "--dense", dense, "--max-top1-drop", lost - 0.01)
    assert caught.value.code == 1
    assert "points below" in capsys.readouterr().err


def test_images_that_the_search_saw_are_counted_and_told(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged on the folder it was searched on, on another, and through a file built from it."""
    dense, slim, built = (tmp_path / f"{name}.onnx" for name in ("dense", "slim", "built"))
    onnx.save(two_classes(), dense)
    train, schedule = photographs / "train", tmp_path / "slim.json"
    words = ["--onnx", dense, "--data-dir", train, "--mac-reduction", "0.3", "--images", 8]
    main(["slim", *map(str, words), *PIXELS, "--output", str(slim)])
    main(["build", str(slim), "--backend", "onnxruntime", "--output", str(built)])
    capsys.readouterr()
    for artifact in (slim, built):
        main(["evaluate", str(artifact), "--data-dir", str(train), "--json"])
        told = capsys.readouterr()
        assert json.loads(told.out)["images_seen"] == 8
        assert f"{schedule} was searched on 8 of these 24 images" in " ".join(told.err.split())
    main(["evaluate", str(slim), "--data-dir", str(photographs), "--json"])
    told = capsys.readouterr()
    assert (json.loads(told.out)["images_seen"], told.err.count("searched on")) == (0, 0)


def test_of_a_schedule_that_is_gone_or_another_nothing_is_told(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim, schedule = (tmp_path / name for name in ("dense.onnx", "slim.onnx", "slim.json"))
    onnx.save(two_classes(), dense)
    train = photographs / "train"
    words = ["--onnx", dense, "--data-dir", train, "--mac-reduction", "0.3", "--images", 8]
    main(["slim", *map(str, words), *PIXELS, "--output", str(slim)])
    capsys.readouterr()
    schedule.write_text(schedule.read_text().replace('"seed": 0', '"seed": 1'))
    assert evaluated(capsys, slim, "--data-dir", train)["images_seen"] is None
    schedule.unlink()
    assert evaluated(capsys, slim, "--data-dir", train)["images_seen"] is None


def test_a_rank_without_images_and_without_a_refit_has_seen_none(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim, train = tmp_path / "dense.onnx", tmp_path / "slim.onnx", photographs / "train"
    onnx.save(two_classes(), dense)
    words = ["--onnx", dense, "--data-dir", train, "--mac-reduction", "0.3", "--images", 8]
    words += ["--impact", "grid", "--reconstruct", "none", "--output", slim]
    main(["slim", *map(str, words), *PIXELS])
    capsys.readouterr()
    assert evaluated(capsys, slim, "--data-dir", train)["images_seen"] == 0


@pytest.mark.parametrize("name", ["slim.safetensors", "sched.json"])
def test_what_is_no_model_file_is_said_to_be_none(
    name: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("{}")
    line = fails(capsys, "evaluate", tmp_path / name, "--data-dir", photographs)
    assert f"{name}: not an .onnx or a .plan file; `export` writes one" in line
