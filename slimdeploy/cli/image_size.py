"""Of which size a file takes its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.errors import InputError

if TYPE_CHECKING:
    import onnx


def taken_size(model: onnx.ModelProto, path: Path) -> tuple[int, int, int]:
    """Of one image, in the order in which the model takes it.

    Raises:
        InputError: if the model does not take images of one size.
    """
    from slimdeploy.graph.shapes import runtime_inputs

    inputs = runtime_inputs(model)
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[1:]] if inputs else []
    if len(inputs) != 1 or len(dims) != 3 or not all(dims):
        raise InputError(f"{path}: takes no single image of a fixed size")
    return dims[0], dims[1], dims[2]


def channels_first(size: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same as channels, height, width."""
    from slimdeploy.graph.shapes import channels_last

    return (size[2], size[0], size[1]) if channels_last(size) else size
