"""Fold LayerScale into the projection before it."""

from __future__ import annotations

from slimdeploy.graph.optimize.base import Optimization
from slimdeploy.graph.optimize.patterns import bypass, is_vector, operands
from slimdeploy.graph.optimize.projection import Projection, vector_of
from slimdeploy.graph.work import Work


class FoldLayerScale(Optimization):
    """Multiply the columns of a projection and its bias, instead of all that it computes.

    Example:
        before: o = MatMul(a, W); b = Add(o, c); y = Mul(gamma, b)
        after:  o = MatMul(a, W·gamma); y = Add(o, c·gamma)
    """

    def rewrite(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            pair = operands(node) if node.op == "Mul" else None
            projection = Projection.of(work, pair[0]) if pair is not None else None
            if pair is not None and projection is not None and is_vector(pair[1], projection.width):
                projection.scale(work, vector_of(node))
                bypass(work, node, pair[0])
