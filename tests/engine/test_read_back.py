"""Reading an engine's kernels back, with a fake of the runtime, which would touch a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from slimdeploy.engine.building.request import BuildRequest
from slimdeploy.engine.layers import EngineLayer, Tensor
from slimdeploy.engine.trt.build import engine_layers
from slimdeploy.engine.trt.events import make_logger
from slimdeploy.errors import InputError
from tests.engine.fakes import beyond_bindings
from tests.engine.test_trt_steps import ORIN, FakeLogger


class Inspector:
    """Tells of one kernel, as TensorRT 10's documentation has it."""

    def get_engine_information(self, form: str) -> str:
        row = {"Name": "k", "LayerType": "kgen", "Metadata": "[ONNX Layer: n]"}
        given = [{"Name": n, "Dimensions": [3], "Format/Datatype": "Half"} for n in "xw"]
        return json.dumps({"Layers": [{**row, "Inputs": given}]})


class Reader:
    """A runtime that loads what brings its own code along only where that is allowed."""

    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if plan == b"with code" and not self.engine_host_code_allowed:
            self.logger.log(FakeLogger.ERROR, "host code is not allowed")
            return None
        return SimpleNamespace(create_engine_inspector=Inspector)


def read_back(plan: bytes, lines: str = "", **request: Any) -> tuple[list[EngineLayer], str]:
    form = SimpleNamespace(JSON="json")
    trt = SimpleNamespace(ILogger=FakeLogger, Runtime=Reader, LayerInformationFormat=form)
    logger = make_logger(trt)
    logger.lines.append(lines)
    return engine_layers(trt, logger, plan, ORIN, BuildRequest("tensorrt", **request), ["x"])


NAMELESS = "\nLayers:\nName: k, LayerType: kgen, Inputs: [], Outputs: [], TacticName: t, Metadata: "


@pytest.mark.parametrize("lines", ["", NAMELESS], ids=["no table", "a table without names"])
def test_the_inspector_is_asked_where_the_log_does_not_tell(lines: str) -> None:
    (layer,), where = read_back(b"plain", lines)
    assert (layer.nodes, where) == (("n",), "inspector")
    assert (layer.inputs, layer.constants) == (
        (Tensor("x", (3,), "float16"),),
        (Tensor("w", (3,), "float16"),),
    )


def test_a_table_with_names_is_enough() -> None:
    (layer,), where = read_back(b"with code", f"{NAMELESS}[ONNX Layer: m]")
    assert (layer.nodes, where) == (("m",), "build log")


def test_an_engine_that_brings_code_along_is_read_back() -> None:
    assert read_back(b"with code", version_compatible=True)[1] == "inspector"
    with pytest.raises(InputError, match="cannot load the engine that it built: host code is not"):
        read_back(b"with code")


def test_the_fake_runtime_has_nothing_that_the_bindings_lack() -> None:
    assert beyond_bindings(Inspector, "EngineInspector") == set()
    assert beyond_bindings(Reader, "Runtime") == set()
