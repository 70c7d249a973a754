"""What the changes share: their registers, and small edits of a model."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

Model = onnx.ModelProto
Change = Callable[[Model, Random], Model]

DAMAGE: dict[str, Change] = {}
LEGAL: dict[str, Change] = {}


def damage(change: Change) -> Change:
    """Enter a change that may make a model invalid, or another function."""
    DAMAGE[change.__name__] = change
    return change


def legal(change: Change) -> Change:
    """Enter a change that keeps a model valid and the same function."""
    LEGAL[change.__name__] = change
    return change


def weights(model: Model) -> list[TensorProto]:
    """The stored tensors of floats that are no scalars."""
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]


def replace(tensor: TensorProto, values: Any) -> None:
    """Give a stored tensor other numbers, with their shape and type."""
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))


def inner(model: Model) -> list[str]:
    """Tensors that a node computes and another reads."""
    made = {name for node in model.graph.node for name in node.output}
    return sorted({name for node in model.graph.node for name in node.input} & made)


def behind(model: Model, name: str, node: onnx.NodeProto, output: str) -> Model:
    """Let all who read `name` read `output` of `node` instead."""
    for other in model.graph.node:
        for index, read in enumerate(other.input):
            if read == name:
                other.input[index] = output
    makers = [i for i, other in enumerate(model.graph.node) if name in other.output]
    model.graph.node.insert(makers[0] + 1 if makers else 0, node)
    return model


def with_nodes(model: Model, nodes: list[onnx.NodeProto]) -> Model:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model
