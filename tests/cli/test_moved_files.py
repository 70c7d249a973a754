"""Files under other names, in other folders, and commands given elsewhere than the first one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.schedule import KeepSchedule
from tests.cli.classifiers import PIXELS, two_classes
from tests.cli.commands import error_line

SEARCH = ("--mac-reduction", "0.3", "--images", "8")


def ran(*words: object) -> None:
    main([str(word) for word in words])


def test_a_linked_checkpoint_keeps_the_name_that_tells_its_kind(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    """As in a download cache, where the file itself is called by its hash."""
    (tmp_path / "blobs").mkdir()
    shutil.copy(checkpoint, tmp_path / "blobs" / "0123abcd")
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "blobs" / "0123abcd")
    schedule = tmp_path / "sched.json"
    ran("plan", "--model", "test_vit", "--checkpoint", link, "--output", schedule)
    named = KeepSchedule.read(schedule).checkpoint
    assert named is not None
    assert named.path == "model.safetensors"
    ran("export", "--keep-schedule", schedule, "--output", tmp_path / "slim.onnx")


@pytest.fixture
def work(
    checkpoint: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A schedule and weights in `a/`, the slim file in `b/`, made from above them by such names."""
    monkeypatch.chdir(tmp_path)
    words = ["--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", photographs]
    Path("a").mkdir()
    ran("slim", *words, *SEARCH, "--output", "a/sched.json")
    ran("export", "--keep-schedule", "a/sched.json", "--output", "b/slim.onnx")
    return tmp_path


@pytest.mark.parametrize("moved", [False, True])
def test_verify_elsewhere_finds_the_weights(
    work: Path, photographs: Path, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moved:
        (work / "c").mkdir()
        shutil.move("a", "c/a")
        shutil.move("b", "c/b")
    monkeypatch.chdir(work / "c" if moved else work / "a")
    sched = "a/sched.json" if moved else "sched.json"
    slim = "b/slim.onnx" if moved else "../b/slim.onnx"
    data = ["--data-dir", photographs, "--images", 4]
    ran("verify", "--slim", slim, "--keep-schedule", sched, *data)


def test_verify_misses_weights_that_are_gone(
    work: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a/sched.safetensors").unlink()
    capsys.readouterr()
    words = ["--slim", "b/slim.onnx", "--keep-schedule", "a/sched.json", "--data-dir", photographs]
    line = error_line(capsys, 2, "verify", *words)
    assert "was made from a/sched.safetensors, which is gone or has changed" in line


def test_images_are_known_again_from_another_folder(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_classes(), "dense.onnx")
    train = photographs / "train"
    words = ["--onnx", "dense.onnx", "--data-dir", train, *SEARCH, *PIXELS]
    ran("slim", *words, "--output", "b/slim.onnx", "--output-schedule", "a/sched.json")
    monkeypatch.chdir(tmp_path / "b")
    capsys.readouterr()
    ran("evaluate", "slim.onnx", "--data-dir", train, "--json")
    assert json.loads(capsys.readouterr().out)["images_seen"] == 8


def test_the_refitted_dense_file_is_known_for_what_it_is(
    work: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remark where the dense file has other weights than the schedule's, and none where not."""
    for weights, remarked in (("a/sched.safetensors", False), (checkpoint, True)):
        ran("export", "--model", "test_vit", "--checkpoint", weights, "--output", "dense.onnx")
        capsys.readouterr()
        words = ["--onnx", "dense.onnx", "--keep-schedule", "a/sched.json"]
        ran("export", *words, "--output", "again.onnx", "--json")
        notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
        assert ("which dense.onnx is not known to have" in notes) == remarked


def test_finetune_does_not_replace_what_the_schedule_names(
    work: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("a/sched.safetensors").read_bytes()
    words = ["--keep-schedule", "a/sched.json", "--data-dir", photographs]
    capsys.readouterr()
    line = error_line(
        capsys, 2, "finetune", *words, "--initial-checkpoint", checkpoint,
        "--output", "a/sched.safetensors",
    )  # fmt: skip
    assert "a/sched.safetensors: is another file that this command reads or writes" in line
    assert Path("a/sched.safetensors").read_bytes() == before


def test_a_class_called_train_is_searched_with_the_others(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    data, sched = tmp_path / "vehicles", tmp_path / "sched.json"
    for name, there in (("bus", "dark"), ("train", "bright")):
        shutil.copytree(photographs / "train" / there, data / name)
    words = ["--model", "test_vit", "--checkpoint", checkpoint, "--data-dir", data]
    ran("slim", *words, *SEARCH[:2], "--reconstruct", "none", "--impact", "grid", "--output", sched)
    assert KeepSchedule.read(sched).provenance.images == 24


def test_without_a_refit_a_schedule_may_be_called_as_the_checkpoint_is(
    checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "dense.safetensors"
    shutil.copy(checkpoint, weights)
    words = ["--model", "test_vit", "--checkpoint", weights, "--data-dir", photographs]
    ran("slim", *words, *SEARCH, "--reconstruct", "none", "--output", tmp_path / "dense.json")
    assert weights.read_bytes() == checkpoint.read_bytes()
