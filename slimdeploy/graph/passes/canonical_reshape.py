"""Give every Reshape its own target that says only what it must."""

from __future__ import annotations

from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.reshapes import set_target
from slimdeploy.graph.work import Work, node_error


class CanonicalReshape(Pass):
    """Write each Reshape target as its own constant: 0 for a copied size, -1 for the batch.

    Exporters share one target among all blocks, write -1 for the batch with allowzero=1, or
    compute the target from the `Shape` of another tensor; each breaks when one use changes its
    token count.

    Example:
        before: y = Reshape<allowzero=1>(x, shared_target [-1, 197, 3, 3, 64])
        after:  y = Reshape(x, own_target [0, 0, 3, 3, 64])
    """

    def call(self, work: Work) -> None:
        for node in work.graph.nodes:
            if node.op == "Reshape":
                shapes = [work.facts.shape(t.name) for t in (node.inputs[0], node.outputs[0])]
                set_target(work, node, shapes[0], shapes[1])

    def ensures(self, work: Work) -> None:
        targets = [n.inputs[1].name for n in work.graph.nodes if n.op == "Reshape"]
        for node in work.graph.nodes:
            if node.op == "Reshape" and targets.count(node.inputs[1].name) > 1:
                raise node_error(node, "shares its target with another")
