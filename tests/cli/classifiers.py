"""A small dense ONNX classifier for the photographs of the tests, which are of two classes."""

from __future__ import annotations

import copy

import numpy as np
import onnx

from tests.graph.exports import export

HALF = ["0.5", "0.5", "0.5"]
PIXELS = ["--mean", *HALF, "--std", *HALF]


def two_classes() -> onnx.ModelProto:
    """A random ViT of 17 tokens and 3 blocks, of whose outputs the first two are given out."""
    model = copy.deepcopy(export("layerscale", "dynamo23", True))
    (output,) = model.graph.output
    name, output.name = output.name, "two"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1]), "first_two"))
    model.graph.node.append(onnx.helper.make_node("Gather", [name, "first_two"], ["two"], axis=1))
    output.type.tensor_type.shape.dim[1].dim_value = 2
    return model
