"""The concrete shape of every tensor, and the value of those that do not depend on the input.

One sweep over the nodes, each inferred by onnx from concrete operand shapes and numbers, so that
no `Shape` chain stays unknown. Where the batch is dynamic the sweep is made for two batch sizes:
what is equal in both is a number, what grows in proportion is a multiple of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from slimdeploy.errors import GraphError, InputError, one_line
from slimdeploy.graph.axes.relation import Shape
from slimdeploy.graph.evaluate import Array, evaluate

_BATCHES = (2, 3)
_SMALL = 4096
"""Operands with more elements than this are data; shape inference never looks at them."""


@dataclass(frozen=True)
class Facts:
    """What is known of each tensor, by name.

    A size -k in `shapes` stands for k times the batch. `values` holds every tensor that is the
    same whatever the input and the batch are. `types` holds onnx's numbers of element types.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    unknown: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """The shape of tensor `name`.

        Raises:
            GraphError: if it could not be inferred, with the reason.
        """
        if name not in self.shapes:
            reason = self.unknown.get(name, "nothing computes it")
            raise GraphError(f"the shape of tensor '{name}' is unknown: {reason}")
        return self.shapes[name]


def infer(model: onnx.ModelProto) -> Facts:
    """Shapes and values of every tensor of `model`.

    Raises:
        InputError: if an axis other than the batch (axis 0) of an input is dynamic.
        GraphError: if onnx finds the shapes contradictory.
    """
    if not _has_dynamic_batch(model):
        return _Sweep(model, 1).run()
    return _merge(*(_Sweep(model, batch).run() for batch in _BATCHES))


def _has_dynamic_batch(model: onnx.ModelProto) -> bool:
    dynamic = False
    for value in runtime_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            if axis:
                raise InputError(
                    f"input '{value.name}' has a dynamic axis {axis} ({dim.dim_param or 'unnamed'}"
                    "): export the model for one image size; only axis 0 may be dynamic"
                )
            dynamic = True
    return dynamic


def runtime_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that a caller feeds (older files list initialisers among the inputs)."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _merge(one: Facts, two: Facts) -> Facts:
    unknown = {**one.unknown, **two.unknown}
    shapes: dict[str, Shape] = {}
    for name in one.shapes.keys() & two.shapes.keys():
        sizes = [_size(*pair) for pair in zip(one.shapes[name], two.shapes[name], strict=True)]
        if None in sizes:
            unknown[name] = "a size is neither fixed nor in proportion to the batch"
        else:
            shapes[name] = tuple(size for size in sizes if size is not None)
    values = {
        name: value
        for name, value in one.values.items()
        if (other := two.values.get(name)) is not None
        and (value is other or (value.shape == other.shape and np.array_equal(value, other)))
    }
    return Facts(shapes, values, unknown, one.types)


def _size(one: int, two: int) -> int | None:
    if one == two:
        return one
    multiple, rest = divmod(one, _BATCHES[0])
    return None if rest or multiple * _BATCHES[1] != two else -multiple


class _Sweep:
    """Inference of every node in order, for one batch size."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        self.model = model
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, Array] = {}
        self.unknown: dict[str, str] = {}
        for tensor in model.graph.initializer:
            self._know(tensor.name, onnx.numpy_helper.to_array(tensor), tensor.data_type)
        for value in runtime_inputs(model):
            self.types[value.name] = onnx.TypeProto.FromString(value.type.SerializeToString())
            for dim in self.types[value.name].tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.dim_value = batch

    def run(self) -> Facts:
        for node in self.model.graph.node:
            outputs = self._shape_values(node) or evaluate(node, self.values, self.opsets)
            if outputs is None:
                self._infer(node)
            else:
                for name, value in zip(node.output, outputs, strict=False):
                    self._know(name, value)
        shapes = {name: shape for name, kind in self.types.items() if (shape := _shape(kind))[0]}
        known = {name: shape[1] for name, shape in shapes.items()}
        missing = dict.fromkeys(self.types.keys() - known.keys(), "onnx infers none")
        types = {name: kind.tensor_type.elem_type for name, kind in self.types.items()}
        return Facts(known, self.values, {**missing, **self.unknown}, types)

    def _know(self, name: str, value: Array, data_type: int = 0) -> None:
        kind = data_type or onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
        self.values[name] = value

    def _shape_values(self, node: onnx.NodeProto) -> list[Array] | None:
        if node.op_type not in ("Shape", "Size") or node.input[0] not in self.types:
            return None
        whole, shape = _shape(self.types[node.input[0]])
        if not whole:
            return None
        if node.op_type == "Size":
            return [np.asarray(np.prod(shape, dtype=np.int64))]
        attrs = {item.name: item.i for item in node.attribute}
        return [np.asarray(shape[attrs.get("start", 0) : attrs.get("end")], np.int64)]

    def _infer(self, node: onnx.NodeProto) -> None:
        try:
            if missing := [name for name in node.input if name and name not in self.types]:
                raise ValueError(self.unknown.get(missing[0], f"nothing computes '{missing[0]}'"))
            domain = "" if node.domain == "ai.onnx" else node.domain
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
            self.types.update(self._infer_with(schema, node))
        except onnx.shape_inference.InferenceError as error:
            name = node.name or node.output[0]
            raise GraphError(f"node '{name}' ({node.op_type}): {one_line(error)}") from error
        except (onnx.defs.SchemaError, ValueError) as error:
            self.unknown.update(dict.fromkeys(node.output, one_line(error)))

    def _infer_with(
        self, schema: onnx.defs.OpSchema, node: onnx.NodeProto
    ) -> dict[str, onnx.TypeProto]:
        types = {name: self.types[name] for name in node.input if name}
        small = {
            name: onnx.numpy_helper.from_array(self.values[name], name)
            for name in types
            if name in self.values and self.values[name].size <= _SMALL
        }
        opsets = [onnx.helper.make_opsetid(*item) for item in self.opsets.items()]
        version = self.model.ir_version
        return onnx.shape_inference.infer_node_outputs(
            schema, node, types, small, opset_imports=opsets, ir_version=version
        )


def _shape(kind: onnx.TypeProto) -> tuple[bool, Shape]:
    """Whether every size is known, and the sizes."""
    tensor = kind.tensor_type
    dims = tensor.shape.dim
    known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return known, tuple(dim.dim_value for dim in dims)
