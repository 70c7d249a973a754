"""What an ONNX file says of itself, read without loading weights that are stored beside it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path

import onnx

from slimdeploy.files import sha256_file
from slimdeploy.graph.files.external import checked_stretch, is_outside, location_of, tensors
from slimdeploy.graph.files.storage import parse_model

_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_NOT_WEIGHTS = ("undefined", "bool", "string", "int32", "int64", "uint32", "uint64")


def load_structure(path: Path) -> onnx.ModelProto:
    """The model, with weights that lie in other files left there.

    Raises:
        InputError: if there is no such file, it is not a whole ONNX model, or a weight lies
            outside its folder, in a file that is missing, or beyond that file's end.
    """
    model = parse_model(path)
    for tensor in tensors(model):
        if is_outside(tensor):
            checked_stretch(path, tensor)
    return model


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


def coarsest_weights(*models: onnx.ModelProto) -> str:
    """The type with the fewest digits among the models' weights: it sets what may differ."""
    held = {kind for model in models for kind in weight_types(model)}
    return next((kind for kind in ("bfloat16", "float16") if kind in held), "float32")


def external_files(model: onnx.ModelProto) -> list[str]:
    """Names, relative to the model, of the files that hold weights outside it."""
    return sorted({location_of(tensor) for tensor in tensors(model) if is_outside(tensor)})


def model_digest(path: Path) -> str:
    """SHA-256, hexadecimal, of an ONNX file and of the weights that lie beside it.

    Without weights beside it, the file's own; so too of a file of another kind.

    Raises:
        InputError: if a file cannot be read, or an ONNX file is damaged.
    """
    parts = external_files(load_structure(path)) if path.suffix == ".onnx" else []
    if not parts:
        return sha256_file(path)
    total = hashlib.sha256(sha256_file(path).encode())
    for name in parts:
        total.update(f"{name}\0{sha256_file(path.parent / name)}\n".encode())
    return total.hexdigest()
