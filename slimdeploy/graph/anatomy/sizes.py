"""Widths, heads and classes, from shapes and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.tokens.blocks import Block
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer


def heads(work: Work, block: Block) -> int:
    query = work.facts.shape(block.query.name)
    if block.anchor.op == "Attention" and len(query) == 3:
        return int(block.anchor.attrs["q_num_heads"])
    if len(query) == 4:
        return query[1]
    batch = work.facts.shape(block.stream.name)[0]
    return max(1, abs(query[0]) // abs(batch)) if len(query) == 3 else 1


def mlp_width(work: Work, blocks: Sequence[Block], stream: Tensor) -> int:
    """From all weights that a token meets between the first block and the last.

    A block has 4 D^2 of them in attention and 2 D M in its MLP.
    """
    width = work.facts.shape(stream.name)[-1]
    whole = len(blocks) - 1 or 1
    ends = [entering_stream(work, blocks[-1]).name] if len(blocks) > 1 else None
    between = _between(work, stream.name, ends)
    weights = sum(
        math.prod(tensor.shape)
        for node in between
        if node.op in ("MatMul", "Gemm")
        for tensor in node.inputs[:2]
        if is_constant(tensor) and len(tensor.shape) == 2
    )
    hidden = (weights / whole - 4 * width**2) / (2 * width)
    return max(1, round(float(hidden)))


def _between(work: Work, start: str, ends: Sequence[str] | None) -> list[Node]:
    """The nodes that depend on tensor `start` and on which one of `ends` does (None: any)."""
    behind, after = {start}, []
    for node in work.graph.nodes:
        if any(tensor.name in behind for tensor in node.inputs):
            behind.update(tensor.name for tensor in node.outputs)
            after.append(node)
    if ends is None:
        return after
    ahead, before = set(ends), []
    for node in reversed(after):
        if any(tensor.name in ahead for tensor in node.outputs):
            ahead.update(tensor.name for tensor in node.inputs)
            before.append(node)
    return before


_KEEPS_LOGITS = ("Add", "Sub", "Mul", "Div", "Softmax", "Sigmoid", "Cast", "Squeeze", "Reshape")


def classes(work: Work) -> int:
    """Size of the first output, if it is a product with weights and no token axis is left."""
    output = work.graph.outputs[0]
    shape = work.facts.shapes.get(output.name, ())
    return shape[-1] if len(shape) == 2 and _is_logits(output) else 0


def _is_logits(tensor: Tensor) -> bool:
    node = producer(tensor)
    if node is None:
        return False
    if node.op in ("MatMul", "Gemm") and is_constant(node.inputs[1]):
        return True
    computed = [operand for operand in node.inputs if not is_constant(operand)]
    return node.op in _KEEPS_LOGITS and all(_is_logits(operand) for operand in computed)
