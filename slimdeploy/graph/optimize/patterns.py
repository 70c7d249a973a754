"""Small questions about nodes and constants that several optimising passes ask."""

from __future__ import annotations

from typing import Any

import numpy as np

from slimdeploy.graph.files.external import Array
from slimdeploy.graph.work import Node, Tensor, Work, is_constant, producer

FLOATS = frozenset((np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)))


def scalar(tensor: Tensor) -> float | None:
    """The number that a float constant of one element holds, None for any other tensor."""
    if not is_constant(tensor) or int(np.prod(tensor.shape)) != 1 or not is_float(tensor):
        return None
    return float(np.ravel(tensor.values)[0])


def is_float(tensor: Tensor) -> bool:
    """Whether a constant holds floats that numpy can compute with."""
    try:
        return np.dtype(tensor.dtype) in FLOATS
    except TypeError:  # a type that numpy lacks, as bfloat16
        return False


def is_end(work: Work, tensor: Tensor) -> bool:
    """Whether the tensor is an output of the graph."""
    return any(tensor is output for output in work.graph.outputs)


def only_reader(work: Work, tensor: Tensor) -> Node | None:
    """The one node that reads `tensor`, and reads it once; None if there are more or none."""
    if len(tensor.outputs) != 1 or is_end(work, tensor):
        return None
    return tensor.outputs[0]


def operands(node: Node) -> tuple[Tensor, Tensor] | None:
    """The computed and the constant operand of a node with one of each, in this order."""
    if len(node.inputs) != 2:
        return None
    fixed = [is_constant(tensor) for tensor in node.inputs]
    if fixed == [False, True]:
        return node.inputs[0], node.inputs[1]
    return (node.inputs[1], node.inputs[0]) if fixed == [True, False] else None


def made_by(tensor: Tensor, *ops: str) -> Node | None:
    """The node that computes `tensor` if it is one of `ops`."""
    node = producer(tensor)
    return node if node is not None and node.op in ops else None


def is_product(node: Node | None) -> bool:
    """Whether the node multiplies rows by a stored matrix: MatMul(x, W) with W of rank 2."""
    if node is None or node.op != "MatMul":
        return False
    x, weight = node.inputs
    return is_constant(weight) and len(weight.shape) == 2 and not is_constant(x)


def is_vector(tensor: Tensor, width: int) -> bool:
    """Whether a constant holds one number for every feature: shape [width], perhaps behind 1s."""
    if not is_constant(tensor) or not is_float(tensor):
        return False
    shape = tuple(tensor.shape)
    return bool(shape) and shape[-1] == width and all(size == 1 for size in shape[:-1])


def bypass(work: Work, node: Node, source: Tensor) -> None:
    """Let `source` take the place of the node's only output; the node is dead afterwards."""
    target = node.outputs[0]
    node.outputs.clear()
    if is_end(work, target):
        keep_name(source, target)
        return
    for reader in list(target.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is target:
                reader.inputs[index] = source


def keep_name(source: Tensor, target: Tensor) -> None:
    """Let the node that computes `source` compute `target` instead, for all that read it."""
    maker = producer(source)
    if maker is None:
        raise ValueError(f"'{source.name}' is not computed: it cannot become '{target.name}'")
    place = next(i for i, output in enumerate(maker.outputs) if output is source)
    maker.outputs[place] = target
    for reader in list(source.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is source:
                reader.inputs[index] = target


def cast_like(values: Array, like: Any) -> Array:
    """Values computed in float32 or wider, in the precision of the constant they replace."""
    return np.asarray(values, dtype=np.dtype(like.dtype))


def wide(tensor: Tensor) -> Array:
    """A constant's values in at least float32, to compute with."""
    values = np.asarray(tensor.values)
    return values.astype(np.float32) if values.dtype == np.float16 else values
