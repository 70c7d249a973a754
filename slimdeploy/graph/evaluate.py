"""Run one node on known numbers, with onnx's own reference implementation: no runtime needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]

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
        return [_constant(node)]
    if not names:
        return None
    try:
        evaluator = ReferenceEvaluator(node, opsets=dict(opsets))
        outputs = evaluator.run(None, {name: inputs[name] for name in names})
    except (NotImplementedError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # an operator that the reference lacks is no error: it is only not folded
    return [np.asarray(output) for output in outputs]


def _holds_graph(node: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)


def _constant(node: onnx.NodeProto) -> Array:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if "float" in node.attribute[0].name else np.int64)
