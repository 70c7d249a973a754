"""The linear layer at the end of a residual branch: how it is found, and how it is replaced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from slimdeploy.forward.cut import Cutter
from slimdeploy.graph.files.external import tensor_values

Floats = NDArray[np.float64]

_LAYOUT = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Dropout")


@dataclass(frozen=True)
class Linear:
    """y = g (x W + b): what a residual branch ends with, by the names of the nodes' outputs.

    Attributes:
        source: the tensor x that it reads; its last axis has I features.
        product: the output of the MatMul or Gemm of x and W.
        transposed: W is stored as [O, I].
        bias: the output of the Add of b; that of the Gemm if it adds b itself; None without bias.
        gamma: the output of the Mul by g (LayerScale); None without.
    """

    source: str
    product: str
    transposed: bool
    bias: str | None = None
    gamma: str | None = None

    def values(self, cutter: Cutter) -> tuple[Floats, Floats | None]:
        """W·g as [I, O] and b·g as [O] in float64; no bias is None."""
        weight = _stored(cutter, cutter.makers[self.product].input[1])
        weight = weight.T if self.transposed else weight
        bias = None if self.bias is None else self._bias(cutter)
        if self.gamma is None:
            return weight, bias
        gamma = _stored(cutter, _operand(cutter, cutter.makers[self.gamma])).ravel()
        return weight * gamma, None if bias is None else bias * gamma

    def _bias(self, cutter: Cutter) -> Floats:
        node = cutter.makers[str(self.bias)]
        name = node.input[2] if node.op_type == "Gemm" else _operand(cutter, node)
        weight = cutter.stored[cutter.makers[self.product].input[1]]
        width = weight.dims[0 if self.transposed else 1]
        return np.broadcast_to(_stored(cutter, name).ravel(), (width,))

    def replace(self, cutter: Cutter, weight: Floats, bias: Floats | None) -> Linear:
        """Write W·g and b·g into the model of `cutter`, in the types it has; g itself goes.

        Other readers of the old weights keep them. Returns the layer as it is now.
        """
        product = cutter.makers[self.product]
        product.input[1] = _store(cutter, product.input[1], weight.T if self.transposed else weight)
        if self.bias is not None and bias is not None:
            node = cutter.makers[self.bias]
            place = 2 if node.op_type == "Gemm" else list(node.input).index(_operand(cutter, node))
            node.input[place] = _store(cutter, node.input[place], bias)
        if self.gamma is not None:
            _bypass(cutter.model.graph, cutter.makers[self.gamma], cutter)
        _drop_unread(cutter.model.graph)
        cutter.refresh()
        return Linear(self.source, self.product, self.transposed, self.bias)


def find_linear(cutter: Cutter, residual_sum: str, entering: str) -> Linear | str:
    """The linear layer whose result the Add `residual_sum` adds to `entering`, or why none is seen.

    Between the layer and the Add there may be a bias, a LayerScale behind it, and nodes that only
    lay out or cast. Nothing else may read what lies between.
    """
    node = cutter.makers.get(residual_sum)
    if node is None or node.op_type != "Add":
        return f"tensor '{residual_sum}' is no sum of a stream and a branch"
    readers = Counter(name for other in cutter.model.graph.node for name in other.input)
    ends = {value.name for value in cutter.model.graph.output}
    shared = {name for name, count in readers.items() if count > 1} | ends
    found = [_back(cutter, name, entering, shared) for name in node.input]
    layers = [layer for layer in found if layer is not None]
    if len(layers) != 1:
        return f"no linear layer alone leads to the sum '{residual_sum}'"
    return layers[0]


def _back(cutter: Cutter, name: str, entering: str, shared: set[str]) -> Linear | None:
    bias = gamma = None
    while name != entering and name not in shared and (node := cutter.makers.get(name)):
        if node.op_type in ("MatMul", "Gemm"):
            return _layer(cutter, node, bias, gamma)
        if node.op_type in _LAYOUT:
            name = node.input[0]
            continue
        stored = _operand(cutter, node) if node.op_type in ("Add", "Mul") else None
        if stored is None or bias is not None or (node.op_type == "Mul" and gamma is not None):
            return None
        if node.op_type == "Add":
            bias = name
        else:
            gamma = name
        name = next(other for other in node.input if other != stored)
    return None


def _layer(
    cutter: Cutter, node: onnx.NodeProto, bias: str | None, gamma: str | None
) -> Linear | None:
    """The layer whose product is `node`, if all that belongs to it is stored and fits."""
    weight = cutter.stored.get(node.input[1])
    attributes: dict[str, Any] = {
        a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
    }
    plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0
    own = len(node.input) > 2 and bool(node.input[2])
    if weight is None or len(weight.dims) != 2 or not plain:
        return None
    if own and (bias is not None or attributes.get("beta", 1.0) != 1.0):
        return None
    transposed = bool(attributes.get("transB"))
    width = weight.dims[0 if transposed else 1]
    vectors = [_operand(cutter, cutter.makers[name]) for name in (bias, gamma) if name]
    vectors += [node.input[2]] if own else []
    if any(not _fits(cutter, name, width) for name in vectors):
        return None
    bias = node.output[0] if own else bias
    return Linear(node.input[0], node.output[0], transposed, bias, gamma)


def _fits(cutter: Cutter, name: str | None, width: int) -> bool:
    """Whether a stored tensor is one number per feature, or one for all."""
    dims = list(cutter.stored[name].dims) if name in cutter.stored else [0]
    return prod(dims) in (1, width) and all(size == 1 for size in dims[:-1])


def _operand(cutter: Cutter, node: onnx.NodeProto) -> str | None:
    """The stored operand of a node that has one computed and one stored."""
    stored = [name for name in node.input if name in cutter.stored]
    return stored[0] if len(stored) == 1 and len(node.input) == 2 else None


def _stored(cutter: Cutter, name: str | None) -> Floats:
    return np.asarray(tensor_values(cutter.stored[str(name)]), np.float64)


def _store(cutter: Cutter, old: str, values: Floats) -> str:
    """A new initialiser of the old one's type; its name."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(cutter.stored[old].data_type)
    taken = cutter.stored.keys() | cutter.types.keys() | cutter.makers.keys()
    name, number = f"{old}.refit", 0
    while name in taken:
        number += 1
        name = f"{old}.refit.{number}"
    array = np.ascontiguousarray(values.astype(kind))
    tensor = onnx.numpy_helper.from_array(array, name)
    cutter.model.graph.initializer.append(tensor)
    cutter.stored[name] = cutter.model.graph.initializer[-1]
    return name


def _bypass(graph: onnx.GraphProto, node: onnx.NodeProto, cutter: Cutter) -> None:
    """Let readers of a Mul by a stored vector read its other operand."""
    stored = _operand(cutter, node)
    source = next(name for name in node.input if name != stored)
    for reader in graph.node:
        for place, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[place] = source
    graph.node.remove(node)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove initialisers that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]
