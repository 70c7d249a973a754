"""Small vision transformers of three families, slimmed in every form and in every precision."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import timm

from slimdeploy.cli import main
from slimdeploy.graph import GraphOptions, lossless_graph, slim_graph
from slimdeploy.slim.dense_onnx import OnnxOptions, export_dense
from tests.conftest import randomise

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2}),
    "clip": (
        "vit_base_patch16_clip_224",
        {"img_size": 64, "depth": 2, "embed_dim": 192, "num_heads": 3},
    ),
}
"""Fewer blocks and smaller images than published; all have 17 tokens and 2 blocks."""

KEEP = [[0, 1, 3, 4, 6, 7, 9, 10, 12, 15], [0, 3, 4, 9, 12]]
COUNTS = {
    "dense": [(17, 17)] * 2,
    "lossless": [(17, 17), (1, 17)],
    "slim": [(10, 17), (5, 10)],
}
"""Queries and keys of each block."""

FORMS = ("dense", "lossless", "gather", "slice", "slice-concat", "one-hot")


def counts(form: str) -> list[tuple[int, int]]:
    """What each block of this form computes."""
    return COUNTS.get(form, COUNTS["slim"])


@cache
def dense(family: str, dynamic: bool = True) -> onnx.ModelProto:
    """The dense graph; never edit it, it is shared."""
    name, changes = FAMILIES[family]
    model = randomise(timm.create_model(name, num_classes=10, **changes))
    # The tracer takes a tenth of the time and gives the same operators.
    return export_dense(model, OnnxOptions("torchscript", 20, dynamic_batch=dynamic))


@cache
def graph(family: str, form: str, precision: str = "fp32", dynamic: bool = True) -> onnx.ModelProto:
    """A model in one of `FORMS`, in a precision."""
    model = dense(family, dynamic)
    if form == "lossless":
        model = lossless_graph(model).model
    elif form != "dense":
        model = slim_graph(model, KEEP, GraphOptions(select=form)).model  # type: ignore[arg-type]
    return model if precision == "fp32" else in_precision(model, precision)


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """`model` as `quantize` writes it; every product with weights is quantised, however small."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value for dim in dims[1:]]
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    with TemporaryDirectory() as name, redirect_stdout(StringIO()):
        source, target, calibration = (Path(name) / f for f in ("a.onnx", "b.onnx", "c.npz"))
        onnx.save(model, source)
        np.savez(calibration, images=images)
        options = ["--precision", precision, "--output", str(target)]
        options += ["--least-rows", "1"] if precision in ("int8", "fp8") else []
        main(["quantize", str(source), "--calibration", str(calibration), *options])
        return onnx.load(target)
