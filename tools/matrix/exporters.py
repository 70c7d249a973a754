"""How a model becomes an ONNX file, and what a user may have done to the file since."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch
from torch import nn

from tools.matrix.families import Family
from tools.matrix.half_precision import half_precision


@dataclass(frozen=True)
class Exporter:
    """One way to write a file.

    Attributes:
        opset: the opset asked for.
        dynamo: whether torch.export makes the graph; otherwise TorchScript does.
        fused: whether attention is PyTorch's fused operator in the model.
        dynamic: whether the batch is an axis of the file.
        after: what is done to the file afterwards.
    """

    name: str
    opset: int
    dynamo: bool
    fused: bool
    dynamic: bool
    after: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after onnxslim."""
    result: onnx.ModelProto = onnxslim.slim(model)
    return result


def external_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model written with its weights in a second file, and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        return onnx.load(path)


_BASE = [
    Exporter("dynamo18-fused", 18, True, True, True),
    Exporter("dynamo18-eager", 18, True, False, True),
    Exporter("dynamo20-eager-static", 20, True, False, False),
    Exporter("dynamo23-fused", 23, True, True, True),
    Exporter("dynamo23-fused-static", 23, True, True, False),
    Exporter("script17-fused", 17, False, True, True),
    Exporter("script17-eager", 17, False, False, True),
    Exporter("script17-eager-static", 17, False, False, False),
]
_AFTER = [
    Exporter("dynamo18-fused+onnxslim", 18, True, True, True, simplified),
    Exporter("dynamo23-fused+fp16", 23, True, True, True, half_precision),
    Exporter("dynamo18-eager+fp16", 18, True, False, True, half_precision),
    Exporter("script17-eager+onnxslim", 17, False, False, True, simplified),
    Exporter("script17-eager+external", 17, False, False, True, external_data),
]
EXPORTERS = {exporter.name: exporter for exporter in (*_BASE, *_AFTER)}


def export(family: Family, exporter: Exporter, cache: Path | None = None) -> onnx.ModelProto:
    """The file of this family by this exporter; kept in the folder `cache` if one is given."""
    base = exporter.name.partition("+")[0]
    path = cache / f"{family.name}-{base}.onnx" if cache else None
    if path and path.exists():
        model = onnx.load(path)
    else:
        model = _export(family, EXPORTERS[base])
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(model, path)
    return exporter.after(model) if exporter.after else model


def _export(family: Family, exporter: Exporter) -> onnx.ModelProto:
    model = family.build(exporter.fused)
    example = torch.randn(2 if exporter.dynamic else 1, 3, *family.image)
    options: dict[str, Any] = {"opset_version": exporter.opset, "input_names": ["image"]}
    options["output_names"] = ["output"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        make = _dynamo if exporter.dynamo else _script
        return make(model, example, exporter.dynamic, options)


def _dynamo(
    model: nn.Module, example: torch.Tensor, dynamic: bool, options: dict[str, Any]
) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    program = torch.onnx.export(
        model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes, **options
    )
    return program.model_proto


def _script(
    model: nn.Module, example: torch.Tensor, dynamic: bool, options: dict[str, Any]
) -> onnx.ModelProto:
    axes = {"image": {0: "batch"}, "output": {0: "batch"}} if dynamic else None
    buffer = io.BytesIO()
    torch.onnx.export(model, (example,), buffer, dynamo=False, dynamic_axes=axes, **options)
    return onnx.load_from_string(buffer.getvalue())
