"""The record beside an artifact: written, read, and checked against the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from slimdeploy import __version__
from slimdeploy.errors import GateError, InputError
from slimdeploy.manifest import manifest_path, read_manifest, verify_manifest, write_manifest
from slimdeploy.preprocessing import Preprocessing

SEEN = Preprocessing(
    input_size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=0.9
)
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[B, 4] x) => (float[B, 6] y) { h = Cast<to = 10> (x)  p = MatMul (h, w)
  s = Shape (p)  q = Reshape (p, s)  r = Cast<to = 1> (q)  y = Mul (r, scale) }"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(TEXT)
    weights = {"w": np.ones((4, 6), np.float16), "scale": np.ones(6, np.float32)}
    weights["unused_shape"] = np.array([1, 2, 3])
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    path = tmp_path / "slim.onnx"
    onnx.save(model, path)
    return path


def describe(artifact: Path) -> Path:
    schedule = artifact.with_name("sched.json")
    schedule.write_text("{}")
    return write_manifest(
        artifact,
        kind="slim-onnx",
        made_from={"schedule": schedule},
        command=["slimdeploy", "export", "--output", "slim.onnx"],
        packages=["onnx", "no-such-package"],
        preprocessing=SEEN,
        tokens_per_block=[197, 100, 1],
        results={"parity": {"max_abs": 1e-6, "passed": True}},
    )


def test_what_is_written_is_read_back(artifact: Path) -> None:
    path = describe(artifact)
    assert path.name == "slim.onnx.json"
    found = read_manifest(artifact)
    assert found == read_manifest(path) == verify_manifest(artifact)
    assert found.artifact.sha256 == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert found.artifact.bytes == artifact.stat().st_size
    assert found.made_from["schedule"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert found.command == ("slimdeploy", "export", "--output", "slim.onnx")
    assert found.versions == {"onnx": onnx.__version__}
    assert found.slimdeploy == __version__
    assert found.preprocessing == SEEN
    assert found.tokens_per_block == (197, 100, 1)
    assert found.results["parity"] == {"max_abs": 1e-6, "passed": True}


def test_precision_is_read_from_the_artifact_not_from_the_request(artifact: Path) -> None:
    assert read_manifest(describe(artifact)).precision == {"float16": 24, "float32": 6}


def test_another_file_under_the_same_name_is_noticed(artifact: Path) -> None:
    describe(artifact)
    with artifact.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(GateError, match=r"slim\.onnx: is not the file its manifest describes"):
        verify_manifest(artifact)


def test_weights_beside_the_model_belong_to_it(artifact: Path) -> None:
    onnx.save(
        onnx.load(artifact),
        artifact,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    found = read_manifest(describe(artifact))
    assert list(found.artifact.parts) == ["w.bin"]
    assert found.precision == {"float16": 24, "float32": 6}
    weights = artifact.with_name("w.bin")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(GateError, match=r"w\.bin: is not the file its manifest describes"):
        verify_manifest(artifact)


def test_a_file_that_is_not_onnx_has_no_precision(tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"\1\2")
    write_manifest(plan, kind="engine", made_from={}, command=[])
    assert read_manifest(plan).precision == {}
    assert manifest_path(plan).name == "m.plan.json"
    assert plan.read_bytes() == b"\1\2"


def test_a_missing_manifest_or_artifact_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.onnx\.json: no such manifest; make x\.onnx with"):
        read_manifest(tmp_path / "x.onnx")
    with pytest.raises(InputError, match=r"x\.onnx: no such file"):
        write_manifest(tmp_path / "x.onnx", kind="slim-onnx", made_from={}, command=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact": {"name": "a", "sha256": "x", "bytes": 1}}, "artifact.sha256: String should"),
        ({"format": 2}, "format: Input should be 1"),
        ({"preprocessing": {}}, "preprocessing.input_size: Field required"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"tokens_per_block": [1, "many"]}, "tokens_per_block[1]: Input should be a valid integer"),
    ],
)
def test_a_field_that_is_wrong_is_named(
    artifact: Path, change: dict[str, object], message: str
) -> None:
    path = describe(artifact)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_manifest(artifact)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_json(artifact: Path) -> None:
    path = describe(artifact)
    path.write_text("{")
    with pytest.raises(InputError, match=r"slim\.onnx\.json: Invalid JSON: EOF"):
        read_manifest(artifact)
