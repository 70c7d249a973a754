"""Which axes hold weights that a Softmax has normalised over the tokens.

A sum over tokens keeps its meaning with fewer of them only if it is weighted by such weights: a
token that is masked out has the weight zero, and so does one that is not there. Any other sum
(linear attention, the square of the stream, counts) would silently become another function.
"""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes import Port, Relation
from slimdeploy.graph.work import Node, Work, is_constant

Axis = tuple[str, int]

_NAMES = (
    "Cast Div Dropout Expand Gather Identity Neg Reshape Slice Split Squeeze Transpose Unsqueeze"
)
_ONE_OPERAND = frozenset(_NAMES.split())
_ANY_OPERAND = frozenset({"MatMul", "Mul"})
_EVERY_OPERAND = frozenset({"Add", "Concat", "Sub", "Sum", "Where"})


def carry_weights(work: Work, node: Node, relation: Relation, weights: set[Axis]) -> None:
    """Add to `weights` the output axes of `node` that hold weights if its inputs do.

    Only operators that turn a zero into a zero pass weights on.
    """
    if node.op in ("Softmax", "Hardmax"):
        mixed = [link.output.axis for link in relation.links if link.mixes]
        weights.update((node.outputs[0].name, axis) for axis in mixed)
        return
    for link in relation.links:
        output = node.outputs[link.output.operand].name, link.output.axis
        if _of_input(node, link.input) in weights and _stays_zero(
            work, node, relation, link.output, weights
        ):
            weights.add(output)


def _stays_zero(
    work: Work, node: Node, relation: Relation, output: Port, weights: set[Axis]
) -> bool:
    weighted = {
        link.input.operand
        for link in relation.of_output(output)
        if _of_input(node, link.input) in weights
    }
    if node.op in _ANY_OPERAND:
        return True
    if node.op in _ONE_OPERAND:
        return 0 in weighted
    if node.op not in _EVERY_OPERAND:
        return False
    values = range(1, 3) if node.op == "Where" else range(len(node.inputs))
    return all(index in weighted or _is_zero(work, node, index) for index in values)


def _is_zero(work: Work, node: Node, index: int) -> bool:
    tensor = node.inputs[index]
    known = tensor.values if is_constant(tensor) else work.facts.values.get(tensor.name)
    return known is not None and not np.any(known)


def _of_input(node: Node, port: Port) -> Axis:
    return node.inputs[port.operand].name, port.axis
