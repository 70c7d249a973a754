"""A result and what lies beside it appear together or not at all: killed, or on a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy import files
from slimdeploy.graph.files.storage import save_model
from slimdeploy.manifest import verify_manifest
from tests.cli.faults import error_of, full_for
from tests.graph.exports import export
from tests.graph.text import model

PIXELS = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
MOST = 24
"""More renames than any of these commands makes."""

KILLED = """
import os, signal, sys
import onnxruntime
import slimdeploy.cli.{modules}
from slimdeploy.cli import main

def dying(folder, count):
    left = [count]
    def hook(event, words):
        if event == "os.rename" and os.fspath(words[1]).startswith(folder):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

for count in range(1, {most}):
    child = os.fork()
    if not child:
        folder = os.path.join({root!r}, str(count))
        os.mkdir(folder)
        sys.addaudithook(dying(folder, count))
        main([word.replace("FOLDER", folder) for word in {words!r}])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(status or 100 + count)
"""


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """`quantize` of a file of one product: three files."""
    path, images = tmp_path / "small.onnx", tmp_path / "images.npz"
    w = np.eye(4, dtype=np.float32)
    body = "h = MatMul(x, w) y = Tanh(h)"
    save_model(model("float[B,3,4,4] x => float[B,3,4,4] y", body, 20, w=w), path)
    np.savez(images, images=np.ones((2, 3, 4, 4), np.float32))
    return ["quantize", str(path), "--precision", "int8", "--least-rows", "1", "--also",
            "embedding", "--calibration", str(images), "--output", "FOLDER/q.onnx"]  # fmt: skip


@pytest.fixture
def dense(tmp_path: Path) -> str:
    onnx.save(export("plain", "script17", True), tmp_path / "dense.onnx")
    return str(tmp_path / "dense.onnx")


@pytest.fixture
def exported(dense: str) -> list[str]:
    return ["export", "--onnx", dense, "--lossless", "--output", "FOLDER/q.onnx"]


@pytest.fixture
def slimmed(dense: str, photographs: Path) -> list[str]:
    """`slim --onnx` into all the files that it writes."""
    return ["slim", "--onnx", dense, "--data-dir", str(photographs), "--mac-reduction", "0.3",
            *PIXELS, "--impact", "grid", "--images", "8", "--output", "FOLDER/q.onnx",
            "--output-schedule", "FOLDER/sched.json",
            "--output-checkpoint", "FOLDER/dense.onnx"]  # fmt: skip


FILES = {
    "small": {"q.onnx", "q.onnx.json", "q.ranges.json"},
    "exported": {"q.onnx", "q.onnx.json"},
    "slimmed": {"q.onnx", "q.onnx.json", "sched.json", "dense.onnx", "dense.onnx.json"},
}
MODULES = {"small": "quantize.run", "exported": "export.from_onnx", "slimmed": "slim.from_onnx"}


@pytest.mark.parametrize("command", FILES)
def test_killed_at_any_rename(command: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words, root = request.getfixturevalue(command), tmp_path / "runs"
    root.mkdir()
    code = KILLED.format(modules=MODULES[command], most=MOST, root=str(root), words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    finished = done.returncode - 100
    assert len(FILES[command]) < finished <= MOST, done.stderr
    for count in range(1, finished):
        shown, staged = found(root / str(count))
        assert "q.onnx" not in shown  # the result itself comes last
        assert not shown or shown | staged == FILES[command]  # all were written before the first
    assert found(root / str(finished)) == (FILES[command], set())
    verify_manifest(root / str(finished) / "q.onnx")


def found(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the files that are there, and of those that lie ready beside them."""
    staged = {path.name for path in folder.glob(".*.parts/*") if path.name[0] != "."}
    return {path.name for path in folder.iterdir() if path.name[0] != "."}, staged


def refused(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that leaves nothing, or only what it can go on from."""
    folder.mkdir()
    line = error_of([word.replace("FOLDER", str(folder)) for word in words], capsys)
    assert not [path for path in folder.iterdir() if path.suffix != ".work"]
    return line


CASES = [(command, name) for command, names in FILES.items() for name in sorted(names)
         if name.endswith(".json")]  # fmt: skip


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_disk_without_room_for_what_lies_beside(
    command: str, name: str, tmp_path: Path, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    full_for(name, monkeypatch)
    line = refused(request.getfixturevalue(command), tmp_path / "out", capsys)
    assert f"/{name}: cannot be written (No space left on device); make room there" in line


def test_a_disk_without_room_for_the_manifest_of_a_timm_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    full_for("q.onnx.json", monkeypatch)
    words = ["export", "--model", "test_vit", "--checkpoint", str(checkpoint), "--exporter",
             "torchscript", "--output", "FOLDER/q.onnx"]  # fmt: skip
    line = refused(words, tmp_path / "out", capsys)
    assert "q.onnx.json: cannot be written (No space left on device); make room there" in line


def test_a_disk_that_is_full_when_files_are_flushed(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    line = refused(small, tmp_path / "out", capsys)
    assert "cannot be written (No space left on device); make room there" in line


def test_no_room_for_temporary_files(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("slimdeploy.precision.observe.TemporaryDirectory", full)
    line = refused(small, tmp_path / "out", capsys)
    assert f"small.onnx: {tmp_path / 'x'}: No space left on device; make room there" in line
