"""The residual stream of a transformer, by structure: what is added up over all blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

_NAMES = "Concat Expand Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze"
MOVES = frozenset(_NAMES.split())
"""Operators that move numbers and change none."""


def residual_sums(work: Work) -> set[int]:
    """The Add nodes that make the residual stream, by `id`.

    An Add of two computed tensors is one if its one operand leads to its other through a product
    with stored weights: a skip connection. What builds up the first skipped tensor (position
    embeddings added to patches) belongs to the stream too.
    """
    before = Ancestors(work)
    skipped = {
        id(node): skip for node in work.graph.nodes if (skip := _skipped(node, before)) is not None
    }
    found = set(skipped)
    for skip in skipped.values():
        found.update(id(node) for node in _sums_behind(skip, skipped))
    return found


class Ancestors:
    """For each node a set of bits: the nodes that lead to it."""

    def __init__(self, work: Work) -> None:
        self.place: dict[int, int] = {}
        self.bits: list[int] = []
        self.weighted = 0
        for number, node in enumerate(work.graph.nodes):
            self.place[id(node)] = number
            mask = 0
            for tensor in node.inputs:
                maker = producer(tensor)
                if maker is not None:
                    mask |= self.bits[self.place[id(maker)]] | 1 << self.place[id(maker)]
            self.bits.append(mask)
            if has_weights(node):
                self.weighted |= 1 << number

    def leads_through_weights(self, start: Tensor, end: Tensor) -> bool:
        """Whether `start` reaches `end` through a product with stored weights."""
        first, last = producer(start), producer(end)
        if first is None or last is None:
            return False
        number = self.place[id(first)]
        between = self.bits[self.place[id(last)]] | 1 << self.place[id(last)]
        candidates = between & self.weighted
        while candidates:
            lowest = candidates & -candidates
            if self.bits[lowest.bit_length() - 1] >> number & 1:
                return True
            candidates ^= lowest
        return False


def has_weights(node: Node) -> bool:
    """Whether the node is a product of a computed tensor with stored weights."""
    if node.op not in ("MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
        return False
    return not is_constant(node.inputs[0]) and (
        is_constant(node.inputs[1]) or _is_dequantised(node.inputs[1])
    )


def _is_dequantised(tensor: Tensor) -> bool:
    node = producer(tensor)
    return node is not None and node.op == "DequantizeLinear" and is_constant(node.inputs[0])


def source(tensor: Tensor) -> Tensor:
    """Where the numbers of `tensor` come from, through selections and changes of shape."""
    node = producer(tensor)
    while node is not None and node.op in MOVES and node.op != "Concat":
        tensor = node.inputs[0]
        node = producer(tensor)
    return tensor


def _skipped(node: Node, before: Ancestors) -> Tensor | None:
    """The operand that skips a part of the network to reach this Add, if it is a residual sum."""
    if node.op != "Add" or any(is_constant(tensor) for tensor in node.inputs):
        return None
    a, b = node.inputs
    for skip, other in ((a, b), (b, a)):
        if before.leads_through_weights(source(skip), other):
            return skip
    return None


def _sums_behind(tensor: Tensor, skipped: Mapping[int, Tensor]) -> Iterator[Node]:
    """The Adds that lead to `tensor` with nothing but moves between, along the stream."""
    waiting, seen = [tensor], set()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen or (node.op != "Add" and node.op not in MOVES):
            continue
        seen.add(id(node))
        if node.op == "Add":
            yield node
        waiting.extend([skipped[id(node)]] if id(node) in skipped else node.inputs)
