"""Multiply-accumulates of an ONNX graph, node by node, from its inferred shapes.

One MAC is one multiplication with its addition; twice that number is often called FLOPs. Counted
are the operators that multiply tensors: convolutions, matrix products and attention (QK' and PV),
in float and quantised forms. Element-wise work, softmax and normalisation are not counted, as is
usual. Operators that multiply tensors but are not understood here are listed, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, inliner, shape_inference

from slimdeploy.errors import InputError, one_line
from slimdeploy.graph.files.storage import load_model
from slimdeploy.graph.files.structure import structure

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class NodeMacs:
    """One operator: its name in the graph (or its first output's), its type and its MACs."""

    name: str
    op: str
    macs: int


@dataclass(frozen=True)
class MacCount:
    """MACs of one run.

    Attributes:
        batch: images in that run: 1, unless the file fixes another number.
        total: over all counted nodes.
        nodes: the counted nodes, in graph order.
        uncounted: names of nodes that multiply tensors in a way not understood here.
    """

    batch: int
    total: int
    nodes: tuple[NodeMacs, ...]
    uncounted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def count_macs(model: Path | onnx.ModelProto) -> MacCount:
    """Count the MACs of one run; a batch that may vary is set to 1.

    Raises:
        InputError: if the file is not ONNX, or a counted node's shape cannot be inferred.
    """
    name = "model" if isinstance(model, onnx.ModelProto) else model.name
    graph = _inferred(_load(model), name).graph
    shapes = _shapes(graph)
    counted, uncounted = [], []
    for node in graph.node:
        label = node.name or node.output[0]
        # Another domain's operator of the same name (Microsoft's Attention) computes other things.
        if node.op_type in _COUNTERS and node.domain in ("", "ai.onnx"):
            macs = _COUNTERS[node.op_type](_NodeShapes(name, label, node, shapes))
            counted.append(NodeMacs(label, node.op_type, macs))
        elif node.op_type in _UNKNOWN or node.op_type in _COUNTERS:
            uncounted.append(label)
    total = sum(node.macs for node in counted)
    return MacCount(_batch(graph), total, tuple(counted), tuple(uncounted))


@dataclass(frozen=True)
class _NodeShapes:
    """A node with the shapes of what it reads and writes; errors say which is missing."""

    model: str
    label: str
    node: onnx.NodeProto
    shapes: Mapping[str, Shape]

    def input(self, index: int) -> tuple[int, ...]:
        return self._known(self.node.input[index])

    def output(self) -> tuple[int, ...]:
        return self._known(self.node.output[0])

    def attribute(self, name: str, default: int) -> int:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return int(attribute.i)
        return default

    def _known(self, tensor: str) -> tuple[int, ...]:
        shape = self.shapes.get(tensor, (None,))
        known = tuple(dim for dim in shape if dim is not None)
        if len(known) != len(shape):
            raise InputError(
                f"{self.model}: the shape of '{tensor}' at {self.node.op_type} '{self.label}' "
                "cannot be inferred: export with fixed image sizes and constants folded"
            )
        return known


def _convolution(weight: int) -> Callable[[_NodeShapes], int]:
    """Each output element is one product with a filter of [out, in / groups, *kernel]."""
    return lambda node: math.prod(node.output()) * math.prod(node.input(weight)[1:])


def _matmul(node: _NodeShapes) -> int:
    return math.prod(node.output()) * node.input(0)[-1]


def _gemm(node: _NodeShapes) -> int:
    a = node.input(0)
    return math.prod(node.output()) * (a[0] if node.attribute("transA", 0) else a[1])


def _attention(node: _NodeShapes) -> int:
    """QK' and PV of ONNX's Attention, whose tensors are [B, H, N, d] or [B, N, H d]."""
    q, k, v = node.input(0), node.input(1), node.input(2)
    if len(q) == 4:
        return math.prod(q[:3]) * k[2] * (q[3] + v[3])
    heads, key_heads = node.attribute("q_num_heads", 1), node.attribute("kv_num_heads", 1)
    width = q[2] + v[2] // key_heads * heads
    return q[0] * q[1] * k[1] * width


_COUNTERS: dict[str, Callable[[_NodeShapes], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
}
_UNKNOWN = frozenset(
    [
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "GroupQueryAttention",
        "If",
        "LSTM",
        "Loop",
        "MultiHeadAttention",
        "QAttention",
        "RNN",
        "Scan",
    ]
)


def _load(model: Path | onnx.ModelProto) -> onnx.ModelProto:
    """A copy without large weights, of which shapes do not depend."""
    return structure(model if isinstance(model, onnx.ModelProto) else load_model(model, limit=0))


def _inferred(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model at batch 1 with shapes inferred anew: those written in the file may be stale."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.CopyFrom(helper.make_empty_tensor_value_info(value.name))
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        return shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx raises several unrelated types
        raise InputError(f"{name}: shapes cannot be inferred: {one_line(error)}") from error


def _batch(graph: onnx.GraphProto) -> int:
    """The leading dimension of the first input that is not a weight."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = (value for value in graph.input if value.name not in weights)
    dims = [value.type.tensor_type.shape.dim for value in inputs]
    return int(dims[0][0].dim_value) if dims and dims[0] else 1


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in dims
            )
    return shapes
