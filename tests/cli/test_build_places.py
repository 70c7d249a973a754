"""Files that a build reads are never written over, nor is a file written twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimdeploy.manifest import write_manifest
from tests.cli.commands import ORT, RTX, error_line
from tests.cli.test_build_input import with_external, written_schedule
from tests.graph.vit_text import TOKENS

TRT = ("--backend", "tensorrt")

COLLISIONS: list[tuple[tuple[str, ...], str]] = [
    ((*RTX, "--layers", "w.bin", "--output", "m.plan"), "w.bin"),
    ((*ORT, "--output", "w.onnx"), "w.onnx.data"),
    ((*RTX, "--layers", "m.onnx.json", "--output", "m.plan"), "m.onnx.json"),
    ((*RTX, "--keep-schedule", "s.plan.json", "--output", "s.plan"), "s.plan.json"),
    ((*RTX, "--keep-schedule", "s.json", "--layers", "s.json", "--output", "m.plan"), "s.json"),
    ((*RTX, "--layers", "p.plan.json", "--output", "p.plan"), "p.plan.json"),
    ((*RTX, "--layers", "sub/../p.plan", "--output", "p.plan"), "p.plan"),
    ((*TRT, "--timing-cache", "m.onnx", "--output", "m.plan"), "m.onnx"),
    ((*TRT, "--timing-cache", "w.bin", "--output", "m.plan"), "w.bin"),
    ((*TRT, "--timing-cache", "m.plan", "--output", "m.plan"), "m.plan"),
    (
        (*TRT, "--timing-cache", "t", "--layers", "t.sha256", "--output", "m.plan"),
        "t.sha256",
    ),
    (
        (*TRT, "--timing-cache", "s.json", "--keep-schedule", "s.json", "--output", "m.plan"),
        "s.json",
    ),
]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["built", "dry"])
@pytest.mark.parametrize(
    ("options", "name"), COLLISIONS, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_a_file_that_is_read_is_not_written(
    folder: Path,
    options: tuple[str, ...],
    name: str,
    dry: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    location = "w.onnx.data" if name == "w.onnx.data" else "w.bin"
    model = with_external(folder, location)
    write_manifest(model, kind="slim-onnx", made_from={}, command=())
    for path in ("s.json", "s.plan.json"):
        written_schedule(folder / path, [list(range(TOKENS))] * 2)
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    line = error_line(capsys, 2, "build", "m.onnx", *options, *dry)
    assert f"{name}: is another file that this command reads or writes; choose another" in line
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


UNUSED: list[tuple[tuple[str, ...], str]] = [
    ((*ORT, "--optimization-level", "5"), "--optimization-level: is for the TensorRT backends"),
    ((*ORT, "--timing-cache", "t"), "--timing-cache: is for --backend tensorrt, not onnxruntime"),
    ((*RTX, "--timing-cache", "t"), "--timing-cache: is for --backend tensorrt, not tensorrt-rtx"),
    ((*ORT, "--cache-dir", "c"), "--cache-dir: is for the TensorRT backends, not onnxruntime"),
    ((*ORT, "--layers", "l.json"), "--layers: is for the TensorRT backends, not onnxruntime"),
]


@pytest.mark.parametrize(("options", "words"), UNUSED, ids=lambda v: " ".join(v[1:3]))
def test_an_option_without_effect_is_refused(
    good: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = good.parent / ("n.onnx" if options[:2] == ORT else "m.plan")
    assert words in error_line(capsys, 2, "build", good, *options, "--output", output)
