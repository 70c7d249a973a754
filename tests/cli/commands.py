"""What the tests of `build` share: how a command that fails is run and read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.preprocessing import Preprocessing

RTX = ("--backend", "tensorrt-rtx")
ORT = ("--backend", "onnxruntime")
ROOT = Path(__file__).parent.parent.parent
PIXELS = Preprocessing(
    input_size=(3, 64, 64),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
    crop_pct=1.0,
    crop_mode="center",
)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def error_line(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that a failing command leaves on stderr; stdout stays empty."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert caught.value.code == code, shown.err
    return checked_line(shown.out, shown.err)


def checked_line(out: str, err: str) -> str:
    lines = [line for line in err.splitlines() if line]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("slimdeploy: error: ")
    return lines[0]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(
    folder: Path,
    *arguments: object,
    path: Path | None = None,
    stdout: IO[str] | int = subprocess.PIPE,
    stderr: IO[str] | int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """The command in a process of its own, whose modules in `path` hide the installed ones."""
    words = [sys.executable, "-m", "slimdeploy", *(str(a) for a in arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path or ROOT, ROOT)))}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=stdout,
        stderr=stderr,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return checked_line(out, err)
