"""Engines that several tests look at, each built once a session by TensorRT-RTX, on no GPU."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import onnx

from slimdeploy.engine.building import (
    BuildRequest,
    Built,
    Caches,
    batch_profile,
    build_engine,
    model_inputs,
)
from tests.engine.models import graph

TARGETS = {"fp8": "8.9"}
"""Compute capability to build for, where it is not 8.6."""


@cache
def folder() -> Path:
    """Where they lie until the tests end."""
    path = Path(mkdtemp(prefix="slimdeploy-engines-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def built(family: str, form: str, precision: str = "fp32", dynamic: bool = True) -> Built:
    """The engine of one of `tests.engine.models.graph`."""
    name = f"{family}-{form}-{precision}{'' if dynamic else '-static'}"
    path = folder() / f"{name}.onnx"
    onnx.save(graph(family, form, precision, dynamic), path)
    batch = batch_profile(str(path), model_inputs(path), (None, 4, None)) if dynamic else None
    request = BuildRequest(
        "tensorrt-rtx", batch=batch, compute_capabilities=(TARGETS.get(precision, "8.6"),)
    )
    return build_engine(path, request, folder() / f"{name}.plan", caches=Caches(engines=False))
