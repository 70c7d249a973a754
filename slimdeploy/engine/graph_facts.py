"""What an ONNX file says that its engine is judged by: names of nodes, read without weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from slimdeploy.errors import InputError
from slimdeploy.graph.files.external import tensor_values, tensors
from slimdeploy.graph.files.storage import load_model
from slimdeploy.measure.onnx_file import load_structure

_KINDS = onnx.TensorProto
_FLOATS = (_KINDS.FLOAT, _KINDS.FLOAT16, _KINDS.BFLOAT16, _KINDS.DOUBLE)
_SELECTION = re.compile(r"\.(selected|run)(\.\d+)?$")


@dataclass(frozen=True)
class GraphFacts:
    """Names in a graph.

    Attributes:
        layer_norms: LayerNormalization nodes, in their order.
        ends: inputs and outputs.
    """

    layer_norms: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


def graph_facts(path: Path) -> GraphFacts:
    """Facts of the ONNX file at `path`.

    Raises:
        InputError: if it is no whole ONNX model, or weights beside it are missing.
    """
    graph = load_structure(path).graph
    norms = (node for node in graph.node if node.op_type == "LayerNormalization")
    ends = (value.name for value in (*graph.input, *graph.output))
    return GraphFacts(tuple(_name(node) for node in norms), tuple(ends))


def _name(node: onnx.NodeProto) -> str:
    """A node's name; TensorRT's parser calls a node without one after its first output."""
    return node.name or f"node_of_{node.output[0]}"


def is_selection(node: str) -> bool:
    """Whether a node of this name was written by the graph stage to drop tokens."""
    return bool(_SELECTION.search(node))


def check_weights(path: Path) -> None:
    """Refuse a model with a weight that is no number: builders do not, and its engine is useless.

    Raises:
        InputError: naming the tensor and how many of its values are NaN.
    """
    for tensor in tensors(load_model(path, limit=0)):
        if tensor.data_type in _FLOATS and (missing := np.isnan(tensor_values(tensor)).sum()):
            raise InputError(
                f"{path}: weight '{tensor.name}' holds NaN ({missing} values): its training or "
                "conversion failed; export it again from a sound checkpoint"
            )
