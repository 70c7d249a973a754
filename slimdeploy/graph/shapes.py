"""The concrete shape of every tensor, and the value of those that do not depend on the input.

One sweep over the nodes, each inferred by onnx from concrete operand shapes and numbers, so that
no `Shape` chain stays unknown. Where the batch is dynamic the sweep is made for two batch sizes:
what is equal in both is a number, what grows in proportion is a multiple of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from slimdeploy.errors import GraphError, InputError, one_line
from slimdeploy.graph.axes.relation import Shape
from slimdeploy.graph.evaluate import Types, evaluate, is_affordable
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.files.stored import SMALL, Held, Values, hold

_BATCHES = (2, 3)
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


@dataclass(frozen=True)
class Facts:
    """What is known of each tensor, by name.

    A size -k in `shapes` stands for k times the batch. `values` holds every tensor that is the
    same whatever the input and the batch are. `types` holds onnx's numbers of element types.
    """

    shapes: Mapping[str, Shape]
    values: Values
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


def infer(model: onnx.ModelProto, stored: Mapping[str, Held] | None = None) -> Facts:
    """Shapes and values of every tensor of `model`.

    Args:
        stored: constants that the model reads beside its own initialisers.

    Raises:
        InputError: if an axis other than the batch (axis 0) of an input is dynamic.
        GraphError: if onnx finds the shapes contradictory.
    """
    held = {tensor.name: hold(tensor) for tensor in model.graph.initializer}
    held.update(stored or {})
    if not _has_dynamic_batch(model):
        return _Sweep(model, held, 1).run()
    first = _Sweep(model, held, _BATCHES[0])
    one = first.run()
    return _merge(one, _Sweep(model, held, _BATCHES[1], first).run())


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


def channels_last(size: Sequence[int]) -> bool:
    """Whether an image's `size`, without its batch, is [H, W, C]: C is 1, 3 or 4."""
    return size[0] not in _CHANNELS and size[-1] in _CHANNELS


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
    held = one.values.held
    values = Values({name: held[name] for name in held if one.values.agrees(name, two.values)})
    return Facts(shapes, values, unknown, one.types)


def _size(one: int, two: int) -> int | None:
    if one == two:
        return one
    multiple, rest = divmod(one, _BATCHES[0])
    return None if rest or multiple * _BATCHES[1] != two else -multiple


class _Sweep:
    """Inference of every node in order, for one batch size.

    What does not depend on the batch is taken from the sweep `before`, not computed again.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        held: Mapping[str, Held],
        batch: int,
        before: _Sweep | None = None,
    ) -> None:
        self.model = model
        self.before = before
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.types: dict[str, onnx.TypeProto] = {}
        self.values = Values()
        self.unknown: dict[str, str] = {}
        for name, value in held.items():
            self._know(name, value)
        for value_info in runtime_inputs(model):
            kind = onnx.TypeProto.FromString(value_info.type.SerializeToString())
            for dim in kind.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.dim_value = batch
            self.types[value_info.name] = kind

    def run(self) -> Facts:
        for node in self.model.graph.node:
            outputs = self._shape_values(node) or self._computed(node)
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

    def _know(self, name: str, value: Held) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
        self.values.held[name] = value

    def _computed(self, node: onnx.NodeProto) -> Sequence[Held] | None:
        """The outputs of a node whose inputs are all known."""
        if any(name and name not in self.values for name in node.input):
            return None
        if self.before is not None and self._as_before(node, self.before.values):
            return [self.before.values.held[name] for name in node.output]
        if node.op_type != "Constant" and not is_affordable(self._try_infer(node)):
            return None
        return evaluate(node, self.values, self.opsets)

    def _as_before(self, node: onnx.NodeProto, before: Values) -> bool:
        known = all(name in before for name in node.output)
        return known and all(
            not name or self.values.held[name] is before.held.get(name) for name in node.input
        )

    def _try_infer(self, node: onnx.NodeProto) -> Types:
        try:
            return self._infer_with(node)
        except Exception:  # `_infer` says why, if the node is not computed
            return {}

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
            self.types.update(self._infer_with(node))
            self._as_first_input(node)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            name = node.name or node.output[0]
            raise GraphError(f"node '{name}' ({node.op_type}): {one_line(error)}") from error
        except (onnx.defs.SchemaError, ValueError) as error:
            self.unknown.update(dict.fromkeys(node.output, one_line(error)))

    def _as_first_input(self, node: onnx.NodeProto) -> None:
        """Supply what onnx does not say: this operator's output has the shape of its input."""
        if node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx"):
            self.types[node.output[0]] = self.types[node.input[0]]

    def _infer_with(self, node: onnx.NodeProto) -> Types:
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
        types = {name: self.types[name] for name in node.input if name}
        small = {
            name: onnx.numpy_helper.from_array(value, name)
            for name in types
            if (value := self.values.numbers(name)) is not None and value.size <= SMALL
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
