"""Fold the scale of the softmax into the projection of the queries."""

from __future__ import annotations

import math

import numpy as np

from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass
from slimdeploy.graph.optimize.projection import Projection, computed, factor, way_back
from slimdeploy.graph.optimize.scores import Scores
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.work import Node, Work


class FoldScale(Optimization):
    """Multiply the weights of the queries once, instead of queries, keys or scores each time.

    Exporters write the scale as a Mul of the queries, as its root on queries and keys, or as a
    Div or Mul of the scores; all of them are the same as queries that are larger by the product.
    A scale behind an addition to the scores (a mask, a position bias) is not.

    Example:
        before: q = MatMul(x, Wq); m = Mul(q, 0.125); s = MatMul(m, kt)
        after:  m = MatMul(x, 0.125 Wq); s = MatMul(m, kt)
    """

    def rewrite(self, work: Work) -> None:
        for block in find_blocks(work)[0]:
            if block.anchor.op == "Softmax":
                self._fold(work, block)

    def _fold(self, work: Work, block: Block) -> None:
        queries, source = way_back(work, block.query)
        keys, _ = way_back(work, block.key)
        scales = [n for n in (*queries, *keys, *_on_scores(work, block)) if factor(n) is not None]
        if not scales:
            return
        projection = Projection.of(work, source)
        if projection is None:
            self.leave(block.anchor, "its queries do not come straight from their own projection")
            return
        total = math.prod(float(factor(node) or 0) for node in scales)
        projection.scale(work, np.asarray(total, np.float32))
        for node in scales:
            bypass(work, node, computed(node))


def _on_scores(work: Work, block: Block) -> list[Node]:
    """The steps of the scores before anything is added to them."""
    steps = Scores.of(work, block).steps
    added = [index for index, node in enumerate(steps) if node.op == "Add"]
    return steps[: added[0]] if added else steps
