"""Compute once what is the same for every input."""

from __future__ import annotations

from typing import Any

from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Tensor, Work, drop_identities, is_constant, node_error

_MOST_ELEMENTS = 1 << 26
"""A folded tensor is written to the file: beyond 256 MB of fp32 that is a loss, not a gain."""


class FoldConstants(Pass):
    """Replace by constants all tensors that depend on neither the input nor the batch.

    `Constant` nodes, `Shape` chains that only ever yield fixed sizes, tables computed from
    weights; `Identity` nodes go with them.

    Example:
        before: s = Shape(x); d = Slice(s, [2], [3]); f = Cast(d); r = Sqrt(f); y = Mul(x, r)
        after:  y = Mul(x, 13.856)
    """

    def requires(self, work: Work) -> None:
        for node in work.graph.nodes:
            if any(_is_graph(value) for value in node.attrs.values()):
                raise node_error(node, "holds a subgraph, which no pass looks into")

    def call(self, work: Work) -> None:
        for node in work.graph.nodes:
            for tensor in list(node.outputs):
                _fold(work, tensor)
        drop_identities(work)

    def ensures(self, work: Work) -> None:
        for node in work.graph.nodes:
            if node.op == "Constant" and node.outputs[0].outputs:
                raise node_error(node, "was left unfolded")


def _fold(work: Work, tensor: Tensor) -> None:
    values = work.facts.values.get(tensor.name)
    if values is None or values.size > _MOST_ELEMENTS or is_constant(tensor):
        return
    if not any(tensor is output for output in work.graph.outputs):
        tensor.inputs.clear()
        tensor.to_constant(values)


def _is_graph(value: Any) -> bool:
    return hasattr(value, "nodes") and hasattr(value, "inputs")
