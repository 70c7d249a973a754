"""Rewrite single nodes so that they work on the tokens that a flow gives them.

Most operators need nothing but selected operands. The exceptions hold a token count or token
positions themselves; each has a function in `SPECIAL`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from slimdeploy.graph.axes import Ids, Link, Port, Shape
from slimdeploy.graph.options import Select
from slimdeploy.graph.reshapes import set_target
from slimdeploy.graph.selection.emit import Pick, is_identity, positions, select, select_constant
from slimdeploy.graph.tokens.blocks import all_ids
from slimdeploy.graph.tokens.flow import Flow
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, is_read, node_error


class Rewriter:
    """Rewrites the nodes of `work` one by one, in order.

    Tensors computed by nodes keep their names, so `flow`, which goes by the names of the dense
    graph, stays valid throughout. Equal selections of one tensor are made once, in `form`.
    """

    def __init__(self, work: Work, flow: Flow, form: Select = "gather") -> None:
        self.work = work
        self.flow = flow
        self.form = form
        self._made: dict[tuple[str, int, Ids], Tensor] = {}

    def rewrite(self, node: Node) -> None:
        """Make `node` read selected operands, and renew what it bakes in of their sizes."""
        SPECIAL.get(node.op, Rewriter.narrow_inputs)(self, node)

    def narrow_inputs(self, node: Node) -> None:
        """Give `node` exactly the ids it asks for, along every token axis of its operands."""
        for index, tensor in enumerate(node.inputs):
            node.inputs[index] = self.narrowed(node, index, tensor)

    def narrowed(
        self, node: Node, index: int, tensor: Tensor, leave: Collection[int] = ()
    ) -> Tensor:
        """Operand number `index` of `node` with the ids asked for, but for the axes to `leave`."""
        name = tensor.name
        for axis in sorted(self.flow.axes.get(name, set()).difference(leave)):
            ids = self.flow.asked.get((id(node), Port(index, axis)))
            if ids is not None:
                tensor = self.take(tensor, name, axis, ids)
        return tensor

    def take(self, tensor: Tensor, name: str, axis: int, ids: Sequence[int]) -> Tensor:
        """`tensor`, a form of the dense graph's tensor `name`, with `ids` along `axis`."""
        local = positions(ids, self.held(name, axis))
        if is_identity(local, len(self.held(name, axis))):
            return tensor
        key = (tensor.name, axis, local)
        if key not in self._made:
            self._made[key] = self._select(tensor, name, axis, local)
        return self._made[key]

    def _select(self, tensor: Tensor, name: str, axis: int, local: Ids) -> Tensor:
        if is_constant(tensor):
            return select_constant(self.work, tensor, axis, local)
        facts = self.work.facts
        rank, count = len(facts.shape(name)), len(self.held(name, axis))
        pick = Pick(axis, local, count, rank, facts.types[name])
        return select(self.work, tensor, pick, self.form)

    def dense(self, name: str, axis: int) -> Ids:
        """The ids along an axis of the dense graph's tensor."""
        return all_ids(self.work.facts.shape(name)[axis])

    def held(self, name: str, axis: int) -> Ids:
        """The ids that the tensor is computed for."""
        ids = self.flow.computed.get((name, axis))
        return self.dense(name, axis) if ids is None else ids

    def is_touched(self, node: Node, link: Link) -> bool:
        """Whether either end of `link` is a token axis on which something changes."""
        ends = (
            (node.inputs[link.input.operand].name, link.input.axis),
            (node.outputs[link.output.operand].name, link.output.axis),
        )
        return any(
            axis in self.flow.axes.get(name, ()) and self.held(name, axis) != self.dense(name, axis)
            for name, axis in ends
        )

    def shape(self, name: str) -> Shape:
        """The shape that tensor `name` is computed with."""
        shape = list(self.work.facts.shape(name))
        for axis in self.flow.axes.get(name, ()):
            shape[axis] = len(self.held(name, axis)) if shape[axis] >= 0 else shape[axis]
        return tuple(shape)

    def input_shape(self, node: Node, index: int) -> Shape:
        """The shape that `node` asks operand number `index` to have."""
        name = node.inputs[index].name
        shape = list(self.work.facts.shape(name))
        for axis in self.flow.axes.get(name, ()):
            shape[axis] = len(self.flow.asked[id(node), Port(index, axis)])
        return tuple(shape)


def _reshape(rewriter: Rewriter, node: Node) -> None:
    old, new = rewriter.input_shape(node, 0), rewriter.shape(node.outputs[0].name)
    rewriter.narrow_inputs(node)
    if new != rewriter.work.facts.shape(node.outputs[0].name):
        set_target(rewriter.work, node, old, new)


def _expand(rewriter: Rewriter, node: Node) -> None:
    old, new = rewriter.input_shape(node, 0), rewriter.shape(node.outputs[0].name)
    rewriter.narrow_inputs(node)
    if new == rewriter.work.facts.shape(node.outputs[0].name):
        return
    padded = (1,) * (len(new) - len(old)) + old
    target = [1 if a == b else b for a, b in zip(padded, new, strict=True)]
    if min(target) < 0:
        raise node_error(node, "stretches both the batch and an axis whose tokens are selected")
    stem = f"{node.outputs[0].name}.target"
    node.inputs[1] = rewriter.work.constant(stem, np.asarray(target, np.int64))


def _slice(rewriter: Rewriter, node: Node) -> None:
    """A sliced token axis becomes a selection; what else is sliced stays."""
    name, output = node.inputs[0].name, node.outputs[0].name
    sliced = [link for link in rewriter.work.relation(node).links if link.source is not None]
    moved = [link for link in sliced if rewriter.is_touched(node, link)]
    data = rewriter.narrowed(node, 0, node.inputs[0], {link.input.axis for link in sliced})
    for link in moved:
        ids = [link.position(j) for j in rewriter.held(output, link.output.axis)]
        data = rewriter.take(data, name, link.input.axis, ids)
    node.inputs[0] = data
    if moved:
        axes = {link.input.axis for link in moved}
        _drop_sliced_axes(rewriter.work, node, axes, len(rewriter.work.facts.shape(name)))


def _drop_sliced_axes(work: Work, node: Node, moved: set[int], rank: int) -> None:
    given = [work.facts.values[t.name] for t in node.inputs[1:] if t.name]
    columns = [[int(i) for i in np.ravel(values)] for values in given]
    starts, ends = columns[:2]
    axes = columns[2] if len(columns) > 2 else list(range(len(starts)))
    steps = columns[3] if len(columns) > 3 else [1] * len(starts)
    rows = [
        row for row in zip(starts, ends, axes, steps, strict=True) if row[2] % rank not in moved
    ]
    data = node.inputs[0]
    if not rows:
        become_identity(node, data)
        return
    stem = f"{node.outputs[0].name}.bound"
    bounds = [
        work.constant(stem, np.asarray(column, np.int64)) for column in zip(*rows, strict=True)
    ]
    node.inputs = [data, *bounds]


def become_identity(node: Node, data: Tensor) -> None:
    """Let `node` pass `data` on; `drop_identities` removes it, and its output keeps its name."""
    node.op = "Identity"
    node.attrs.clear()
    node.inputs = [data]


def _split(rewriter: Rewriter, node: Node) -> None:
    """A split token axis becomes one selection per output."""
    links = [link for link in rewriter.work.relation(node).links if link.source is not None]
    name, outputs = node.inputs[0].name, list(node.outputs)
    data = rewriter.narrowed(node, 0, node.inputs[0], {link.input.axis for link in links})
    if not any(rewriter.is_touched(node, link) for link in links):
        node.inputs[0] = data
        return
    node.outputs.clear()
    for link in links:
        output = outputs[link.output.operand]
        if not is_read(rewriter.work, output):
            continue
        ids = [link.position(j) for j in rewriter.held(output.name, link.output.axis)]
        part = rewriter.take(data, name, link.input.axis, ids)
        rewriter.work.graph.nodes.append(gs.Node("Identity", output.name, {}, [part], [output]))


def _gather(rewriter: Rewriter, node: Node) -> None:
    """A Gather along the token axis keeps picking the same tokens, from where they are now."""
    name = node.inputs[0].name
    axis = int(node.attrs.get("axis", 0)) % len(rewriter.work.facts.shape(name))
    indices = rewriter.work.facts.values.get(node.inputs[1].name)
    relation = rewriter.work.relation(node)
    if indices is None or axis not in rewriter.flow.axes.get(name, ()):
        rewriter.narrow_inputs(node)
        return
    node.inputs[0] = rewriter.narrowed(node, 0, node.inputs[0], {axis})
    wanted = np.mod(indices, len(rewriter.dense(name, axis)))
    for link in relation.of_input(Port(0, axis)):
        wanted = wanted[list(rewriter.held(node.outputs[0].name, link.output.axis))]
    local = positions([int(i) for i in np.ravel(wanted)], rewriter.held(name, axis))
    if wanted.ndim == 1 and is_identity(local, len(rewriter.held(name, axis))):
        become_identity(node, node.inputs[0])
        return
    values = np.asarray(local, np.int64).reshape(np.shape(wanted))
    node.inputs[1] = rewriter.work.constant(f"{node.outputs[0].name}.index", values)


def _concat(rewriter: Rewriter, node: Node) -> None:
    """Operands of which no token is asked for are left out."""
    along = int(node.attrs["axis"]) % len(rewriter.work.facts.shape(node.outputs[0].name))
    kept = []
    for index, tensor in enumerate(node.inputs):
        if rewriter.flow.asked.get((id(node), Port(index, along))) != ():
            kept.append(rewriter.narrowed(node, index, tensor))
    if len(kept) == 1:
        become_identity(node, kept[0])
    elif kept:  # with none left the node is dead
        node.inputs = kept


SPECIAL: dict[str, Callable[[Rewriter, Node], None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
}
