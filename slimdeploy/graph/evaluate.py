"""Run one node on known numbers, with onnx's own reference implementation: no runtime needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from slimdeploy.graph.files.external import Array, tensor_values

Types: TypeAlias = Mapping[str, onnx.TypeProto]

MOST_ELEMENTS = 1 << 26
"""A computed constant is held and written: beyond 256 MB of fp32 that is a loss, not a gain."""

# Their result differs from call to call, or carries what quantisation needs to see.
_NAMES = (
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
    "QuantizeLinear DequantizeLinear"
)
KEPT = frozenset(_NAMES.split())


def evaluate(
    node: onnx.NodeProto, inputs: Mapping[str, Array], opsets: Mapping[str, int]
) -> Sequence[Array] | None:
    """The node's outputs, or None where its inputs do not determine them or nothing runs it.

    Args:
        inputs: the known tensors by name; the node is evaluated only if all of its inputs are
            among them (an omitted input is always known).
    """
    names = [name for name in node.input if name]
    if node.op_type in KEPT or _holds_graph(node) or any(name not in inputs for name in names):
        return None
    if node.op_type == "Constant":
        return _constant(node)
    if not names:
        return None
    try:
        evaluator = ReferenceEvaluator(node, opsets=dict(opsets))
        with np.errstate(all="ignore"):
            outputs = evaluator.run(None, {name: inputs[name] for name in names})
    except Exception:  # whatever the reference lacks or refuses is no error: it is only not folded
        return None
    return _numeric([np.asarray(o) if np.isscalar(o) else o for o in outputs])


def _numeric(outputs: Sequence[Any]) -> Sequence[Array] | None:
    """The outputs if all are arrays of numbers: no sequences, no strings."""
    kinds = [output.dtype.kind if isinstance(output, np.ndarray) else "O" for output in outputs]
    return None if set(kinds) & set("OSU") else outputs


def is_affordable(outputs: Types) -> bool:
    """Whether a node with outputs of these types may be evaluated: a file may ask for terabytes.

    Where a size is not known beforehand it is bounded by what the node reads.
    """
    shapes = [kind.tensor_type.shape.dim for kind in outputs.values()]
    return all(math.prod(dim.dim_value for dim in dims) <= MOST_ELEMENTS for dims in shapes)


def _holds_graph(node: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)


def _constant(node: onnx.NodeProto) -> Sequence[Array] | None:
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value" and isinstance(value, onnx.TensorProto):
            return _numeric([tensor_values(value)])
        if attribute.name in _CONSTANT_TYPES:
            return [np.asarray(value, _CONSTANT_TYPES[attribute.name])]
    return None


_CONSTANT_TYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
