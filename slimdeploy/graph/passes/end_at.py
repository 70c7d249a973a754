"""End the graph at one of its tensors."""

from __future__ import annotations

import onnx

from slimdeploy.errors import GraphError
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.work import Work

OUTPUT = "stream"


class EndAt(Pass):
    """Make the tensor called `tensor` the only output, and call it `stream`.

    Nodes and constants that only the old outputs needed go.

    Example (end at h):
        before: h = Relu(x); y = Gemm(h, w); outputs: y
        after:  stream = Relu(x);            outputs: stream
    """

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor

    def requires(self, work: Work) -> None:
        if self.tensor not in work.graph.tensors():
            raise GraphError(f"tensor '{self.tensor}', at which the graph is to end, is gone")

    def call(self, work: Work) -> None:
        tensors = work.graph.tensors()
        end = tensors[self.tensor]
        if (other := tensors.get(OUTPUT)) is not None and other is not end:
            other.name = work.fresh(OUTPUT)
        shape, kind = work.facts.shape(end.name), work.facts.types[end.name]
        end.name = OUTPUT
        end.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        batch = next((t.shape[0] for t in work.graph.inputs if t.shape), None)
        end.shape = [size if size >= 0 else batch if size == -1 else None for size in shape]
        work.graph.outputs = [end]
