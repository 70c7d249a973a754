"""Half precision: casts where it begins and ends, constants stored in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from slimdeploy.errors import GraphError
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, node_error, producer
from slimdeploy.precision.roles import Role, roles

FLOAT = onnx.TensorProto.FLOAT
LOW_TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
NUMPY_TYPES: dict[str, Any] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp32": np.float32,
}


class CastLow(Pass):
    """Run in half precision what it serves; inputs and outputs of the graph stay as they are.

    A tensor is cast once for all its readers. Nodes that only move numbers do so in the type in
    which they get them, so a cast stands where a type is needed, not where it might be.

    Example:
        before: h = LayerNormalization(x, g, b); y = MatMul(h, w); z = Add(y, bias)
        after:  h = LayerNormalization(x, g, b); c = Cast<float16>(h); y = MatMul(c, w16)
                z = Add(y, bias16)
    """

    def __init__(self, low: str, keep: tuple[str, ...] = ()) -> None:
        self.low = low
        self.keep = keep
        self.kept: Counter[str] = Counter()
        self._kinds: dict[str, int] = {}
        self._made: dict[tuple[str, int], Tensor] = {}
        self._ends: list[tuple[str, int]] = []

    def requires(self, work: Work) -> None:
        self._ends = _ends(work)

    def call(self, work: Work) -> None:
        role = roles(work, self.low, self.keep)
        self._kinds = {tensor.name: FLOAT for tensor in work.graph.inputs}
        self._made = {}
        for node in list(work.graph.nodes):
            self._rewrite(work, node, role[id(node)])
        for output in work.graph.outputs:
            if self._kinds.get(output.name, FLOAT) != FLOAT:
                _cast_output(work, output)
        for node in work.graph.nodes:
            for tensor in node.outputs:
                if not any(tensor is end for end in work.graph.outputs):
                    tensor.dtype = None  # what was recorded for float32 no longer holds

    def ensures(self, work: Work) -> None:
        if (found := _ends(work)) != self._ends:
            raise GraphError(f"inputs and outputs became {found}, were {self._ends}")
        for node in work.graph.nodes:
            if node.op in ("LayerNormalization", "Softmax") and not _is_float(work, node):
                raise node_error(node, "was to keep float32")

    def _rewrite(self, work: Work, node: Node, role: Role) -> None:
        outputs = [tensor for tensor in node.outputs if _has_floats(work, tensor)]
        kind = self._kind(work, node, role)
        if node.op == "DequantizeLinear":
            places = [1]
        elif node.op == "QuantizeLinear":
            places, kind = [1], self._kinds.get(node.inputs[0].name, FLOAT)
        else:
            places = [i for i, t in enumerate(node.inputs) if outputs and _has_floats(work, t)]
        for index in places:
            node.inputs[index] = self._as(work, node.inputs[index], kind)
        self._kinds.update((tensor.name, kind) for tensor in outputs)
        if kind == FLOAT and outputs:
            self.kept[node.op] += 1

    def _kind(self, work: Work, node: Node, role: Role) -> int:
        """The type in which the node works."""
        low = LOW_TYPES[self.low]
        if role != "follow":
            return low if role == "low" else FLOAT
        read = [t for t in node.inputs if not is_constant(t) and _has_floats(work, t)]
        kinds = [self._kinds.get(tensor.name, FLOAT) for tensor in read]
        return low if kinds and all(kind == low for kind in kinds) else FLOAT

    def _as(self, work: Work, tensor: Tensor, kind: int) -> Tensor:
        """`tensor` in the type `kind`; each conversion is made once."""
        if self._kinds.get(tensor.name, FLOAT) == kind:
            return tensor
        key = tensor.name, kind
        if key not in self._made:
            if is_constant(tensor):
                values = tensor.values.astype(NUMPY_TYPES[self.low])
                made = work.constant(f"{tensor.name}.{self.low}", values)
            else:
                made = work.add("Cast", f"{tensor.name}.cast", [tensor], to=kind)
            self._made[key] = made
            self._kinds[made.name] = kind
        return self._made[key]


def _has_floats(work: Work, tensor: Tensor) -> bool:
    if is_constant(tensor):
        return bool(tensor.dtype == np.float32)
    return work.facts.types.get(tensor.name) == FLOAT


def _cast_output(work: Work, output: Tensor) -> None:
    """Let the node that computes an output compute something else, of which it is the cast."""
    maker = producer(output)
    assert maker is not None
    inner = gs.Variable(work.fresh(f"{output.name}.low"))
    place = next(i for i, tensor in enumerate(maker.outputs) if tensor is output)
    maker.outputs[place] = inner
    for reader in list(output.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is output:
                reader.inputs[index] = inner
    name = work.fresh(f"{output.name}.cast")
    work.graph.nodes.append(gs.Node("Cast", name, {"to": FLOAT}, [inner], [output]))


def _is_float(work: Work, node: Node) -> bool:
    return work.facts.types.get(node.outputs[0].name) == FLOAT


def _ends(work: Work) -> list[tuple[str, int]]:
    """Names and types of the graph's inputs and outputs."""
    ends = [*work.graph.inputs, *work.graph.outputs]
    return [(tensor.name, work.facts.types.get(tensor.name, 0)) for tensor in ends]
