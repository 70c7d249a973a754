"""One way to run a model, whichever runtime is behind it."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.engine.onnxruntime import OnnxRuntimeEngine
from slimdeploy.engine.protocol import Engine, EngineInfo, TensorInfo
from slimdeploy.engine.sessions import Provider
from slimdeploy.errors import InputError

__all__ = ["PLANS", "Engine", "EngineInfo", "OnnxRuntimeEngine", "TensorInfo", "open_engine"]

PLANS = (".plan", ".engine", ".trt")
"""Suffixes of TensorRT's and TensorRT-RTX's engines."""


def open_engine(path: Path | str, provider: Provider = "cpu", threads: int | None = None) -> Engine:
    """Load a model with the runtime that its suffix names.

    Raises:
        InputError: if the file is missing, broken, for another machine, or of a kind that no
            runtime here loads.
        GateError: if an engine is not the file that its manifest describes.
        MissingError: if the runtime, the provider or a GPU is not on this machine.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        return OnnxRuntimeEngine(path, provider, threads)
    if suffix in PLANS:
        from slimdeploy.engine.trt.runner import TensorRTEngine

        return TensorRTEngine(path)
    raise InputError(f"{path}: not an engine file; give an .onnx or a .plan file")
