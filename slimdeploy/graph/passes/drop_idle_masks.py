"""Drop attention masks that hide nothing."""

from __future__ import annotations

import numpy as np

from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, replace_uses


class DropIdleMasks(Pass):
    """Remove the mask of an Attention, or what is added before a Softmax, where it changes nothing.

    Exporters write a mask for padding even if the model has none. It would have to be selected
    anew in every block: a constant of queries x keys each.

    Example:
        before: y = Attention(q, k, v, mask [1, 1, 197, 197] of True)
        after:  y = Attention(q, k, v)
    """

    def call(self, work: Work) -> None:
        for node in list(work.graph.nodes):
            if node.op == "Attention" and len(node.inputs) == 4 and _hides_nothing(node.inputs[3]):
                del node.inputs[3]
            elif node.op == "Add" and (scores := _scores_alone(work, node)) is not None:
                replace_uses(node.outputs[0], scores)


def _hides_nothing(mask: Tensor) -> bool:
    """Whether a constant mask is True, or adds 0, everywhere."""
    if not is_constant(mask):
        return False
    values = mask.values
    return bool(np.all(values) if values.dtype == np.bool_ else not np.any(values))


def _scores_alone(work: Work, node: Node) -> Tensor | None:
    """The scores to which `node` adds a mask that hides nothing; None if it is no such Add."""
    output = node.outputs[0]
    if not output.outputs or any(other.op != "Softmax" for other in output.outputs):
        return None
    for mask, scores in (node.inputs, node.inputs[::-1]):
        same = work.facts.shapes.get(scores.name) == work.facts.shapes.get(output.name, ())
        if same and not is_constant(scores) and _hides_nothing(mask):
            return scores
    return None
