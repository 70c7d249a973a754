"""A file in half precision, inputs and outputs too, as users get it from a converter."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights, activations, input and output in half precision."""
    result: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=False)
    return result
