"""Write the picks that a graph has of its own in the form that was asked for."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.axes import Ids
from slimdeploy.graph.options import Select
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.selection.emit import FLOAT_TYPES, Pick, is_identity, select
from slimdeploy.graph.selection.rewrite import become_identity
from slimdeploy.graph.work import Node, Tensor, Work, drop_identities, is_constant, node_error


class StaticPicks(Pass):
    """Replace every Gather of constant positions unless the form is `gather`.

    Exporters write a Gather for the head's class token, for Q, K and V out of one product, and in
    shape computations. One of a single position becomes a Slice and a Squeeze (a product and a
    Squeeze if `slices` is off), one of a list becomes what a selection of tokens is in that form;
    numbers that are no floats are always sliced. In every form, a Slice or Gather that hands on its
    input as it is goes. Embedding look-ups, whose positions are computed, stay, and so does, but
    for the form one-hot, a Gather that only puts positions in another order.

    Example (form slice):
        before: y = Gather<axis=1>(x, 0)
        after:  s = Slice(x, [0], [1], [1]); y = Squeeze(s, [1])
    """

    def __init__(self, form: Select, slices: bool = True) -> None:
        self.form = form
        self.slices = slices

    def call(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            if _picks_all(work, node):
                become_identity(node, node.inputs[0])
            elif self._is_due(work, node):
                become_identity(node, self._picked(work, node))
        drop_identities(work)

    def ensures(self, work: Work) -> None:
        """No pick is left that the form does not allow."""
        for node in work.graph.nodes:
            if self._is_due(work, node):
                raise node_error(node, f"was not written in the form {self.form}")

    def _is_due(self, work: Work, node: Node) -> bool:
        """Whether `node` picks constant positions, one or a list, of an axis that is no batch."""
        if self.form == "gather" or node.op != "Gather" or is_constant(node.inputs[0]):
            return False
        shape = work.facts.shape(node.inputs[0].name)
        size = shape[int(node.attrs.get("axis", 0)) % len(shape)]
        if size < 0 or not is_constant(node.inputs[1]) or node.inputs[1].values.ndim > 1:
            return False
        reorders = sorted(np.ravel(node.inputs[1].values) % size) == list(range(size))
        return self.form == "one-hot" or node.inputs[1].values.ndim == 0 or not reorders

    def _picked(self, work: Work, node: Node) -> Tensor:
        data, index = node.inputs[0], node.inputs[1].values
        shape = work.facts.shape(data.name)
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        local = tuple(int(i) % shape[axis] for i in np.ravel(index))
        pick = Pick(axis, local, shape[axis], len(shape), work.facts.types[data.name])
        kept = select(work, data, pick, self._form_of(pick, single=index.ndim == 0))
        if index.ndim:
            return kept
        axes = work.constant(f"{node.outputs[0].name}.axis", np.asarray([axis], np.int64))
        return work.add("Squeeze", f"{node.outputs[0].name}.squeezed", [kept, axes])

    def _form_of(self, pick: Pick, single: bool) -> Select:
        if pick.type not in FLOAT_TYPES or (single and self.slices):
            return "slice-concat"
        return self.form


def _picks_all(work: Work, node: Node) -> bool:
    """Whether a Slice or Gather hands on its input as it is."""
    if node.op not in ("Slice", "Gather"):
        return False
    shapes = work.facts.shapes
    before, after = shapes.get(node.inputs[0].name), shapes.get(node.outputs[0].name)
    return before is not None and before == after and _keeps_places(work, node)


def _keeps_places(work: Work, node: Node) -> bool:
    """Whether every output position of `node`, which keeps the shape, is the input's."""
    shape = work.facts.shape(node.inputs[0].name)
    if node.op == "Gather":
        size = shape[int(node.attrs.get("axis", 0)) % len(shape)]
        known = work.facts.values.get(node.inputs[1].name)
        if known is None or size < 0:  # of the batch, or chosen when it runs: any order
            return False
        local: Ids = tuple(int(i) for i in np.ravel(known))
        return is_identity(local, size)
    steps = work.facts.values.get(node.inputs[4].name) if len(node.inputs) > 4 else np.ones(1)
    return steps is not None and bool(np.all(steps == 1))
