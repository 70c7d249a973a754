"""The way of the attention scores from the product of queries and keys to the softmax."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.graph.optimize.patterns import only_reader
from slimdeploy.graph.optimize.projection import factor
from slimdeploy.graph.tokens.blocks import Block
from slimdeploy.graph.work import Node, Work, label


@dataclass(frozen=True)
class Scores:
    """`product` multiplies queries and keys; `steps` lie between it and the softmax, in order.

    Each step scales by a stored number or adds something; each is read once.
    """

    product: Node
    steps: list[Node]
    obstacle: str = ""

    @classmethod
    def of(cls, work: Work, block: Block) -> Scores:
        """The scores of a block whose anchor is a Softmax; `obstacle` says what stands between."""
        product = next(n for n in block.key.outputs if n.op == "MatMul" and _reads(n, block))
        steps: list[Node] = []
        tensor = product.outputs[0]
        while (node := only_reader(work, tensor)) is not block.anchor:
            if node is None:
                return cls(product, steps, "its scores are read twice")
            if node.op != "Add" and factor(node) is None:
                return cls(product, steps, f"{label(node)} works on its scores")
            steps.append(node)
            tensor = node.outputs[0]
        return cls(product, steps)


def _reads(node: Node, block: Block) -> bool:
    return node.inputs[0] is block.query and node.inputs[1] is block.key


def weighted_sum(work: Work, block: Block) -> Node | None:
    """The product of the softmax, untouched, and V; the Attention operator itself."""
    if block.anchor.op == "Attention":
        return block.anchor
    node = only_reader(work, block.anchor.outputs[0])
    return node if node is not None and node.op == "MatMul" else None
