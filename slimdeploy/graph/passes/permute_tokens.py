"""Put the tokens in another order before block 1, so that what lives longest comes first."""

from __future__ import annotations

from slimdeploy.graph.anatomy.prefix import entering_stream
from slimdeploy.graph.axes import Ids
from slimdeploy.graph.options import Select
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.selection.emit import Pick, is_identity, select, select_constant
from slimdeploy.graph.selection.orders import Orders, plan
from slimdeploy.graph.tokens.blocks import find_blocks
from slimdeploy.graph.work import Tensor, Work, is_constant


class PermuteTokens(Pass):
    """Reorder the residual stream that enters block 1, and all that runs along it from there on.

    Position i of the stream then holds token `order[i]`. Tables along the tokens (rotary sines and
    cosines, relative position bias, masks) are reordered in the file, and single tokens are picked
    at their new places. What the graph computes is the same up to the order of sums.

    Example (order 0, 2, 1):
        before: q = MatMul(x, w); s = Mul(q, table); c = Gather<axis=1>(s, 2)
        after:  o = Gather<axis=1>(x, [0, 2, 1]); q = MatMul(o, w); s = Mul(q, table[0, 2, 1])
                c = Gather<axis=1>(s, 1)
    """

    def __init__(self, order: Ids, form: Select = "gather") -> None:
        self.order = order
        self.form = form

    def call(self, work: Work) -> None:
        if is_identity(self.order, len(self.order)):
            return
        first = find_blocks(work)[0][0]
        stream = entering_stream(work, first)
        planned = plan(work, stream, first.axis, self.order)  # refuses before anything is changed
        self._reorder_operands(work, planned)
        for node, index in planned.picks:
            node.inputs[1] = work.constant(f"{node.outputs[0].name}.index", index)
        readers = list(stream.outputs)
        ordered = self._taken(work, stream, stream.name, first.axis, self.order)
        for node in readers:
            node.inputs = [ordered if tensor is stream else tensor for tensor in node.inputs]

    def _reorder_operands(self, work: Work, planned: Orders) -> None:
        made: dict[tuple[str, int, Ids], Tensor] = {}
        for edge in planned.edges:
            tensor = edge.node.inputs[edge.index]
            key = (tensor.name, edge.axis, edge.local)
            if key not in made:
                made[key] = self._taken(work, tensor, edge.name, edge.axis, edge.local)
            edge.node.inputs[edge.index] = made[key]

    def _taken(self, work: Work, tensor: Tensor, name: str, axis: int, local: Ids) -> Tensor:
        if is_constant(tensor):
            return select_constant(work, tensor, axis, local)
        shape = work.facts.shape(name)
        pick = Pick(axis, local, len(local), len(shape), work.facts.types[name])
        return select(work, tensor, pick, self.form)
