"""What an ONNX file says of itself, read without loading weights that are stored beside it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx

from slimdeploy.errors import InputError

_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_NOT_WEIGHTS = ("undefined", "bool", "string", "int32", "int64", "uint32", "uint64")


def load_structure(path: Path) -> onnx.ModelProto:
    """The model, with weights that lie in other files left there.

    Raises:
        InputError: if there is no such file, or it is not a whole ONNX model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors differ between its implementations
        raise InputError(_refusal(path)) from error
    if not model.graph.node:
        raise InputError(_refusal(path))
    return model


def _refusal(path: Path) -> str:
    return f"{path}: not a complete ONNX model (truncated, or another kind of file); export again"


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    """How many weights are stored in each type, as {"float16": 5700000, "float32": 9600}.

    Whole numbers wider than 8 bits (shapes, indices) are not weights and are left out.
    """
    constants = (
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
    )
    counts: Counter[str] = Counter()
    for tensor in (*model.graph.initializer, *constants):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        if kind not in _NOT_WEIGHTS:
            counts[_NUMPY_NAMES.get(kind, kind)] += math.prod(tensor.dims)
    return dict(sorted(counts.items()))


def external_files(model: onnx.ModelProto) -> list[str]:
    """Names, relative to the model, of the files that hold weights outside it."""
    places = (
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return sorted(set(places))
