"""What a graph's precision is, read off its tensors: never off what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

_PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "Attention", "Einsum"))
_WATCHED = frozenset(("LayerNormalization", "Softmax", "Add", "Gelu"))
_SHORT = {"float": "float32", "float8e4m3fn": "fp8"}


@dataclass(frozen=True)
class PrecisionState:
    """Numbers of nodes by the type that they work in.

    Attributes:
        products: matrix products, convolutions and attention; "int8" and "fp8" are those whose
            operands come out of 8 bits.
        others: by operator, then by type.
        casts: Cast nodes between float types.
        quantize, dequantize: QuantizeLinear and DequantizeLinear nodes.
    """

    products: dict[str, int]
    others: dict[str, dict[str, int]]
    casts: int
    quantize: int
    dequantize: int

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)

    def __str__(self) -> str:
        words = [f"products {_counted(self.products)}"]
        words += [f"{op} {_counted(kinds)}" for op, kinds in sorted(self.others.items())]
        return "; ".join(words)

    @property
    def is_plain(self) -> bool:
        """Whether everything is float32."""
        kinds = {kind for counts in self.others.values() for kind in counts}
        return kinds | set(self.products) <= {"float32"} and not self.quantize + self.dequantize


def precision_state(work: Work) -> PrecisionState:
    """Read the types of `work`."""
    products: Counter[str] = Counter()
    others: dict[str, Counter[str]] = {}
    ops: Counter[str] = Counter()
    for node in work.graph.nodes:
        ops[node.op] += 1
        kind = type_name(work, node.outputs[0])
        if node.op in _PRODUCTS:
            products[_eight_bits(work, node) or kind] += 1
        elif node.op in _WATCHED:
            others.setdefault(node.op, Counter())[kind] += 1
        elif node.op == "Cast" and "float" in kind and "float" in type_name(work, node.inputs[0]):
            ops["float casts"] += 1
    return PrecisionState(
        dict(sorted(products.items())),
        {op: dict(sorted(kinds.items())) for op, kinds in others.items()},
        ops["float casts"],
        ops["QuantizeLinear"],
        ops["DequantizeLinear"],
    )


def type_name(work: Work, tensor: Tensor) -> str:
    """A tensor's element type as "float32", "bfloat16", "int8"..."""
    stored = is_constant(tensor)
    number = int(
        onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
        if stored
        else work.facts.types.get(tensor.name, 0)
    )
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return _SHORT.get(name, name)


def _eight_bits(work: Work, node: Node) -> str:
    """The type behind both operands of a quantised product; '' for any other."""
    kinds = []
    for tensor in node.inputs[:2]:
        maker = producer(tensor)
        if maker is None or maker.op != "DequantizeLinear":
            return ""
        kinds.append(type_name(work, maker.inputs[0]))
    return "int8" if kinds[-1] == "uint8" else kinds[-1]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def low_tensors(work: Work) -> Iterator[str]:
    """A phrase for each sign that the graph is not plain float32 any more."""
    for node in work.graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            yield f"node '{node.name or node.outputs[0].name}' ({node.op})"
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and (kind := type_name(work, tensor)) in ("float16", "bfloat16"):
                yield f"tensor '{tensor.name}' ({kind})"
