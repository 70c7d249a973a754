"""Bad models, options and schedules: one line, its exit code, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from slimdeploy.manifest import write_manifest
from tests.cli.commands import ORT, RTX, error_line, left, saved
from tests.conftest import schedule
from tests.graph.text import model as text_model
from tests.graph.vit_text import TOKENS, vit


def absent(folder: Path) -> Path:
    return folder / "m.onnx"


def a_folder(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


def written(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(content)
        return folder / "m.onnx"

    return make


def with_external(folder: Path, location: str = "w.bin") -> Path:
    path = folder / "m.onnx"
    onnx.save(vit(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def external_missing(folder: Path) -> Path:
    path = with_external(folder)
    (folder / "w.bin").unlink()
    return path


def external_truncated(folder: Path) -> Path:
    path = with_external(folder)
    data = folder / "w.bin"
    data.write_bytes(data.read_bytes()[:40])
    return path


def external_outside(folder: Path) -> Path:
    path = with_external(folder)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    return saved(model, path)


def with_nan(folder: Path, dtype: type = np.float32, external: bool = False) -> Path:
    model = vit()
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "wq0":
            values = onnx.numpy_helper.to_array(tensor).astype(dtype)
            values[1, 2] = np.nan
            model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, "wq0"))
    path = folder / "m.onnx"
    if external:
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        return path
    return saved(model, path)


def nan_in_half(folder: Path) -> Path:
    return with_nan(folder, np.float16)


def nan_outside(folder: Path) -> Path:
    return with_nan(folder, external=True)


def varying_image(folder: Path) -> Path:
    body = "y = ReduceMean<keepdims=0>(x, axes)"
    return saved(
        text_model("float[B,3,H,W] x => float[B,3] y", body, axes=[2, 3]), folder / "m.onnx"
    )


def wrong_hash(folder: Path) -> Path:
    path = saved(vit(), folder / "m.onnx")
    write_manifest(path, kind="slim-onnx", made_from={}, command=())
    return saved(vit(seed=1), path)


def damaged_manifest(folder: Path) -> Path:
    path = saved(vit(), folder / "m.onnx")
    (folder / "m.onnx.json").write_text('{"format": 1')
    return path


MODELS: list[tuple[Callable[[Path], Path], int, str]] = [
    (absent, 2, "m.onnx: no such file; give the path of an .onnx file"),
    (a_folder, 2, "m.onnx: is a folder; give the path of an .onnx file"),
    (written(b""), 2, "m.onnx: not a complete ONNX model"),
    (written(b"hello, not a model"), 2, "m.onnx: not a complete ONNX model"),
    (written(vit().SerializeToString()[:-20]), 2, "m.onnx: not a complete ONNX model"),
    (external_missing, 2, "lies in 'w.bin', which is not beside the model; copy it there"),
    (external_truncated, 2, "the file is truncated or another model's; copy it again"),
    (external_outside, 2, "only files inside the model's folder are read"),
    (with_nan, 2, "m.onnx: weight 'wq0' holds NaN (1 values)"),
    (nan_in_half, 2, "m.onnx: weight 'wq0' holds NaN (1 values)"),
    (nan_outside, 2, "m.onnx: weight 'wq0' holds NaN (1 values)"),
    (varying_image, 2, "only its first axis, the batch, may vary; export it with a fixed image"),
    (wrong_hash, 1, "m.onnx: is not the file its manifest describes (sha256"),
    (damaged_manifest, 2, "m.onnx.json: "),
]


@pytest.mark.parametrize(
    ("make", "code", "words"), MODELS, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_bad_model(
    folder: Path,
    make: Callable[[Path], Path],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make(folder)
    before = left(folder)
    line = error_line(capsys, code, "build", model, *RTX, "--output", folder / "m.plan")
    assert words in line
    assert left(folder) == before


OPTIONS: list[tuple[tuple[str, ...], str]] = [
    (("--backend", "tflite"), "tflite"),
    ((*ORT, "--provider", "rocm", "--output", "m2.onnx"), "rocm"),
    ((*RTX, "--compute-capability", "ampere"), "expected major.minor, as 8.6"),
    ((*RTX, "--compute-capability", "8.6,86"), "--compute-capability 86: expected major.minor"),
    ((*RTX, "--compute-capability", "8.7"), "TensorRT-RTX compiles for 7.5, 8.0, 8.6"),
    (("--backend", "tensorrt", "--compute-capability", "8.6"), "is for --backend tensorrt-rtx"),
    ((*RTX, "--min-batch", "4", "--opt-batch", "2"), "must be 1 <= --min-batch <= --opt-batch"),
    ((*RTX, "--opt-batch", "9", "--max-batch", "8"), "batch profile 1, 9, 8: must be 1 <="),
    ((*RTX, "--min-batch", "0"), "batch profile 0, 8, 8"),
    ((*RTX, "--max-batch", "-1"), "batch profile 1, -1, -1"),
    ((*ORT, "--max-batch", "4", "--output", "m2.onnx"), "--max-batch: are for TensorRT alone"),
    ((*RTX, "--workspace-gb", "0"), "--workspace-gb 0.0: must be more than 0"),
    ((*RTX, "--workspace-gb", "nan"), "--workspace-gb nan: must be more than 0"),
    ((*ORT, "--workspace-gb", "1", "--output", "m2.onnx"), "is for the TensorRT backends"),
    ((*RTX, "--optimization-level", "9"), "must be 0 (quick) to 5 (thorough)"),
    ((*RTX, "--version-compatible"), "--version-compatible: is for --backend tensorrt, not"),
    ((*RTX, "--hardware-compatible", "ampere-plus"), "is for --backend tensorrt, not"),
    (("--backend", "tensorrt", "--provider", "cuda"), "is for --backend onnxruntime"),
    ((*RTX, "--output", "m2.onnx"), "writes .plan or .engine or .trt files"),
    ((*ORT, "--output", "m2.plan"), "writes .onnx files"),
    ((*ORT, "--output", "m.onnx"), "m.onnx: is another file that this command"),
    ((*RTX, "--output", "."), "writes .plan or .engine or .trt files"),
    ((*RTX, "--output", "m.onnx/x.plan"), "m.onnx/x.plan: cannot be written ("),
    ((*RTX, "--output", "/sys/x.plan"), "/sys/x.plan: cannot be written ("),
    ((*RTX, "--layers", "m.onnx"), "m.onnx: is another file that this command"),
    ((*RTX, "--keep-schedule", "absent.json"), "absent.json"),
]


@pytest.mark.parametrize(
    ("options", "words"), OPTIONS, ids=lambda v: "-" if isinstance(v, str) else " ".join(v)
)
def test_bad_options(
    good: Path,
    options: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(good.parent)
    output = () if "--output" in options else ("--output", "m.plan")
    line = error_line(capsys, 2, "build", "m.onnx", *options, *output)
    assert words in line
    assert left(good.parent) == {"m.onnx"}


def test_batches_for_a_fixed_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vit()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    path = saved(model, folder / "m.onnx")
    line = error_line(
        capsys, 2, "build", path, *RTX, "--max-batch", 4, "--output", folder / "m.plan"
    )
    assert "its batch size is fixed at 2; leave out --min-batch" in line


def written_schedule(path: Path, keep: list[list[int]]) -> Path:
    made = schedule(keep, depth=len(keep))
    path.write_text(made.model_dump_json())
    return path


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["built", "dry"])
@pytest.mark.parametrize(
    ("keep", "code", "words"),
    [
        ([[0, 1, 2], [0], [0], [0]], 2, "is for a model of 4 blocks, "),
        ([[0, 1, 2], [0]], 1, f"block 1 computes {TOKENS} tokens, "),
    ],
    ids=["another depth", "other counts"],
)
def test_a_schedule_of_another_model(
    good: Path,
    keep: list[list[int]],
    code: int,
    words: str,
    dry: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    path = written_schedule(good.parent / "sched.json", keep)
    arguments = (*dry, "--keep-schedule", path, "--output", good.parent / "m.plan")
    line = error_line(capsys, code, "build", good, *RTX, *arguments)
    assert words in line
    assert left(good.parent) == {"m.onnx", "sched.json"}


def test_a_schedule_for_a_model_without_blocks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(text_model("float[B,4] x => float[B,4] y", "y = Tanh(x)"), folder / "m.onnx")
    path = written_schedule(folder / "sched.json", [[0], [0]])
    arguments = ("--keep-schedule", path, "--output", folder / "fast.onnx")
    line = error_line(capsys, 1, "build", model, *ORT, *arguments)
    assert f"its tokens cannot be compared with {path}; nothing was written: give" in line
    assert left(folder) == {"m.onnx", "sched.json"}


def test_strict_of_a_backend_that_tells_no_kernels(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--strict", "--output", good.parent / "fast.onnx")
    line = error_line(capsys, 1, "build", good, *ORT, *arguments)
    assert "fast.onnx: the build told no kernels, so the linters had nothing to look at" in line
    assert left(good.parent) == {"m.onnx"}


def test_a_truncated_schedule(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written_schedule(good.parent / "sched.json", [[0], [0]])
    path.write_text(path.read_text()[:100])
    arguments = ("--keep-schedule", path, "--output", good.parent / "m.plan")
    line = error_line(capsys, 2, "build", good, *RTX, *arguments)
    assert "sched.json: not valid JSON" in line
