"""Merge each image's most similar patches as they enter a block, in fixed numbers."""

from __future__ import annotations

from collections.abc import Sequence

from slimdeploy.errors import GraphError
from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.dynamic.emit_merges import Merge, Merger, key_bias
from slimdeploy.graph.dynamic.emit_scores import int64, require_tokens, stream_type
from slimdeploy.graph.dynamic.plan import ChoicePlan, MergeNames
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.selection.rewrite import Rewriter
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.tokens.flow import Flow, trace
from slimdeploy.graph.work import (
    Node,
    Tensor,
    Work,
    drop_identities,
    is_constant,
    node_error,
    replace_uses,
)


class MergeTokens(Pass):
    """Let each block that merges compute the means of alike patches, and tell keys their size.

    The flow of tokens is that of a static schedule with as many, cut where blocks begin; ids stand
    for rows.

    Example (7 tokens, 1 of them prefix, 5 left; sizes left out):
        before: h = LayerNormalization(x); s = MatMul(Q(h), K(h)); p = Softmax(s); y = Add(x, o(p))
        after:  n = LayerNormalization(x, 1); m = MatMul(n[1::2], n[2::2]ᵀ)
                _, i = TopK(ReduceMax(m, [2]), 3); j = ArgMax(GatherND(m, i[:2]), 2)
                e = Concat(x[:1], GatherND(x[1::2], i[2:]), means of x[2::2] and GatherND(x, i[:2]))
                h = LayerNormalization(e); s = MatMul(Q(h), K(h)); p = Softmax(Add(s, Log(sizes)))
                y = Add(e, o(p))
    """

    def __init__(self, plan: ChoicePlan) -> None:
        self.plan = plan
        self.names: list[MergeNames | None] = [None] * len(plan.counts)

    def call(self, work: Work) -> None:
        blocks, _ = find_blocks(work)
        entries = self._entries(work, blocks)
        work.refresh()
        blocks, _ = find_blocks(work)
        left = {name: self.plan.places[index] for name, index in entries.items()}
        flow = trace(work, blocks, self.plan.places, merged=left)
        rewriter = _Merging(work, flow, self.plan, entries)
        for node in list(work.graph.nodes):
            rewriter.rewrite(node)
        for index, block in enumerate(blocks):
            self._weigh_keys(work, block, rewriter.merges, index)
        for index, merge in rewriter.merges.items():
            tensors = merge.order, merge.partner, merge.size
            self.names[index] = MergeNames(*(tensor.name for tensor in tensors))
        drop_identities(work)

    def _entries(self, work: Work, blocks: Sequence[Block]) -> dict[str, int]:
        """Mark with an Identity where each merging block begins: its output, and the block."""
        found: dict[str, int] = {}
        for index, (block, merges) in enumerate(zip(blocks, self.plan.chooses, strict=True)):
            if merges:
                stream = entering_stream(work, block)
                require_tokens(work, stream, block.axis)
                entry = work.add("Identity", f"block{index + 1}.entry", [stream])
                replace_uses(stream, entry)
                entry.inputs[0].inputs[0] = stream  # itself goes on reading it
                found[entry.name] = index
        return found

    def _weigh_keys(self, work: Work, block: Block, merges: dict[int, Merge], index: int) -> None:
        """Add to the logits of a block's keys the logarithm of how many patches each stands for."""
        last = max((i for i in merges if i <= index), default=None)
        if last is None or self.plan.keys[index] <= self.plan.prefix:
            return
        kind = stream_type(work, block.query)
        size, stem = merges[last].size, f"block{index + 1}"
        bias = key_bias(work, size, f"{stem}.size", self.plan.prefix, kind.numpy)
        _add_to_logits(work, block, bias, f"{stem}.logits", self.plan.counts[index])


class _Merging(Rewriter):
    """A rewriter that merges where a block begins."""

    def __init__(self, work: Work, flow: Flow, plan: ChoicePlan, entries: dict[str, int]) -> None:
        super().__init__(work, flow)
        self.plan = plan
        self.merges: dict[int, Merge] = {}
        self._block_of = entries

    def rewrite(self, node: Node) -> None:
        index = self._block_of.get(node.outputs[0].name) if node.outputs else None
        if index is None:
            super().rewrite(node)
            return
        before = max(self.merges, default=None)
        held = [self.plan.tokens, *self.plan.counts][index]
        merger = Merger(
            self.work, f"block{index + 1}.merge", held, self.plan.counts[index], self.plan.prefix
        )
        size = None if before is None else self.merges[before].size
        self.merges[index] = merge = merger.emit(node.inputs[0], size)
        node.inputs = [merge.tokens]

    def _select(self, tensor: Tensor, name: str, axis: int, local: Ids) -> Tensor:
        if is_constant(tensor) and max(local) >= self.plan.prefix:
            raise GraphError(
                f"constant '{name}' runs along the tokens: tables (rotary, relative positions, "
                "masks) cannot follow what each image merges; use a static schedule"
            )
        return super()._select(tensor, name, axis, local)


def _add_to_logits(work: Work, block: Block, bias: Tensor, stem: str, queries: int) -> None:
    """Add `bias`, [B, 1, 1, k], to what a block's Softmax or Attention normalises for `queries`."""
    node = block.anchor
    if node.op == "Softmax":
        if len(work.facts.shape(node.outputs[0].name)) != 4:
            why = "scores are not [batch, heads, queries, keys], so merged keys cannot be weighed"
            raise node_error(node, f"{why}; let images choose, or use a static schedule")
        node.inputs[0] = work.add("Add", stem, [node.inputs[0], bias])
        return
    if node.attrs.get("softcap"):
        raise node_error(node, "softcap limits what is added to its logits: keys cannot be weighed")
    if len(node.inputs) > 3 and node.inputs[3].name:
        raise node_error(node, "has a mask of its own, to which merged tokens would have no place")
    shape = int64(work, f"{stem}.rows", [1, 1, queries, 1])
    # ONNX Runtime wants a row for each query.
    mask = work.add("Expand", f"{stem}.mask", [bias, shape])
    if len(node.inputs) > 3:
        node.inputs[3] = mask
    else:
        node.inputs.append(mask)
