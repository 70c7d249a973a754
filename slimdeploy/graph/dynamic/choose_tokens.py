"""Select tokens that each image chooses for itself, where the static form has constant indices."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import GraphError
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.dynamic.emit_scores import (
    best_rows,
    predictor_scores,
    require_tokens,
    squared_norms,
)
from slimdeploy.graph.dynamic.plan import ChoicePlan
from slimdeploy.graph.passes.select_tokens import SelectTokens
from slimdeploy.graph.selection.rewrite import Rewriter
from slimdeploy.graph.tokens.blocks import Block
from slimdeploy.graph.tokens.flow import Flow
from slimdeploy.graph.work import Tensor, Work, is_constant

_BOUND = 1e4


class ChooseTokens(SelectTokens):
    """Compute in each block the tokens that score best, in the numbers of a schedule.

    The flow of tokens is that of a static schedule with as many; ids stand for rows. Where a
    consumer asks for the rows that a block keeps, a Gather of the rows that it chooses is put in
    place of one with constant indices.

    Example (5 tokens, 1 of them prefix, 3 kept, token-norm):
        before: h = LayerNormalization(x); q = MatMul(h, Wq); k = MatMul(h, Wk); s = Add(x, a)
        after:  n = ReduceSumSquare(x, [2]); w = Where([T, F, F, F, F], [max, ...], n)
                _, i = TopK(w, 3); j = Unsqueeze(i, [2])
                q = MatMul(GatherND(h, j), Wq); s = Add(GatherND(x, j), a)
    """

    def __init__(self, plan: ChoicePlan) -> None:
        super().__init__(plan.places)
        self.plan = plan
        self.chosen: list[str | None] = [None] * len(plan.counts)

    def rewriter(self, work: Work, blocks: Sequence[Block], flow: Flow) -> Rewriter:
        return _Chooser(work, blocks, flow, self.plan, self.chosen)


class _Chooser(Rewriter):
    """A rewriter whose selections are chosen at run time, once per block.

    Which block a selection belongs to follows from the tokens it is taken from: their number falls
    with every block that chooses.
    """

    def __init__(
        self,
        work: Work,
        blocks: Sequence[Block],
        flow: Flow,
        plan: ChoicePlan,
        chosen: list[str | None],
    ) -> None:
        super().__init__(work, flow)
        self.plan, self.chosen = plan, chosen
        # Kept as they are in the dense graph: the names of what a block scores.
        self.blocks = list(blocks)
        self.streams = [_residual(work, block) for block in blocks]
        self._rows: dict[int, Tensor] = {}
        held = [plan.tokens, *plan.counts[:-1]]
        self._block_of = {
            (k, q): index
            for index, (k, q, chooses) in enumerate(
                zip(held, plan.counts, plan.chooses, strict=True)
            )
            if chooses
        }

    def _select(self, tensor: Tensor, name: str, axis: int, local: Ids) -> Tensor:
        index = self._block_of.get((len(self.held(name, axis)), len(local)))
        if index is None:
            return super()._select(tensor, name, axis, local)
        if is_constant(tensor):
            raise GraphError(
                f"constant '{name}' runs along the tokens of block {index + 1}: tables (rotary, "
                "relative positions, masks) cannot follow a choice per image; use a static schedule"
            )
        if axis != 1:
            raise GraphError(
                f"tensor '{name}' has its tokens along axis {axis}: a choice per image is taken "
                "along axis 1 only; use a static schedule"
            )
        rows = self.rows(index)
        return self.work.add("GatherND", f"{name}.chosen", [tensor, rows], batch_dims=1)

    def rows(self, index: int) -> Tensor:
        """What block `index` (from 0) chooses, [B, count, 1]."""
        if index not in self._rows:
            stem, type_ = f"block{index + 1}.choice", self._type(index)
            held = [self.plan.tokens, *self.plan.counts][index]
            sizes = self.plan.counts[index], held, self.plan.prefix
            scores = self._scores(index, stem)
            bounded = self._bounded(index)
            self._rows[index], name = best_rows(self.work, scores, stem, sizes, type_, bounded)
            self.chosen[index] = name
        return self._rows[index]

    def _scores(self, index: int, stem: str) -> Tensor:
        block, stream, dynamic = self.blocks[index], self.streams[index], self.plan.dynamic
        if dynamic.scorer == "key-norm":
            return self._key_norms(block.key, stem)
        require_tokens(self.work, stream, block.axis)
        if dynamic.scorer == "token-norm":
            return squared_norms(self.work, stream, stem, 1, 3)
        weight = dynamic.weights[index]
        assert weight is not None
        return predictor_scores(self.work, stream, stem, weight)

    def _bounded(self, index: int) -> bool:
        """Whether scores stay far below half precision's end: |w · x̂| is at most |w| times √D."""
        weights = self.plan.dynamic.weights
        weight = weights[index] if weights else None
        return weight is not None and len(weight) * sum(w * w for w in weight) < _BOUND**2

    def _key_norms(self, key: Tensor, stem: str) -> Tensor:
        shape, axes = self.work.facts.shape(key.name), self.flow.axes[key.name]
        if len(shape) != 4 or len(axes) != 1:  # three axes: heads stand where images should
            raise GraphError(
                f"keys '{key.name}' have shape {list(shape)}, not [batch, heads, tokens, channels] "
                "in some order: choose by predictor or token-norm"
            )
        return squared_norms(self.work, key, stem, next(iter(axes)), len(shape))

    def _type(self, index: int) -> int:
        scored = self.blocks[index].key if self.plan.dynamic.scorer == "key-norm" else None
        return int(self.work.facts.types[(scored or self.streams[index]).name])


def _residual(work: Work, block: Block) -> Tensor:
    """The stream that enters a block: what its Add joins with the attention's result."""
    tainted = {tensor.name for tensor in block.anchor.outputs}
    for node in work.graph.nodes:
        if any(tensor.name in tainted for tensor in node.inputs) and node is not block.add:
            tainted.update(tensor.name for tensor in node.outputs)
    return next(tensor for tensor in block.add.inputs if tensor.name not in tainted)


__all__ = ["ChooseTokens"]
