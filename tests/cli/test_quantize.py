"""`quantize`: what it writes, what works on it afterwards, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.cli import main
from slimdeploy.graph.files.storage import save_model
from slimdeploy.manifest import verify_manifest
from slimdeploy.precision.ranges import Ranges
from tests.graph.exports import export
from tests.graph.text import model

HALF = ["0.5", "0.5", "0.5"]
PIXELS = ["--mean", *HALF, "--std", *HALF]
SQUARE = np.eye(4, dtype=np.float32)
OF_C = ["--calibration", "c", "--precision"]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(export("plain", "dynamo20", True), path)
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).standard_normal((6, 3, 64, 64)).astype(np.float32)
    np.savez(path, images=images)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of one product, for faults that need no transformer."""
    return saved(tmp_path, "h = MatMul(x, w) y = Tanh(h)", w=SQUARE)


def saved(folder: Path, body: str, opset: int = 20, **constants: Any) -> Path:
    path = folder / "small.onnx"
    save_model(model("float[B,3,4,4] x => float[B,3,4,4] y", body, opset, **constants), path)
    return path


def images_of(folder: Path, array: Any, name: str = "few.npz") -> Path:
    np.savez(folder / name, images=np.asarray(array))
    return folder / name


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    main([*(str(word) for word in words), "--json"])
    return dict(json.loads(capsys.readouterr().out))


def fails(capsys: pytest.CaptureFixture[str], *words: object, code: int = 2) -> str:
    before = {path for path in Path(str(words[1])).parent.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (code, ""), shown.err
    lines = [line for line in shown.err.splitlines() if "error" in line]
    assert len(lines) == 1, shown.err
    assert {path for path in Path(str(words[1])).parent.iterdir() if path.is_file()} == before
    return lines[0]


# 3 blocks of 6 products (queries, keys and values are one), the patch embedding and the head.
@pytest.mark.parametrize(
    ("precision", "stored", "products"),
    [
        ("fp16", "float16", {"float16": 20}),
        ("bf16", "bfloat16", {"bfloat16": 19, "float32": 1}),
        ("int8", "int8", {"int8": 12, "float16": 8}),
        ("fp8", "float8e4m3fn", {"fp8": 12, "float16": 8}),
    ],
)
def test_a_file_in_each_precision_and_what_works_on_it(
    precision: str, stored: str, products: dict[str, int], dense: Path, calibration: Path,
    photographs: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = dense.with_name("q.onnx")
    made = run(capsys, "quantize", dense, "--precision", precision, "--calibration", calibration,
               "--max-logit-error", "0.5", *PIXELS, "--output", out)  # fmt: skip
    manifest = verify_manifest(out)
    assert stored in manifest.precision
    assert manifest.kind == f"onnx-{precision}"
    assert manifest.made_from["float32"].path == str(dense)
    assert ("ranges" in manifest.made_from) == (precision in ("int8", "fp8"))
    assert 0 < made["parity"]["relative"] < 0.5
    assert (out.stat().st_size < 0.62 * dense.stat().st_size) or precision == "bf16"
    found = run(capsys, "inspect", out)
    assert len(found["blocks"]) == 3
    assert found["precision"]["products"] == products
    timed = run(capsys, "profile", "--dense", dense, "--slim", out, "--rounds", "2",
                "--batch-size", "1")  # fmt: skip
    emulated = timed["protocol"]["slim"]["provider"].partition(", ")[2]
    assert emulated == {"bf16": "bfloat16 emulated", "fp8": "float8 emulated"}.get(precision, "")


def test_int8_for_the_cpu_says_what_its_sessions_need(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(small.parent, np.ones((2, 3, 4, 4), np.float32))
    words = ["--precision", "int8", "--also", "embedding", "--least-rows", "1"]
    words += ["--calibration", str(images), "--output", str(small.with_name("q.onnx"))]
    made = run(capsys, "quantize", small, *words, "--rest", "fp32")
    assert len(made["notes"]) == 1
    assert "session.x64quantprecision is 1" in made["notes"][0]
    assert run(capsys, "quantize", small, *words)["notes"] == []


def test_verify_says_that_eight_bits_round(
    dense: Path, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dense.with_name("q.onnx")
    run(capsys, "quantize", dense, "--precision", "int8", "--calibration", calibration,
        *PIXELS, "--output", out)  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--dense", str(dense), "--slim", str(out), "--tolerance", "1e-5"])
    assert caught.value.code == 1
    assert "Prove the float32 file that it was made from" in capsys.readouterr().out


def test_ranges_are_kept_and_used_again(
    dense: Path, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = dense.with_name("a.onnx"), dense.with_name("b.onnx")
    words = ["quantize", dense, "--precision", "int8", "--rest", "fp32"]
    run(capsys, *words, "--calibration", calibration, "--output", first)
    path = first.with_suffix(".ranges.json")
    ranges = Ranges.read(path)
    assert ranges.images.count == 6
    assert ranges.model.name == "dense.onnx"
    again = run(capsys, *words, "--ranges", path, "--output", second)
    assert again["parity"] is None  # there was only noise, which the ranges are not for
    assert first.read_bytes() == second.read_bytes()
    assert not second.with_suffix(".ranges.json").exists()


def test_accuracy_gate(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that names a class by brightness; the gate reads the label folders."""
    body = "m = ReduceMean<keepdims=0>(x, axes) h = MatMul(m, w) y = Add(h, b)"
    path = tmp_path / "bright.onnx"
    weights = {"w": np.array([[9, -9]] * 3, np.float32), "b": np.array([1, -1], np.float32)}
    save_model(model("float[B,3,64,64] x => float[B,2] y", body, 20, axes=[2, 3], **weights), path)
    words = ["quantize", path, "--precision", "fp16", "--data-dir", photographs, *PIXELS]
    out = tmp_path / "q.onnx"
    made = run(capsys, *words, "--max-top1-drop", "0.1", "--output", out)
    assert made["accuracy"]["comparison"]["agreement"] == 1
    line = fails(capsys, *words, "--max-top1-drop", "-1", "--output", tmp_path / "r.onnx", code=1)
    assert "top-1 is -0.00 points below" in line or "top-1 is 0.00 points below" in line


def test_logit_gate(dense: Path, calibration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", dense, "--precision", "int8", "--rest", "fp32", "--calibration"]
    line = fails(capsys, *words, calibration, "--max-logit-error", "1e-5", "--output",
                 dense.with_name("q.onnx"), code=1)  # fmt: skip
    assert "outputs differ by" in line
    assert "allowed 0.00%" in line


def test_ranges_of_another_graph(
    dense: Path, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dense.with_name("q.onnx")
    run(capsys, "quantize", dense, "--precision", "int8", "--calibration", calibration,
        "--output", out)  # fmt: skip
    ranges = out.with_suffix(".ranges.json")
    other = dense.with_name("other.onnx")
    changed = onnx.load(dense)
    changed.doc_string = "another"
    onnx.save(changed, other)
    words = ["quantize", other, "--precision", "int8", "--output", dense.with_name("r.onnx")]
    line = fails(capsys, *words, "--ranges", ranges)
    assert "model.sha256: holds the ranges of another file (dense.onnx" in line
    for text in (ranges.read_text()[:500], "[]"):
        ranges.write_text(text)
        line = fails(capsys, *words, "--ranges", ranges)
        assert "not a ranges file" in line
        assert line.endswith("; collect the ranges anew with --calibration")
    line = fails(capsys, *words, "--ranges", ranges.with_name("gone.json"))
    assert "gone.json: cannot be read (No such file or directory); check the path" in line


def test_weights_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = SQUARE.copy()
    spoilt[1, 1] = np.nan
    path = saved(tmp_path, "h = MatMul(x, weight) y = Tanh(h)", weight=spoilt)
    line = fails(capsys, "quantize", path, "--precision", "fp16", "--output", tmp_path / "q.onnx")
    assert "small.onnx: tensor 'weight' holds NaN or infinity" in line


def test_activations_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, "h = Log(x) k = MatMul(h, w) y = Tanh(k)", w=SQUARE)
    images = images_of(tmp_path, -np.ones((2, 3, 4, 4), np.float32))
    words = ["quantize", path, "--calibration", images, "--output", tmp_path / "q.onnx"]
    for precision in ("int8", "fp16"):
        line = fails(capsys, *words, "--precision", precision, code=1)
        assert "tensor 'h', which node '' (Log) computes, holds NaN or infinity" in line


def test_overflow_is_named_and_may_be_kept_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "h = MatMul(x, w) k = Mul(h, large) l = Mul(k, small) y = Tanh(l)"
    numbers = {"large": np.float32(6e4), "small": np.float32(1e-4)}
    path = saved(tmp_path, body, w=SQUARE, **numbers)
    images = images_of(tmp_path, 2 * np.ones((2, 3, 4, 4), np.float32))
    out = tmp_path / "q.onnx"
    words = ["quantize", path, "--precision", "fp16", "--calibration", images, "--output", out]
    line = fails(capsys, *words, code=1)
    assert "tensor 'k' of node 'k' (Mul) reaches 1.2e+05, beyond float16's 65504" in line
    assert "--keep-float32 overflow" in line
    made = run(capsys, *words, "--keep-float32", "overflow")
    assert made["overflow"]["kept_in_float32"] == ["k"]
    assert made["parity"]["relative"] < 1e-3


def test_a_file_that_is_quantised_already(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = images_of(small.parent, np.ones((2, 3, 4, 4), np.float32))
    for precision, sign in (("fp16", "float16"), ("int8", "QuantizeLinear")):
        out = small.with_name(f"{precision}.onnx")
        words = ["--calibration", images, "--least-rows", "1", "--also", "embedding"]
        more = words if precision == "int8" else words[:2]
        run(capsys, "quantize", small, "--precision", precision, *more, "--output", out)
        line = fails(capsys, "quantize", out, "--precision", "bf16", "--output",
                     small.with_name("r.onnx"))  # fmt: skip
        assert "is not float32 any more" in line
        assert sign in line


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 3, 5, 5), np.float32), "is float32[2, 3, 5, 5]; the model needs floats"),
        (np.ones((2, 3, 4, 4), np.uint8), "is uint8[2, 3, 4, 4]"),
        (np.ones((0, 3, 4, 4), np.float32), "is float32[0, 3, 4, 4]"),
        (np.full((2, 3, 4, 4), np.nan, np.float32), "holds NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit(
    small: Path, array: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(small.parent, array)
    line = fails(capsys, "quantize", small, "--precision", "int8", "--calibration", images,
                 "--output", small.with_name("q.onnx"))  # fmt: skip
    assert "few.npz: 'images' " in line
    assert words in line


def test_calibration_that_cannot_be_read(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small.with_name("q.onnx")
    words = ["quantize", small, "--precision", "int8", "--output", out, "--calibration"]
    broken = images_of(tmp_path, np.ones((2, 3, 4, 4), np.float32))
    broken.write_bytes(broken.read_bytes()[:90])
    line = fails(capsys, *words, broken)
    assert "not a readable .npz file" in line
    assert line.endswith("; write it again with numpy.savez")
    np.savez(broken, a=np.ones(2), b=np.ones(2))
    assert "must hold one array" in fails(capsys, *words, broken)
    (tmp_path / "empty").mkdir()
    assert "records no preprocessing" in fails(capsys, *words, tmp_path / "empty")
    assert "empty: no images here" in fails(capsys, *words, tmp_path / "empty", *PIXELS)
    assert "is neither an .npz file nor a folder" in fails(capsys, *words, tmp_path / "gone")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int4"], "int4"),
        (["--precision", "int8"], "give --calibration"),
        (["--precision", "int8", "--rest", "int8"], "int8"),
        (["--precision", "fp16", "--also", "head"], "--also and --leave go with int8 and fp8"),
        (["--precision", "fp16", "--max-top1-drop", "1"], "--data-dir"),
        (["--precision", "fp16", "--output", "q.plan"], "name an .onnx file"),
        (["--precision", "int8", "--ranges", "r", "--calibration", "c"], "give one of them"),
        (["--precision", "int8", "--ranges", "r", "--max-logit-error", "1"], "is judged on"),
        (["--precision", "fp16", "--ranges", "r"], "--ranges goes with int8 and fp8"),
        (["--precision", "fp16", "--rest", "bf16"], "--rest: goes with int8 and fp8, not fp16"),
        (["--precision", "bf16", "--output-ranges", "r"], "--output-ranges: goes with int8 and"),
        (["--precision", "int8", "--percentile", "99"], "--percentile: goes with --method perc"),
        (["--precision", "int8", "--calibration", "c", "--smooth", "2"], "between 0 and 1"),
        ([*OF_C, "int8", "--method", "percentile", "--percentile", "200"], "at most 100"),
        ([*OF_C, "int8", "--method", "percentile", "--percentile", "nan"], "at most 100"),
        ([*OF_C, "fp8", "--method", "entropy"], "which fp8 has not: use minmax"),
        ([*OF_C, "int8", "--rest", "fp32", "--keep-float32", "y"], "with --rest fp32 nothing is"),
        (["--precision", "bf16", "--keep-float32", "overflow"], "overflow: goes with fp16; bf16"),
        ([*OF_C, "int8", "--rest", "bf16", "--keep-float32", "overflow"], "goes with fp16; bf16"),
        (["--precision", "fp16", "--images", "5"], "--images: goes with a folder of images for"),
        (["--precision", "fp16", "--split", "nope"], "--split: goes with a folder of images for"),
        (["--precision", "int8", "--ranges", "r", "--seed", "1"], "--seed: goes with a folder of"),
        (
            ["--precision", "int8", "--calibration", "c.npz", "--images", "5"],
            "c.npz is taken whole",
        ),
        (["--precision", "fp16", "--data-split", "test"], "--data-split: give the labelled images"),
        (
            ["--precision", "fp16", "--keep-float32", "nobody"],
            "neither a node nor an output of one",
        ),
    ],
)
def test_flags_that_make_no_sense(
    small: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(small.parent)
    assert message in fails(capsys, "quantize", small, *words)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("attention", "opset 23's Attention operators stay whole; leave it out"),
        ("head", "no product with stored weights is behind the blocks"),
    ],
)
def test_parts_without_a_product(
    part: str, why: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(small.parent, np.ones((2, 3, 4, 4), np.float32))
    line = fails(capsys, "quantize", small, "--precision", "int8", "--calibration", images,
                 "--also", part, "--output", small.with_name("q.onnx"))  # fmt: skip
    assert f"--also {part}: " in line
    assert why in line


def test_ranges_by_entropy_are_not_for_fp8(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = images_of(small.parent, np.ones((2, 3, 4, 4), np.float32))
    words = ["--also", "embedding", "--least-rows", "1", "--output", small.with_name("q.onnx")]
    run(capsys, "quantize", small, "--precision", "int8", "--method", "entropy",
        "--calibration", images, *words)  # fmt: skip
    ranges = small.with_name("q.ranges.json")
    line = fails(capsys, "quantize", small, "--precision", "fp8", "--ranges", ranges, *words)
    assert "q.ranges.json: method: entropy weighs the even steps of int8" in line


def test_outputs_that_must_not_or_cannot_be_written(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", small, "--precision", "fp16", "--output"]
    assert "is another file that this command" in fails(capsys, *words, small)
    (small.parent / "file").write_text("")
    assert "cannot be written" in fails(capsys, *words, small.parent / "file" / "q.onnx")
    (small.parent / "folder.onnx").mkdir()
    assert "is a folder" in fails(capsys, *words, small.parent / "folder.onnx")


@pytest.mark.parametrize(
    ("precision", "opset", "remedy"),
    [
        ("fp8", 18, "needs 19: export with --opset 20"),
        ("int8", 17, "export with --opset 20, or take --rest fp32"),
        ("bf16", 11, "opset 11 is too old for bf16, which needs 13"),
    ],
)
def test_opsets_that_are_too_old(
    precision: str, opset: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, "h = MatMul(x, w) y = Tanh(h)", opset, w=SQUARE)
    images = images_of(tmp_path, np.ones((2, 3, 4, 4), np.float32))
    line = fails(capsys, "quantize", path, "--precision", precision, "--calibration", images,
                 "--output", tmp_path / "q.onnx")  # fmt: skip
    assert remedy in line


def test_a_manifest_of_another_file(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small.with_name("q.onnx")
    run(capsys, "quantize", small, "--precision", "fp16", "--output", out)
    record = out.with_name("q.onnx.json")
    record.rename(small.with_name("small.onnx.json"))
    line = fails(capsys, "quantize", small, "--precision", "fp16", "--output", out, code=1)
    assert "is not the file its manifest describes" in line
