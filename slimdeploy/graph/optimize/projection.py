"""A projection, the way from it to where it is used, and how numbers are folded into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimdeploy.graph.files.external import Array
from slimdeploy.graph.optimize.patterns import (
    cast_like,
    is_float,
    is_product,
    is_vector,
    made_by,
    only_reader,
    operands,
    scalar,
    wide,
)
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

_LAYOUT = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True)
class Projection:
    """`product` multiplies rows by a stored matrix [D, E]; `bias` adds a stored [E], if there is.

    Nothing else reads either, so that both may be changed.
    """

    product: Node
    bias: Node | None

    @classmethod
    def of(cls, work: Work, tensor: Tensor) -> Projection | None:
        """The projection that computes `tensor`, if it can be changed for its sake."""
        bias = bias_of(work, tensor)
        if bias is not None:
            tensor = computed(bias)
        node = made_by(tensor, "MatMul")
        if node is None or not is_product(node) or only_reader(work, tensor) is None:
            return None
        return cls(node, bias) if is_float(node.inputs[1]) else None

    @property
    def width(self) -> int:
        """E, the number of features that it computes."""
        return int(self.product.inputs[1].shape[-1])

    def scale(self, work: Work, factors: Array) -> None:
        """Multiply all that it computes by a number, or by one [E] for each feature."""
        self.product.inputs[1] = _scaled(work, self.product.inputs[1], factors)
        if self.bias is not None:
            place = 1 if is_constant(self.bias.inputs[1]) else 0
            self.bias.inputs[place] = _scaled(work, self.bias.inputs[place], factors)


def _scaled(work: Work, constant: Tensor, factors: Array) -> Tensor:
    values = cast_like(wide(constant) * factors, constant)
    return work.constant(f"{constant.name}.scaled", values)


def bias_of(work: Work, tensor: Tensor) -> Node | None:
    """The Add of a stored vector that computes `tensor` for one reader."""
    node = made_by(tensor, "Add")
    pair = operands(node) if node is not None and only_reader(work, tensor) is not None else None
    if node is None or pair is None:
        return None
    return node if is_vector(pair[1], _width(work, tensor)) else None


def vector_of(node: Node) -> Array:
    """The stored vector of an Add or Mul, [E], in at least float32."""
    pair = operands(node)
    assert pair is not None
    return np.ravel(wide(pair[1]))


def computed(node: Node) -> Tensor:
    """The operand of a layout node, or of an Add, Mul or Div by a constant, that is computed."""
    pair = operands(node)
    return node.inputs[0] if node.op in _LAYOUT or pair is None else pair[0]


def _width(work: Work, tensor: Tensor) -> int:
    shape = work.facts.shapes.get(tensor.name, ())
    return shape[-1] if shape else -1


def factor(node: Node) -> float | None:
    """The number that the node multiplies by: Mul by a stored number, or Div by one."""
    pair = operands(node) if node.op in ("Mul", "Div") else None
    number = scalar(pair[1]) if pair is not None else None
    if number is None or node.op == "Mul":
        return number
    return 1 / number if is_constant(node.inputs[1]) and number else None


def way_back(work: Work, tensor: Tensor) -> tuple[list[Node], Tensor]:
    """From `tensor` back over nodes that only lay out or scale, each read once.

    Returns the nodes passed, the last in the graph first, and the tensor before them.
    """
    passed: list[Node] = []
    while (node := producer(tensor)) is not None and only_reader(work, tensor) is not None:
        if node.op not in _LAYOUT and factor(node) is None:
            break
        passed.append(node)
        tensor = computed(node)
    return passed, tensor


def way_on(work: Work, tensor: Tensor) -> tuple[list[Node], Tensor]:
    """From `tensor` on over nodes that only lay out, each read once; the tensor behind them."""
    passed: list[Node] = []
    while (node := only_reader(work, tensor)) is not None and node.op in _LAYOUT:
        passed.append(node)
        tensor = node.outputs[0]
    return passed, tensor
