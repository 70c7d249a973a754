"""Give images to a model whatever its batch size, number type and layout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from slimdeploy.engine import Engine, TensorInfo
from slimdeploy.engine.batching import infer_batched
from slimdeploy.errors import InputError
from slimdeploy.graph.shapes import runtime_inputs
from slimdeploy.measure.block_parity import Array


def noise(model: onnx.ModelProto, count: int, seed: int, batch: int) -> Iterator[Array]:
    """`count` seeded images of standard normal numbers for the model's only input, in batches.

    An image depends on the seed and its number alone, not on the batch size. What a network does
    to preprocessed photographs it does to these: they have about their mean and deviation.

    Raises:
        InputError: if the model has several inputs, or one whose size varies.
    """
    inputs = runtime_inputs(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise InputError(f"the model has the inputs {names}: only models of one input are compared")
    dims = inputs[0].type.tensor_type.shape.dim[1:]
    if not all(dim.dim_value for dim in dims):
        raise InputError(f"input '{inputs[0].name}' varies in size: only its first axis may")
    shape = [dim.dim_value for dim in dims]
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        images = [np.random.default_rng([seed, i]).standard_normal(shape) for i in numbers]
        yield np.stack(images).astype(np.float32)


def image_input(engine: Engine) -> TensorInfo:
    """The model's only input.

    Raises:
        InputError: if there are several, or its size varies in more than the batch.
    """
    if len(engine.inputs) != 1:
        names = ", ".join(info.name for info in engine.inputs)
        raise InputError(f"the model has the inputs {names}: only models of one input are compared")
    info = engine.inputs[0]
    if None in info.shape[1:]:
        raise InputError(f"input '{info.name}' takes {info}: only its first axis may vary")
    return info


def infer_all(engine: Engine, images: Array) -> dict[str, Array]:
    """Every output for all images, which are cast, transposed and batched as the model takes them.

    A model of a fixed batch size is run several times.

    Args:
        images: [n, C, H, W], or as the model takes them.

    Raises:
        InputError: if the model takes images of another size.
    """
    info = image_input(engine)
    fed = laid_out(images, info).astype(info.dtype, copy=False)
    return infer_batched(engine, {info.name: fed}, info.shape[0] or len(fed))


def laid_out(images: Array, wanted: TensorInfo) -> Array:
    """Images [n, C, H, W] with their channels last where the model wants them there.

    Raises:
        InputError: if the model takes images of another size.
    """
    given, shape = images.shape[1:], wanted.shape[1:]
    if given == shape:
        return images
    if len(given) == 3 and shape == (*given[1:], given[0]):
        return images.transpose(0, 2, 3, 1)
    sizes = " x ".join(map(str, given))
    raise InputError(f"input '{wanted.name}' takes {wanted}, the images are {sizes}")
