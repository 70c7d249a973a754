"""Write attention as one operator."""

from __future__ import annotations

import math

from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass, made_by
from slimdeploy.graph.optimize.projection import computed, factor, way_back
from slimdeploy.graph.optimize.scores import Scores, weighted_sum
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.work import Node, Tensor, Work

_ATTENTION_OPSET = 23


class AttentionOp(Optimization):
    """Replace product, softmax and product by one Attention, where the opset has it.

    The numbers of queries and keys may differ. Scales on queries, keys and scores become its
    attribute `scale`; one addition to the scores becomes its mask.

    Example (opset 23):
        before: t = Transpose(k); s = MatMul(Mul(q, 0.125), t); p = Softmax(s); a = MatMul(p, v)
        after:  a = Attention<scale=0.125>(q, k, v)
    """

    def rewrite(self, work: Work) -> None:
        if work.graph.opset < _ATTENTION_OPSET:
            work.notes.append(
                f"{self.name}: opset {work.graph.opset} has no Attention operator; export with "
                f"{_ATTENTION_OPSET} or later, or raise it with onnx.version_converter"
            )
            return
        for block in find_blocks(work)[0]:
            if block.anchor.op == "Softmax":
                self._replace(work, block)

    def _replace(self, work: Work, block: Block) -> None:
        scores = Scores.of(work, block)
        product = weighted_sum(work, block)
        masks = [node for node in scores.steps if node.op == "Add"]
        reason = scores.obstacle or _unfit(work, block, scores, masks)
        reason = "its weights are changed after the softmax" if product is None else reason
        if product is None or reason:
            self.leave(block.anchor, reason)
            return
        query, on_query = _unscaled(work, block.query)
        key, on_key = _unscaled(work, block.key)
        on_scores = [number for node in scores.steps if (number := factor(node)) is not None]
        scale = math.prod([*on_query, *on_key, *on_scores])
        inputs = [query, _untransposed(work, key), block.value]
        if masks:
            inputs.append(_mask(scores, masks[0]))
        stem = f"{block.anchor.name or block.anchor.outputs[0].name}.attention"
        bypass(work, product, work.add("Attention", stem, inputs, scale=scale))


def _unfit(work: Work, block: Block, scores: Scores, masks: list[Node]) -> str:
    """Why these nodes are not what one Attention computes."""
    operands = [work.facts.shape(t.name) for t in (block.query, block.key, block.value)]
    if any(len(shape) != 4 or shape[0] != operands[0][0] for shape in operands):
        return "its queries, keys and values are not all [batch, heads, tokens, features]"
    if len(masks) > 1:
        return "more than one thing is added to its scores"
    if masks and scores.steps[-1] is not masks[0]:
        return "its scores are scaled after something is added to them"
    if masks and work.facts.shape(_mask(scores, masks[0]).name)[-2:] != (block.queries, block.keys):
        return "what is added to its scores is not [queries, keys]"
    return ""


def _mask(scores: Scores, add: Node) -> Tensor:
    """What `add` adds to the scores."""
    place = next(i for i, node in enumerate(scores.steps) if node is add)
    before = (scores.steps[place - 1] if place else scores.product).outputs[0]
    return next(tensor for tensor in add.inputs if tensor is not before)


def _unscaled(work: Work, tensor: Tensor) -> tuple[Tensor, list[float]]:
    """An operand before the numbers that it is multiplied by, and these."""
    numbers = []
    for node in way_back(work, tensor)[0]:
        if (number := factor(node)) is not None:
            numbers.append(number)
            tensor = computed(node) if node.outputs[0] is tensor else tensor
            bypass(work, node, computed(node))
    return tensor, numbers


def _untransposed(work: Work, key: Tensor) -> Tensor:
    """The keys as [batch, heads, tokens, features]; undoes the Transpose for the product."""
    node = made_by(key, "Transpose")
    perm = list(node.attrs["perm"]) if node is not None and "perm" in node.attrs else None
    if node is None or perm is None:
        return work.add("Transpose", f"{key.name}.rows", [key], perm=[0, 1, 3, 2])
    perm[-2:] = perm[:-3:-1]
    if perm == [0, 1, 2, 3]:
        return node.inputs[0]
    return work.add("Transpose", f"{key.name}.rows", [node.inputs[0]], perm=perm)
