"""Separate fused Q, K and V projections, so that Q can be computed for fewer tokens than K, V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from slimdeploy.graph.axes import Ids
from slimdeploy.graph.evaluate import evaluate
from slimdeploy.graph.files.external import Array
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.tokens.blocks import Block, find_blocks
from slimdeploy.graph.tokens.flow import Flow, trace
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, label, producer, replace_uses

_LAYOUT = ("Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze")
_PICKS = ("Slice", "Split", "Gather")


class SplitProjections(Pass):
    """Replace one product with weights [D, 3D] by three, where queries and keys differ in number.

    Which columns of the product reach Q, K and V is found by sending the numbers of all elements
    through the nodes in between, so any order of heads, parts and features is understood. With
    `everywhere` the products of all blocks are separated, whatever their tokens.

    Example:
        before: y = MatMul(x, W); r = Reshape(y, [0, 0, 3, 3, 64]); t = Transpose(r)
                q = Squeeze(Slice(t, 0, 1)); k = Squeeze(Slice(t, 1, 2)); v = ...
        after:  q = Transpose(Reshape(MatMul(x, Wq), [0, 0, 3, 64])); k = ...; v = ...
    """

    def __init__(
        self, keep: Sequence[Ids] | None, everywhere: bool = False, *, pool_kept: bool = False
    ) -> None:
        self.keep = keep
        self.everywhere = everywhere
        self.pool_kept = pool_kept

    def call(self, work: Work) -> None:
        blocks, _ = find_blocks(work)
        flow = None
        if not self.everywhere:
            flow = trace(work, blocks, self.keep, pool_kept=self.pool_kept)
        for number, block in enumerate(blocks, 1):
            if flow is None or _differ(flow, block):
                self._split(work, block, number)

    def _split(self, work: Work, block: Block, number: int) -> None:
        product = _shared_product(block)
        if product is None:
            return
        try:
            fused = _Fused.of(work, product)
            parts = [fused.part(work, end) for end in fused.ends]
        except _NotSplitError as reason:
            work.notes.append(f"block {number}: {label(product)} stays fused: {reason}")
            return
        for index, (end, part) in enumerate(zip(fused.ends, parts, strict=True)):
            replace_uses(end, fused.build(work, part, index))


def _differ(flow: Flow, block: Block) -> bool:
    """Whether the block computes its queries for other tokens than its keys."""
    tensors = (block.query, block.key)
    ids = [{flow.computed.get((t.name, a)) for a in flow.axes.get(t.name, ())} for t in tensors]
    return ids[0] != ids[1]


def _shared_product(block: Block) -> Node | None:
    """The product with constant weights that all three operands come from, if there is one."""
    products = [_product_before(tensor) for tensor in (block.query, block.key, block.value)]
    same = all(product is products[0] for product in products)
    return products[0] if same else None


def _product_before(tensor: Tensor) -> Node | None:
    while (node := producer(tensor)) is not None:
        computed = [operand for operand in node.inputs if not is_constant(operand)]
        if node.op in ("MatMul", "Gemm") and computed == [node.inputs[0]]:
            return node
        if len(computed) != 1:
            return None
        tensor = computed[0]
    return None


class _NotSplitError(Exception):
    """Why a product cannot be split."""


@dataclass(frozen=True)
class _Part:
    """The columns of the product that one end tensor consists of, and how it is laid out."""

    columns: Array
    split: tuple[int, ...]  # the sizes of the axes that the columns are spread over
    perm: tuple[int, ...]


@dataclass(frozen=True)
class _Fused:
    """A product, the constants added to it, and the tensors in which its columns part ways."""

    product: Node
    biases: list[Node]
    trunk: list[Node]
    ends: list[Tensor]
    branches: list[list[Node]]
    rows: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, work: Work, product: Node) -> _Fused:
        """Follow the product to where it fans out, and each branch past its pick."""
        tensor = product.outputs[0]
        biases: list[Node] = []
        trunk: list[Node] = []
        while len(tensor.outputs) == 1 and tensor.outputs[0].op not in _PICKS:
            node = tensor.outputs[0]
            if node.op == "Add" and not trunk and any(is_constant(t) for t in node.inputs):
                biases.append(node)
            elif node.op in ("Reshape", "Transpose", "Squeeze", "Unsqueeze"):
                trunk.append(node)
            else:
                raise _NotSplitError(f"{label(node)} works on all of it")
            tensor = node.outputs[0]
        branches, ends = [], []
        for node in tensor.outputs:
            for output in node.outputs:
                branch, end = _branch(node, output)
                branches.append(branch)
                ends.append(end)
        shape = work.facts.shape(product.outputs[0].name)
        return cls(product, biases, trunk, ends, branches, shape[:-1], shape[-1])

    def part(self, work: Work, end: Tensor) -> _Part:
        """Find which columns reach `end`, and by which permutation."""
        rows = tuple(2 * -size if size < 0 else size for size in self.rows)
        numbers = np.arange(int(np.prod(rows)) * self.width).reshape(*rows, self.width)
        index = next(i for i, other in enumerate(self.ends) if other is end)
        found = _send(work, numbers, self.trunk + self.branches[index], end)
        strides = [int(np.prod(rows[i + 1 :])) * self.width for i in range(len(rows))]
        places = _places(found, rows, strides, self.width)
        spread = [axis for axis, place in enumerate(places) if place < 0]
        columns = found[tuple(slice(None) if p < 0 else 0 for p in places)]
        if columns.max() >= self.width:
            raise _NotSplitError("an axis behind it runs over images and columns alike")
        split = tuple(found.shape[axis] for axis in spread)
        perm = tuple(
            len(rows) + spread.index(axis) if place < 0 else place
            for axis, place in enumerate(places)
        )
        laid_out = numbers[..., columns.ravel()].reshape(*rows, *split)
        if sorted(perm) != list(range(len(perm))) or not np.array_equal(
            laid_out.transpose(perm), found
        ):
            raise _NotSplitError(f"tensor '{end.name}' mixes rows and columns of it")
        return _Part(columns.ravel(), split, perm)

    def build(self, work: Work, part: _Part, index: int) -> Tensor:
        """Nodes that compute one part alone; returns the tensor that replaces its end."""
        stem = f"{self.product.name or self.product.outputs[0].name}.part{index}"
        inputs = list(self.product.inputs)
        along = 0 if self.product.attrs.get("transB") else 1
        inputs[1] = _columns(work, inputs[1], part.columns, along, self.width)
        inputs[2:] = [_columns(work, t, part.columns, -1, self.width) for t in inputs[2:]]
        tensor = work.add(self.product.op, stem, inputs, **self.product.attrs)
        for bias in self.biases:
            constant = next(t for t in bias.inputs if is_constant(t))
            added = _columns(work, constant, part.columns, -1, self.width)
            tensor = work.add("Add", f"{stem}.bias", [tensor, added])
        if len(part.split) > 1:
            target = [*(0 for _ in self.rows), *part.split]
            shape = work.constant(f"{stem}.target", np.asarray(target, np.int64))
            tensor = work.add("Reshape", f"{stem}.heads", [tensor, shape])
        if part.perm != tuple(range(len(part.perm))):
            tensor = work.add("Transpose", f"{stem}.by_head", [tensor], perm=list(part.perm))
        return tensor


def _branch(node: Node, output: Tensor) -> tuple[list[Node], Tensor]:
    """The nodes from a fan-out past the pick of one part, and the tensor that they end in."""
    branch = [node]
    while True:
        following = output.outputs
        picked = any(other.op in _PICKS for other in branch)
        allowed = ("Squeeze",) if picked else _LAYOUT
        if len(following) != 1 or following[0].op not in allowed:
            break
        branch.append(following[0])
        output = following[0].outputs[0]
    if not picked:
        raise _NotSplitError(f"{label(branch[-1])} does not pick a part of it")
    return branch, output


def _send(work: Work, numbers: Array, nodes: list[Node], end: Tensor) -> Array:
    """Run layout nodes on the numbers of the product's elements."""
    known: dict[str, Array] = {nodes[0].inputs[0].name: numbers}
    for node in nodes:
        known.update(
            {t.name: work.facts.values[t.name] for t in node.inputs if t.name in work.facts.values}
        )
        inputs, outs = ([t.name for t in tensors] for tensors in (node.inputs, node.outputs))
        proto = onnx.helper.make_node(node.op, inputs, outs, **node.attrs)
        outputs = evaluate(proto, known, {"": work.graph.opset})
        if outputs is None:
            raise _NotSplitError(f"{label(node)} depends on the input")
        known.update(zip(outs, outputs, strict=True))
    return known[end.name]


def _places(found: Array, rows: Sequence[int], strides: Sequence[int], width: int) -> list[int]:
    """For each axis of `found` the row axis it runs along, -1 if it runs over columns."""
    places: list[int] = []
    for axis, size in enumerate(found.shape):
        along = found[tuple(slice(None) if a == axis else 0 for a in range(found.ndim))]
        step = int(along[1] - along[0]) if size > 1 else 0
        row = [i for i, stride in enumerate(strides) if stride == step and rows[i] == size]
        places.append(row[0] if row and step >= width else -1)
    single = [i for i, size in enumerate(rows) if size == 1 and i not in places]
    for axis, size in enumerate(found.shape):
        if size == 1 and places[axis] < 0 and single:
            places[axis] = single.pop(0)
    return places


def _columns(work: Work, constant: Tensor, columns: Array, axis: int, width: int) -> Tensor:
    values = constant.values
    if values.ndim and values.shape[axis] == width:
        values = np.take(values, columns, axis)
    return work.constant(f"{constant.name}.part", values)
