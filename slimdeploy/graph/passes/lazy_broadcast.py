"""Leave it to operators to repeat a constant along the batch."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes.elementwise import ELEMENTWISE
from slimdeploy.graph.axes.relation import Shape
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.passes.fold_constants import FoldConstants
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, replace_uses


class LazyBroadcast(Pass):
    """Drop each Expand of a constant whose consumers broadcast it all the same.

    Exporters write an attention mask that is the same for every image as if it were not: it is
    expanded to [batch, 1, N, N] and turned into numbers there. Without the Expand it is a constant
    of which rows and columns can be selected, and what is computed from it alone is folded.

    Example:
        before: e = Expand(mask [1, 1, 197, 1], [batch, 1, 197, 197]); w = Where(e, 0, -3.4e38)
                y = Add(scores, w)
        after:  y = Add(scores, w [1, 1, 197, 1])
    """

    def call(self, work: Work) -> None:
        dropped = False
        for node in list(work.graph.nodes):
            expanded = work.facts.shapes.get(node.outputs[0].name)
            if node.op == "Expand" and is_constant(node.inputs[0]) and expanded is not None:
                dropped = _bypass(work, node, expanded) or dropped
        if dropped:
            work.refresh()
            FoldConstants().call(work)


def _bypass(work: Work, node: Node, expanded: Shape) -> bool:
    """Let the consumers of an Expand read its constant, if need be with all axes but the batch."""
    target, stored = node.outputs[0], node.inputs[0]
    if _may_shrink(work, target, tuple(stored.values.shape)):
        replace_uses(target, stored)
        return True
    whole = tuple(1 if size < 0 else size for size in expanded)
    if whole == expanded or not _may_shrink(work, target, whole):
        return False
    values = np.ascontiguousarray(np.broadcast_to(stored.values, whole))
    replace_uses(target, work.constant(f"{stored.name}.whole", values))
    return True


def _may_shrink(work: Work, tensor: Tensor, small: Shape) -> bool:
    """Whether `tensor` may have the shape `small` without changing what the graph computes.

    So it is if every consumer is elementwise and gets its shape from another operand, or if the
    consumer's result may in turn have the smaller shape that follows.
    """
    if not tensor.outputs or any(tensor is output for output in work.graph.outputs):
        return False
    for consumer in tensor.outputs:
        if consumer.op == "Attention" and _is_mask(work, consumer, tensor, small):
            continue
        if consumer.op not in ELEMENTWISE:
            return False
        shapes = [work.facts.shapes.get(other.name) for other in consumer.inputs]
        if None in shapes:
            return False
        known = [
            small if other is tensor else shape
            for other, shape in zip(consumer.inputs, shapes, strict=True)
            if shape is not None
        ]
        result, before = _broadcast(known), work.facts.shapes.get(consumer.outputs[0].name)
        if result != before and not _may_shrink(work, consumer.outputs[0], result):
            return False
    return True


def _is_mask(work: Work, node: Node, tensor: Tensor, small: Shape) -> bool:
    """Whether `tensor` is only a mask of Attention, which needs all rows but not all batches."""
    uses = [index for index, other in enumerate(node.inputs) if other is tensor]
    return uses == [3] and small[-2:] == work.facts.shape(tensor.name)[-2:]


def _broadcast(shapes: list[Shape]) -> Shape:
    """The shape that operands of these shapes broadcast to; -k, k times the batch, is no 1."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((s for s in sizes if s != 1), 1) for sizes in zip(*padded, strict=True))
