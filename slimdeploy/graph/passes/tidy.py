"""Drop what is dead and forget what is stale."""

from __future__ import annotations

from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Work


class Tidy(Pass):
    """Remove dead nodes and unused constants, order the nodes, clear the shapes of intermediates.

    A runtime refuses a graph whose recorded shapes contradict the inferred ones, so none that was
    recorded for the dense graph may survive. Inputs and outputs keep names, shapes and types.

    Example:
        before: value_info [h: batch x 197 x 192]; h is now batch x 162 x 192
        after:  value_info []; inferred anew when the model is exported
    """

    def call(self, work: Work) -> None:
        ends = [*work.graph.inputs, *work.graph.outputs]
        for node in work.graph.nodes:
            for tensor in node.outputs:
                if not any(tensor is end for end in ends):
                    tensor.shape = None
                    tensor.dtype = None
