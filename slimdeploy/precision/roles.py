"""Which node runs in half precision, which keeps float32, and which follows what it reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import onnx

from slimdeploy.errors import InputError
from slimdeploy.graph.work import Node, Work, is_constant, producer
from slimdeploy.precision.streams import MOVES, residual_sums

Role = Literal["low", "float32", "follow"]

_NAMES = (
    "Abs Add Attention Clip Conv DequantizeLinear Div Einsum Elu Erf Gelu Gemm HardSigmoid "
    "HardSwish LeakyRelu MatMul Max Min Mish Mul Neg PRelu Relu Sigmoid Softplus Sub Swish Tanh "
    "Where"
)
LOW = frozenset(_NAMES.split())
"""Operators that half precision serves. Any other (normalisation, softmax, sums) keeps float32."""

LARGEST = {"fp16": 65504.0, "bf16": float(np.finfo(np.float32).max)}
"""The largest finite number of a type."""


def roles(work: Work, low: str, keep: Collection[str] = ()) -> dict[int, Role]:
    """The role of each node, by `id`.

    LayerNormalization, Softmax, residual sums and whatever is not known to be harmless keep
    float32; so do the nodes named in `keep`, those whose constants the type cannot hold, and those
    that the opset does not define for it.

    Raises:
        InputError: if a name in `keep` is no node's.
    """
    check_names(work, keep, "--keep-float32")
    sums = residual_sums(work)
    result: dict[int, Role] = {}
    for node in work.graph.nodes:
        if node.op in MOVES or node.op == "QuantizeLinear":
            result[id(node)] = "follow"
        elif id(node) in sums or _must_keep(work, node, low, keep):
            result[id(node)] = "float32"
        else:
            result[id(node)] = "low"
    for node in work.graph.nodes:
        if node.op == "DequantizeLinear" and result[id(node)] == "low":
            readers = {result[id(reader)] for reader in node.outputs[0].outputs}
            if readers == {"float32"}:
                result[id(node)] = "float32"
    return result


def _must_keep(work: Work, node: Node, low: str, keep: Collection[str]) -> bool:
    if node.op not in LOW or node.name in keep or node.outputs[0].name in keep:
        return True
    given = [node, *(producer(tensor) for tensor in node.inputs)]
    if any(_dequantises_beyond(other, low) for other in given):
        return True
    return bool(too_large(node, low)) or not defined_for(work, node, low)


def _dequantises_beyond(node: Node | None, low: str) -> bool:
    """Whether a DequantizeLinear gives numbers that the type cannot hold."""
    if node is None or node.op != "DequantizeLinear" or not is_constant(node.inputs[1]):
        return False
    steps = 448.0 if node.inputs[2].dtype.kind not in "iu" else 128.0
    return bool(steps * float(np.abs(node.inputs[1].values).max(initial=0.0)) > LARGEST[low])


def check_names(work: Work, names: Collection[str], flag: str) -> None:
    """Refuse names that no node and no node's first output bears.

    Raises:
        InputError: with the first of them.
    """
    known = {name for node in work.graph.nodes for name in (node.name, node.outputs[0].name)}
    for name in names:
        if name not in known:
            raise InputError(
                f"{flag} {name}: neither a node nor an output of one; see the file in a viewer"
            )


def too_large(node: Node, low: str) -> str:
    """The name of the node's first constant that holds a number beyond the type's range, or ''."""
    for tensor in node.inputs:
        if is_constant(tensor) and tensor.dtype == np.float32:
            with np.errstate(invalid="ignore"):
                if np.abs(tensor.values).max(initial=0.0) > LARGEST[low]:
                    return str(tensor.name)
    return ""


def defined_for(work: Work, node: Node, low: str) -> bool:
    """Whether the graph's opset lets the node take and give numbers of this type."""
    opset = next((e.version for e in work.origin.opset_import if e.domain in ("", "ai.onnx")), 0)
    try:
        schema = onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:
        return False
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[low]
    kinds = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    floats = [kinds.get(port.type_str, ()) for port in (*schema.inputs[:2], schema.outputs[0])]
    return all(wanted in allowed for allowed in floats if "tensor(float)" in allowed)
