"""The nodes that find a block's most similar patches and put their means in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from slimdeploy.graph.dynamic.emit_scores import int64, opset, standardised, stream_type
from slimdeploy.graph.work import Tensor, Work

_AXES_AS_INPUT_OPSET = 18


@dataclass(frozen=True)
class Merge:
    """What the nodes of one merging give.

    Attributes:
        tokens: the merged stream, [B, count, D].
        size: patches that each row behind the prefix stands for, [B, count - prefix, 1].
        order: the first patches of pairs, the most similar ahead, [B, ⌈p/2⌉]; its first rows merge.
        partner: for each of those the second patch that it merges into, [B, gone].
    """

    tokens: Tensor
    size: Tensor
    order: Tensor
    partner: Tensor


@dataclass(frozen=True)
class Merger:
    """Emits the nodes of one merging.

    Attributes:
        held, count, prefix: tokens that enter, that are left, and those that never merge.
    """

    work: Work
    stem: str
    held: int
    count: int
    prefix: int

    @property
    def gone(self) -> int:
        """Patches that merge into others."""
        return self.held - self.count

    @property
    def first(self) -> int:
        """Patches that look for another: the 1st, the 3rd, ..."""
        return (self.held - self.prefix + 1) // 2

    @property
    def second(self) -> int:
        """Patches that others merge into: the 2nd, the 4th, ..."""
        return (self.held - self.prefix) // 2

    def emit(self, x: Tensor, size: Tensor | None) -> Merge:
        """Merge the rows of x, [B, held, D]; of `size`, [B, held - prefix, 1], or all of size 1."""
        similar = self._similar(x)
        order = self._order(similar)
        moving = self._rows(order, "moving", 0, self.gone)
        pairs = self._add("GatherND", "pairs", [similar, moving], batch_dims=1)
        partner = self._add("ArgMax", "partner", [pairs], axis=2, keepdims=0)
        staying = self._rows(order, "staying", self.gone, self.first) if self._stays else None
        weights, sizes = self._weights(partner, size, moving, staying, stream_type(self.work, x))
        tokens = self._tokens(x, weights, moving, staying)
        return Merge(tokens, sizes, order, partner)

    @property
    def _stays(self) -> bool:
        return self.gone < self.first

    def _similar(self, x: Tensor) -> Tensor:
        """x̂ᵢ·x̂ⱼ of the first patches i and the second j, [B, first, second]."""
        tokens = standardised(self.work, x, f"{self.stem}.standardised")
        first, second = self._halves(tokens, "compared", self.prefix, self.held)
        turned = self._add("Transpose", "turned", [second], perm=[0, 2, 1])
        return self._add("MatMul", "similar", [first, turned])

    def _order(self, similar: Tensor) -> Tensor:
        """Rows of the first patches by their best similarity, [B, first]."""
        best = self._reduce("ReduceMax", "best", similar, 2, keepdims=0, always=False)
        values = gs.Variable(self.work.fresh(f"{self.stem}.ranked"), dtype=similar.dtype)
        index = gs.Variable(self.work.fresh(f"{self.stem}.order"), dtype=np.int64)
        inputs = [best, int64(self.work, f"{self.stem}.first", [self.first])]
        attrs: dict[str, Any] = {"axis": 1, "largest": 1, "sorted": 1}
        self.work.graph.nodes.append(gs.Node("TopK", index.name, attrs, inputs, [values, index]))
        return index

    def _rows(self, order: Tensor, stem: str, start: int, end: int) -> Tensor:
        """Some of the order, for GatherND, [B, n, 1]."""
        part = order
        if (start, end) != (0, self.first):
            part = self._slice(order, f"{stem}_rows", start, end)
        return self._add("Unsqueeze", stem, [part, self._ints(f"{stem}_axis", [2])])

    def _weights(
        self,
        partner: Tensor,
        size: Tensor | None,
        moving: Tensor,
        staying: Tensor | None,
        kind: Any,
    ) -> tuple[_Weights, Tensor]:
        """The share of each patch in the mean it becomes part of, and the new sizes."""
        row = self._add("Unsqueeze", "partner_row", [partner, self._ints("row_axis", [1])])
        numbers = np.arange(self.second, dtype=np.int64).reshape(1, -1, 1)
        hits = self._add("Equal", "hits", [row, self.work.constant(f"{self.stem}.rows", numbers)])
        joins = self._add("Cast", "joins", [hits], to=kind.number)
        joins.dtype = kind.numpy
        if size is None:
            ones = self.work.constant(f"{self.stem}.one", np.ones((1, 1, 1), kind.numpy))
            total = self._add("Add", "total", [self._total(joins), ones])
            own = self._add("Div", "own", [ones, total])
            sizes = self._padded(total, kind)
        else:
            first, second = self._halves(size, "sizes", 0, self.held - self.prefix)
            moved = self._add("GatherND", "moved_sizes", [first, moving], batch_dims=1)
            turned = self._add("Transpose", "sizes_row", [moved], perm=[0, 2, 1])
            joins = self._add("Mul", "joined", [joins, turned])
            total = self._add("Add", "total", [self._total(joins), second])
            own = self._add("Div", "own", [second, total])
            parts = [total]
            if staying is not None:
                kept = self._add("GatherND", "kept_sizes", [first, staying], batch_dims=1)
                parts.insert(0, kept)
            sizes = self._add("Concat", "sizes", parts, axis=1) if len(parts) > 1 else total
        return _Weights(self._add("Div", "shares", [joins, total]), own), sizes

    def _total(self, joins: Tensor) -> Tensor:
        return self._reduce("ReduceSum", "joining", joins, 2, keepdims=1, always=True)

    def _padded(self, total: Tensor, kind: Any) -> Tensor:
        """1 for each first patch that stays, then `total`."""
        if not self._stays:
            return total
        pads = self._ints("pads", [0, self.first - self.gone, 0, 0, 0, 0])
        one = self.work.constant(f"{self.stem}.single", np.asarray(1, kind.numpy))
        return self._add("Pad", "sizes", [total, pads, one])

    def _tokens(
        self, x: Tensor, weights: _Weights, moving: Tensor, staying: Tensor | None
    ) -> Tensor:
        """The prefix, first patches that stay, and means in the place of second ones."""
        first, second = self._halves(x, "patches", self.prefix, self.held)
        moved = self._add("GatherND", "moved", [first, moving], batch_dims=1)
        added = self._add("MatMul", "added", [weights.shares, moved])
        kept = self._add("Mul", "kept", [second, weights.own])
        parts = [self._add("Add", "means", [kept, added])]
        if staying is not None:
            parts.insert(0, self._add("GatherND", "stayed", [first, staying], batch_dims=1))
        if self.prefix:
            parts.insert(0, self._slice(x, "prefix", 0, self.prefix))
        return self._add("Concat", "merged", parts, axis=1) if len(parts) > 1 else parts[0]

    def _halves(self, x: Tensor, stem: str, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The 1st, 3rd, ... and the 2nd, 4th, ... row between two along axis 1."""
        first, second = (
            self._slice(x, f"{stem}_{name}", start + offset, end, 2)
            for offset, name in enumerate(("first", "second"))
        )
        return first, second

    def _slice(self, x: Tensor, stem: str, start: int, end: int, step: int = 1) -> Tensor:
        bounds = [
            self._ints(f"{stem}.{name}", [value])
            for name, value in (("start", start), ("end", end), ("axis", 1), ("step", step))
        ]
        return self._add("Slice", stem, [x, *bounds])

    def _reduce(
        self, op: str, stem: str, x: Tensor, axis: int, *, keepdims: int, always: bool
    ) -> Tensor:
        """`always`: the operator takes its axes as an input since opset 13, not 18."""
        if always or opset(self.work) >= _AXES_AS_INPUT_OPSET:
            return self._add(op, stem, [x, self._ints(f"{stem}_axis", [axis])], keepdims=keepdims)
        return self._add(op, stem, [x], axes=[axis], keepdims=keepdims)

    def _ints(self, stem: str, values: list[int]) -> Tensor:
        return int64(self.work, f"{self.stem}.{stem}", values)

    def _add(self, op: str, stem: str, inputs: list[Tensor], **attrs: Any) -> Tensor:
        return self.work.add(op, f"{self.stem}.{stem}", inputs, **attrs)


@dataclass(frozen=True)
class _Weights:
    """Shares in the means: of what merges, [B, second, gone], and of the second patches' own."""

    shares: Tensor
    own: Tensor


def key_bias(work: Work, size: Tensor, stem: str, prefix: int, dtype: Any) -> Tensor:
    """What is added to the logits of each key, [B, 1, 1, k]: the logarithm of its size."""
    log = work.add("Log", f"{stem}.log", [size])
    shaped = work.add("Transpose", f"{stem}.row", [log], perm=[0, 2, 1])
    if prefix:
        pads = int64(work, f"{stem}.pads", [0, 0, prefix, 0, 0, 0])
        zero = work.constant(f"{stem}.zero", np.asarray(0, dtype))
        shaped = work.add("Pad", f"{stem}.padded", [shaped, pads, zero])
    return work.add("Unsqueeze", f"{stem}.key_bias", [shaped, int64(work, f"{stem}.heads", [1])])
