"""Cut a graph between named tensors, so that one block can run alone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from slimdeploy.errors import GraphError
from slimdeploy.graph.files.external import is_outside, tensor_values
from slimdeploy.graph.files.storage import copy_fields


class Cutter:
    """Sub-graphs of `model`, whose shapes must be known (as `slim_graph` and its like give them).

    The model may change between cuts in its weights only.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.refresh()

    def refresh(self) -> None:
        """Look at the model anew, after weights or nodes were replaced."""
        graph = self.model.graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {value.name: value for value in values}
        self.images = [v.name for v in graph.input if v.name not in self.stored]

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """The nodes from `inputs` to `outputs`.

        What depends on more than `inputs` reads the model's own inputs too; those are then inputs
        of the result. An input that nothing needs is left out.

        Raises:
            GraphError: if an output is not computed, or a tensor's type is unknown.

        Example (from r to y):
            before: r = Add(x, o); e = MatMul(r, w); y = Add(r, e); z = Relu(y)
            after:  e = MatMul(r, w); y = Add(r, e)
        """
        needed, read = self._before(inputs, outputs)
        part = onnx.ModelProto()
        copy_fields(self.model, part, {"graph", "metadata_props"})
        part.graph.name = "part"
        part.graph.node.extend(n for n in self.model.graph.node if needed & set(n.output))
        ends = dict.fromkeys((*inputs, *self.images))
        part.graph.input.extend(_with_rank(self._type(name)) for name in ends if name in read)
        part.graph.output.extend(self._type(name) for name in outputs)
        for name in sorted(read & self.stored.keys()):
            part.graph.initializer.append(_inside(self.stored[name]))
        return part

    def _before(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[set[str], set[str]]:
        """Names of the tensors to compute, and of all that the nodes computing them read."""
        needed, read, waiting = set[str](), set[str](), list(outputs)
        while waiting:
            name = waiting.pop()
            if name in needed:
                continue
            if name not in self.makers:
                raise GraphError(f"tensor '{name}' is computed by no node: no block ends there")
            node = self.makers[name]
            needed.update(node.output)
            read.update(name for name in node.input if name)
            waiting.extend(n for n in node.input if n in self.makers and n not in inputs)
        return needed - {""}, read

    def _type(self, name: str) -> onnx.ValueInfoProto:
        if name not in self.types:
            raise GraphError(f"the type of tensor '{name}' is unknown to onnx: no cut there")
        value: onnx.ValueInfoProto = self.types[name]
        return value


def _with_rank(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A type that says its rank, without which a runtime expects a number; streams have 3 axes."""
    kind = value.type.tensor_type
    if kind.HasField("shape"):
        return value
    made: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(
        value.name, kind.elem_type, [None] * 3
    )
    return made


def _inside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A stored tensor with its numbers in it: a part is run from memory."""
    if not is_outside(tensor):
        return tensor
    return onnx.numpy_helper.from_array(tensor_values(tensor), tensor.name)
