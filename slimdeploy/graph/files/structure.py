"""A model without its weights, for onnx's own checks and inference, which copy what they are given.

Large constants are declared as inputs there: nothing that onnx infers depends on their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
import onnx.inliner

from slimdeploy.errors import GraphError, one_line
from slimdeploy.graph.files.storage import copy_fields
from slimdeploy.graph.files.stored import SMALL, Held, StoredValues, hold


def structure(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with its large initialisers as inputs."""
    rest = onnx.ModelProto()
    copy_fields(model, rest, {"graph"})
    copy_fields(model.graph, rest.graph, {"initializer", "input"})
    names = {tensor.name for tensor in model.graph.initializer}
    rest.graph.input.extend(value for value in model.graph.input if value.name not in names)
    words = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.STRING]
    rest.graph.initializer.extend(words)
    numbers = [t for t in model.graph.initializer if t.data_type != onnx.TensorProto.STRING]
    return declare(rest, {tensor.name: hold(tensor, check=False) for tensor in numbers})


def declare(model: onnx.ModelProto, constants: Mapping[str, Held]) -> onnx.ModelProto:
    """Add constants to `model`: the large ones by type and shape alone. Returns it."""
    model.ir_version = max(model.ir_version, 4)  # before, an initialiser had to be an input too
    for name, held in constants.items():
        if math.prod(held.shape) <= SMALL:
            add_initializer(model, name, held)
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(held.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, held.shape))
    return model


def add_initializer(model: onnx.ModelProto, name: str, held: Held) -> None:
    """Store a constant in `model`."""
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(
        held.tensor if isinstance(held, StoredValues) else onnx.numpy_helper.from_array(held)
    )
    tensor.name = name


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, or its structure with each call of a function replaced by its nodes.

    Raises:
        GraphError: if onnx cannot inline them.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(structure(model))
    except Exception as error:  # onnx raises several unrelated types
        raise GraphError(f"its functions cannot be inlined: {one_line(error)}") from error


def add_shapes(model: onnx.ModelProto) -> None:
    """Write the shape of every tensor into `model`, as onnx infers them."""
    inferred = onnx.shape_inference.infer_shapes(structure(model), data_prop=True)
    for field in ("value_info", "output"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(inferred.graph, field))
