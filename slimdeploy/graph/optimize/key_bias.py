"""Drop the bias of the keys."""

from __future__ import annotations

from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass
from slimdeploy.graph.optimize.projection import bias_of, computed, way_back
from slimdeploy.graph.optimize.scores import Scores
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.work import Work, producer


class DropKeyBias(Optimization):
    """Remove a vector that is added to all keys: the softmax does not see it.

    With k_j + b in place of k_j the score of query i for every key j grows by the same q_i·b,
    and softmax(s + c) = softmax(s). That holds only if the keys are laid out and scaled between
    the bias and the scores, and the scores are scaled and added to before the softmax: after a
    norm or a rotation of the keys the bias is no longer the same for all of them.

    Example:
        before: k = MatMul(x, Wk); b = Add(k, bk); t = Transpose(b); s = MatMul(q, t)
        after:  k = MatMul(x, Wk); t = Transpose(k); s = MatMul(q, t)
    """

    def rewrite(self, work: Work) -> None:
        for block in find_blocks(work)[0]:
            self._drop(work, block)

    def _drop(self, work: Work, block: Block) -> None:
        _, tensor = way_back(work, block.key)
        bias = bias_of(work, tensor)
        if bias is None:
            if (node := producer(tensor)) is not None and node.op != "MatMul":
                self.leave(block.anchor, f"its keys come from {node.op}, not from a projection")
            return
        if obstacle := _obstacle(work, block):
            self.leave(block.anchor, obstacle)
            return
        bypass(work, bias, computed(bias))


def _obstacle(work: Work, block: Block) -> str:
    """What may see that all scores of a query grow by the same number."""
    if block.anchor.op == "Softmax":
        return Scores.of(work, block).obstacle
    if block.anchor.attrs.get("softcap"):
        return "it caps its scores"
    return "its scores are an output" if len(block.anchor.outputs) > 3 else ""
