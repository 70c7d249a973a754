"""Apply a flow of tokens: every tensor is computed for the tokens that someone asks for."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids, Shape
from slimdeploy.graph.options import Select
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.selection.rewrite import Rewriter
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.tokens.flow import Flow, trace
from slimdeploy.graph.work import Work, drop_identities


class SelectTokens(Pass):
    """Compute in each block only what the schedule keeps and what later nodes read of it.

    With a schedule, the residual stream after the attention of block l+1 holds `keep[l]`. With
    None nothing is dropped, but what the head does not read is not computed either. Selections are
    written in `form`.

    Example (the head reads token 0 of 5):
        before: h = LayerNormalization(x); y = Gather<axis=1>(h, 0)
        after:  s = Gather<axis=1>(x, [0]); h = LayerNormalization(s); y = Gather<axis=1>(h, 0)
    """

    def __init__(
        self, keep: Sequence[Ids] | None, form: Select = "gather", *, pool_kept: bool = False
    ) -> None:
        self.keep = keep
        self.form = form
        self.pool_kept = pool_kept
        self.planned: dict[str, Shape] = {}

    def call(self, work: Work) -> None:
        blocks, _ = find_blocks(work)
        flow = trace(work, blocks, self.keep, pool_kept=self.pool_kept)
        rewriter = self.rewriter(work, blocks, flow)
        self.planned = {name: rewriter.shape(name) for name, _ in rewriter.flow.computed}
        for node in list(work.graph.nodes):
            rewriter.rewrite(node)
        drop_identities(work)

    def rewriter(self, work: Work, blocks: Sequence[Block], flow: Flow) -> Rewriter:
        """What rewrites the nodes of `work` for the tokens of `flow`."""
        return Rewriter(work, flow, self.form)

    def ensures(self, work: Work) -> None:
        """Every tensor that is left has the shape that was planned for it."""
        for name, planned in self.planned.items():
            shape = work.facts.shapes.get(name, planned)
            if shape != planned:
                raise GraphError(f"tensor '{name}' has shape {shape}, planned was {planned}")
