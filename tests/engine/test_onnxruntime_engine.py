"""ONNX Runtime behind the engine protocol: real sessions, readable refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from slimdeploy.engine import OnnxRuntimeEngine, TensorInfo, open_engine
from slimdeploy.errors import InputError, MissingError

MEANS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[B, 3, 4, 4] images) => (float[B, 3] logits) {
  logits = ReduceMean<axes = [2, 3], keepdims = 0> (images)
}"""
TWO_INPUTS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] a, float16[2] b) => (float[2] c) { d = Cast<to = 1> (b)  c = Add (a, d) }"""
BREAKS_WHEN_RUN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[B, 4] images, int64[2] shape) => (float[M, N] y) { y = Reshape (images, shape) }"""


def model_bytes(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.fixture
def means(tmp_path: Path) -> Path:
    path = tmp_path / "means.onnx"
    path.write_bytes(model_bytes(MEANS))
    return path


def test_infers_and_says_what_ran(means: Path) -> None:
    images = np.random.default_rng(0).random((5, 3, 4, 4), dtype=np.float32)
    with open_engine(means, threads=1) as engine:
        assert engine.inputs == (TensorInfo("images", (None, 3, 4, 4), "float32"),)
        assert engine.outputs == (TensorInfo("logits", (None, 3), "float32"),)
        by_array = engine.infer(images)["logits"]
        by_name = engine.infer({"images": images})["logits"]
        info = engine.describe()
    np.testing.assert_allclose(by_array, images.mean(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(by_array, by_name)
    assert info.provider == "CPUExecutionProvider"
    assert info.threads == 1
    assert info.to_json()["artifact"] == "means.onnx"
    with pytest.raises(InputError, match=r"means\.onnx: this engine is closed; open it again"):
        engine.infer(images)


def test_takes_bytes_and_several_inputs() -> None:
    engine = OnnxRuntimeEngine(model_bytes(TWO_INPUTS))
    one = np.ones(2, np.float32)
    total = engine.infer({"a": one, "b": one.astype(np.float16)})["c"]
    np.testing.assert_array_equal(total, [2, 2])
    with pytest.raises(InputError, match=r"has the inputs a, b; give one array for each by name"):
        engine.infer(one)
    with pytest.raises(InputError, match=r"takes the inputs \['a', 'b'\], but was given \['a'\]"):
        engine.infer({"a": one})


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 3, 4, 5), "float32", "not float32[1, 3, 4, 5]; give that shape"),
        ((3, 4, 4), "float32", "not float32[3, 4, 4]; give that shape"),
        ((1, 3, 4, 4), "float64", "not float64[1, 3, 4, 4]; convert to float32"),
    ],
)
def test_refuses_wrong_arrays(
    means: Path, shape: tuple[int, ...], dtype: str, message: str
) -> None:
    with open_engine(means) as engine, pytest.raises(InputError) as caught:
        engine.infer(np.zeros(shape, dtype))
    expected = "means.onnx: input 'images' takes float32[?, 3, 4, 4], "
    assert str(caught.value) == expected + message


def test_a_failure_while_running_is_one_line() -> None:
    engine = OnnxRuntimeEngine(model_bytes(BREAKS_WHEN_RUN))
    feeds = {"images": np.zeros((2, 4), np.float32), "shape": np.array([3, 3])}
    with pytest.raises(InputError, match=r"^model: inference failed: .*Reshape") as caught:
        engine.infer(feeds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello, not a model", model_bytes(MEANS)[:-9]])
def test_refuses_what_is_not_a_whole_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.onnx: not a complete ONNX model \(truncated"):
        open_engine(path)


def test_refuses_a_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "future.onnx"
    path.write_bytes(model_bytes(MEANS.replace("ReduceMean", "NoSuchOperator")))
    with pytest.raises(InputError, match=r"future\.onnx: ONNX Runtime cannot load it: .*NoSuch"):
        open_engine(path)


def test_refuses_missing_files_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx: no such file"):
        open_engine(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match=r"x\.plan: no such file; give the path of an engine"):
        open_engine(tmp_path / "x.plan")
    with pytest.raises(InputError, match=r"x\.pt: not an engine file; give an \.onnx or a \.plan"):
        open_engine(tmp_path / "x.pt")
    with pytest.raises(InputError, match="0 threads: ask for 1 or more"):
        OnnxRuntimeEngine(model_bytes(MEANS), threads=0)


def test_cuda_means_cuda_or_an_error(means: Path) -> None:
    import onnxruntime

    try:
        engine = open_engine(means, provider="cuda")
    except MissingError as error:
        assert "CUDAExecutionProvider" in str(error)  # noqa: PT017 (either outcome is right)
        assert "use --provider cpu" in str(error)  # noqa: PT017
    else:
        assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        assert engine.describe().provider == "CUDAExecutionProvider"


def test_importing_the_package_loads_no_runtime() -> None:
    import subprocess
    import sys

    code = (
        "import sys, slimdeploy.engine, slimdeploy.measure.timing, slimdeploy.images, "
        "slimdeploy.manifest, slimdeploy.measure.accuracy, slimdeploy.report.kept_patches\n"
        "heavy = {'onnxruntime', 'torch', 'timm', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SATURATES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 64] x) => (float[1, 32] y) {
  q = QuantizeLinear (x, one, middle)
  d = DequantizeLinear (q, one, middle)
  w = DequantizeLinear <axis = 1> (weights, ones, zeros)
  y = MatMul (d, w)
}"""


def eight_bits() -> onnx.ModelProto:
    """uint8 by int8 whose products, two by two, are beyond 16 bits."""
    model = onnx.parser.parse_model(SATURATES)
    arrays = {
        "one": np.float32(1),
        "middle": np.uint8(128),
        "weights": np.full((64, 32), 127, np.int8),
        "ones": np.ones(32, np.float32),
        "zeros": np.zeros(32, np.int8),
    }
    for name, values in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return model


def test_eight_bit_sums_are_exact_on_any_cpu() -> None:
    engine = OnnxRuntimeEngine(eight_bits().SerializeToString())
    found = engine.infer(np.full((1, 64), 127, np.float32))["y"]
    np.testing.assert_array_equal(found, np.full((1, 32), 64 * 127 * 127))


@pytest.mark.parametrize(
    ("flags", "exact"),
    [("fma avx2", False), ("avx2 avx_vnni", True), ("avx512f avx512_vnni amx_int8", True)],
)
def test_a_cpu_with_vnni_keeps_its_kernels(
    flags: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimdeploy.engine.onnxruntime import _exact
    from slimdeploy.measure import host

    monkeypatch.setattr(host, "_cpu_fields", lambda: {"flags": flags})
    options = _exact(1)
    key = "session.x64quantprecision"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    if exact:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)
    else:
        assert options.get_session_config_entry(key) == "1"
