"""One way to run a model, whichever runtime is behind it."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.engine.onnxruntime import OnnxRuntimeEngine, Provider
from slimdeploy.engine.protocol import Engine, EngineInfo, TensorInfo
from slimdeploy.errors import InputError, MissingError

__all__ = ["Engine", "EngineInfo", "OnnxRuntimeEngine", "TensorInfo", "open_engine"]

_NOT_YET = {".plan": "TensorRT", ".engine": "TensorRT", ".trt": "TensorRT"}


def open_engine(path: Path | str, provider: Provider = "cpu", threads: int | None = None) -> Engine:
    """Load a model with the runtime that its suffix names.

    Raises:
        InputError: if the file is missing, broken, or of a kind that no runtime here loads.
        MissingError: if the runtime or the provider is not on this machine.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        return OnnxRuntimeEngine(path, provider, threads)
    if suffix in _NOT_YET:
        raise MissingError(f"{path}: {_NOT_YET[suffix]} engines cannot be run yet; give the .onnx")
    raise InputError(f"{path}: not an engine file; give an .onnx file")
