"""What ONNX Runtime's build writes: for any CPU, and whole wherever it is moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimdeploy.engine import open_engine
from slimdeploy.engine.building import BuildRequest, Built, build_engine
from slimdeploy.engine.building.with_onnxruntime import OnnxRuntimeBuild, require_whole
from slimdeploy.errors import MissingError
from slimdeploy.manifest import verify_manifest
from tests.graph.text import model as text_model
from tests.graph.vit_text import TOKENS, vit

BESIDE = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 64}


def optimised(model: onnx.ModelProto, folder: Path, **saved: Any) -> tuple[Built, Path, Path]:
    """The build of a model, the model's file, and the optimised one in a folder of its own."""
    (folder / "in").mkdir()
    source, target = folder / "in" / "m.onnx", folder / "out" / "fast.onnx"
    onnx.save(model, source, **saved)
    return build_engine(source, BuildRequest("onnxruntime"), target), source, target


def assert_alike(source: Path, target: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with open_engine(source) as before, open_engine(target) as after:
        for name, array in before.infer(images).items():
            np.testing.assert_allclose(after.infer(images)[name], array, rtol=1e-4, atol=1e-5)


@pytest.fixture
def patches() -> onnx.ModelProto:
    """A convolution as that of patches: 16 channels, so that any CPU could lay them out anew."""
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 3, 4, 4), "b": (16,), "m": (16, 64)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    body = """
        c = Conv<strides=[4, 4]>(x, w, b)  r = Relu(c)  p = ReduceMean<keepdims=0>(r, axes)
        y = MatMul(p, m)
    """
    return text_model("float[B,3,16,16] x => float[B,64] y", body, axes=[2, 3], **weights)


def test_no_weights_are_laid_out_for_the_cpu_that_built(
    patches: onnx.ModelProto, tmp_path: Path
) -> None:
    """Blocks of 8 channels of one CPU are read as blocks of 16 by another, without an error."""
    _, source, target = optimised(patches, tmp_path)
    found = [(node.domain, node.op_type) for node in onnx.load(target).graph.node]
    assert {domain for domain, _ in found} <= {"", "com.microsoft"}
    assert ("com.microsoft", "FusedConv") in found  # it is optimised all the same
    assert_alike(source, target, (2, 3, 16, 16))


def test_weights_beside_the_model_go_along(patches: onnx.ModelProto, tmp_path: Path) -> None:
    _, source, target = optimised(patches, tmp_path, **BESIDE)
    names = {path.name for path in target.parent.iterdir()}
    assert names == {"fast.onnx", "fast.onnx.data", "fast.onnx.json"}
    moved = shutil.copytree(target.parent, tmp_path / "elsewhere") / "fast.onnx"
    shutil.rmtree(target.parent)
    assert set(verify_manifest(moved).artifact.parts) == {"fast.onnx.data"}
    assert_alike(source, moved, (2, 3, 16, 16))


def test_an_engine_within_a_model_is_asked_for(patches: onnx.ModelProto, tmp_path: Path) -> None:
    """Nothing else of TensorRT's provider can be tried without a GPU."""
    path = tmp_path / "m.onnx"
    onnx.save(patches, path)
    build = OnnxRuntimeBuild(path, BuildRequest("onnxruntime", provider="tensorrt"))
    options = build.options(tmp_path / "t.onnx")
    assert options.get_session_config_entry("ep.context_embed_mode") == "1"


def test_an_engine_outside_its_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.onnx"
    model = text_model("float[B,4] x => float[B,4] y", "y = Identity(x)")
    for mode in (1, 0):
        fields = {"embed_mode": mode, "ep_cache_context": "t_trt.engine", "domain": "com.microsoft"}
        node = onnx.helper.make_node("EPContext", ["x"], ["y"], **fields)
        model.graph.node[0].CopyFrom(node)
        onnx.save(model, path)
        if mode:
            require_whole(path)
    with pytest.raises(MissingError, match=r"^t\.onnx: .* in 't_trt\.engine': use --backend"):
        require_whole(path)


def test_small_weights_beside_the_model_go_into_it(tmp_path: Path) -> None:
    made, source, target = optimised(vit(), tmp_path, **BESIDE)
    assert [(block.queries, block.keys) for block in made.record.blocks] == [(TOKENS, TOKENS)] * 2
    assert {path.name for path in target.parent.iterdir()} == {"fast.onnx", "fast.onnx.json"}
    assert_alike(source, target, (2, TOKENS, 4))
