"""Write one batch size into the graph."""

from __future__ import annotations

from slimdeploy.errors import InputError
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Tensor, Work


class FixBatch(Pass):
    """Give the dynamic axis 0 of every input a size, and outputs the sizes that follow from it.

    Run first: shape computations that only carried the batch along then fold away, and so does the
    class token's Expand.

    Example (batch 2):
        before: x: [batch, 3, 224, 224]; y: [batch, 1000]
        after:  x: [2, 3, 224, 224];     y: [2, 1000]
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def call(self, work: Work) -> None:
        dynamic = [tensor for tensor in work.graph.inputs if _is_dynamic(tensor)]
        if not dynamic:
            self._check_fixed(work)
        for tensor in dynamic:
            tensor.shape = [self.batch, *tensor.shape[1:]]
        work.refresh()
        for tensor in work.graph.outputs:
            tensor.shape = list(work.facts.shape(tensor.name))

    def _check_fixed(self, work: Work) -> None:
        for tensor in work.graph.inputs:
            if tensor.shape and tensor.shape[0] != self.batch:
                raise InputError(
                    f"--fixed-batch {self.batch}: input '{tensor.name}' has the fixed batch "
                    f"{tensor.shape[0]} already; export the model with a dynamic batch"
                )


def _is_dynamic(tensor: Tensor) -> bool:
    return bool(tensor.shape) and not isinstance(tensor.shape[0], int)
